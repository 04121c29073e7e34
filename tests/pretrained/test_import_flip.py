"""Official FLIP files into modules and back, small and at full size."""

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pretrained.flip.flow import FlowModel
from pretrained.flip.vae import Autoencoder
from pretrained.flip.value import ValueModel
from pretrained.flip.video import VideoModel
from pretrained.importers.flip import ROOTS, clip_of, export, fill, read
from tests.flip_parts import flow_model, recorded_shapes, video_model
from tests.golden_files import golden_json, golden_tensors

RECORDED = {"cvae": "flip_cvae", "dynamics": "flip_dit", "reward": "flip_liv"}
HAVE_DIFFUSERS = importlib.util.find_spec("diffusers") is not None


def small(kind: str) -> nn.Module:
    if kind == "vae" and not HAVE_DIFFUSERS:
        pytest.skip("diffusers is not installed")
    makes: dict[str, Any] = {"cvae": flow_model, "dynamics": video_model, "vae": Autoencoder,
                             "reward": lambda: ValueModel(clip="tiny", tokenizer="bytes")}  # fmt: skip
    return makes[kind]()


@pytest.mark.parametrize("kind", ROOTS)
@pytest.mark.parametrize("released", [False, True])
def test_both_ways(kind: str, released: bool, tmp_path: Path) -> None:
    module, other = small(kind), small(kind)
    for p in other.parameters():
        nn.init.zeros_(p)
    export(module, tmp_path / "file.pt", kind, released=released)
    report = fill(other, read(tmp_path / "file.pt", kind))
    assert (report.root, report.missing, report.surplus, report.cast) == (ROOTS[kind][0], (), (), ())
    assert report.used == len(module.state_dict())
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize("kind", RECORDED)
def test_files_as_the_original_writes_them(kind: str, tmp_path: Path) -> None:
    weights = golden_tensors(f"{RECORDED[kind]}/tiny.safetensors")
    settings = argparse.Namespace(global_batch_size=128, results_dir="results")
    stale = {k: torch.zeros_like(v) for k, v in weights.items()}
    content = {"model": stale, **{ROOTS[kind][0]: weights}, "opt": {"state": {}}, "args": settings}
    torch.save(content, tmp_path / "file.pt")
    official = read(tmp_path / "file.pt", kind)
    assert official.weights.keys() == weights.keys()
    assert all(torch.equal(v, weights[k]) for k, v in official.weights.items())
    if kind == "reward":
        model = ValueModel(clip=clip_of(official), tokenizer="bytes")
        fill(model, official)
        assert golden_json("flip_liv/meta.json")["tiny_clip_config"]["embed_dim"] == model.model.sizes.embed


def test_half_precision_is_cast(tmp_path: Path) -> None:
    model = small("reward")
    halves = {k: v.half() if "conv" in k else v for k, v in model.state_dict().items()}
    torch.save({"liv": halves}, tmp_path / "file.pt")
    report = fill(model, read(tmp_path / "file.pt", "reward"))
    assert report.cast == tuple(k for k in halves if "conv" in k)
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECORDED)
def test_full_size_both_ways(kind: str, tmp_path: Path) -> None:
    shapes = recorded_shapes(f"{RECORDED[kind]}/manifest_full.json")
    makes: dict[str, Any] = {"cvae": FlowModel, "dynamics": VideoModel, "reward": ValueModel}
    with torch.device("meta"):
        module = makes[kind]()
    weights = {k: torch.full(s, float(i % 97)) if s else torch.zeros(()) for i, (k, s) in enumerate(shapes.items())}
    weights = {k: v.long() if k.endswith("num_batches_tracked") else v for k, v in weights.items()}
    torch.save({ROOTS[kind][0]: weights}, tmp_path / "in.pt")
    report = fill(module, read(tmp_path / "in.pt", kind))
    assert report.used == len(shapes)
    export(module, tmp_path / "out.pt", kind)
    again = read(tmp_path / "out.pt", kind).weights
    assert list(again) == list(module.state_dict())
    assert all(torch.equal(v, again[k]) for k, v in weights.items())


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    model = flow_model()
    file = tmp_path / "file.pt"
    with pytest.raises(ValueError, match="there is no file"):
        read(file, "cvae")
    with pytest.raises(ValueError, match="kind 'flow' is unknown"):
        read(file, "flow")
    export(model, file, "cvae")
    with pytest.raises(ValueError, match="expected 'liv'; it is not a reward file"):
        read(file, "reward")
    with pytest.raises(ValueError, match=r"query_point_encoder.weight: \[16, 2\], expected \[24, 2\]"):
        fill(flow_model(width=24), read(file, "cvae"))
    weights = model.state_dict()
    torch.save({"model": {**weights, "extra": torch.zeros(1)}}, file)
    with pytest.raises(ValueError, match="extra: surplus"):
        fill(model, read(file, "cvae"))
    assert fill(model, read(file, "cvae"), tolerant=True).surplus == ("extra",)
    torch.save({"model": {k: v for k, v in weights.items() if k != "cls_token"}}, file)
    with pytest.raises(ValueError, match="cls_token: missing"):
        fill(model, read(file, "cvae"))
    file.write_bytes(b"not a file of torch")
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        read(file, "cvae")


class Strange:
    """What no file should hold."""


def test_code_in_files_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": {}, "args": Strange()}, tmp_path / "file.pt")
    with pytest.raises(ValueError, match="not unpickled"):
        read(tmp_path / "file.pt", "cvae")
