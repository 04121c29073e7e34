"""Pictures of a shard at the pace of decisions, for a video model that judges what a policy did.

A window is some pictures, each `stride` frames after the one before: what the model sees, then what it makes. There are
no tracks: a policy's pictures come without them.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from envs.types import EnvSpec
from pretrained.demos.clips import SCENE, TRACKS
from pretrained.demos.tracks import Shard
from pretrained.types import DemoBatch, ObsBatch


class GlimpseReader:
    """Windows of a shard, behind the interface of `Demos`."""

    def __init__(
        self, *, paths: str | Path, max_demos: int | None = None, history: int = 2, horizon: int = 2, stride: int = 8
    ) -> None:
        """`history` and `horizon` as the video model has them; `stride`: frames of an executed chunk."""
        if max_demos is not None:
            raise ValueError("max_demos is not for shards of tracks; write a smaller shard")
        if not isinstance(paths, (str, Path)):
            raise ValueError(f"demos are {list(paths)}, expected one shard; write the files into one shard together")
        if history < 1 or horizon < 2 or stride < 1:
            raise ValueError(f"glimpses: expected history >= 1, horizon >= 2 and stride >= 1, got {history}, {horizon} "
                             f"and {stride}")  # fmt: skip
        self.shard, self.history, self.horizon, self.stride = Shard(paths), history, horizon, stride
        y, x = self.shard.frames.shape[1:3]
        none = {"proprio": {}, "actions": ("none",), "low": (-1.0,), "high": (1.0,)}
        self.env = EnvSpec(env_id="tracks/shard", cameras={SCENE: (y, x)}, control_hz=20.0, max_steps=1000,
                           tasks=("all",), action_convention="none", **none)  # fmt: skip
        reach = (horizon - 1) * stride  # frames behind the last one seen
        held = [(i, f) for i, e in enumerate(self.shard.episodes) for f in range(e["frames"] - reach)]
        if not held:
            raise ValueError(f"no episode of {paths} has more than {reach} frames; lower the stride or the horizon")
        self.windows = np.array(held)  # [M, 2] episode, and its frame that is seen last

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def num_episodes(self) -> int:
        return len(np.unique(self.windows[:, 0]))

    def split(self, fraction: float, seed: int) -> tuple["GlimpseReader", "GlimpseReader | None"]:
        """By episode, as the shard's own clips; None if the fraction gives none."""
        val = np.unique(self.shard.episode_of[self.shard.split(fraction, seed)[1]])
        aside = np.isin(self.windows[:, 0], val)
        return self._only(~aside), self._only(aside) if aside.any() else None

    def _only(self, rows: np.ndarray) -> "GlimpseReader":
        part = object.__new__(GlimpseReader)
        part.__dict__.update(self.__dict__)
        part.windows = self.windows[rows]
        return part

    def all_actions(self) -> Tensor:
        """There are none."""
        return torch.zeros(1, 1)

    def all_proprio(self) -> Tensor:
        """There are none."""
        return torch.zeros(1, 0)

    def batch(self, index: Sequence[int] | np.ndarray | Tensor, *, images: bool = True, draw: int = 0) -> DemoBatch:
        """Windows `index`: pictures [B, history + horizon - 1, ...]; the hint `tracks` has no points."""
        chosen = self.windows[np.asarray(index, dtype=np.int64)]
        rows = [self.shard.episodes[i] for i in chosen[:, 0]]
        steps = self.stride * np.arange(1 - self.history, self.horizon)
        places = np.maximum(chosen[:, 1:] + steps, 0)  # before an episode its first picture is repeated
        frames = self.shard.frames[np.array([r["frame"] for r in rows])[:, None] + places]
        hints = {TRACKS: torch.zeros(len(rows), 0, self.horizon, 2)}
        obs = ObsBatch({SCENE: torch.from_numpy(frames)}, torch.zeros(len(rows), frames.shape[1], 0),
                       [r["instruction"] for r in rows], hints)  # fmt: skip
        return DemoBatch(obs, torch.zeros(len(rows), 1, 1), torch.zeros(len(rows), 1, dtype=torch.bool))
