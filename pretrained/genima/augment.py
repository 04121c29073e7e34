"""Disturbances of training pictures, float [B, 3, Y, X] from 0 to 255: in torch alone, from a given generator.

Each function draws one disturbance per row; `same` draws one for all rows. `views` [B, V, ...] of one moment are rows.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

GREY = (0.2989, 0.587, 0.114)
OF_CONTROLLERS = ("elastic", "colorjitter", "crop", "blur", "noise")
JITTER = (0.2, 0.2, 0.1, 0.05)  # brightness, contrast, saturation: shares; hue: of the circle


def draw(count: int, rng: torch.Generator, images: Tensor, *, same: bool = False) -> Tensor:
    """Uniform on [0, 1), one row per picture."""
    values = torch.rand(1 if same else len(images), count, generator=rng)
    return values.to(images.device).expand(len(images), -1)


def colour_jitter(images: Tensor, rng: torch.Generator, *, same: bool = False) -> Tensor:
    """Brightness, contrast, saturation and hue, in this order."""
    u = 2 * draw(4, rng, images, same=same)[..., None, None] - 1
    brightness, contrast, saturation = (1 + size * u[:, i, None] for i, size in enumerate(JITTER[:3]))
    x = (images * brightness).clamp(0, 255)
    x = _towards(x, _grey(x).mean((2, 3), keepdim=True), contrast)
    x = _towards(x, _grey(x), saturation)
    return _turn_hue(x, u[:, 3, 0, 0] * JITTER[3] * 2 * math.pi)


def crop(images: Tensor, rng: torch.Generator, *, pad: int, same: bool = False) -> Tensor:
    """Shift by up to `pad` pixels; what comes in is mirrored."""
    y, x = images.shape[2:]
    shifts = (draw(2, rng, images, same=same) * (2 * pad + 1)).long()
    padded = F.pad(images, (pad,) * 4, mode="reflect")
    rows = shifts[:, :1] + torch.arange(y, device=images.device)
    columns = shifts[:, 1:] + torch.arange(x, device=images.device)
    index = torch.arange(len(images), device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def elastic(
    images: Tensor, rng: torch.Generator, *, alpha: float = 80.0, sigma: float = 10.0, same: bool = False
) -> Tensor:
    """Pixels move by a smooth random field, about `alpha` / `sigma` of a pixel."""
    y, x = images.shape[2:]
    field = 2 * torch.rand(1 if same else len(images), 2, y, x, generator=rng).to(images.device) - 1
    field = blur(field, sigma=sigma) * alpha
    scale = torch.tensor([2 / x, 2 / y], device=images.device)
    grid = _grid(images) + field.permute(0, 2, 3, 1) * scale
    return _sample(images, grid)


def affine(images: Tensor, rng: torch.Generator, *, same: bool = False) -> Tensor:
    """Turns of up to 10 degrees, shifts of 10 %, scales of 0.9 to 1.1, shears of 1 degree."""
    u = 2 * draw(5, rng, images, same=same) - 1
    angle, shear, scale = torch.deg2rad(10 * u[:, 0]), torch.deg2rad(u[:, 1]), 1 + 0.1 * u[:, 2]
    cos, sin, lean = angle.cos() / scale, angle.sin() / scale, shear.tan()
    rows = torch.stack([cos, -sin + cos * lean, 0.2 * u[:, 3], sin, cos + sin * lean, 0.2 * u[:, 4]], 1)
    return _sample(images, F.affine_grid(rows.view(-1, 2, 3), list(images.shape), align_corners=False))


def blur(images: Tensor, *, sigma: float, size: int = 0) -> Tensor:
    """Gaussian; `size` pixels wide, or three deviations to each side. Channels and rows are blurred apart."""
    reach = size // 2 if size else math.ceil(3 * sigma)
    reach = min(reach, min(images.shape[2:]) - 1)
    place = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (place / sigma) ** 2)
    kernel = kernel / kernel.sum()
    x = F.pad(images.flatten(0, 1)[:, None], (reach,) * 4, mode="reflect")
    x = F.conv2d(F.conv2d(x, kernel[None, None, :, None]), kernel[None, None, None])
    return x.view_as(images)


def controller_view(
    images: Tensor, rng: torch.Generator, names: Sequence[str], *, same: bool = False, share: float = 0.5
) -> Tensor:
    """GENIMA's controller sees elastic fields, colours and shifts, each with probability `share`; and noise.

    Fields and shifts are GENIMA's for pictures of 256 pixels (pad 4), and shrink with smaller ones. `blur` is ours: a
    small painter's spheres have neither stripes nor edges."""
    if not names:
        return images
    size = min(images.shape[2:])
    known = {
        "elastic": lambda x: elastic(x, rng, sigma=min(10.0, size / 25.6), alpha=min(80.0, size / 3.2), same=same),
        "colorjitter": lambda x: colour_jitter(x, rng, same=same),
        "crop": lambda x: crop(x, rng, pad=min(4, max(1, size // 64)), same=same),
        "blur": lambda x: blur(x, sigma=size / 64 * float(torch.empty(()).uniform_(0.5, 2.0, generator=rng))),
    }
    check_names(names, OF_CONTROLLERS)
    for name, change in known.items():
        if name in names:
            chosen = draw(1, rng, images, same=same)[:, 0] < share
            images = torch.where(chosen[:, None, None, None], change(images), images)
    if "noise" in names:  # the one that is always drawn for each picture
        images = images + 5.0 * torch.randn(images.shape, generator=rng).to(images.device)
    return images.clamp(0, 255)


def check_names(names: Sequence[str], known: Sequence[str]) -> None:
    """Raise ValueError naming an augmentation that does not exist."""
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"augmentations {unknown} are unknown; expected some of {list(known)}")


def _grey(x: Tensor) -> Tensor:
    return sum(w * x[:, i : i + 1] for i, w in enumerate(GREY))  # type: ignore[return-value]


def _towards(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (factor * x + (1 - factor) * other).clamp(0, 255)


def _turn_hue(x: Tensor, angle: Tensor) -> Tensor:
    """Turn colours about the grey axis by angle [B]."""
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    one = torch.full((3, 3), 1 / 3, device=x.device)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=x.device) / math.sqrt(3)
    turn = cos * torch.eye(3, device=x.device) + (1 - cos) * one + sin * cross
    return torch.einsum("bij,bjyx->biyx", turn, x).clamp(0, 255)


def _grid(images: Tensor) -> Tensor:
    same = torch.eye(2, 3, device=images.device).expand(1, -1, -1)
    return F.affine_grid(same, [1, *images.shape[1:]], align_corners=False)


def _sample(images: Tensor, grid: Tensor) -> Tensor:
    grid = grid.expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
