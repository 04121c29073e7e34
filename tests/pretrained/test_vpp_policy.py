"""VPP as a policy: what it stores, what it refuses, and both stages of its imitation through the one loop."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

pytest.importorskip("diffusers")

from envs.build import build
from envs.types import EnvSpec
from pretrained import checkpoint
from pretrained.demos import Demos, DemoWriter, Recorded
from pretrained.imitate import ImitateRun, imitate
from pretrained.stages import staged
from pretrained.types import DemoBatch, ObsBatch
from pretrained.vpp import preview
from pretrained.vpp.policy import Vpp
from pretrained.vpp.towers import load_video

SPEC = EnvSpec(
    env_id="toy/vpp",
    cameras={"static": (16, 16), "wrist": (12, 12)},
    proprio={"x": "m", "y": "m"},
    actions=("dx", "dy", "grip"),
    low=(-1.0, -1.0, -1.0),
    high=(1.0, 1.0, 1.0),
    control_hz=10.0,
    max_steps=20,
    tasks=("red",),
    action_convention="toy_velocity",
)
VIDEO = {"_target_": "pretrained.vpp.video.VideoModel", "model": "tiny", "text": "tiny", "frames": 3, "size": [16, 16]}
NODE = {
    "_target_": "pretrained.vpp.policy.Vpp",
    "video": VIDEO,
    "former": {"latents": 6, "width": 16, "depth": 1, "heads": 2, "head_width": 8},
    "kernel": {"_target_": "pretrained.chain.Edm", "steps": 3, "sigma_min": 1.0, "sigma_max": 80.0,
               "spacing": "exponential", "density": "log_logistic"},
    "horizon": 4, "width": 32, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "critic_width": 16,
    "binary": [2],
}  # fmt: skip


def make(**options: Any) -> Vpp:
    torch.manual_seed(0)
    return build({**NODE, **options}, env=SPEC).eval()


def observe(n: int = 3, seed: int = 0) -> ObsBatch:
    rng = np.random.default_rng(seed)
    images = {c: rng.integers(0, 256, (n, 1, *s, 3), dtype=np.uint8) for c, s in SPEC.cameras.items()}
    return ObsBatch(images, rng.normal(size=(n, 1, 2)).astype(np.float32), ["push", "pull", "lift"][:n])


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = np.random.default_rng(0)
    writer = DemoWriter(tmp_path_factory.mktemp("demos") / "a.hdf5", env=SPEC, identity={})
    for k in range(3):
        images = {c: rng.integers(0, 255, size=(7, *s, 3), dtype=np.uint8) for c, s in SPEC.cameras.items()}
        proprio = rng.uniform(-1, 1, size=(7, 2)).astype(np.float32)
        actions = np.concatenate([-0.5 * proprio, np.sign(proprio[:, :1])], 1).astype(np.float64)
        writer.add(k, Recorded(images, proprio, actions, actions, np.zeros(7), np.zeros((7, 1)), "go", "red", k, True))
    return str(writer.finish(range(3), {}))


def settings(demos: str, out: Path, **options: Any) -> ImitateRun:
    base: dict[str, Any] = {"steps": 3, "batch_size": 4, "warmup": 1, "save_every": 3, "log_every": 1, "quiet": True,
                            "threads": 1, "device": "cpu", "lr": 1e-2, "val_fraction": 0.0, "ema": 0.0}  # fmt: skip
    return ImitateRun(**{"policy": NODE, "demos": demos, "out": str(out), **base, **options})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- without foresight ---

PLAIN = {"_target_": "pretrained.vpp.plain.Patches", "text": "tiny", "size": [16, 16], "patch": 4, "frames": 3}


def test_patches_take_the_place_of_the_video_model_and_of_nothing_else() -> None:
    plain, full = make(video=PLAIN), make()
    x, y = plain.encode(observe()), full.encode(observe())
    assert {k: (v.shape, v.dtype) for k, v in x.items()} == {k: (v.shape, v.dtype) for k, v in y.items()}
    assert torch.equal(x["goal"], y["goal"])
    weights = [{n: tuple(p.shape) for n, p in m.named_parameters()} for m in (plain, full)]
    assert {n for n in weights[0] if weights[0][n] != weights[1].get(n)} == {"encoder.former.project.0.weight"}
    assert weights[0].keys() == weights[1].keys()
    decision, _ = plain.act(x, {}, generator(), greedy=True)
    assert decision.chunk.shape == (3, 4, 3)


def test_patches_know_their_place_and_their_picture() -> None:
    plain = make(video=PLAIN).encoder.video
    image = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    image[0, 4:8, 8:12] = 255
    patches = plain.patches(image)
    assert patches.shape == (1, 16, plain.channels)
    white = patches[0, :, :48].mean(1)
    assert white.argmax() == 1 * 4 + 2
    assert white.tolist() == [1.0 if i == 6 else -1.0 for i in range(16)]
    assert len(torch.unique(patches[0, :, 48:], dim=0)) == 16
    maps, _ = plain.foresee({"a": image, "b": image}, ["go"], torch.zeros(1))
    assert maps.shape == (1, 3, 32, plain.channels)
    assert plain.patches(torch.zeros(2, 12, 12, 3, dtype=torch.uint8)).shape == (2, 16, plain.channels)


def test_patches_that_do_not_fill_the_picture_are_refused() -> None:
    with pytest.raises(ValueError, match=r"patch = 5 and frames = 3: expected patches that divide size \[16, 16\]"):
        make(video={**PLAIN, "patch": 5})


# --- features ---


def test_features_are_half_precision_tokens_with_their_seed() -> None:
    policy = make(seed=7)
    x, again = policy.encode(observe()), policy.encode(observe())
    assert {k: (tuple(v.shape), v.dtype) for k, v in x.items()} == {
        "tokens": ((3, 6, 16), torch.float16),
        "goal": ((3, 16), torch.float32),
        "proprio": ((3, 2), torch.float32),
        "seed": ((3,), torch.int64),
    }
    assert x["seed"].tolist() == [7, 7, 7]
    assert all(torch.equal(x[k], again[k]) for k in x)
    assert not torch.equal(make(seed=8).encode(observe())["tokens"], x["tokens"])
    small = make(seed=7, rows_per_pass=1).encode(observe())
    assert torch.allclose(small["tokens"].float(), x["tokens"].float(), atol=5e-3)


def test_published_features_fit_in_memory() -> None:
    """At the published size a decision stores 224 tokens of 384 entries in half precision and the goal: 0.17 MB."""
    with open(Path(__file__).parents[2] / "configs" / "policy" / "vpp.yaml") as file:
        former = yaml.safe_load(file)["former"]
    assert (former["latents"], former["width"]) == (224, 384)
    assert former["latents"] * former["width"] * 2 + 512 * 4 < 0.18e6


def test_fresh_noise_is_stored_too_and_can_be_drawn_again() -> None:
    policy = make(switches={"noise": "fresh"}, half_features=False)
    obs = observe()
    x, y = policy.encode(obs), policy.encode(obs)
    assert len(set(x["seed"].tolist() + y["seed"].tolist())) == 6
    assert not torch.allclose(x["tokens"], y["tokens"], atol=1e-4)
    video, former = policy.encoder.video, policy.encoder.former
    images = {c: torch.as_tensor(v)[:, 0] for c, v in obs.images.items()}
    with torch.no_grad():
        tokens = former(video.foresee(images, obs.texts, x["seed"])[0])
    assert torch.equal(tokens, x["tokens"])


def test_features_without_a_seed_are_refused() -> None:
    policy = make()
    x = policy.encode(observe())
    decision, _ = policy.act(x, {}, generator())
    stored = {k: v[:, None] for k, v in x.items() if k != "seed"}
    with pytest.raises(ValueError, match="stored features hold no 'seed'.*encode the observations anew"):
        policy.evaluate(stored, decision.trace[:, None], torch.ones(3, 1, dtype=torch.bool), {})
    with pytest.raises(ValueError, match="hold no 'seed'"):
        policy.act({k: v for k, v in x.items() if k != "seed"}, {}, generator())


def test_features_of_another_former_are_refused() -> None:
    policy = make()
    x = policy.encode(observe())
    with pytest.raises(ValueError, match=r"are \[3, 16\] tokens, expected \[6, 16\].*another Video Former"):
        policy.act({**x, "tokens": x["tokens"][:, :3]}, {}, generator())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": {"static": np.zeros((3, 1, 16, 16, 3), np.uint8)}}, "camera 'wrist' is missing"),
        (
            {"images": {"static": np.zeros((3, 1, 8, 8, 3), np.uint8)}},
            r"camera 'static': expected uint8 \(3, 1, 16, 16",
        ),
        ({"proprio": np.zeros((3, 1, 5), np.float32)}, "proprioception has shape"),
        ({"proprio": np.full((3, 1, 2), np.nan, np.float32)}, "proprioception 'x' of row 0 is not finite"),
    ],
)
def test_observations_that_do_not_fit_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make().encode(dataclasses.replace(observe(), **change))


def test_impossible_policies_are_refused() -> None:
    with pytest.raises(ValueError, match="cameras \\['top'\\] are not in toy/vpp"):
        make(cameras=["top"])
    with pytest.raises(ValueError, match="1 <= execute <= horizon"):
        make(execute=5)
    with pytest.raises(ValueError, match="continuous"):
        build(NODE, env=dataclasses.replace(SPEC, num_actions=3, actions=("move",), low=(0.0,), high=(2.0,)))


def test_head_sees_proprioception_only_if_asked() -> None:
    for proprio in (False, True):
        policy = make(proprio=proprio)
        x = policy.encode(observe())
        a, b = (policy.act({**x, "proprio": x["proprio"] + d}, {}, generator(), True)[0] for d in (0.0, 1.0))
        assert torch.equal(a.trace, b.trace) != proprio
        assert not torch.equal(a.value, b.value)


def test_dropout_is_for_imitation_alone() -> None:
    policy = make().train()
    x = policy.encode(observe())
    assert torch.equal(policy.act(x, {}, generator())[0].trace, policy.act(x, {}, generator())[0].trace)
    actions, pad = torch.zeros(3, 4, 3), torch.zeros(3, 4, dtype=torch.bool)
    losses = {policy.imitation_loss_of(x, actions, pad, generator())[0].item() for _ in range(2)}
    assert len(losses) == 2
    still = policy.eval()
    assert len({still.imitation_loss_of(x, actions, pad, generator())[0].item() for _ in range(2)}) == 1


@pytest.mark.parametrize("noise", ["ancestral", "learned"])
def test_chain_is_scored_as_it_was_drawn_and_its_noise_learns(noise: str) -> None:
    policy = make(kernel={**NODE["kernel"], "noise": noise})
    for p in policy.parameters():
        if p.requires_grad and not p.any():
            torch.nn.init.normal_(p, std=0.1)
    x, y = policy.encode(observe()), policy.encode(observe(seed=1))
    first, second = (policy.act(f, {}, generator())[0] for f in (x, y))
    assert first.active.all()
    trace = torch.stack([first.trace, second.trace], 1)
    starts = torch.ones(3, 2, dtype=torch.bool)
    scores = policy.evaluate({k: torch.stack([x[k], y[k]], 1) for k in x}, trace, starts, {})
    assert torch.allclose(scores.log_prob, torch.stack([first.log_prob, second.log_prob], 1), atol=1e-5)
    scores.log_prob.sum().backward()
    assert (policy.noise is not None) == (noise == "learned")
    if policy.noise is not None:
        assert all(p.grad is not None and p.grad.any() for p in policy.noise.parameters())
    greedy = [policy.act(x, {}, generator(), greedy=True)[0].trace for _ in range(2)]
    assert torch.equal(*greedy)
    assert not torch.allclose(greedy[0][:, 1:], first.trace[:, 1:], atol=1e-2)


# --- imitation ---


def test_former_and_head_learn_together(demos: str, tmp_path: Path) -> None:
    last = imitate(settings(demos, tmp_path / "run"))
    start, learnt = make(), checkpoint.load_policy(last, env=SPEC)
    assert isinstance(learnt, Vpp)
    before, after = start.state_dict(), learnt.state_dict()
    moved = {k.split(".")[1] if k.startswith("encoder") else k.split(".")[0] for k in after
             if not torch.equal(before[k], after[k])}  # fmt: skip
    assert {"former", "actor"} <= moved
    assert not any(p.requires_grad for p in learnt.encoder.parameters())  # fine-tuning leaves the Former alone
    assert "tokens" in learnt.encode(observe())
    assert not any("video" in k for k in after)  # the video model stays where it is


def test_maps_may_be_kept_in_memory(demos: str, tmp_path: Path) -> None:
    a = imitate(settings(demos, tmp_path / "a", policy={**NODE, "half_features": False, "rows_per_pass": 1}))
    kept = {**NODE, "half_features": False, "rows_per_pass": 1, "keep_maps": True}
    b = imitate(settings(demos, tmp_path / "b", policy=kept))
    one, two = (load_file(folder / "policy.safetensors") for folder in (a, b))
    assert all(torch.allclose(one[k], two[k], atol=1e-4) for k in one)


def test_former_may_stay_as_it_is(demos: str, tmp_path: Path) -> None:
    last = imitate(settings(demos, tmp_path / "run", policy={**NODE, "train_former": False}))
    torch.manual_seed(0)
    weights = load_file(last / "policy.safetensors")
    fresh = build({**NODE, "train_former": False}, env=SPEC).state_dict()
    former = [k for k in fresh if k.startswith("encoder.former.")]
    assert former
    assert all(torch.equal(weights[k], fresh[k]) for k in former)


# --- the video stage ---


def test_video_stage_trains_the_unet_and_gives_a_video_model(demos: str, tmp_path: Path) -> None:
    last = imitate(settings(demos, tmp_path / "video", stage="video", steps=2, batch_size=2, lr=1e-3))
    before, after = load_video("tiny").unet.state_dict(), load_video(str(tmp_path / "video")).unet.state_dict()
    assert sum(not torch.equal(before[k], after[k]) for k in before) > 0.9 * len(before)
    stored = load_file(last / "policy.safetensors")
    assert all(torch.equal(stored[f"video.unet.{k}"], v) for k, v in after.items())
    own = make(video={**VIDEO, "model": str(tmp_path / "video")})
    assert not torch.allclose(own.encode(observe())["tokens"].float(), make().encode(observe())["tokens"].float())
    action = imitate(settings(demos, tmp_path / "action", steps=1, policy={**NODE, "train_former": False}))
    with pytest.raises(ValueError, match="is a checkpoint of a policy; as video model it takes one of pretrain stage"):
        load_video(str(action))


def test_video_loss_of_one_batch_falls() -> None:
    torch.manual_seed(0)
    stage = build({"_target_": "pretrained.vpp.stage.VideoStage", "video": VIDEO, "drop_text": 0.0}, env=SPEC)
    rng = np.random.default_rng(0)
    still = rng.integers(0, 255, size=(2, 1, 16, 16, 3), dtype=np.uint8)
    images = {c: np.repeat(still[:, :, : s[0], : s[1]], stage.spec.history, 1) for c, s in SPEC.cameras.items()}
    obs = ObsBatch(images, np.zeros((2, stage.spec.history, 2), np.float32), ["push", "pull"])
    demo = DemoBatch(obs, torch.zeros(2, 1, 3), torch.zeros(2, 1, dtype=torch.bool))
    optimizer = torch.optim.Adam(stage.parameters(), lr=2e-3)
    losses = []
    for _ in range(15):
        loss, metrics = stage.imitation_loss(demo, generator())
        assert metrics["video_loss"] == pytest.approx(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]


def test_stage_takes_cameras_by_their_shares_and_every_other_frame() -> None:
    node = {"_target_": "pretrained.vpp.stage.VideoStage", "video": VIDEO}
    stage = build(node, env=SPEC)
    assert stage.spec.history == 5
    assert stage.shares.tolist() == [0.75, 0.25]
    with pytest.raises(ValueError, match=r"shares \[1.0\]: expected a positive number for each camera"):
        build({**node, "shares": [1.0]}, env=SPEC)
    with pytest.raises(ValueError, match="stride >= 1"):
        build({**node, "stride": 0}, env=SPEC)


def test_windows_of_a_clip_look_ahead(demos: str) -> None:
    ahead = Demos(demos, env=SPEC, horizon=1, history=4, ahead=True)
    plain = Demos(demos, env=SPEC, horizon=1, history=1)
    clip = np.asarray(ahead.batch([5]).obs.images["static"])[0]
    frames = [np.asarray(plain.batch([i]).obs.images["static"])[0, 0] for i in (5, 6, 6, 6)]  # episodes have 7 steps
    assert np.array_equal(clip, np.stack(frames))


def test_unknown_stages_are_refused(demos: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stage 'vedio': pretrained.vpp.policy.Vpp has video"):
        imitate(settings(demos, tmp_path, stage="vedio"))
    with pytest.raises(ValueError, match="ChunkPolicy has no stages"):
        staged({"_target_": "pretrained.chunk_policy.ChunkPolicy"}, "video")
    assert staged(NODE, "") is NODE


def test_preview_is_a_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.fromarray(observe().images["static"][0, 0]).save(tmp_path / "view.png")
    words = ["--model", "tiny", "--text", "tiny", "--instruction", "push", "--frames", "3", "--size", "16",
             "--steps", "2", "--out", str(tmp_path / "out.mp4")]  # fmt: skip
    assert preview.main([*words, "--image", str(tmp_path / "view.png")]) == 0
    assert Path(capsys.readouterr().out.strip()).stat().st_size > 500
    with pytest.raises(SystemExit):
        preview.main([*words, "--image", str(tmp_path / "none.png")])
    assert "none.png' does not exist" in capsys.readouterr().err
