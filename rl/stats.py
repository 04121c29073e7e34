"""Intervals and tests for success rates. Standard library only."""

from collections.abc import Mapping, Sequence
from math import comb, sqrt
from statistics import NormalDist
from typing import NamedTuple


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval."""

    value: float
    low: float
    high: float


def wilson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Ends of the Wilson score interval of a success rate (1927): sound for few trials and rates near 0 and 1."""
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials: expected 0 <= successes <= trials")
    if trials == 0:
        return 0.0, 1.0
    z, rate = _z(level), successes / trials
    denominator = 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / denominator
    half = z * sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials)) / denominator
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Exact two-sided p-value that paired outcomes changed: a sign test on the pairs that differ."""
    gained, lost = _discordant(before, after)
    n = gained + lost
    if n == 0:
        return 1.0
    tail = sum(comb(n, i) for i in range(min(gained, lost) + 1)) / 2**n
    return min(1.0, 2 * tail)


def paired_difference(before: Sequence[bool], after: Sequence[bool], level: float = 0.95) -> Interval:
    """Interval of the change in success rate of the same episodes (Newcombe 1998, method 10, on Wilson's limits).

    Unlike the textbook interval it does not collapse to a point when all pairs that differ changed one way."""
    gained, lost = _discordant(before, after)
    n = len(before)
    if n == 0:
        return Interval(float("nan"), -1.0, 1.0)
    both = sum(bool(b) and bool(a) for b, a in zip(before, after, strict=True))
    neither = n - both - gained - lost
    first, second = (both + lost) / n, (both + gained) / n
    first_low, first_high = wilson(both + lost, n, level)
    second_low, second_high = wilson(both + gained, n, level)
    product = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    agreement = both * neither - gained * lost
    if agreement > 0:  # his continuity correction
        agreement = max(agreement - n / 2, 0)
    phi = agreement / sqrt(product) if product else 0.0

    def half(a: float, b: float) -> float:
        return sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    change = second - first
    low = change - half(second - second_low, first_high - first)
    high = change + half(first - first_low, second_high - second)
    return Interval(change, max(-1.0, low), min(1.0, high))


def correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's; NaN if one of them does not vary."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} numbers and {len(b)}: a correlation needs pairs")
    n = len(a)
    if n < 2:
        return float("nan")
    mean_a, mean_b = sum(a) / n, sum(b) / n
    both = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    squares = sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b)
    return both / sqrt(squares) if squares > 1e-24 else float("nan")


def ranks(a: Sequence[float]) -> list[float]:
    """Places from 1; equal numbers share the mean of theirs."""
    order = sorted(range(len(a)), key=lambda i: a[i])
    out, first = [0.0] * len(a), 0
    while first < len(a):
        last = first
        while last + 1 < len(a) and a[order[last + 1]] == a[order[first]]:
            last += 1
        for i in order[first : last + 1]:
            out[i] = (first + last) / 2 + 1
        first = last + 1
    return out


def auroc(scores: Sequence[float], labels: Sequence[bool], level: float = 0.95) -> Interval:
    """Chance that a positive scores above a negative, ties counting half; interval of DeLong et al. (1988).

    NaN, from 0 to 1, if a class is missing."""
    good = [s for s, y in zip(scores, labels, strict=True) if y]
    bad = [s for s, y in zip(scores, labels, strict=True) if not y]
    if not good or not bad:
        return Interval(float("nan"), 0.0, 1.0)
    wins = [[(g > b) + 0.5 * (g == b) for b in bad] for g in good]
    area = sum(map(sum, wins)) / (len(good) * len(bad))

    def variance(parts: Sequence[float]) -> float:
        return sum((p - area) ** 2 for p in parts) / (len(parts) - 1) / len(parts)

    fewer, half = min(len(good), len(bad)), 0.0
    if fewer > 1:
        rows = variance([sum(row) / len(bad) for row in wins])
        columns = variance([sum(column) / len(good) for column in zip(*wins, strict=True)])
        half = _z(level) * sqrt(rows + columns)
    if half == 0:  # too few, or perfect separation: what Wilson says of as many trials as the smaller class has
        return Interval(area, *wilson(round(area * fewer), fewer, level))
    return Interval(area, max(0.0, area - half), min(1.0, area + half))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted so that one false alarm among all is as rare as said (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def best(outcomes: Mapping[str, Sequence[bool]]) -> str:
    """The name with the highest success rate, the first of equals; those without outcomes cannot win.

    Its rate on the same episodes is too good to be true: report another one, on episodes that it was not chosen by."""
    rates = {name: sum(map(bool, o)) / len(o) for name, o in outcomes.items() if o}
    if not rates:
        raise ValueError(f"nothing to choose from: none of {sorted(outcomes)} has a valid episode")
    return max(rates, key=lambda name: rates[name])


def _discordant(before: Sequence[bool], after: Sequence[bool]) -> tuple[int, int]:
    """Pairs that failed and then succeeded, and the other way round."""
    if len(before) != len(after):
        raise ValueError(
            f"{len(before)} episodes before, {len(after)} after: pairs need the same episodes on both sides"
        )
    pairs = list(zip(before, after, strict=True))
    return sum(bool(a) and not b for b, a in pairs), sum(bool(b) and not a for b, a in pairs)


def _z(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"confidence level {level}: expected a number between 0 and 1, such as 0.95")
    return NormalDist().inv_cdf(0.5 + level / 2)
