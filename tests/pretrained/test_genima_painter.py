"""The diffusion agent: it learns to draw, paints as diffusers' own pipeline does, and serves as a proposal."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers IS NOT INSTALLED; run `make setup`")

from envs.types import EnvSpec
from pretrained.checkpoint import load_policy, save
from pretrained.genima.painter import TargetPainter, diffusion_stage, find_controlnet, prompt
from pretrained.genima.render import TARGET
from pretrained.types import DemoBatch, ObsBatch
from rl.proposals.target_image import TargetImage
from tests.pretrained.test_policy_laws import make

VIEWS = ("front", "hand")
NAME = "tile(front,hand)"


def spec(size: tuple[int, int] = (16, 32), name: str = NAME) -> EnvSpec:
    return EnvSpec(
        env_id="fake/tiles", cameras={name: size, TARGET: size}, proprio={"x": "m"}, actions=("a",), low=(-1.0,),
        high=(1.0,), control_hz=20.0, max_steps=20, tasks=("t",), action_convention="fake",
    )  # fmt: skip


def painter(model: str = "tiny", **options: Any) -> TargetPainter:
    torch.manual_seed(0)
    return TargetPainter(env=spec(), model=model, **{"augment": (), **options})


def lesson(n: int = 8, seed: int = 0) -> DemoBatch:
    """A grey scene with a white dot; in the target it is red, and a green bar has come."""
    rng = np.random.default_rng(seed)
    seen = np.full((n, 1, 16, 32, 3), 90, dtype=np.uint8)
    target = seen.copy()
    for i in range(n):
        y, x = rng.integers(2, 12), rng.integers(2, 28)
        seen[i, 0, y : y + 3, x : x + 3] = 255
        target[i, 0, y : y + 3, x : x + 3] = (200, 20, 20)
        target[i, 0, :, 0] = (20, 200, 20)
    obs = ObsBatch({NAME: seen, TARGET: target}, np.zeros((n, 1, 1), np.float32), ["go"] * n)
    return DemoBatch(obs, torch.zeros(n, 1, 1), torch.zeros(n, 1, dtype=torch.bool))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Stable Diffusion in diffusers' layout, with a VAE."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from tests.genima_parts import tiny_clip

    out = tmp_path_factory.mktemp("sd")
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=8, layers_per_block=1, norm_num_groups=8, block_out_channels=(16, 32), cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    ).save_pretrained(out / "unet")  # fmt: skip
    AutoencoderKL(
        block_out_channels=(8, 8, 16, 16), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(out / "vae")  # fmt: skip
    CLIPTextModel(CLIPTextConfig(vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                 num_attention_heads=2, bos_token_id=298, eos_token_id=299)
                  ).save_pretrained(out / "text_encoder")  # fmt: skip
    EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
                           timestep_spacing="trailing").save_pretrained(out / "scheduler")  # fmt: skip
    clip = tiny_clip(tmp_path_factory.mktemp("clip"))
    CLIPTokenizer(str(clip / "vocab.json"), str(clip / "merges.txt"), model_max_length=77).save_pretrained(
        out / "tokenizer"
    )
    return out


def test_prompts() -> None:
    assert prompt("open the door") == "tiled perspectives of a robot arm executing 'open the door'"
    assert prompt("x", "front") == "a robot arm executing 'x' from front perspective"
    model = painter()
    one, two = model.embed(["open the door", "close it"])
    assert not torch.equal(one, two)
    for shown in (True, False):
        model, losses = painter(goal_in_prompt=shown), []
        for goal in ("go", "stop and turn"):
            demo = lesson()
            demo.obs.texts = [goal] * 8
            losses.append(model.imitation_loss(demo, torch.Generator().manual_seed(0))[0].item())
        assert (losses[0] != losses[1]) == shown


@pytest.mark.slow
def test_tiny_learns_to_draw() -> None:
    """On tiles that it has not seen: much nearer to the target than the scene is."""
    model = painter()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / 300)
        loss, _ = model.imitation_loss(lesson(16, seed=step), torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held = lesson(8, seed=10_000)
    seen, target = (torch.as_tensor(held.obs.images[k])[:, 0].float() for k in (NAME, TARGET))
    painted = model.eval().paint(seen.byte(), held.obs.texts, torch.Generator().manual_seed(0), steps=1).float()
    changed = (seen != target).any(-1)
    before, after = ((p - target)[changed].abs().mean() for p in (seen, painted))
    assert after < 0.4 * before, (before, after)
    assert (painted - target)[~changed].abs().mean() < 12


def test_levels_of_noise_that_are_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(times: tuple[int, ...]) -> list[int]:
        model, seen = painter(times=times), []
        add = model._base.noise.add_noise
        monkeypatch.setattr(model._base.noise, "add_noise", lambda x, n, t: seen.extend(t.tolist()) or add(x, n, t))
        model.imitation_loss(lesson(16), torch.Generator().manual_seed(0))
        return seen

    assert len(set(trained(()))) > 8
    assert set(trained((0, 999))) == {0, 999}
    with pytest.raises(ValueError, match=r"painter.times has \[1000\]"):
        painter(times=(3, 1000))


def test_gradients_reach_what_is_trained_alone(folder: Path) -> None:
    for model, frozen in ((painter(), False), (painter(str(folder)), True)):
        model.train().imitation_loss(lesson(2), torch.Generator().manual_seed(0))[0].backward()
        assert any(p.grad is not None and p.grad.any() for p in model.controlnet.parameters())
        names = {k.split(".")[0] for k in model.state_dict()}
        assert names == ({"controlnet"} if frozen else {"controlnet", "unet"})
        if frozen:
            assert all(p.grad is None for p in model._base.unet.parameters())


def test_paints_as_the_pipeline_of_diffusers_does(folder: Path) -> None:
    from diffusers import StableDiffusionControlNetPipeline

    model = painter(str(folder)).eval()
    for p in model.controlnet.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.3)
    base = model._base
    pipe: Any = StableDiffusionControlNetPipeline(
        vae=base.vae, text_encoder=base.text, tokenizer=None, unet=base.unet, controlnet=model.controlnet,
        scheduler=base.sampler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # type: ignore[arg-type]  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    tiles = torch.as_tensor(lesson(2).obs.images[NAME])[:, 0]
    ours = model.paint(tiles, ["go", "stop"], torch.Generator().manual_seed(5), steps=4)
    latents = torch.randn(2, 4, 2, 4, generator=torch.Generator().manual_seed(5))
    theirs = pipe(
        prompt_embeds=model.embed(["go", "stop"]), image=tiles.permute(0, 3, 1, 2).float() / 255, latents=latents,
        height=16, width=32, num_inference_steps=4, guidance_scale=0.0, output_type="np",
    ).images  # fmt: skip
    assert np.abs(ours.numpy() / 255 - theirs).max() < 0.006  # half a grey level, and rounding
    plain = model.paint(torch.zeros_like(tiles), ["go", "stop"], torch.Generator().manual_seed(5), steps=4)
    assert not torch.equal(plain, ours)


def test_instruct_paints_as_the_pipeline_of_diffusers_does(folder: Path) -> None:
    """The variant that is shown the scene's latents; its first layer at first ignores them."""
    from diffusers import StableDiffusionInstructPix2PixPipeline

    model, plain = painter(str(folder), method="instruct").eval(), painter(str(folder)).eval()
    tiles = torch.as_tensor(lesson(2).obs.images[NAME])[:, 0]
    paint = lambda m: m.paint(tiles, ["go", "stop"], torch.Generator().manual_seed(5), steps=4)  # noqa: E731
    assert torch.equal(paint(model), paint(plain))  # a new ControlNet has no effect either
    model.unet.conv_in.weight.data[:, 4:].normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    base = model._base
    pipe: Any = StableDiffusionInstructPix2PixPipeline(
        vae=base.vae, text_encoder=base.text, tokenizer=None, unet=base.unet, scheduler=base.sampler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # type: ignore[arg-type]  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        prompt_embeds=model.embed(["go", "stop"]), image=tiles.permute(0, 3, 1, 2).float() / 255,
        latents=torch.randn(2, 4, 2, 4, generator=torch.Generator().manual_seed(5)), num_inference_steps=4,
        guidance_scale=1.0, image_guidance_scale=1.0, output_type="np",
    ).images  # fmt: skip
    ours = paint(model)
    assert np.abs(ours.numpy() / 255 - theirs).max() < 0.006  # half a grey level, and rounding
    assert not torch.equal(ours, paint(plain))


