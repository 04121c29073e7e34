"""Fusion: image, text and proprioception vectors of one decision become one condition [B, D]."""

import torch
from torch import Tensor, nn

from pretrained.networks import mlp


class ConcatFusion(nn.Module):
    """Proprioception through a small MLP, everything side by side, two layers."""

    def __init__(
        self, *, image_dim: int, text_dim: int, proprio_dim: int, proprio: tuple[str, ...], width: int
    ) -> None:
        super().__init__()
        body = width // 2 if proprio_dim else 0
        self.proprio = mlp([proprio_dim, body, body], norm=True) if proprio_dim else None
        self.layers = mlp([image_dim + text_dim + body, width, width], norm=True)

    def forward(self, image: Tensor, text: Tensor, proprio: Tensor) -> Tensor:
        """image [B, V], text [B, S], z-scored proprio [B, L P] -> [B, D]."""
        parts = [image, text]
        if self.proprio is not None:
            parts.append(self.proprio(proprio))
        return self.layers(torch.cat(parts, -1))
