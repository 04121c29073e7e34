"""What a planner searches in, remembered rather than imagined: clips of a shard that began with a picture like this.

A candidate is one of the clips whose first pictures are nearest, each of another episode: its tracks are the plan, and
what its episode came to is what the value model judges. There is no flow model and no video model, so what is lost
against it is lost by them; and nothing can be planned that was never seen.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrained.demos.tracks import Shard
from pretrained.flip.judge import LivJudge
from pretrained.flip.planner import Future, grid
from pretrained.flip.value import ValueModel
from pretrained.types import rand

SIDE = 16  # pixels of the pictures that are compared


class Recall:
    """Meets `pretrained.flip.planner.World`."""

    history = 1

    def __init__(
        self,
        *,
        shard: str | Path,
        value: str | ValueModel,
        near: int = 12,
        ahead: int = 1,
        fraction: float = 0.0,
        seed: int = 0,
    ) -> None:
        """`value`: a model, or a checkpoint of stage=value. `near`: episodes to draw from. `ahead`: clip lengths to the
        picture that is judged, or the end of the episode. `fraction`, `seed`: of the training whose held-out episodes
        are to be left out. Raises ValueError if there are fewer episodes than `near`."""
        if ahead < 1:
            raise ValueError(f"ahead = {ahead} clip lengths, expected at least 1")
        self.shard = Shard(shard)
        self.clips = self.shard.split(fraction, seed)[0]
        self.owner = self.shard.episode_of[self.clips]
        if not 1 <= near <= len(np.unique(self.owner)):
            raise ValueError(
                f"near = {near} of {len(np.unique(self.owner))} episodes; expected at least 1, and no more"
            )
        self.near, self.ahead = near, ahead
        path, model = ("", value) if isinstance(value, ValueModel) else (value, None)
        self.value = LivJudge(checkpoint_path=path, value=model, calibration=(1.0, 0.0)).value
        self.size: tuple[int, int] = (self.shard.frames.shape[1], self.shard.frames.shape[2])
        self.horizon = self.shard.clip
        self.points = grid(self.size, self.shard.tracks.shape[1])
        parts = np.array_split(self.clips, max(1, len(self.clips) // 512))
        self.known = torch.cat([_small(self._first(part)) for part in parts])

    def _first(self, clips: np.ndarray) -> Tensor:
        """[M, 3, Y, X] in [0, 1]"""
        return _pictures(self.shard.pictures(clips, history=1)[0][:, 0])

    @property
    def device(self) -> torch.device:
        """Where the value model is."""
        return next(self.value.parameters()).device

    @torch.no_grad()
    def imagine(self, pictures: Tensor, texts: Sequence[str], rngs: Sequence[torch.Generator]) -> Future:
        """Remembered futures of pictures [M, L, 3, Y, X] for M texts; row i follows generator i."""
        distance = torch.cdist(_small(pictures[:, -1]), self.known)  # [M, clips]
        draws = [int(rand((1,), g)[0] * self.near) for g in rngs]
        chosen = np.array([self._nearest(d)[k] for d, k in zip(distance.numpy(), draws, strict=True)])
        video = _pictures(self.shard.pictures(chosen, history=1)[1].reshape(-1, *self.shard.frames.shape[1:]))
        video = video.unflatten(0, (len(chosen), -1))
        tracks = torch.from_numpy(self.shard.flow(chosen).tracks)
        return Future(tracks, video, self.value.score(self._later(chosen), texts))

    def _later(self, clips: np.ndarray) -> Tensor:
        """The pictures [M, 3, Y, X] that clips are judged by."""
        rows = [self.shard.episodes[i] for i in self.shard.episode_of[clips]]
        reach = self.ahead * (self.shard.clip - 1) * self.shard.stride
        at = [r["frame"] + min(c - r["clip"] + reach, r["frames"] - 1) for c, r in zip(clips, rows, strict=True)]
        return _pictures(self.shard.frames[np.array(at)])

    def _nearest(self, distance: np.ndarray) -> np.ndarray:
        """The best clip of each of the nearest episodes."""
        order = np.argsort(distance, kind="stable")
        _, first = np.unique(self.owner[order], return_index=True)
        return self.clips[order[np.sort(first)[: self.near]]]


def _pictures(frames: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255


def _small(pictures: Tensor) -> Tensor:
    return F.interpolate(pictures, (SIDE, SIDE), mode="area").flatten(1)
