"""Parts that FLIP's flow and video models share: patches, fixed positions, a post-norm transformer, padded texts.

Attributes have the names of the published checkpoints, so that those load without a table of names.
"""

import torch
from torch import Tensor, nn


class Patches(nn.Module):
    """Pictures [B, C, Y, X] -> tokens [B, Y/p * X/p, D], row by row."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.proj(pictures).flatten(2).transpose(1, 2)


def sincos(places: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of places [M] at width/2 frequencies down to 1/10000 -> float64 [M, width]."""
    frequencies = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = places.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


def sincos_2d(rows: int, columns: int, width: int) -> Tensor:
    """[1, rows * columns, width]: the first half of the channels says the column, the second half the row."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    table = torch.cat([sincos(x.flatten(), width // 2), sincos(y.flatten(), width // 2)], 1)
    return table.float()[None]


def transformer(width: int, heads: int, layers: int, dropout: float) -> nn.TransformerEncoder:
    """Post-norm layers whose feed-forward part is as wide as the rest."""
    layer = nn.TransformerEncoderLayer(width, heads, width, dropout, activation="relu", batch_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def check_sizes(where: str, *, width: int, heads: int, size: tuple[int, int], patch: int, even: int = 4) -> None:
    """Raise ValueError if a width does not divide into heads and halves, or a picture into patches."""
    if width % heads or width % even:
        raise ValueError(f"{where}: width {width} must be divisible by its {heads} heads and by {even}")
    if size[0] % patch or size[1] % patch:
        raise ValueError(f"{where}: a picture of {size[0]}x{size[1]} does not divide into patches of {patch}x{patch}")


def check_text(text: Tensor, width: int, where: str) -> None:
    """Raise ValueError if encoded texts [B, S, Dl] come from another encoder than the model was made for."""
    if text.ndim != 3 or text.shape[-1] != width:
        raise ValueError(
            f"{where} was made for texts encoded as [B, S, {width}], got {list(text.shape)}; all models of a plan are "
            "trained with the same text encoder: name that one"
        )
