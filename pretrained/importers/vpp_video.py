"""Video models in diffusers' pipeline layout: are their files complete, and one from a checkpoint of stage=video."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pretrained import checkpoint
from pretrained.vpp.towers import Towers, check, load_video

WEIGHTS = "diffusion_pytorch_model*.safetensors"


@dataclass(frozen=True)
class FolderReport:
    """What the folder of a video model holds; only complete ones are reported."""

    tensors: dict[str, int]  # part -> count
    parameters: dict[str, int]
    latent_channels: int
    scheduler: bool  # whether it brings its own; otherwise that of Stable Video Diffusion is taken


def check_folder(folder: Path | str) -> FolderReport:
    """Compare names and shapes in the files with those that the configurations ask for; reads no weights.

    Raises ValueError naming what is missing, left over or of another shape."""
    folder = Path(folder)
    parts: dict[str, Any] = {}
    problems: list[str] = []
    tensors, parameters = {}, {}
    for name in ("unet", "vae"):
        module, found = _on_meta(folder / name), _shapes(folder / name)
        own = {k: list(v.shape) for k, v in module.state_dict().items()}
        problems += [f"{name}.{k}: missing" for k in own if k not in found]
        problems += [f"{name}.{k}: surplus" for k in found if k not in own]
        problems += [f"{name}.{k}: {found[k]}, expected {own[k]}" for k in own if k in found and found[k] != own[k]]
        parts[name], tensors[name] = module, len(found)
        parameters[name] = sum(p.numel() for p in module.parameters())
    if problems:
        listed = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(f"{folder} is not a complete video model: {listed}")
    check(Towers(parts["unet"], parts["vae"], None), str(folder))
    latent = int(parts["vae"].config.latent_channels)
    return FolderReport(tensors, parameters, latent, (folder / "scheduler" / "scheduler_config.json").is_file())


def export_video(source: Path | str, out: Path | str) -> None:
    """Write the video model of a checkpoint of stage=video as a folder in diffusers' layout."""
    folder = checkpoint.find(source)
    towers = load_video(str(folder))
    for name in ("unet", "vae", "scheduler"):
        getattr(towers, name).save_pretrained(Path(out) / name)


def _on_meta(folder: Path) -> Any:
    """The module that a folder's configuration describes, without weights."""
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel

    kinds = {"unet": UNetSpatioTemporalConditionModel, "vae": AutoencoderKLTemporalDecoder}
    try:
        config: Mapping[str, Any] = json.loads((folder / "config.json").read_text())
        with torch.device("meta"):
            return kinds[folder.name].from_config(dict(config))
    except (OSError, json.JSONDecodeError, TypeError, ValueError) as e:
        raise ValueError(f"{folder}/config.json cannot be read ({e}); expected a folder in diffusers' layout") from e


def _shapes(folder: Path) -> dict[str, list[int]]:
    """Names and shapes in the headers of a folder's files."""
    files = [p for p in sorted(folder.glob(WEIGHTS)) if ".fp16" not in p.name] or sorted(folder.glob(WEIGHTS))
    if not files:
        raise ValueError(f"{folder} holds no {WEIGHTS}; convert other files with diffusers first")
    out: dict[str, list[int]] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                out |= {k: list(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as e:
            raise ValueError(f"{path} cannot be read ({e}); copy it again") from e
    return out