def test_instruct_trains_the_unet_and_hides_what_it_shows(folder: Path, tmp_path: Path) -> None:
    for name in ("tiny", str(folder)):
        model = painter(name, method="instruct").train()
        model.imitation_loss(lesson(2), torch.Generator().manual_seed(0))[0].backward()
        assert model.unet.conv_in.weight.grad[:, -1].any()  # of the scene's channels
        assert {k.split(".")[0] for k in model.state_dict()} == {"unet"}
    shown, text = torch.ones(4000, 1, 1, 1), model.embed(["go"]).expand(4000, -1, -1)
    text, shown = model._hide(text, shown, torch.Generator().manual_seed(0))
    nothing = torch.isclose(text, model._base.text(input_ids=model._base.tokenize([""])).last_hidden_state).all((1, 2))
    without = shown[:, 0, 0, 0] == 0
    shares = [float(m.float().mean()) for m in (nothing, without, nothing & without)]
    assert shares == pytest.approx([0.1, 0.1, 0.05], abs=0.02)
    node = {"_target_": "pretrained.genima.painter.TargetPainter", "model": "tiny", "method": "instruct"}
    saved = painter(method="instruct").eval()
    torch.nn.init.normal_(saved.unet.conv_in.weight, std=0.1)
    save(tmp_path / "saved", saved, node=node, env=spec())
    other: Any = load_policy(tmp_path / "saved")
    tiles = torch.as_tensor(lesson(1).obs.images[NAME])[:, 0]
    a, b = (m.eval().paint(tiles, ["go"], torch.Generator().manual_seed(0), steps=2) for m in (saved, other))
    assert torch.equal(a, b)


