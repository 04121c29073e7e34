"""Snapshots in, snapshots out: nothing lost, nothing made up, nothing executed."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from envs.build import build
from pretrained.checkpoint import load_policy, read_card
from pretrained.importers import genima
from tests.genima_parts import recorded_weights, snapshot, tiny_clip
from tests.golden_files import golden_json

CONFIG = {"method": {"lr": 1e-5, "actor_model": {"hidden_dim": 64, "nheads": 4}, "name": "act"},
          "env": {"cameras": ["front", "wrist"], "path": "${oc.env:HOME}"}, "flag": True, "none": None}  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_clip(tmp_path_factory.mktemp("clip")))


def bring(source: Path, out: Path, clip: str, **extra: Any) -> genima.ImportReport:
    heads = golden_json("genima_act/meta.json")["config"]["heads"]
    return genima.import_checkpoint(source, out, clip=clip, options={"heads": heads}, **extra)


def test_names_and_shapes_of_the_real_size() -> None:
    manifest = golden_json("genima_act/manifest_full.json")
    c = manifest["config"]
    node = {"_target_": "pretrained.genima.act.ActPolicy", "clip": "tiny", "binary": [7], "width": c["hidden"],
            "heads": c["heads"], "ffn": c["ffn"], "encoder_layers": c["encoder_layers"], "latent": c["latent"],
            "decoder_layers": c["decoder_layers"], "style_layers": c["style_encoder_layers"], "horizon": c["queries"],
            "kernel": {"_target_": "pretrained.chain.Gaussian"}}  # fmt: skip
    policy = build(node, env=genima.genima_env())
    policy.encoder.text = torch.nn.Linear(c["text_dim"], c["hidden"])  # the small text tower has fewer numbers
    ours = {k: list(v.shape) for k, v in genima.to_official(policy).items()}
    assert ours == {k: v["shape"] for k, v in manifest["agent"].items()}
    unused = sum(v.numel() for k, v in genima.to_official(policy).items() if k.startswith("actor." + genima.UNUSED))
    own = sum(v.numel() for k, v in policy.named_parameters() if not k.startswith(genima.OWN))
    assert own + unused == manifest["parameter_counts"]["policy_total_unique"]


def test_import_with_a_pickled_configuration(tmp_path: Path, clip: str) -> None:
    source = snapshot(tmp_path / "snapshots", recorded_weights(), config=OmegaConf.create(CONFIG))
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(source / "latest.pt", weights_only=True)
    official = genima.read(source)
    assert official.config == CONFIG  # as it was written; nothing is interpolated
    report = bring(source, tmp_path / "out", clip)
    assert report.epoch == 990
    assert not report.missing
    assert not report.surplus
    assert all(k.startswith(("noise.", "critic.")) for k in report.fresh)
    policy: Any = load_policy(tmp_path / "out")
    assert torch.equal(policy.actor.head.weight, recorded_weights()["actor.actor_model.action_head.weight"])
    assert policy.actions.mean.tolist() == pytest.approx(official.actions.mean)
    assert policy.state.std[1:].tolist() == pytest.approx(official.actions.std[:-1])
    assert (policy.state.mean[0], policy.state.std[0]) == (0.0, 1.0)
    card = read_card(tmp_path / "out")
    assert card.metrics == {"official_epoch": 990, "official_iterations": 12345}


def test_export_gives_the_same_weights_back(tmp_path: Path, clip: str) -> None:
    source = snapshot(tmp_path / "snapshots", recorded_weights())
    bring(source, tmp_path / "out", clip)
    assert genima.main(["export", str(tmp_path / "out"), str(tmp_path / "back")]) == 0
    before, after = recorded_weights(), torch.load(tmp_path / "back" / "latest.pt", weights_only=True)["agent"]
    assert all(torch.equal(after[k], v) for k, v in before.items() if genima.UNUSED not in k)
    assert {k for k in after if genima.UNUSED not in k} == {k for k in before if genima.UNUSED not in k}
    for name in ("action_stats.json", "proprio_stats.json"):
        old, new = (json.loads((folder / name).read_text()) for folder in (source, tmp_path / "back"))
        for key in ("mean", "std"):
            assert new[key] == pytest.approx(old[key], abs=1e-6)
    assert not bring(tmp_path / "back", tmp_path / "again", clip).missing


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


class Sneaky(dict):
    """Pretends to be of the allowed module."""

    __module__ = "omegaconf.dictconfig"


def test_no_code_of_a_file_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = {"actor.x": torch.zeros(1)}
    for config in (Evil(), {"deep": [OmegaConf.create(CONFIG), Evil()]}):
        snapshot(tmp_path / "snapshots", weights, config=config)
        with pytest.raises(ValueError, match=r"GLOBAL (posix|os).system.*anything else is not unpickled"):
            genima.read(tmp_path / "snapshots")
    assert not (tmp_path / "executed").exists()


def test_broken_and_foreign_files(tmp_path: Path, clip: str) -> None:
    with pytest.raises(ValueError, match="has no latest.pt; it has no"):
        genima.read(tmp_path)
    source = snapshot(tmp_path / "snapshots", recorded_weights())
    with pytest.raises(ValueError, match=r"has no 10.pt; it has \['latest.pt'\]"):
        genima.read(source, file="10.pt")
    whole = (source / "latest.pt").read_bytes()
    (source / "latest.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read as tensors"):
        genima.read(source)
    torch.save({"model": {}}, source / "latest.pt")
    with pytest.raises(ValueError, match=r"holds \['model'\], expected agent"):
        genima.read(source)
    snapshot(source, recorded_weights())
    (source / "action_stats.json").unlink()
    with pytest.raises(ValueError, match="action_stats.json cannot be read"):
        bring(source, tmp_path / "out", clip)


@pytest.mark.parametrize("what", ["missing", "surplus", "twin", "shape", "kind"])
def test_every_weight_must_fit(what: str, tmp_path: Path, clip: str) -> None:
    agent: dict[str, Any] = recorded_weights()
    name = "actor.actor_model.action_head.bias"
    match what:
        case "missing":
            del agent[name], agent["actor_model.action_head.bias"]
            words = f"{name}: missing"
        case "surplus":
            agent["actor.actor_model.extra"] = torch.zeros(2)
            words = "actor.actor_model.extra: surplus"
        case "twin":
            agent["actor_model.action_head.bias"] = agent[name] + 1
            words = "its twin .* differ"
        case "shape":
            agent[name] = agent["actor_model.action_head.bias"] = torch.zeros(3)
            words = r"actor.head.bias: \[3\], expected \[8\]"
        case _:
            agent[name] = "text"
            words = "is a str, expected a tensor"
    source = snapshot(tmp_path / "snapshots", agent)
    with pytest.raises(ValueError, match=words):
        bring(source, tmp_path / "out", clip)
    if what == "surplus":
        assert bring(source, tmp_path / "out", clip, tolerant=True).surplus == ("actor_model.extra",)
    else:
        assert not (tmp_path / "out").exists()


def test_command_line_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        genima.main(["import", str(tmp_path / "nowhere"), str(tmp_path / "out")])
    assert "there is no snapshot" in capsys.readouterr().err
