"""Official checkpoints in, official checkpoints out: nothing lost, nothing made up, nothing executed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from envs import stretch
from pretrained.checkpoint import load_policy, read_card
from pretrained.importers import spoc
from pretrained.importers.spoc_names import tower_to_official
from pretrained.spoc import Spoc
from pretrained.spoc.network import Sizes, Tower
from tests.golden_files import golden_json
from tests.spoc_parts import environment, imported, official_file, small_vision

REAL: dict[str, Any] = {"image_dim": 384, "text_dim": 512, "cameras": 2, "num_actions": 20}
CAMERAS = (stretch.NAVIGATION, stretch.MANIPULATION)


@pytest.mark.parametrize("value_head", ["linear", "mlp", "hl_gauss"])
def test_names_and_shapes_of_the_real_size(value_head: str) -> None:
    manifest = golden_json("spoc/manifest_full.json")["rl_checkpoint"]
    names = {k: v["shape"] for k, v in manifest["model_state_dict"].items() if ".text_encoder." not in k}
    names = {k: v for k, v in names.items() if not k.startswith("critic_tsfm.")}
    variants = {"linear": {}, "mlp": manifest["critic_variants_keys"]["mlp"]}
    variants["hl_gauss"] = manifest["critic_variants_keys"]["discrete"]
    if value_head != "linear":
        names = {k: v for k, v in names.items() if not k.startswith("critic.")}
        names |= {k: v["shape"] for k, v in variants[value_head].items()}
    with torch.device("meta"):
        tower = Tower(Sizes(**REAL, value_head=value_head), role="actor")
    ours = tower_to_official(tower.state_dict(), CAMERAS, "rl")
    assert {k: list(v.shape) for k, v in ours.items()} == names


def synthetic(manifest: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Tensor]:
    """Weights with the recorded names and shapes, all different, the buffer and the aliases as they must be."""
    rng = torch.Generator().manual_seed(0)
    out: dict[str, Tensor] = {}
    for name, entry in manifest.items():
        twin = name.replace("critic_tsfm.", "")
        if name in aliases:
            continue
        if name.endswith("time_encoder.div_term"):
            waves = torch.arange(entry["shape"][0]) * 2
            out[name] = torch.exp(waves * -(torch.log(torch.tensor(10000.0)) / (2 * entry["shape"][0])))
        elif ".text_encoder." in name and twin in out:
            out[name] = out[twin]  # one T5 for both towers
        else:
            out[name] = torch.empty(entry["shape"]).uniform_(-0.05, 0.05, generator=rng)
    return out | {alias: out[name] for alias, name in aliases.items()}


@pytest.mark.parametrize("layout", ["rl", "il"])
def test_round_trip_at_full_size(tmp_path: Path, layout: str) -> None:
    full = golden_json("spoc/manifest_full.json")["rl_checkpoint" if layout == "rl" else "il_lightning_checkpoint"]
    names = full["model_state_dict" if layout == "rl" else "state_dict"]
    weights = synthetic(names, full["shared_storage_aliases"])
    key = {"rl": "model_state_dict", "il": "state_dict"}[layout]
    steps = {"rl": "total_steps", "il": "global_step"}[layout]
    torch.save({key: weights, steps: 4096}, tmp_path / "official.pt")
    vision = ""
    if layout == "rl":
        vision = str(tmp_path / "vision")
        small_vision(REAL["image_dim"]).save_pretrained(vision)
    report = spoc.import_checkpoint(tmp_path / "official.pt", tmp_path / "ours", vision=vision, tokenizer="words")
    assert (report.used, report.missing, report.surplus) == (len(names), (), ())
    policy = load_policy(tmp_path / "ours")
    assert isinstance(policy, Spoc)
    assert sum(p.numel() for p in policy.actor.parameters()) == 20_958_741
    spoc.export_checkpoint(tmp_path / "ours", tmp_path / "again.pt", layout=layout)
    again = torch.load(tmp_path / "again.pt", weights_only=True, mmap=True)
    assert again[steps] == 4096
    assert set(again[key]) == set(weights)
    for name, value in weights.items():
        assert torch.allclose(again[key][name], value, rtol=1e-5), name


def test_what_the_checkpoint_says(tmp_path: Path) -> None:
    imported(tmp_path, "il")
    card = read_card(tmp_path / "out")
    assert card.env == environment()
    assert card.metrics["official_steps"] == 17
    assert card.parent.endswith("il.pt")
    assert card.node["vision"] == str(tmp_path / "out.towers" / "vision")
    assert card.node["width"] == golden_json("spoc/il_meta.json")["config"]["d_model"]


def test_round_trip_of_the_recorded_models(tmp_path: Path) -> None:
    for layout, key in (("rl", "model_state_dict"), ("il", "state_dict")):
        (tmp_path / layout).mkdir()
        imported(tmp_path / layout, layout)
        spoc.export_checkpoint(tmp_path / layout / "out", tmp_path / "again.pt", layout=layout)
        theirs, ours = (
            torch.load(f, weights_only=True)[key] for f in (tmp_path / layout / f"{layout}.pt", tmp_path / "again.pt")
        )
        assert set(theirs) == set(ours)
        assert all(torch.allclose(ours[k], theirs[k], rtol=1e-5) for k in theirs)


def changed(folder: Path, layout: str, drop: str = "", add: Mapping[str, Tensor] | None = None) -> Path:
    """An official file without one weight, or with more."""
    path, key = official_file(folder, layout), {"rl": "model_state_dict", "il": "state_dict"}[layout]
    content = torch.load(path, weights_only=True)
    content[key] = {k: v for k, v in content[key].items() if k != drop} | dict(add or {})
    torch.save(content, path)
    return path


def take(path: Path, **options: Any) -> spoc.ImportReport:
    meta = golden_json("spoc/il_meta.json")["config"]
    sizes = {"heads": meta["decoder_heads"]}
    return spoc.import_checkpoint(path, path.parent / "out", tokenizer="words", options=sizes,
                                  vision_heads=meta["dino"]["num_heads"], **options)  # fmt: skip


def test_missing_and_surplus_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layout 'il': decoder.norm.weight: missing$"):
        take(changed(tmp_path, "il", drop="model.decoder.norm.weight"))
    with pytest.raises(ValueError, match=r"visual_sensor_token_raw_navigation_camera: missing"):
        take(changed(tmp_path, "il", drop="model.visual_encoder.visual_sensor_token_raw_navigation_camera"))
    with pytest.raises(ValueError, match="the DINOv2 of the checkpoint does not fit.*cls_token"):
        take(changed(tmp_path, "il", drop="model.visual_encoder.image_encoder.model.cls_token"))
    extra = {"model.wings.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="wings.weight: surplus"):
        take(changed(tmp_path, "il", add=extra))
    assert not (tmp_path / "out").exists()
    report = take(changed(tmp_path, "il", add=extra), tolerant=True)
    assert report.surplus == ("wings.weight",)
    assert set(report.fresh) == {f"{t}.value_head.{k}" for t in ("actor", "critic") for k in ("weight", "bias")}
    with pytest.raises(ValueError, match=r"critic_tsfm\.last_actions_embed\.weight: missing"):
        take(changed(tmp_path, "rl", drop="critic_tsfm.last_actions_embed.weight"))


def test_a_trained_text_tower_is_refused(tmp_path: Path) -> None:
    name = "critic_tsfm.visual_encoder.text_encoder.encoder.final_layer_norm.weight"
    with pytest.raises(ValueError, match="differs between the two towers"):
        take(changed(tmp_path, "rl", add={name: torch.zeros(512)}))


def test_a_vision_tower_that_is_not_there_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the vision tower has width 32 and is not in the file; name it"):
        take(official_file(tmp_path, "rl"))


class Payload:
    """What a malicious file would hold."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