def test_rows_are_independent_and_repeat() -> None:
    model = painter().eval()
    tiles = torch.as_tensor(lesson(3).obs.images[NAME])[:, 0]
    rng = lambda: [torch.Generator().manual_seed(i) for i in range(3)]  # noqa: E731
    together = model.paint(tiles, ["a", "b", "c"], rng(), steps=2)
    assert torch.equal(together, model.paint(tiles, ["a", "b", "c"], rng(), steps=2))
    alone = model.paint(tiles[1:2], ["b"], [rng()[1]], steps=2)
    assert (alone[0].int() - together[1].int()).abs().max() <= 1
    low = model.paint(tiles, ["a", "b", "c"], rng(), steps=2, bf16=True)
    assert (low.int() - together.int()).abs().float().mean() < 12


def test_a_checkpoint_holds_what_was_trained(tmp_path: Path, folder: Path) -> None:
    for name in ("tiny", str(folder)):
        model = painter(name).eval()
        for p in model.controlnet.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=0.1)
        node = {"_target_": "pretrained.genima.painter.TargetPainter", "model": name}
        save(tmp_path / "saved", model, node=node, env=spec())
        other: Any = load_policy(tmp_path / "saved")
        tiles = torch.as_tensor(lesson(1).obs.images[NAME])[:, 0]
        a, b = (m.eval().paint(tiles, ["go"], torch.Generator().manual_seed(0), steps=2) for m in (model, other))
        assert torch.equal(a, b)


def test_the_imitation_loop_trains_it(tmp_path: Path) -> None:
    """From rendered demonstrations to a checkpoint that paints, by the command line."""
    import launch
    from tests.pretrained.test_genima_render import demos, render, run

    demos(tmp_path / "raw.hdf5")
    tiles = render(run(tmp_path, cameras=["side", "front"]))
    words = [
        "run=genima_diffusion", "policy.painter.model=tiny", "policy.painter.frozen_dtype=float32", f"demos={tiles}",
        f"out={tmp_path / 'run'}", "steps=2", "batch_size=4", "bf16=false", "quiet=true", "lr=1e-3",
    ]  # fmt: skip
    assert launch.main(["pretrain", *words]) == 0
    trained: Any = load_policy(tmp_path / "run" / "step_00000002")
    assert trained.views == ("side", "front")
    assert trained.paint(np.zeros((1, 32, 64, 3), np.uint8), ["go"], torch.Generator(), steps=1).shape == (1, 32, 64, 3)
    other = render(run(tmp_path, cameras=["front", "side"], out=str(tmp_path / "other.hdf5")))
    words = [w for w in words if not w.startswith(("demos", "out"))]
    with pytest.raises(ValueError, match=r"was trained with cameras = .*tile\(side,front\)"):
        launch.main(
            ["pretrain", *words, f"demos={other}", f"out={tmp_path / 'more'}", f"init={tmp_path / 'run'}", "--debug"]
        )


def test_the_newest_controlnet_of_a_folder(tmp_path: Path) -> None:
    for name in ("checkpoint-900", "checkpoint-1000", "checkpoint-x"):
        (tmp_path / name / "controlnet").mkdir(parents=True)
        (tmp_path / name / "controlnet" / "config.json").write_text("{}")
    assert find_controlnet(str(tmp_path)) == tmp_path / "checkpoint-1000" / "controlnet"
    assert find_controlnet(str(tmp_path / "checkpoint-900" / "controlnet")).parent.name == "checkpoint-900"
    with pytest.raises(ValueError, match="holds neither a ControlNet"):
        find_controlnet(str(tmp_path / "checkpoint-x"))


