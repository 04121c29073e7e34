"""Small FLIP models, and those whose tensors were recorded."""

from typing import Any

import torch
from torch import Tensor, nn

from pretrained.flip.flow import FlowModel
from pretrained.flip.video import VideoModel
from tests.golden_files import golden_json, golden_tensors


def flow_model(**options: Any) -> FlowModel:
    """A flow model of 6 positions, 3 pictures of 32x32 and texts of width 12."""
    torch.manual_seed(0)
    node = {"width": 16, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "horizon": 6, "history": 3,
            "size": (32, 32), "text_dim": 12, "dropout": 0.0, **options}  # fmt: skip
    return FlowModel(**node).eval()


def recorded_flow_model(**options: Any) -> FlowModel:
    """With the weights that the recording was made with."""
    c = golden_json("flip_cvae/meta.json")["tiny_config"]
    model = FlowModel(
        width=c["hidden_size"],
        encoder_layers=c["vae_encoder_layers"],
        decoder_layers=c["vae_decoder_layers"],
        heads=c["num_heads"],
        horizon=c["flow_horizon"],
        history=c["obs_history"],
        size=c["img_size"],
        patch=c["img_patch_size"],
        text_dim=c["language_original_dim"],
        **options,
    )
    model.load_state_dict(golden_tensors("flip_cvae/tiny.safetensors"))
    return model.eval()


def scene(n: int = 2, points: int = 7, seed: int = 0) -> dict[str, Tensor]:
    """Tracks, pictures and texts for `flow_model`."""
    g = torch.Generator().manual_seed(seed)
    start = 4 + 24 * torch.rand(n, points, 1, 2, generator=g)
    moved = torch.cat([torch.zeros(n, points, 1, 2), torch.randn(n, points, 5, 2, generator=g).cumsum(2)], 2)
    text = torch.randn(n, 5, 12, generator=g)
    text[-1, 3:] = 0
    return {"flow": start + moved, "history": torch.randn(n, 3, 3, 32, 32, generator=g), "text": text}


def gradient_norms(model: nn.Module, recorded: dict[str, float], *, relative: float) -> None:
    """Compare the norm of each parameter's gradient with the recorded one; tiny ones are noise."""
    own = dict(model.named_parameters())
    for name, norm in recorded.items():
        if norm >= 5e-6:
            gradient = own[name].grad
            assert gradient is not None, f"{name} has no gradient"
            assert abs(float(gradient.norm()) / norm - 1) < relative, f"{name}: {float(gradient.norm())}, not {norm}"


def shapes(model: nn.Module) -> dict[str, list[int]]:
    """Of all weights and buffers."""
    return {k: list(v.shape) for k, v in model.state_dict().items()}


def recorded_shapes(manifest: str) -> dict[str, list[int]]:
    """Of a real model."""
    return {k: v["shape"] for k, v in golden_json(manifest)["entries"].items()}


def video_model(**options: Any) -> VideoModel:
    """A video model of 2 known and 5 new frames of 8x8 latents, tracks of 6 positions and texts of width 12."""
    torch.manual_seed(0)
    node = {"size": (8, 8), "width": 32, "depth": 2, "heads": 4, "horizon": 6, "history": 2, "text_dim": 12, **options}
    model = VideoModel(**node).eval()
    for p in model.final_layer.parameters():  # zero at the start of training
        torch.nn.init.normal_(p, std=0.1)
    return model


def recorded_video_model(**options: Any) -> VideoModel:
    """With the weights that the recording was made with."""
    c = golden_json("flip_dit/meta.json")["tiny_config"]
    model = VideoModel(
        size=c["input_size"],
        channels=c["in_channels"],
        patch=c["patch_size"],
        width=c["hidden_size"],
        depth=c["depth"],
        heads=c["num_heads"],
        horizon=c["flow_horizon"],
        history=c["obs_history"],
        text_dim=c["language_dim"],
        **options,
    )
    model.load_state_dict(golden_tensors("flip_dit/tiny.safetensors"))
    return model.eval()