def test_files_of_another_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="there is no checkpoint"):
        take(tmp_path / "none.pt")
    path = tmp_path / "x.pt"
    torch.save({"weights": 1}, path)
    with pytest.raises(ValueError, match=r"holds \['weights'\], expected 'state_dict'"):
        take(path)
    torch.save({"state_dict": {"net.weight": torch.zeros(1)}}, path)
    with pytest.raises(ValueError, match="names without the prefix 'model.'"):
        take(path)
    torch.save({"state_dict": {"model.net.weight": torch.zeros(1)}}, path)
    with pytest.raises(ValueError, match="without early fusion"):
        take(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        take(path)
    torch.save({"state_dict": Payload()}, path)
    with pytest.raises(ValueError, match="other content is not unpickled"):
        take(path)
    assert "executed" not in capsys.readouterr().out


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imported(tmp_path, "rl")
    source, out = str(tmp_path / "out"), str(tmp_path / "model.pt")
    assert spoc.main(["export", source, out, "--layout", "rl"]) == 0
    args = ["import", out, str(tmp_path / "back"), "--vision", str(tmp_path / "vision"), "--tokenizer", "words"]
    assert spoc.main(args) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == []
    with pytest.raises(SystemExit):
        spoc.main(["import", str(tmp_path / "gone.pt"), str(tmp_path / "back")])
    assert "there is no checkpoint" in capsys.readouterr().err