@pytest.mark.parametrize("augment", ["crop", "colorjitter", "elastic", "blur", "affine"])
def test_disturbances(augment: str) -> None:
    model = painter(augment=[augment]).train()
    seen = torch.rand(2, 3, 16, 32, generator=torch.Generator().manual_seed(0)) * 255
    out, target = model._disturb(seen, seen.clone(), torch.Generator().manual_seed(1))
    assert (out - seen).abs().mean() > 0.5
    assert torch.equal(out, target) == (augment in ("crop", "affine"))  # the others leave the target alone
    assert torch.equal(target, seen) == (augment not in ("crop", "affine"))


# --- as a proposal ---


def observation(n: int = 2, cameras: tuple[str, ...] = VIEWS) -> ObsBatch:
    rng = np.random.default_rng(0)
    images: dict[str, Any] = {c: rng.integers(0, 256, (n, 1, 16, 16, 3), dtype=np.uint8) for c in cameras}
    return ObsBatch(images, np.zeros((n, 1, 8), np.float32), ["a", "b", "c"][:n])


def test_proposal_gives_the_painted_views(tmp_path: Path) -> None:
    model = painter().eval()
    node = {"_target_": "pretrained.genima.painter.TargetPainter", "model": "tiny"}
    save(tmp_path / "saved", model, node=node, env=spec())
    proposal = TargetImage(checkpoint_path=str(tmp_path / "saved"), steps=2, device="cpu", cameras=list(VIEWS))
    obs = observation()
    hints = proposal(obs, torch.Generator().manual_seed(3))
    tiles = np.concatenate([obs.images[c][:, 0] for c in VIEWS], 2)
    expected = model.paint(tiles, obs.texts, torch.Generator().manual_seed(3), steps=2)
    assert torch.equal(hints["target/front"], expected[:, :, :16])
    assert torch.equal(hints["target/hand"], expected[:, :, 16:])
    fixed = TargetImage(painter=model, steps=2, device="cpu", seed=2)
    one, two = (fixed(obs, torch.Generator().manual_seed(s))["target/hand"] for s in (1, 2))
    assert torch.equal(one, two)


def test_controller_follows_targets_and_misses_them() -> None:
    policy = make("genima", targets=True)
    obs = ObsBatch(
        {c: np.zeros((2, 1, 24, 24, 3), np.uint8) for c in VIEWS}, np.zeros((2, 1, 8), np.float32), ["a", "b"]
    )
    with pytest.raises(ValueError, match=r"targets for cameras \['front', 'hand'\] are missing.*proposal=target_image"):
        policy.encode(obs)
    obs.hints = {f"target/{c}": torch.full((2, 24, 24, 3), 9, dtype=torch.uint8) for c in VIEWS}
    x = policy.encode(obs)
    assert (x["image/front"] == 9).all()
    assert not any(k.startswith("hint/") for k in x)


@pytest.mark.parametrize(
    ("make_it", "words"),
    [
        (lambda: painter("no/such/model"), "cannot be loaded from 'no/such/model'"),
        (lambda: diffusion_stage(env=spec(), painter={"modl": "tiny"}), r"policy.painter has \['modl'\], exp"),
        (lambda: painter(method="paint"), "painter.method is 'paint'"),
        (lambda: painter(method="instruct", controlnet="x"), "a ControlNet to start from only with the first"),
        (lambda: painter(augment=["flip"]), r"augmentations \['flip'\] are unknown"),
        (lambda: TargetPainter(env=spec(size=(18, 32)), model="tiny"), "expected multiples of 8 pixels"),
        (lambda: TargetPainter(env=spec(name="front"), model="tiny"), r"expected one picture named 'tile\(CAMERA"),
        (lambda: TargetImage(), "name a trained painter"),
        (lambda: TargetImage(painter=painter(), every=0), "every >= 1"),
        (lambda: TargetImage(painter=torch.nn.Linear(1, 1)), "expected a TargetPainter"),
        (lambda: TargetImage(painter=painter(), cameras=["hand", "front"]), r"tile order \['hand', 'front'\], exp"),
        (lambda: TargetImage(painter=painter(), steps=1, device="cpu")(
            observation(cameras=("front",)), torch.Generator()
         ), r"cameras \['hand'\] of the tile are missing"),
        (lambda: painter().paint(np.zeros((1, 8, 8, 3), np.uint8), ["a"], torch.Generator()), "trained on that size"),
    ],
)  # fmt: skip
def test_mistakes(make_it: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_it()
