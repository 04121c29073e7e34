"""Official VPP checkpoints come in, strictly, and go out again."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from envs.build import build
from pretrained import checkpoint
from pretrained.importers import vpp as importer
from pretrained.importers.vpp import FORMER, GOAL, HEAD, TEXT, calvin_env, export_checkpoint, import_checkpoint, place
from pretrained.importers.vpp_video import check_folder, export_video
from pretrained.types import ObsBatch
from pretrained.vpp.policy import Vpp
from pretrained.vpp.towers import load_video
from tests.golden_files import golden_json, golden_tensors

VIDEO = {"model": "tiny", "frames": 2, "size": [16, 16]}
ENV = dataclasses.replace(calvin_env(), cameras={"rgb_static": (16, 16), "rgb_gripper": (12, 12)})
OPTIONS: dict[str, Any] = {"critic_width": 16, "half_features": False}
SIZES: dict[str, Any] = {"head_width": 8, "heads": 2}


def policy(**switches: Any) -> Vpp:
    torch.manual_seed(0)
    node = {
        "_target_": "pretrained.vpp.policy.Vpp",
        "video": {"_target_": "pretrained.vpp.video.VideoModel", "text": "tiny", **VIDEO},
        "former": {"latents": 4, "width": 16, "depth": 1, "heads": 2, "head_width": 8},
        "kernel": importer.KERNEL, "horizon": 4, "width": 32, "encoder_layers": 1, "decoder_layers": 2, "heads": 2,
        "quirks": "faithful", "switches": {"noise": "stored", **switches}, **OPTIONS,
    }  # fmt: skip
    return build(node, env=ENV).eval()


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the official layout, written from a policy with random weights, with what the original also stores."""
    from omegaconf import OmegaConf

    weights = importer.to_official(policy())
    spare = {GOAL + "visual.conv1.weight": torch.randn(3, 3), GOAL + "logit_scale": torch.tensor(4.6)}
    spare |= {HEAD + f"proprio_emb.{i}.{end}": torch.randn(4, 3) for i in (0, 2) for end in ("weight", "bias")}
    spare[TEXT + "text_model.embeddings.position_ids"] = torch.arange(77)[None]
    path = tmp_path_factory.mktemp("official") / "dp.pt"
    torch.save({"model": weights | spare, "args": OmegaConf.create({"a": [1, {"b": None}]})}, path)
    return path


def take_in(path: Path, out: Path, **options: Any) -> Any:
    return import_checkpoint(path, out, video=VIDEO, env=ENV, tokenizer="tiny", **SIZES,
                             options={**OPTIONS, "switches": {"noise": "stored"}}, **options)  # fmt: skip


def decide(of: Any) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    images = {c: torch.randint(0, 255, (2, 1, *s, 3), dtype=torch.uint8, generator=rng) for c, s in ENV.cameras.items()}
    obs = ObsBatch(dict(images), torch.zeros(2, 1, len(ENV.proprio)), ["open the drawer", "push"])
    return of.act(of.encode(obs), {}, torch.Generator().manual_seed(1), greedy=True)[0].chunk


def test_imported_policy_decides_as_the_one_that_was_written(official: Path, tmp_path: Path) -> None:
    report = take_in(official, tmp_path / "run")
    taken = checkpoint.load_policy(tmp_path / "run", env=ENV)
    assert torch.equal(decide(taken), decide(policy()))
    assert report.missing == report.surplus == ()
    assert report.idle == 5 + 4 + 2 + 1  # goal_emb and pos_emb, proprio_emb, CLIP's picture tower, position_ids
    assert all(k.startswith(("critic.", "actions.", "proprio.")) for k in report.fresh)
    assert checkpoint.read_card(tmp_path / "run").node["quirks"] == "faithful"


def test_a_file_comes_back_as_it_was(official: Path, tmp_path: Path) -> None:
    take_in(official, tmp_path / "run")
    export_checkpoint(tmp_path / "run", tmp_path / "again.pt")
    before, after = importer.read(official), importer.read(tmp_path / "again.pt")
    unread = (GOAL + "visual", GOAL + "logit", HEAD + "proprio")
    lost = {k for k in before if k.startswith(unread) or k.endswith("position_ids")}
    assert set(before) - set(after) == lost
    assert all(torch.equal(before[k], v) for k, v in after.items())
    assert len([k for k in after if k.startswith(FORMER)]) > 15


def test_learned_positions_start_as_nothing_and_cannot_be_exported(official: Path, tmp_path: Path) -> None:
    switches = {"noise": "stored", "action_positions": "learned"}
    report = import_checkpoint(official, tmp_path / "run", video=VIDEO, env=ENV, tokenizer="tiny", **SIZES,
                               options={**OPTIONS, "switches": switches})  # fmt: skip
    assert "actor.position" in report.fresh
    taken: Any = checkpoint.load_policy(tmp_path / "run")
    assert torch.equal(decide(taken), decide(policy()))
    with torch.no_grad():
        taken.actor.position += 1.0
    card = checkpoint.read_card(tmp_path / "run")
    checkpoint.save(tmp_path / "moved", taken, node=card.node, env=ENV)
    with pytest.raises(ValueError, match="the original knows no action positions"):
        export_checkpoint(tmp_path / "moved", tmp_path / "x.pt")


