"""What the painter starts from: Stable Diffusion's parts from diffusers, or "tiny", a small random model on pixels."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

TINY_PATCH = 4


class Base(NamedTuple):
    """What is frozen."""

    vae: Any
    unet: Any
    text: Any
    tokenize: Callable[[list[str]], Tensor]
    noise: Any  # scheduler of training
    sampler: Any  # scheduler of painting


def import_diffusers() -> None:
    """Raise ValueError, saying what to type, if the package is missing."""
    try:
        import diffusers  # noqa: F401
    except ImportError as e:
        raise ValueError(f"painting needs the package diffusers ({e}); type: make setup") from e


def load_base(model: str) -> Base:
    """From a folder in diffusers' layout, or a hub id."""
    from diffusers import AutoencoderKL, DDPMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import AutoTokenizer, CLIPTextModel

    parts: Sequence[tuple[Any, str]] = (
        (AutoencoderKL, "vae"), (UNet2DConditionModel, "unet"), (CLIPTextModel, "text_encoder"),
        (AutoTokenizer, "tokenizer"), (DDPMScheduler, "scheduler"), (EulerDiscreteScheduler, "scheduler"),
    )  # fmt: skip
    vae, unet, text, tokenizer, noise, sampler = (load_part(kind, model, part) for kind, part in parts)

    def tokenize(texts: list[str]) -> Tensor:
        out = tokenizer(texts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length,
                        return_tensors="np")  # fmt: skip
        return torch.from_numpy(np.asarray(out["input_ids"], dtype=np.int64))

    return Base(vae, unet, text, tokenize, noise, sampler)


def load_part(kind: Any, model: str, part: str = "") -> Any:
    """One part, `kind.from_pretrained`. Raises ValueError saying where it was looked for."""
    try:
        return kind.from_pretrained(model, **({"subfolder": part} if part else {}))
    except (OSError, ValueError) as e:
        raise ValueError(
            f"{part or kind.__name__} cannot be loaded from '{model}': {str(e).splitlines()[0]}; give a folder in "
            "diffusers' layout or a hub id that can be reached, or model: tiny for a random one"
        ) from e


class _Pixels(nn.Module):
    """In place of a VAE: the patches of the picture as channels, nothing lost."""

    patch = TINY_PATCH

    def __init__(self) -> None:
        super().__init__()
        self.config = _PixelConfig()

    def encode(self, images: Tensor) -> Any:
        mean = F.pixel_unshuffle(images, TINY_PATCH)
        return _Latent(_Gaussian(mean, torch.zeros_like(mean)))

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        return (F.pixel_shuffle(latents, TINY_PATCH),)


class _PixelConfig(NamedTuple):
    scaling_factor: float = 1.0


class _Gaussian(NamedTuple):
    mean: Tensor
    std: Tensor


class _Latent(NamedTuple):
    latent_dist: _Gaussian


def widen(unet: Any) -> None:
    """Let its first layer take as many channels again, which have no effect at first."""
    old = unet.conv_in
    new = nn.Conv2d(2 * old.in_channels, old.out_channels, old.kernel_size, padding=old.padding)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
        new.bias.copy_(old.bias)  # type: ignore[union-attr]
    unet.conv_in = new
    unet.register_to_config(in_channels=2 * old.in_channels)


def tiny_base() -> Base:
    """The same random weights on every call, so that a checkpoint of the trained part is enough."""
    from diffusers import DDPMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    length, end, channels = 96, 257, 3 * TINY_PATCH**2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=16, in_channels=channels, out_channels=channels, layers_per_block=1, norm_num_groups=8,
            block_out_channels=(64, 64), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=32, attention_head_dim=8,
        )  # fmt: skip
        text = CLIPTextModel(CLIPTextConfig(
            vocab_size=258, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=length, eos_token_id=end, bos_token_id=256, pad_token_id=end,
        ))  # fmt: skip

    def tokenize(texts: list[str]) -> Tensor:
        rows = [[256, *t.encode()[: length - 2], end] for t in texts]
        return torch.tensor([row + [end] * (length - len(row)) for row in rows], dtype=torch.int64)

    schedule: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
                                "prediction_type": "v_prediction"}  # learns to draw sooner than from noise  # fmt: skip
    return Base(_Pixels(), unet, text, tokenize, DDPMScheduler(**schedule),
                cast(Any, EulerDiscreteScheduler)(**schedule, timestep_spacing="trailing"))  # fmt: skip
