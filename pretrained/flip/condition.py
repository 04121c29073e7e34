"""A policy's view of a plan: one token per track, pooled, added to what the policy makes of its observation."""

from typing import Any

import torch
from torch import Tensor, nn

from pretrained.types import Features

TRACKS, GIVEN = "hint/plan/tracks", "hint/plan/given"


class PlanEncoder(nn.Module):
    """Plans [B, P, F, 2] to [B, D]; zero where there is none, and before learning has begun.

    Points are a set: an MLP per track, then mean and maximum over them (PointNet, Qi et al. 2017)."""

    def __init__(self, *, width: int, horizon: int, hidden: int = 128) -> None:
        """`width`: of the policy's condition; `horizon`: positions of a track."""
        super().__init__()
        self.horizon = horizon
        self.points = nn.Sequential(nn.Linear(2 + 2 * (horizon - 1), hidden), nn.GELU(), nn.Linear(hidden, hidden),
                                    nn.GELU())  # fmt: skip
        self.out = nn.Linear(2 * hidden, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Features) -> Tensor | float:
        """What is to be added. Raises ValueError if tracks are of another length than the encoder was made for."""
        if TRACKS not in x:
            return 0.0
        tracks: Any = x[TRACKS]
        if tracks.shape[-2] != self.horizon:
            raise ValueError(
                f"plans have tracks of {tracks.shape[-2]} positions, the policy was made for {self.horizon}; use the "
                "flow model that it was trained with, or set policy.plan.horizon"
            )
        tracks = tracks.float()
        token = self.points(torch.cat([tracks[..., 0, :], 8 * tracks.diff(dim=-2).flatten(-2)], -1))  # steps are short
        pooled = torch.cat([token.mean(-2), token.amax(-2)], -1)
        return self.out(pooled) * x[GIVEN].float()
