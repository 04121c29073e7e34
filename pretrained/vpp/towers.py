"""The towers of VPP from other libraries: Stable Video Diffusion from diffusers, CLIP's text tower from transformers.

A video model is a folder in diffusers' pipeline layout (unet, vae, scheduler), a hub id, a checkpoint of the stage
`video`, or "tiny": small, random, the same on every call. The text tower likewise, in transformers' layout.
"""

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pretrained import checkpoint
from pretrained.tensors import load_tensors

TINY = "tiny"
UNET = "video.unet."  # where a checkpoint of the stage `video` keeps the weights of the U-Net
# Stable Video Diffusion's own, for folders without a scheduler.
SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}
Tokenize = Callable[[Sequence[str], int], tuple[Tensor, Tensor]]  # texts, length -> ids and mask int64 [N, length]


class Towers(NamedTuple):
    """The parts of a video model, as diffusers has them."""

    unet: Any
    vae: Any
    scheduler: Any


def load_video(model: str) -> Towers:
    """Load a video model. Raises ValueError if it is not one, or if its parts do not fit each other."""
    _need_diffusers()
    if model == TINY:
        return check(_tiny_video(), model)
    if (Path(model) / checkpoint.MANIFEST).is_file() or checkpoint.steps(model):
        return _from_checkpoint(checkpoint.find(model))
    from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler, UNetSpatioTemporalConditionModel

    try:
        thrifty = {"low_cpu_mem_usage": importlib.util.find_spec("accelerate") is not None}
        unet = UNetSpatioTemporalConditionModel.from_pretrained(model, subfolder="unet", **thrifty)
        vae = AutoencoderKLTemporalDecoder.from_pretrained(model, subfolder="vae", **thrifty)
        if Path(model).is_dir() and not (Path(model) / "scheduler").is_dir():
            scheduler = EulerDiscreteScheduler(**SCHEDULE)
        else:
            scheduler = EulerDiscreteScheduler.from_pretrained(model, subfolder="scheduler")
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as e:
        why = (str(e).strip() or type(e).__name__).split("\n")[0]
        raise ValueError(
            f"no video model can be loaded from '{model}': {why}; give a folder in diffusers' layout (unet, vae), a "
            "hub id that can be reached, a checkpoint of stage=video, or tiny"
        ) from e
    return check(Towers(unet, vae, scheduler), model)


def check(towers: Towers, name: str) -> Towers:
    """Raise ValueError if the U-Net's latents are not those of the VAE."""
    latent, inputs, outputs = (
        int(towers.vae.config.latent_channels),
        int(towers.unet.config.in_channels),
        int(towers.unet.config.out_channels),
    )
    if (inputs, outputs) != (2 * latent, latent):
        raise ValueError(
            f"the video model '{name}' has another latent shape than its VAE: the U-Net takes {inputs} channels and "
            f"gives {outputs}, expected {2 * latent} (noisy and first latent) and {latent}; take both from one pipeline"
        )
    return towers


def _from_checkpoint(folder: Path) -> Towers:
    """The video model that a checkpoint of the stage `video` was trained from, with the trained U-Net."""
    card = checkpoint.read_card(folder)
    base = dict(card.node.get("video") or {}).get("model")
    if not str(card.node.get("_target_")).endswith("VideoStage") or not isinstance(base, str):
        raise ValueError(f"{folder} is a checkpoint of a policy; as video model it takes one of pretrain stage=video")
    checkpoint.verify(folder)
    towers = load_video(base)
    weights = load_tensors(folder / "policy.safetensors")
    found = towers.unet.load_state_dict(
        {k.removeprefix(UNET): v for k, v in weights.items() if k.startswith(UNET)}, strict=False
    )
    if found.missing_keys or found.unexpected_keys:
        wrong = [*found.missing_keys, *found.unexpected_keys]
        raise ValueError(f"{folder}: the U-Net does not fit that of '{base}', which it was trained from: {wrong[:8]}")
    return towers


def load_text(model: str, tokenizer: str = "") -> tuple[Any, Tokenize]:
    """CLIP's text tower with its projection, and its tokenizer, which may lie elsewhere."""
    if model == TINY:
        return _tiny_text(), _tiny_tokens
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    try:
        tower = CLIPTextModelWithProjection.from_pretrained(model)
        words: Any = None if tokenizer == TINY else AutoTokenizer.from_pretrained(tokenizer or model)
    except (OSError, ValueError, ImportError) as e:
        why = str(e).strip().split("\n")[0]
        raise ValueError(
            f"CLIP's text tower cannot be loaded from '{model}': {why}; give a folder in transformers' layout with its "
            "tokenizer, a hub id that can be reached, or tiny"
        ) from e

    if tokenizer == TINY:
        return tower, _tiny_tokens

    def tokenize(texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        out = words(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="np")
        ids, mask = (np.asarray(out[k], dtype=np.int64) for k in ("input_ids", "attention_mask"))
        return torch.from_numpy(ids), torch.from_numpy(mask)

    return tower, tokenize


def _need_diffusers() -> None:
    try:
        import diffusers  # noqa: F401
    except ImportError as e:
        raise ValueError("video models need the package diffusers, which is not installed; run 'make setup'") from e


def _tiny_video() -> Towers:
    from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler, UNetSpatioTemporalConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNetSpatioTemporalConditionModel(
            in_channels=8,
            out_channels=4,
            block_out_channels=(32, 32, 64, 64),
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24,
            layers_per_block=1,
            cross_attention_dim=32,
            num_attention_heads=(1, 1, 2, 2),
        )
        sizes: dict[str, Any] = {"down_block_types": ("DownEncoderBlock2D",) * 2, "block_out_channels": (32, 32)}
        vae = AutoencoderKLTemporalDecoder(**sizes, layers_per_block=1)
        vae.quant_conv.weight.data.mul_(10.0)  # latents as large as those of a trained one, or the U-Net is blind
    return Towers(unet, vae, EulerDiscreteScheduler(**SCHEDULE))


def _tiny_text() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=259,
        max_position_embeddings=77,
        bos_token_id=257,
        eos_token_id=258,
        pad_token_id=258,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        projection_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CLIPTextModelWithProjection(config)


def _tiny_tokens(texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """Bytes between a begin and an end; the end also fills up."""
    rows = [[257, *text.encode()[: length - 2], 258] for text in texts]
    ids = torch.tensor([row + [258] * (length - len(row)) for row in rows], dtype=torch.int64)
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], dtype=torch.int64)
    return ids, mask
