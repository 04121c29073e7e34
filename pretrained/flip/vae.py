"""Pictures to the latents that FLIP's video model works on, and back: Stable Diffusion's autoencoder, from diffusers.

`model` is a folder in diffusers' layout, a hub id such as "stabilityai/sd-vae-ft-ema", or "tiny": small, random, the
same on every call. What is normalised how is this class's business: pictures come and go as [0, 1]. Repaired: field
`pixels` of `pretrained.flip.quirks`.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrained import checkpoint
from pretrained.flip.quirks import choose
from pretrained.types import Rng, randn

TINY, SCALE = "tiny", 0.18215
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Autoencoder(nn.Module):
    """Pictures [..., 3, Y, X] in [0, 1] <-> latents [..., 4, Y/8, X/8] of about unit variance."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, *, model: str = TINY, quirks: str = "fixed", switches: Mapping[str, Any] | None = None
    ) -> None:  # fmt: skip
        super().__init__()
        self.quirks = choose(quirks, switches)
        self.model: Any = _tiny() if model == TINY else _trained(model) or _load(model)
        self.factor = 2 ** (len(self.model.config.block_out_channels) - 1)
        self.scale = float(getattr(self.model.config, "scaling_factor", None) or SCALE)
        mean, std = IMAGENET if self.quirks.pixels == "imagenet" else ((0.5,) * 3, (0.5,) * 3)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def encode(self, pictures: Tensor, rng: Rng | None = None) -> Tensor:
        """The mean of the latents, or with `rng` a sample of them."""
        mean, std = self.moments(pictures)
        return self.drawn(mean, std, rng).unflatten(0, pictures.shape[:-3])

    def moments(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of all pictures in a row [M, 4, Y/8, X/8], before scaling."""
        check_range(pictures)
        if pictures.shape[-2] % self.factor or pictures.shape[-1] % self.factor:
            raise ValueError(
                f"pictures of {pictures.shape[-2]}x{pictures.shape[-1]} do not divide by {self.factor}, which the "
                "autoencoder makes them smaller by; resize them"
            )
        found = self.model.encode(((pictures - self.mean) / self.std).flatten(0, -4)).latent_dist
        return found.mean, found.std

    def drawn(self, mean: Tensor, std: Tensor, rng: Rng | None) -> Tensor:
        """Scaled latents [M, ...] from their `moments`; the mean without `rng`."""
        return self.scale * (mean if rng is None else mean + std * randn(mean.shape, rng, mean.device))

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures, clipped to [0, 1]. Raises ValueError if latents are not finite."""
        return self.raw(latents).clamp(0, 1)

    def raw(self, latents: Tensor) -> Tensor:
        """As `decode`, not clipped, so that there is a gradient."""
        if not bool(torch.isfinite(latents).all()):
            raise ValueError("latents to decode hold NaN or infinity; the video model that made them is broken")
        pictures = self.model.decode((latents / self.scale).flatten(0, -4)).sample
        return (pictures * self.std + self.mean).unflatten(0, latents.shape[:-3])

    def loss(self, pictures: Tensor) -> Tensor:
        """Squared error of what comes back, in the autoencoder's own units."""
        with torch.no_grad():
            latents = self.encode(pictures)
        return F.mse_loss(self.raw(latents) / self.std, pictures / self.std)

    def whole_loss(self, pictures: Tensor, rng: Rng) -> Tensor:
        """As `loss`, for encoder and decoder together. Latents are held near unit variance after scaling, and their
        noise near 1 before it, as those of Stable Diffusion's have it."""
        found = self.model.encode((pictures - self.mean) / self.std).latent_dist
        latents = found.mean + found.std * randn(found.mean.shape, rng, found.mean.device)
        error = F.mse_loss(self.model.decode(latents).sample, (pictures - self.mean) / self.std)
        spread = ((self.scale * found.mean) ** 2).mean().log() ** 2
        return error + 1e-2 * spread + 1e-4 * (found.logvar**2).mean()

    def tune_decoder(self) -> None:
        """Only the decoder learns, so that latents stay those that a video model knows."""
        self.model.requires_grad_(False)
        for part in (self.model.decoder, self.model.post_quant_conv):
            part.requires_grad_(True)


def check_range(pictures: Tensor) -> None:
    """Raise ValueError unless pictures are floats in [0, 1], which is what all of FLIP's modules take."""
    if not pictures.is_floating_point():
        raise ValueError(f"pictures are {pictures.dtype}, expected floats in [0, 1]; divide uint8 by 255")
    low, high = float(pictures.min()), float(pictures.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(
            f"pictures lie in [{low:.3g}, {high:.3g}], expected [0, 1]; each module applies its own statistics, so "
            "give them neither normalised nor in 0 to 255"
        )


def psnr(pictures: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio of pictures in [0, 1], dB; the mean over pictures."""
    error = ((pictures - target) ** 2).flatten(0, -4).flatten(1).mean(1)
    return float((-10 * error.clamp(min=1e-10).log10()).mean())


def ssim(pictures: Tensor, target: Tensor) -> float:
    """Structural similarity of pictures in [0, 1] (Wang et al. 2004): 11x11 Gaussian window of 1.5 pixels."""
    x, y = pictures.flatten(0, -4).flatten(0, 1)[:, None], target.flatten(0, -4).flatten(0, 1)[:, None]
    if min(x.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs pictures of at least 11x11 pixels, got {x.shape[-2]}x{x.shape[-1]}")
    places = torch.arange(11, device=x.device) - 5.0
    line = torch.exp(-(places**2) / (2 * 1.5**2))
    line = line / line.sum()
    window = (line[:, None] * line)[None, None]

    def near(z: Tensor) -> Tensor:
        return F.conv2d(z, window)

    mx, my = near(x), near(y)
    vx, vy, both = near(x * x) - mx**2, near(y * y) - my**2, near(x * y) - mx * my
    low, contrast = 0.01**2, 0.03**2
    found = (2 * mx * my + low) * (2 * both + contrast) / ((mx**2 + my**2 + low) * (vx + vy + contrast))
    return float(found.mean())


def _trained(model: str) -> Any:
    """The autoencoder of a checkpoint of stage=vae; None if `model` is no such folder."""
    if not ((Path(model) / checkpoint.MANIFEST).is_file() or checkpoint.steps(model)):
        return None
    policy: Any = checkpoint.load_policy(checkpoint.find(model))
    if not isinstance(getattr(policy, "vae", None), Autoencoder):
        raise ValueError(f"{model} holds a {type(policy).__name__}, expected a checkpoint of stage=vae")
    return policy.vae.model


def _load(model: str) -> Any:
    kind = _library()
    thrifty = {"low_cpu_mem_usage": importlib.util.find_spec("accelerate") is not None}
    try:
        return kind.from_pretrained(model, **thrifty)
    except (OSError, ValueError, KeyError, TypeError) as e:
        why = (str(e).strip() or type(e).__name__).split("\n")[0]
        raise ValueError(
            f"no autoencoder can be loaded from '{model}': {why}; give a folder in diffusers' layout, a hub id that "
            "can be reached, or tiny"
        ) from e


def _tiny() -> Any:
    kind = _library()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(16, 16, 32, 32),
            norm_num_groups=8,
            layers_per_block=1,
            latent_channels=4,
        )


def _library() -> Any:
    try:
        from diffusers import AutoencoderKL
    except ImportError as e:
        raise ValueError("the autoencoder needs the package diffusers, which is not installed; run 'make setup'") from e
    return AutoencoderKL
