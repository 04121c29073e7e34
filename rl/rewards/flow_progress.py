"""Reward for moving what the plan moves: the share of their way that the planned points have come.

The proposal attaches tracks (`rl.proposals.flip_plan`). A tracker finds the points that the plan moves in the pictures
after each decision, from the picture that the plan was made from. Whatever follows a plan that was made before the
segment pays nothing: its first picture is not there. Gao et al. 2024 plan in flows; the reward is a robust form of
GenFlowRL's (2025), without its view of the simulator.
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.build import build
from rl.rewards.progress import MODES, shaped
from rl.types import Metrics, Segment

TRACKS, GIVEN = "hint/plan/tracks", "hint/plan/given"  # [N, T, P, F, 2] in [-1, 1], [N, T, 1]
log = logging.getLogger(__name__)


class FlowProgress:
    """Potential: the mean over points that the plan moves, and that are seen, of 1 - distance left / planned distance.

    "pbrs" is potential-based shaping; when a plan ends, what was gained on it is given back. "dense" pays what was
    gained on each plan, times a weight that falls to 0 over `anneal` policy versions if that is set: stronger, and can
    be gamed while it lasts."""

    needs: frozenset[str] = frozenset({"frames"})

    def __init__(
        self, *, camera: str, tracker: Mapping[str, Any], mode: str = "pbrs", anneal: int = 0, moves: float = 2.0
    ) -> None:
        """`tracker`: node of a `pretrained.demos.tracks.Tracker`; `moves`: pixels by which the plan must move a point
        for it to count."""
        if mode not in MODES:
            raise ValueError(f"flow progress: mode '{mode}' is not known; expected one of {', '.join(MODES)}")
        if anneal < 0 or (anneal and mode != "dense") or moves <= 0:
            raise ValueError(f"flow progress: expected anneal >= 0 (with mode: dense) and moves > 0, got {anneal} with "
                             f"mode '{mode}' and {moves:g}")  # fmt: skip
        self.camera, self.tracker, self.mode, self.anneal, self.moves = camera, tracker, mode, anneal, moves
        self._model: Any = None
        self.report: Metrics = {}

    def __call__(self, segment: Segment, gamma: float) -> Tensor:
        """[N, T] reward of each decision; 0 where the segment is not valid, or everywhere if the tracker is lost."""
        if TRACKS not in segment.features or self.camera not in segment.frames:
            raise ValueError(
                f"flow progress: the segment has features {sorted(segment.features)} and pictures of "
                f"{sorted(segment.frames)}, expected '{TRACKS}' and '{self.camera}'; choose proposal=flip_plan, and "
                "its camera"
            )
        begins = plan_begins(segment)
        try:
            if self._model is None:
                self._model = build(self.tracker)
            gained = self._gained(segment, begins)
        except (ValueError, RuntimeError, OSError, ImportError) as e:
            log.warning("flow progress has no tracker (%s); this update learns from the other terms alone", e)
            self.report = {"lost": 1.0}
            return torch.zeros_like(segment.env_reward)
        gained = gained.to(segment.env_reward)
        said = gained[segment.valid & (begins >= 0)]
        self.report = {"lost": 0.0, "potential": float(said.mean()) if len(said) else 0.0}
        earlier = torch.nn.functional.pad(gained, (1, 0))[:, :-1]
        if self.mode == "pbrs":
            fresh = segment.starts.clone()
            fresh[:, 0] = True
            return shaped(torch.where(fresh, torch.zeros_like(earlier), earlier), gained, segment, gamma)
        first = begins == torch.arange(segment.shape[1])
        weight = max(0.0, 1.0 - segment.version / self.anneal) if self.anneal else 1.0
        paid = weight * (gained - torch.where(first, torch.zeros_like(earlier), earlier))
        return torch.where(segment.valid, paid, torch.zeros_like(paid))

    def _gained(self, segment: Segment, begins: Tensor) -> Tensor:
        """[N, T] share of the planned way that is behind after each decision; 0 without a plan."""
        n, t = segment.shape
        frames = segment.frames[self.camera].numpy()
        size = np.array((frames.shape[4], frames.shape[3]))  # X, Y
        tracks = (segment.features[TRACKS].float().numpy() + 1) / 2 * size - 0.5
        given = segment.features[GIVEN].reshape(n, t).numpy() > 0
        out = torch.zeros(n, t)
        for i in range(n):
            for k in sorted({int(b) for b in begins[i] if b >= 0}):
                stretch = np.flatnonzero((begins[i] == k).numpy() & segment.valid[i].numpy())
                if not given[i, k] or not len(stretch):
                    continue
                start, goal = tracks[i, k, :, 0], tracks[i, k, :, -1]
                moving = np.linalg.norm(goal - start, axis=1) > self.moves
                if not moving.any():
                    continue
                seen = np.concatenate([frames[i, k, :1], frames[i, stretch, 1]])
                out[i, stretch] = torch.from_numpy(self._shares(seen, start[moving], goal[moving])).float()
        return out

    def _shares(self, frames: np.ndarray, start: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """[S] of the frames [1 + S, ...] behind the first."""
        found = self._model(frames, np.clip(start, 0, np.array(frames.shape[2:0:-1]) - 1.0))
        if not np.isfinite(found.tracks).all():
            raise ValueError("the tracker answers NaN or infinity")
        left = np.linalg.norm(found.tracks - goal[:, None], axis=-1) / np.linalg.norm(goal - start, axis=-1)[:, None]
        share = np.where(found.visible, np.clip(1 - left, 0, 1), 0.0)
        return (share.sum(0) / np.maximum(found.visible.sum(0), 1))[1:]


def plan_begins(segment: Segment) -> Tensor:
    """int64 [N, T]: the decision of this segment that each one's plan was made at, -1 if it was made before."""
    tracks, (n, t) = segment.features[TRACKS], segment.shape
    new = segment.starts.clone()
    new[:, 1:] |= (tracks[:, 1:] != tracks[:, :-1]).flatten(2).any(-1)
    return torch.where(new, torch.arange(t).expand(n, t), -1).cummax(1).values
