"""Reward for following a plan: how far along its pictures the robot has come, by a pointer that never goes back.

The proposal attaches vectors of the plan's pictures (`plan/goals`, see `rl.proposals.flip_plan`). After each decision
the picture is matched with those at the pointer and a few behind it. Being potential-based, the term telescopes over
every stretch of a segment that belongs to one episode, also when a new plan resets the pointer.
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.build import build
from rl.rewards.progress import shaped
from rl.types import Metrics, Segment

GOALS = "hint/plan/goals"  # [N, T, K, D]
log = logging.getLogger(__name__)


class PlanTracking:
    """Potential: the share of the plan's pictures that are behind."""

    needs: frozenset[str] = frozenset({"frames"})

    def __init__(self, *, embedder: Mapping[str, Any], camera: str, reach: int = 4) -> None:
        """`embedder`: node of what maps pictures uint8 [M, Y, X, 3] to vectors [M, D], the same that the proposal uses;
        `reach`: pictures ahead of the pointer that a match is sought among."""
        if reach < 1:
            raise ValueError(f"plan tracking: reach = {reach}, expected at least 1")
        self.embedder, self.camera, self.reach = embedder, camera, reach
        self._model: Any = None
        self.report: Metrics = {}

    def __call__(self, segment: Segment, gamma: float) -> Tensor:
        """[N, T] reward of each decision; 0 where the segment is not valid."""
        if GOALS not in segment.features or self.camera not in segment.frames:
            raise ValueError(
                f"plan tracking: the segment has features {sorted(segment.features)} and pictures of "
                f"{sorted(segment.frames)}, expected '{GOALS}' and '{self.camera}'; choose proposal=flip_plan with "
                "goals: true, and its camera"
            )
        goals = segment.features[GOALS].float()
        try:
            seen = self._embedded(segment.frames[self.camera])
        except (ValueError, RuntimeError, OSError) as e:
            log.warning("plan tracking has no embedder (%s); this update learns from the other terms alone", e)
            self.report = {"lost": 1.0}
            return torch.zeros_like(segment.env_reward)
        like = torch.einsum("ntikd,ntid->ntik", _unit(goals)[:, :, None].expand(-1, -1, 2, -1, -1), _unit(seen))
        fresh = segment.starts.clone()
        fresh[:, 0] = True
        changed = torch.zeros_like(fresh)
        changed[:, 1:] = (goals[:, 1:] != goals[:, :-1]).flatten(2).any(-1)
        before, after = follow(like, fresh, changed, self.reach)
        said = after[segment.valid]
        self.report = {"lost": 0.0, "potential": float(said.mean()) if len(said) else 0.0}
        return shaped(before.to(segment.env_reward), after.to(segment.env_reward), segment, gamma)

    def _embedded(self, frames: Tensor) -> Tensor:
        """[N, T, 2, D]"""
        if self._model is None:
            self._model = build(self.embedder)
        vectors = np.asarray(self._model(frames.flatten(0, 2).numpy()))
        return torch.from_numpy(vectors).float().unflatten(0, frames.shape[:3])


def follow(like: Tensor, fresh: Tensor, changed: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Potentials [N, T] before and after each decision, from likenesses [N, T, 2, K] of the pictures before and after.

    `fresh`: an episode, or the segment, begins: the pointer is where the picture before fits best. `changed`: another
    plan begins: likewise, but what was gained on the last one is given back."""
    n, t, _, k = like.shape
    before, after = torch.zeros(n, t), torch.zeros(n, t)
    pointer, places = torch.zeros(n, dtype=torch.int64), torch.arange(k)
    potential = torch.zeros(n)
    for i in range(t):
        first = like[:, i, 0].argmax(-1)
        pointer = torch.where(fresh[:, i] | changed[:, i], first, pointer)
        potential = torch.where(fresh[:, i], pointer / k, potential)
        before[:, i] = potential
        near = (places >= pointer[:, None]) & (places <= pointer[:, None] + reach)
        pointer = like[:, i, 1].masked_fill(~near, -torch.inf).argmax(-1)
        potential = pointer / k
        after[:, i] = potential
    return before, after


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=-1)
