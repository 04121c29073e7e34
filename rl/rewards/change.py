"""Reward from a total that the simulator keeps, such as collisions or metres approached."""

import torch
from torch import Tensor

from rl.types import Segment


class Change:
    """By how much a privileged scalar grew during each decision."""

    needs: frozenset[str] = frozenset({"privileged"})

    def __init__(self, *, key: str) -> None:
        """`key` names the privileged scalar."""
        self.key = key

    def __call__(self, segment: Segment, gamma: float) -> Tensor:
        """[N, T] growth of each decision; 0 where the segment is not valid."""
        if self.key not in segment.privileged:
            raise ValueError(
                f"change: the segment has no privileged '{self.key}', only {sorted(segment.privileged)}; choose one of "
                "these, or drop this reward term"
            )
        total = segment.privileged[self.key].float()
        if tuple(total.shape) != (*segment.shape, 2):
            raise ValueError(f"change: '{self.key}' has shape {tuple(total.shape)}, expected {(*segment.shape, 2)}")
        grown = total[..., 1] - total[..., 0]
        return torch.where(segment.valid, grown, torch.zeros_like(grown))
