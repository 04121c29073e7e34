"""What a sweep adds up to: rates with intervals, and comparisons of the same initial states. Pure functions.

An episode is a mapping with checkpoint, perturbation, task, seed, split, success and valid; episodes that the simulator
lost (`valid` false) are counted apart, and have no part in rates or pairs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rl.stats import Interval, holm, mcnemar, paired_difference, wilson

Episode = Mapping[str, Any]


@dataclass(frozen=True)
class Rate:
    """Success of a group of episodes."""

    names: tuple[str, ...]  # of the group
    success: float
    low: float
    high: float
    episodes: int
    lost: int


@dataclass(frozen=True)
class Comparison:
    """The same initial states under two conditions."""

    name: str
    against: str
    where: str  # perturbation or checkpoint that both share
    pairs: int
    gained: int
    lost: int
    change: Interval
    p: float  # exact McNemar
    adjusted: float  # by Holm, over all comparisons of the table


def rates(episodes: Iterable[Episode], by: Sequence[str]) -> list[Rate]:
    """One line per combination of the columns `by`, in the order of their first appearance."""
    groups: dict[tuple[str, ...], list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(tuple(str(episode[column]) for column in by), []).append(episode)
    out = []
    for names, group in groups.items():
        good = [bool(e["success"]) for e in group if e["valid"]]
        low, high = wilson(sum(good), len(good))
        success = sum(good) / len(good) if good else float("nan")
        out.append(Rate(names, success, low, high, len(good), len(group) - len(good)))
    return out


def compare(episodes: Sequence[Episode], *, column: str, first: str, within: str) -> list[Comparison]:
    """Every other value of `column` against `first`, by pairs of equal task and seed inside each value of `within`."""
    found: dict[tuple[str, str], dict[tuple[int, str], bool]] = {}
    for e in episodes:
        if e["valid"]:
            outcomes = found.setdefault((str(e[within]), str(e[column])), {})
            outcomes[int(e["seed"]), str(e["task"])] = bool(e["success"])
    out = []
    for (where, name), outcomes in found.items():
        base = found.get((where, first), {})
        shared = sorted(set(base) & set(outcomes))
        if name == first or not shared:
            continue
        before, after = [base[k] for k in shared], [outcomes[k] for k in shared]
        gained = sum(a and not b for b, a in zip(before, after, strict=True))
        lost = sum(b and not a for b, a in zip(before, after, strict=True))
        p, change = mcnemar(before, after), paired_difference(before, after)
        out.append(Comparison(name, first, where, len(shared), gained, lost, change, p, 1.0))
    return [replace(c, adjusted=p) for c, p in zip(out, holm([c.p for c in out]), strict=True)]


def causes(episodes: Iterable[Episode]) -> dict[str, int]:
    """Why episodes were lost -> how many."""
    out: dict[str, int] = {}
    for e in episodes:
        if not e["valid"]:
            cause = str(e["cause"]).split(":")[0].strip() or "unknown"
            out[cause] = out.get(cause, 0) + 1
    return out
