"""The recorded SPOC models as official files, and as imported policies."""

from pathlib import Path
from typing import Any

import torch

from envs import stretch
from envs.types import EnvSpec
from pretrained.checkpoint import load_policy
from pretrained.importers.spoc import import_checkpoint
from pretrained.spoc import Spoc
from tests.golden_files import golden_json, golden_tensors


def environment() -> EnvSpec:
    """Of the recordings: full frames."""
    return stretch.spec()


def official_file(folder: Path, layout: str) -> Path:
    """The recorded weights in a file of the official layout, aliases included."""
    if layout == "rl":
        weights, meta = golden_tensors("spoc/tiny.safetensors"), golden_json("spoc/meta.json")
        weights |= {alias: weights[name] for alias, name in meta["weights"]["aliases_not_stored"].items()}
        content = {"model_state_dict": weights, "total_steps": 17}
    else:
        weights, meta = golden_tensors("spoc/il_tiny.safetensors"), golden_json("spoc/il_meta.json")
        weights |= {alias: weights[name] for alias, name in meta["aliases_not_stored"].items()}
        content = {"state_dict": weights, "global_step": 17, "epoch": 0}
    torch.save(content, folder / f"{layout}.pt")
    return folder / f"{layout}.pt"


def imported(folder: Path, layout: str, **options: Any) -> Spoc:
    """The recorded model as a Temper checkpoint, loaded again."""
    meta = golden_json("spoc/meta.json" if layout == "rl" else "spoc/il_meta.json")["config"]
    options = {"heads": meta["decoder_heads"], "quirks": "faithful", "half_features": False, **options}
    heads = meta["dino"]["num_heads"] if layout == "il" else 0
    vision = "tiny" if layout == "rl" else ""
    if vision:  # the RL recording begins with pooled features, and its file has no vision tower
        options["grid"] = meta["visual_grid_hw"]
        folder_of_vision = folder / "vision"
        small_vision(meta["visual_channels"]).save_pretrained(folder_of_vision)
        vision = str(folder_of_vision)
    import_checkpoint(
        official_file(folder, layout), folder / "out", vision=vision, tokenizer="words", options=options,
        env=environment(), vision_heads=heads,
    )  # fmt: skip
    policy = load_policy(folder / "out")
    assert isinstance(policy, Spoc)
    return policy.eval()


def small_vision(width: int) -> Any:
    """A random DINOv2 of one layer, for files that have no vision tower."""
    from transformers import Dinov2Config, Dinov2Model

    return Dinov2Model(Dinov2Config(hidden_size=width, num_hidden_layers=1, num_attention_heads=2, image_size=28))