def test_published_layout_is_placed_without_a_gap() -> None:
    """All 760 names and shapes of the released file, without their 1 GB of numbers."""
    manifest = golden_json("vpp_policy/manifest_full.json")
    weights = {k: torch.empty(v["shape"], device="meta") for k, v in manifest["entries"].items()}
    found = place(weights)
    assert (found.missing, found.surplus) == ((), ())
    assert (found.channels, found.frames, found.goal_dim) == (2560, 16, 512)
    assert found.options["horizon"] == 10
    assert len(found.text) == 197
    counts = manifest["counts"]
    assert sum(v.numel() for v in found.former.values()) == counts["Video_Former"]["elements"]
    idle = sum(weights[k].numel() for k in found.idle if k.startswith(HEAD))
    assert sum(v.numel() for v in found.head.values()) + idle == counts["model.inner_model"]["elements"]
    again = [k for k in weights if k.startswith(GOAL) and not k.startswith((GOAL + "visual.", GOAL + "logit_scale"))]
    placed = len(found.former) + len(found.head) + len(found.text) + len(found.idle)
    assert placed + len(again) == len(weights) == manifest["n_tensors"]


def test_recorded_weights_are_placed() -> None:
    found = place(golden_tensors("vpp_policy/tiny_e2e.safetensors"), head_width=8, heads=4)
    sizes = golden_json("vpp_policy/meta.json")["tiny_e2e_config"]
    assert (found.channels, found.frames) == (sizes["former"]["C"], sizes["former"]["F"])
    assert found.options["horizon"] == sizes["policy"]["act_seq_len"]
    assert (found.missing, found.surplus) == ((), ())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop(HEAD + "action_pred.bias"), "model.inner_model.action_pred.bias: missing"),
        (lambda w: w.pop(FORMER + "layers.0.2.1.weight"), r"Video_Former.layers.0.2.1.weight: missing"),
        (lambda w: w.pop(FORMER + "latents"), "weights \\['Video_Former.latents'\\] are missing"),
        (lambda w: w.update({"other.weight": torch.zeros(1)}), "other.weight: surplus"),
        (lambda w: w.update({GOAL + "ln_final.bias": torch.ones(16)}), "differs from .* two copies of one frozen"),
        (lambda w: w.update({FORMER + "goal_emb.0.weight": torch.zeros(32, 64)}), "64 channels .* 2 frames of 128"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_refused(official: Path, tmp_path: Path, change: Any, words: str) -> None:
    weights = importer.read(official)
    change(weights)
    torch.save({"model": weights, "args": {}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=words):
        take_in(tmp_path / "x.pt", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_surplus_weights_may_be_tolerated(official: Path, tmp_path: Path) -> None:
    torch.save({"model": importer.read(official) | {"other": torch.zeros(1)}, "args": {}}, tmp_path / "x.pt")
    assert take_in(tmp_path / "x.pt", tmp_path / "run", tolerant=True).surplus == ("other",)


def test_code_in_a_file_does_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"model": {"a": torch.zeros(1)}, "args": Trap()}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="missing|cannot be read"):
        place(importer.read(tmp_path / "x.pt"))
    assert not (tmp_path / "ran").exists()


def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("no")
    for name, words in (("other.pt", "expected 'model' with the weights"), ("text.pt", "cannot be read as plain"),
                        ("none.pt", "there is no checkpoint")):  # fmt: skip
        with pytest.raises(SystemExit):
            importer.main(["import", str(tmp_path / name), str(tmp_path / "out"), "--video", "tiny"])
        assert words in capsys.readouterr().err


# --- video models ---


def test_folder_of_a_video_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    towers = load_video("tiny")
    for name in ("unet", "vae"):
        getattr(towers, name).save_pretrained(tmp_path / name)
    report = check_folder(tmp_path)
    assert report.tensors["unet"] == len(towers.unet.state_dict())
    assert (report.latent_channels, report.scheduler) == (4, False)
    assert importer.main(["check", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"]["vae"] == sum(p.numel() for p in towers.vae.parameters())
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    (tmp_path / "vae" / "config.json").write_text(json.dumps({**config, "latent_channels": 8}))
    with pytest.raises(ValueError, match=r"vae.*expected \[16"):
        check_folder(tmp_path)
    (tmp_path / "vae" / "config.json").unlink()
    with pytest.raises(ValueError, match="config.json cannot be read"):
        check_folder(tmp_path)


def test_trained_video_model_becomes_a_folder(tmp_path: Path) -> None:
    node = {"_target_": "pretrained.vpp.stage.VideoStage",
            "video": {"_target_": "pretrained.vpp.video.VideoModel", "text": "tiny", **VIDEO}}  # fmt: skip
    stage = build(node, env=ENV)
    with torch.no_grad():
        stage.video.unet.conv_in.weight += 1.0
    checkpoint.save(tmp_path / "run", stage, node=node, env=ENV)
    export_video(tmp_path / "run", tmp_path / "folder")
    assert check_folder(tmp_path / "folder").scheduler
    again = load_video(str(tmp_path / "folder")).unet.state_dict()
    assert all(torch.equal(again[k], v) for k, v in stage.video.unet.state_dict().items())
