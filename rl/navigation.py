"""Metrics of navigation episodes, as users of SPOC and FLaRe know them; pure functions.

Two departures from the original: no epsilon is added to numerators and denominators (its figures differ from these by
1e-8), and being outside every room counts as a room of its own only if asked for.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rl.stats import wilson

Polygon = Sequence[Sequence[float]]  # corners (x, z), metres


@dataclass(frozen=True)
class Walked:
    """What is known of one episode when it has ended."""

    task: str
    success: bool
    positions: np.ndarray  # float [T + 1, 3] (x, y, z) in metres, y up; the first before the first action
    worked: Sequence[bool]  # [T] whether each action did what it should
    rooms: Mapping[str, Polygon]  # of the house
    expert_length: int | None = None  # actions of the expert; None: unknown
    best_distance: float | None = None  # shortest way, metres; None: unknown, or of no meaning (RoomVisit)
    category: str = ""  # of the target
    extra: Mapping[str, float] = field(default_factory=dict)  # further figures of the episode

    def __post_init__(self) -> None:
        if len(self.positions) != len(self.worked) + 1:
            raise ValueError(
                f"episode of {self.task}: {len(self.positions)} positions for {len(self.worked)} actions; "
                "expected one more"
            )


def efficiency(success: bool, best: float, actual: float) -> float | None:
    """Success weighted by best / max(best, actual): SEL of lengths in actions, SPL of distances in metres.

    Anderson et al. 2018, arXiv:1807.06757. 1 where nothing had to be done and nothing was; None, of a success, where
    `best` is negative, that is, unknown."""
    if not success:
        return 0.0
    if best < 0:
        return None
    longest = max(best, actual)
    return best / longest if longest > 0 else 1.0


def path_length(positions: np.ndarray) -> float:
    """Metres walked on the floor plane; height does not count."""
    steps = np.diff(np.asarray(positions, dtype=np.float64)[:, [0, 2]], axis=0)
    return float(np.hypot(steps[:, 0], steps[:, 1]).sum())


def inside(x: float, z: float, polygon: Polygon) -> bool:
    """Whether a point lies in a polygon, by the parity of crossings."""
    odd = False
    for (x0, z0), (x1, z1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        if (z0 > z) != (z1 > z) and x < x0 + (z - z0) / (z1 - z0) * (x1 - x0):
            odd = not odd
    return odd


def rooms_visited(positions: np.ndarray, rooms: Mapping[str, Polygon], *, outside_counts: bool = False) -> int:
    """Different rooms that the positions lie in. With `outside_counts`, as in the original, outside is one more."""
    seen = {next((name for name, corners in rooms.items() if inside(x, z, corners)), None) for x, _, z in positions}
    return len(seen) - (None in seen and not outside_counts)


def marking(marked: Sequence[str | None], num_rooms: int) -> tuple[float, float | None]:
    """Coverage of the house by `sub_done`, and the share of them that marked a new room; None if there was none.

    `marked` has the room in which each was issued."""
    good = len({room for room in marked if room is not None})
    return good / num_rooms, good / len(marked) if marked else None


def episode_metrics(e: Walked, *, outside_counts: bool = False) -> dict[str, float]:
    """Figures of one episode; what is unknown is left out."""
    length = len(e.worked)
    visited = rooms_visited(e.positions, e.rooms, outside_counts=outside_counts)
    figures: dict[str, float | None] = {
        "success": float(e.success),
        "eps_len": float(length),
        "eps_len_succ" if e.success else "eps_len_fail": float(length),
        "sel": None if e.expert_length is None else efficiency(e.success, e.expert_length, length),
        "spl": None if e.best_distance is None else efficiency(e.success, e.best_distance, path_length(e.positions)),
        "total_rooms_visited": float(visited),
        "percentage_rooms_visited": visited / len(e.rooms) if e.rooms else None,
        "percentage_collision": 1 - sum(e.worked) / length if length else None,
        **e.extra,
    }
    return {k: v for k, v in figures.items() if v is not None and math.isfinite(v)}


def aggregate(episodes: Sequence[Walked], *, outside_counts: bool = False) -> dict[str, dict[str, float]]:
    """Means of the figures of all episodes, of each task, and of each task's categories ("task/category").

    Each row has the number of episodes and the 95 % Wilson interval of its success. A mean is over the episodes that
    have the figure."""
    rows: dict[str, list[dict[str, float]]] = {}
    for e in episodes:
        figures = episode_metrics(e, outside_counts=outside_counts)
        for name in ("all", e.task, *([f"{e.task}/{e.category}"] if e.category else [])):
            rows.setdefault(name, []).append(figures)
    table: dict[str, dict[str, float]] = {}
    for name, group in rows.items():
        low, high = wilson(sum(int(f["success"]) for f in group), len(group))
        keys = sorted({k for f in group for k in f})
        means = {k: float(np.mean([f[k] for f in group if k in f])) for k in keys}
        table[name] = {"episodes": float(len(group)), **means, "success_low": low, "success_high": high}
    return table
