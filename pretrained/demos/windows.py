"""Demonstrations as training windows: a short history of observations and the chunk of actions that followed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from envs.types import EnvSpec
from pretrained.demos.files import Episode, read_episodes
from pretrained.types import DemoBatch, ObsBatch


class Demos:
    """Windows over all steps of all episodes; window w is step `step[w]` of the joined episodes.

    Beyond the end of an episode a chunk repeats the last action (and says so in `is_pad`); before its start the
    history repeats the first observation. With `ahead` the history is what follows, from the window's step on.
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        *,
        env: EnvSpec,
        horizon: int,
        history: int = 1,
        align: str = "as_stored",
        drop_noops: bool = False,
        max_demos: int | None = None,
        in_memory: bool = True,
        names: Mapping[str, str] | None = None,
        ahead: bool = False,
    ) -> None:
        episodes: list[Episode] = read_episodes(paths, env=env, align=align, drop_noops=drop_noops, names=names)
        if not episodes:
            raise ValueError(f"{paths} hold no usable demonstration; collect some, or keep the no-operation steps")
        if max_demos is not None:
            if max_demos > len(episodes):
                raise ValueError(f"max_demos = {max_demos}, but {paths} hold {len(episodes)}; lower it or collect more")
            episodes = episodes[:max_demos]
        self.env, self.horizon, self.history, self.in_memory = env, horizon, history, in_memory
        self.ahead = ahead
        self.episodes = episodes
        self._actions = np.concatenate([e.actions for e in episodes])
        self._proprio = np.concatenate([e.proprio for e in episodes])
        lengths = np.array([len(e) for e in episodes])
        ends = np.cumsum(lengths)
        self._episode = np.repeat(np.arange(len(episodes)), lengths)  # of each step
        self._first, self._end = (ends - lengths)[self._episode], ends[self._episode]
        self._images: dict[str, np.ndarray] = {}
        self._shared = self  # splits use the arrays of the whole
        self.step = np.arange(len(self._actions))
        self.chosen = np.arange(len(episodes))

    def __len__(self) -> int:
        return len(self.step)

    @property
    def num_episodes(self) -> int:
        return len(self.chosen)

    def batch(self, index: Sequence[int] | np.ndarray | Tensor, *, images: bool = True, draw: int = 0) -> DemoBatch:
        """The windows `index` (numbers below `len`); without `images`, for those who have their features already.

        `draw` seeds readers that draw windows at random; here an index is a window."""
        steps = self.step[np.asarray(index, dtype=np.int64)]
        first, end = self._first[steps], self._end[steps]
        ahead = steps[:, None] + np.arange(self.horizon)
        seen = np.maximum(steps[:, None] - np.arange(self.history)[::-1], first[:, None])
        if self.ahead:
            seen = np.minimum(steps[:, None] + np.arange(self.history), end[:, None] - 1)
        cameras = self.env.cameras if images else ()
        frames: dict[str, np.ndarray | Tensor] = {c: torch.from_numpy(self._frames(c, seen)) for c in cameras}
        texts = [self.episodes[i].instruction for i in self._episode[steps]]
        obs = ObsBatch(frames, torch.from_numpy(self._proprio[seen]), texts)
        actions = self._actions[np.minimum(ahead, end[:, None] - 1)]
        return DemoBatch(obs, torch.from_numpy(actions), torch.from_numpy(ahead >= end[:, None]))

    def places(self, index: Sequence[int] | np.ndarray | Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Of windows: their episodes, and the steps within these [B]."""
        steps = self.step[np.asarray(index, dtype=np.int64)]
        return self._episode[steps], steps - self._first[steps]

    def all_actions(self) -> Tensor:
        """float32 [M, A], for normalisers."""
        return torch.from_numpy(self._actions[self.step])

    def all_proprio(self) -> Tensor:
        """float32 [M, P], for normalisers."""
        return torch.from_numpy(self._proprio[self.step])

    def split(self, fraction: float, seed: int) -> tuple["Demos", "Demos | None"]:
        """Training and validation windows, by episode; None if the fraction gives no episode."""
        held = round(fraction * len(self.chosen))
        if not 0 <= held < len(self.chosen):
            raise ValueError(
                f"val_fraction = {fraction} of {len(self.chosen)} demonstrations leaves {len(self.chosen) - held} to "
                "train on; expected a fraction in [0, 1) that leaves at least one"
            )
        order = np.random.default_rng(seed).permutation(self.chosen)
        return self._only(np.sort(order[held:])), self._only(np.sort(order[:held])) if held else None

    def _only(self, chosen: np.ndarray) -> "Demos":
        part = object.__new__(Demos)
        part.__dict__.update(self.__dict__)
        part.chosen = chosen
        part.step = np.flatnonzero(np.isin(self._episode, chosen))
        return part

    def _frames(self, camera: str, steps: np.ndarray) -> np.ndarray:
        """uint8 [B, L, Y, X, 3]"""
        if self.in_memory:
            return self._shared._load(camera)[steps]
        y, x = self.env.cameras[camera]
        out = np.empty((*steps.shape, y, x, 3), dtype=np.uint8)
        owner = self._episode[steps[:, -1]]
        for i in np.unique(owner):
            rows = owner == i
            out[rows] = self.episodes[i].images(camera)[steps[rows] - self._first[steps[rows, -1]][:, None]]
        return out

    def _load(self, camera: str) -> np.ndarray:
        """All images of a camera, read at the first use."""
        if camera not in self._images:
            frames = np.empty((len(self._actions), *self.env.cameras[camera], 3), dtype=np.uint8)
            at = 0
            for episode in self.episodes:
                frames[at : at + len(episode)] = episode.images(camera)
                at += len(episode)
            self._images[camera] = frames
        return self._images[camera]
