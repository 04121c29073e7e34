"""FLIP's planner: beams that go uphill in imagined pictures.

Gao et al. 2024, algorithm 1. At every segment each beam imagines some futures and keeps the one whose last picture is
worth most; now and then the worst beam takes over from the best one. Repaired: fields `replacement` and `total` of
`pretrained.flip.quirks`. All beams and candidates of all restarts are imagined in one batch, and every candidate has
its own generator.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pretrained.flip.quirks import FIXED, Quirks
from pretrained.flip.value import ValueModel


@dataclass(frozen=True)
class Future:
    """What M candidates lead to."""

    flow: Tensor  # [M, P, F, 2] pixels
    video: Tensor  # [M, F-1, 3, Y, X] in [0, 1]
    scores: Tensor  # [M] of the last picture


class World(Protocol):
    """What is searched in: `pretrained.flip.imagine.Imagination`, or `pretrained.flip.recall.Recall`."""

    points: Tensor  # [P, 2] pixels, the points whose tracks are planned
    value: ValueModel

    @property
    def size(self) -> tuple[int, int]:
        """Y, X of the pictures."""
        ...

    @property
    def horizon(self) -> int:
        """F, positions of a track."""
        ...

    @property
    def history(self) -> int:
        """L, pictures that a plan starts from."""
        ...

    @property
    def device(self) -> torch.device: ...

    def imagine(self, pictures: Tensor, texts: Sequence[str], rngs: Sequence[torch.Generator]) -> Future:
        """Futures of pictures [M, L, 3, Y, X] in [0, 1] for M texts; row i follows generator i."""
        ...


Imagine = Callable[[Tensor, Sequence[torch.Generator]], Future]  # pictures [M, L, 3, Y, X], one generator per row

# Also, per row, the number of the picture that it started from.
ImagineMany = Callable[[Tensor, Sequence[torch.Generator], Sequence[int]], Future]


@dataclass(frozen=True)
class Plan:
    """The best beam. H segments."""

    flow: Tensor  # [H, P, F-1, 2] where the points of each segment go; their start is left out
    video: Tensor  # [H, F-1, 3, Y, X]
    scores: Tensor  # [H]
    value: float  # discounted, or the plain sum
    record: "Record"


@dataclass
class Record:
    """How a plan came about; beams of all restarts in a row, the last one being the first candidates' if kept."""

    scores: list[Tensor] = field(default_factory=list)  # per segment [beams, candidates]; of the kept one, repeated
    chosen: list[list[int]] = field(default_factory=list)  # per segment, the candidate of each beam
    replaced: list[tuple[int, int, int]] = field(default_factory=list)  # segment, beam overwritten, beam copied
    values: list[float] = field(default_factory=list)  # of all beams, at the end
    best: int = 0


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Settings of a plan. The original has 2 beams, 2 candidates, 30 segments and replaces every 4."""

    beams: int = 2
    candidates: int = 2
    segments: int = 30
    replace_every: int = 4
    gamma: float = 0.98  # per segment
    stop_at: float | None = None  # a score that means success: when a beam has it, planning ends
    restarts: int = 1  # independent groups of beams
    keep_first: bool = True  # also follow the first candidate alone, so that a plan is never worse than no search
    quirks: Quirks = FIXED

    def __post_init__(self) -> None:
        for name in ("beams", "candidates", "segments", "replace_every", "restarts"):
            if getattr(self, name) < 1:
                raise ValueError(f"planner: {name} = {getattr(self, name)}, expected at least 1")
        if not 0 < self.gamma <= 1:
            raise ValueError(f"planner: gamma = {self.gamma}, expected 0 < gamma <= 1")

    @torch.no_grad()
    def plan(self, picture: Tensor, imagine: Imagine, *, history: int, seed: int = 0) -> Plan:
        """Plan from one picture [3, Y, X] in [0, 1], which stands for the last `history` ones.

        Raises ValueError if an imagined picture or a score is not finite."""
        return self.plan_many([picture], lambda seen, rngs, owners: imagine(seen, rngs), history=history,
                              seeds=[seed])[0]  # fmt: skip

    @torch.no_grad()
    def plan_many(
        self, pictures: Sequence[Tensor], imagine: "ImagineMany", *, history: int, seeds: Sequence[int]
    ) -> list["Plan"]:
        """As `plan`, from several pictures, with one seed each; all their candidates are imagined in one batch."""
        for picture in pictures:
            if picture.ndim != 3 or picture.shape[0] != 3:
                raise ValueError(f"plan from one picture [3, Y, X], got {list(picture.shape)}")
        teams = [_Team(self, p, history, s) for p, s in zip(pictures, seeds, strict=True)]
        active = list(range(len(teams)))
        for segment in range(self.segments):
            asked = [teams[i].rows() for i in active]
            owners = [i for i, rows in zip(active, asked, strict=True) for _ in range(len(rows))]
            future = imagine(torch.cat(asked), [g for i in active for g in teams[i].rngs], owners)
            _check(future, len(owners), asked[0])
            first, going = 0, []
            for i, rows in zip(active, asked, strict=True):
                own = slice(first, first + len(rows))
                last = teams[i].take(Future(future.flow[own], future.video[own], future.scores[own]))
                first = own.stop
                if (segment + 1) % self.replace_every == 0 and segment > 0:
                    teams[i].replace(segment)
                if self.stop_at is None or float(last.max()) < self.stop_at:
                    going.append(i)
            active = going
            if not active:
                break
        return [team.finish() for team in teams]


class _Team:
    """The beams of all restarts, side by side, while a plan is made."""

    def __init__(self, settings: Planner, picture: Tensor, history: int, seed: int) -> None:
        self.settings, self.searching = settings, settings.restarts * settings.beams
        self.beams = self.searching + int(settings.keep_first)
        rows = self.searching * settings.candidates
        seeds = np.random.SeedSequence(seed).generate_state(rows, np.uint64)
        self.rngs = [torch.Generator().manual_seed(int(s >> np.uint64(1))) for s in seeds]
        if settings.keep_first:
            self.rngs.append(torch.Generator().manual_seed(int(seeds[0] >> np.uint64(1))))
        self.history = picture[None, None].expand(self.beams, history, -1, -1, -1)
        self.flows: list[Tensor] = []  # per segment [beams, ...]
        self.videos: list[Tensor] = []
        self.scores: list[Tensor] = []
        self.record = Record()

    def rows(self) -> Tensor:
        """Pictures [M, L, 3, Y, X] to go on from: those of each beam's candidates, then the last beam's."""
        of = torch.arange(self.searching).repeat_interleave(self.settings.candidates)
        return self.history[torch.cat([of, torch.arange(self.searching, self.beams)])]

    def take(self, future: Future) -> Tensor:
        """What was imagined from `rows`; the scores [beams] of what the beams keep."""
        a, searching = self.settings.candidates, self.searching
        tried = future.scores[: searching * a].unflatten(0, (searching, a))
        best = tried.argmax(1)
        rows = torch.cat([torch.arange(searching) * a + best.cpu(), torch.arange(searching * a, len(future.scores))])
        self.flows.append(future.flow[rows][:, :, 1:].clone())
        self.videos.append(future.video[rows].clone())
        self.scores.append(future.scores[rows].clone())
        self.record.scores.append(torch.cat([tried, future.scores[searching * a :, None].expand(-1, a)]).cpu())
        self.record.chosen.append([*best.tolist(), *[0] * (self.beams - searching)])
        seen = torch.cat([self.history, self.videos[-1].to(self.history.dtype)], 1)
        self.history = seen[:, -self.history.shape[1] :].clone()
        return self.scores[-1]

    def values(self) -> Tensor:
        """[beams]"""
        scores = torch.stack(self.scores)
        gamma = 1.0 if self.settings.quirks.total == "sum" else self.settings.gamma
        return (scores * gamma ** torch.arange(len(scores), device=scores.device)[:, None]).sum(0)

    def replace(self, segment: int) -> None:
        """In each restart the worst beam takes over from the best one, with its pictures unless faithful."""
        values, size = self.values(), self.settings.beams
        for first in range(0, self.searching, size):
            group = values[first : first + size]
            worst, best = first + int(group.argmin()), first + int(group.argmax())
            for records in (self.flows, self.videos, self.scores):
                for kept in records:
                    kept[worst] = kept[best]
            if self.settings.quirks.replacement == "history":
                self.history[worst] = self.history[best]
            self.record.replaced.append((segment, worst, best))

    def finish(self) -> Plan:
        """The plan of most value, among those that reached the goal if some did."""
        values, stop = self.values(), self.settings.stop_at
        eligible = torch.ones_like(values, dtype=torch.bool)
        if stop is not None and bool((self.scores[-1] >= stop).any()):
            eligible = self.scores[-1] >= stop
        best = int(values.masked_fill(~eligible, -torch.inf).argmax())
        self.record.values, self.record.best = values.tolist(), best
        flow, video, scores = (torch.stack([x[best] for x in kept]) for kept in (self.flows, self.videos, self.scores))
        return Plan(flow, video, scores, float(values[best]), self.record)


def grid(size: Sequence[int], count: int, *, quirks: Quirks = FIXED) -> Tensor:
    """Query points [count, 2] (x, y) in pixels on a square grid over a picture of `size` (Y, X), row by row.

    Raises ValueError if `count` is no square number."""
    side = round(count**0.5)
    if side**2 != count or count < 4:
        raise ValueError(f"a grid of {count} points is not square; expected 4, 9, ..., 529")
    y, x = float(size[0]), float(size[1])
    if quirks.grid == "edge":
        x, y = y, x
    else:
        x, y = x - 1, y - 1
    rows, columns = torch.meshgrid(torch.linspace(0, y, side), torch.linspace(0, x, side), indexing="ij")
    return torch.stack([columns.flatten(), rows.flatten()], 1)


def _check(future: Future, rows: int, history: Tensor) -> None:
    if len(future.scores) != rows or future.video.shape[2:] != history.shape[2:]:
        raise ValueError(
            f"{len(future.scores)} imagined videos of {list(future.video.shape[2:])} for {rows} candidates of "
            f"{list(history.shape[2:])}; expected videos of the resolution that was planned from"
        )
    for name, value in (("flow", future.flow), ("video", future.video), ("value", future.scores)):
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"the {name} model imagines NaN or infinity; load another checkpoint, or use float32")
