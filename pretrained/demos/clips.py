"""Shards of tracks as training windows of FLIP's modules.

A window is a clip: the pictures up to its first frame and after it, and its tracks as the hint `tracks`. Where all
episodes are long enough, the hint `frames` has five more pictures of the whole episode, for the value model.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from envs.types import EnvSpec
from pretrained.demos.tracks import Shard
from pretrained.flip.value import clip_frames
from pretrained.types import DemoBatch, ObsBatch

TRACKS, FRAMES, SCENE = "tracks", "frames", "scene"
FEWEST_FRAMES = 16  # of an episode for the value model: four clips of four


class TrackReader:
    """Windows of a shard, behind the interface of `Demos`."""

    def __init__(
        self, *, paths: str | Path, max_demos: int | None = None, history: int = 16, labelled: bool = True
    ) -> None:
        """`history`: pictures up to and with a clip's first frame; a model takes the last ones of them. Without labels
        (`labelled: false`) each clip has the sentence of any episode, so that a model learns not to heed them."""
        if max_demos is not None:
            raise ValueError("max_demos is not for shards of tracks; write a smaller shard")
        if not isinstance(paths, (str, Path)):
            raise ValueError(f"demos are {list(paths)}, expected one shard; write the files into one shard together")
        self.shard, self.history, self.labelled = Shard(paths), history, labelled
        y, x = self.shard.frames.shape[1:3]
        none = {"proprio": {}, "actions": ("none",), "low": (-1.0,), "high": (1.0,)}
        self.env = EnvSpec(env_id="tracks/shard", cameras={SCENE: (y, x)}, control_hz=20.0, max_steps=1000,
                           tasks=("all",), action_convention="none", **none)  # fmt: skip
        self.chosen = np.arange(len(self.shard))
        self.whole = min(e["frames"] for e in self.shard.episodes) >= FEWEST_FRAMES

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def num_episodes(self) -> int:
        return len(np.unique(self.shard.episode_of[self.chosen]))

    def split(self, fraction: float, seed: int) -> tuple["TrackReader", "TrackReader | None"]:
        """By episode; None if the fraction gives none."""
        train, val = self.shard.split(fraction, seed)
        return self._only(train), self._only(val) if len(val) else None

    def _only(self, chosen: np.ndarray) -> "TrackReader":
        part = object.__new__(TrackReader)
        part.__dict__.update(self.__dict__)
        part.chosen = chosen
        return part

    def all_actions(self) -> Tensor:
        """There are none."""
        return torch.zeros(1, 1)

    def all_proprio(self) -> Tensor:
        """There are none."""
        return torch.zeros(1, 0)

    def batch(self, index: Sequence[int] | np.ndarray | Tensor, *, images: bool = True, draw: int = 0) -> DemoBatch:
        """Windows `index`; `draw` seeds the frames of the whole episode."""
        clips = self.chosen[np.asarray(index, dtype=np.int64)]
        frames = np.concatenate(self.shard.pictures(clips, history=self.history), 1)
        hints = {TRACKS: torch.from_numpy(self.shard.flow(clips).tracks)}
        if self.whole:
            hints[FRAMES] = torch.from_numpy(self._episode_frames(clips, draw))
        texts = self.shard.instructions(clips)
        if not self.labelled:
            others = np.random.default_rng([draw, 1]).integers(0, len(self.shard.episodes), len(clips))
            texts = [self.shard.episodes[i]["instruction"] for i in others]
        obs = ObsBatch({SCENE: torch.from_numpy(frames)}, torch.zeros(len(clips), frames.shape[1], 0), texts, hints)
        return DemoBatch(obs, torch.zeros(len(clips), 1, 1), torch.zeros(len(clips), 1, dtype=torch.bool))

    def _episode_frames(self, clips: np.ndarray, draw: int) -> np.ndarray:
        """uint8 [B, 5, Y, X, 3] in the order of `pretrained.flip.value.FRAMES`."""
        rng, rows = np.random.default_rng(draw), []
        for i in self.shard.episode_of[clips]:
            episode = self.shard.episodes[i]
            drawn = clip_frames(episode["frames"], lambda low, high: int(rng.integers(low, high + 1)))
            rows.append(self.shard.frames[episode["frame"] + np.array(drawn)])
        return np.stack(rows)
