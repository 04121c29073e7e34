"""Demonstrations with plans, for a policy that is to use them (Gao et al. 2024, the low-level policy).

A window's plan is the clip of tracks that begins at its picture. Some windows have the true tracks, some what the flow
model makes of them, since that is what a planner will hand over, and some have none.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrained import checkpoint
from pretrained.demos import Demos, stored_spec
from pretrained.demos.tracks import Shard
from pretrained.flip.condition import GIVEN, TRACKS
from pretrained.flip.flow import FlowModel
from pretrained.flip.vae import IMAGENET
from pretrained.types import DemoBatch, randn

KINDS = ("true", "redrawn", "other", "none", "mixed")


class PlannedDemos:
    """Windows of demonstrations and their plans, behind the interface of `Demos`."""

    def __init__(
        self,
        *,
        paths: str | Path | Sequence[str | Path],
        shard: str,
        flow: str = "",
        max_demos: int | None = None,
        horizon: int = 8,
        share: float = 0.5,
        dropout: float = 0.15,
        kind: str = "mixed",
    ) -> None:
        """`shard`: of the same demonstrations. `flow`: checkpoint of stage=flow, which draws the plans of a `share` of
        the windows anew around the true ones; none if "". `dropout`: share of the windows without a plan.

        `kind`: mixed, or for a measurement all true, all redrawn, all those of other windows, or none. Raises
        ValueError if the shard is of other demonstrations."""
        if kind not in KINDS or not 0 <= share <= 1 or not 0 <= dropout <= 1:
            raise ValueError(f"plans: kind '{kind}', share {share} and dropout {dropout}; expected one of {KINDS}, and "
                             "shares in [0, 1]")  # fmt: skip
        env = stored_spec(paths)
        if env is None:
            raise ValueError(f"{paths} do not say what they are of; expected what 'launch.py collect' wrote")
        self.demos: Any = Demos(paths, env=env, horizon=horizon, max_demos=max_demos)
        self.env, self.shard, self.share, self.dropout, self.kind = env, Shard(shard), share, dropout, kind
        self.flow: FlowModel | None = None
        if flow and share:
            stage: Any = checkpoint.load_policy(checkpoint.find(flow))
            self.flow, self.text = stage.flow.eval().requires_grad_(False), stage.encoder
        self._check()

    def _check(self) -> None:
        lengths, rows = [len(e) for e in self.demos.episodes], self.shard.episodes
        found = [e["frames"] - 1 for e in rows[: len(lengths)]]
        if lengths != found:
            raise ValueError(
                f"the shard's episodes have {found[:3]}... steps, the demonstrations {lengths[:3]}...; expected a "
                "shard of these very demonstrations: python -m pretrained.demos.track"
            )

    def __len__(self) -> int:
        return len(self.demos)

    @property
    def num_episodes(self) -> int:
        return self.demos.num_episodes

    def all_actions(self) -> Tensor:
        """As of the demonstrations."""
        return self.demos.all_actions()

    def all_proprio(self) -> Tensor:
        """As of the demonstrations."""
        return self.demos.all_proprio()

    def split(self, fraction: float, seed: int) -> "tuple[PlannedDemos, PlannedDemos | None]":
        """By episode; None if the fraction gives none."""
        train, val = self.demos.split(fraction, seed)
        return self._of(train), None if val is None else self._of(val)

    def _of(self, demos: Demos) -> "PlannedDemos":
        part = object.__new__(PlannedDemos)
        part.__dict__.update(self.__dict__)
        part.demos = demos
        return part

    def batch(self, index: Sequence[int] | np.ndarray | Tensor, *, images: bool = True, draw: int = 0) -> DemoBatch:
        """Windows `index` with the hints of `rl.proposals.flip_plan`; `draw` seeds which plans they have."""
        demo: DemoBatch = self.demos.batch(index, images=images, draw=draw)
        rng = np.random.default_rng([draw, 2])
        clips, known = self._clips(index)
        if self.kind == "other":
            clips, known = self._clips(rng.integers(0, len(self), len(clips)))
        tracks = torch.from_numpy(self.shard.flow(clips).tracks)
        anew = rng.random(len(clips)) < {"mixed": self.share, "redrawn": 1.0}.get(self.kind, 0.0)
        if self.flow is not None and anew.any():
            rows = torch.from_numpy(np.flatnonzero(anew))
            tracks[rows] = self._redrawn(tracks[rows], clips[anew], draw)
        dropped = rng.random(len(clips)) < {"mixed": self.dropout, "none": 1.0}.get(self.kind, 0.0)
        given = torch.from_numpy(known & ~dropped).float()
        size = torch.tensor(self.shard.frames.shape[2:0:-1], dtype=torch.float32)
        hints = {TRACKS: (2 * (tracks + 0.5) / size - 1) * given[:, None, None, None], GIVEN: given[:, None]}
        demo.obs.hints = {**demo.obs.hints, **{k.removeprefix("hint/"): v for k, v in hints.items()}}
        return demo

    def _clips(self, index: Any) -> tuple[np.ndarray, np.ndarray]:
        """The clips that begin at windows, and whether there are such: not near an end that was not held."""
        episodes, steps = self.demos.places(index)
        first = np.array([self.shard.episodes[i]["clip"] for i in episodes])
        count = np.array([self.shard.episodes[i]["clips"] for i in episodes])
        return first + np.minimum(steps, count - 1), steps < count

    @torch.no_grad()
    def _redrawn(self, tracks: Tensor, clips: np.ndarray, draw: int) -> Tensor:
        """What the flow model makes of tracks: encoded, drawn from what it holds likely, decoded.

        Drawn without the tracks a plan could be of something else than what was done, and teach to ignore it."""
        assert self.flow is not None
        frames, _ = self.shard.pictures(clips, history=self.flow.history)
        mean, std = (torch.tensor(s).view(3, 1, 1) for s in IMAGENET)
        history = (torch.from_numpy(frames).permute(0, 1, 4, 2, 3).float() / 255 - mean) / std
        noise = randn((len(clips), self.flow.width), torch.Generator().manual_seed(draw), torch.device("cpu"))
        return self.flow(tracks, history, self.text(self.shard.instructions(clips)), noise).tracks.flow
