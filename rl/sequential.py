"""Stopping early with error control: tests that may be looked at after every episode, and intervals that stay valid.

    RateTest   is the success rate `low` or `high`? (Wald's sequential probability ratio test, truncated)
    PairTest   is one checkpoint better than another on the same initial states? (two such tests on the pairs that
               differ: Sobel and Wald 1949)

Wald's thresholds (1945) are conservative for coins. Here the error rates of the truncated test are computed exactly,
by recursion over (episodes, successes), and the thresholds are drawn in until they just keep the promise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, exp, lgamma, log, log1p
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

LONGEST = 1.5  # times the episodes of the test of fixed size; then the likelier of the two rates is taken
HALVINGS = 14  # of the search for thresholds


class Outcome(NamedTuple):
    """What a test does at a true rate, exactly."""

    high: float  # probability of deciding for the high rate
    episodes: float  # expected number


@dataclass(frozen=True)
class RateTest:
    """Decides between two success rates; P(says high | low) <= alpha and P(says low | high) <= beta, exactly.

    `upper[n - 1]` and `lower[n - 1]` are the counts of successes that end the test after n episodes."""

    low: float
    high: float
    alpha: float
    beta: float
    fixed: int  # episodes of the exact test of fixed size with the same promise
    upper: tuple[int, ...]
    lower: tuple[int, ...]

    @property
    def longest(self) -> int:
        return len(self.upper)

    def decide(self, outcomes: Sequence[bool]) -> str:
        """`high`, `low`, or "" while undecided. `outcomes` in the order in which the episodes were planned: in the
        order in which they end, quick successes would come first."""
        wins = 0
        for n, outcome in enumerate(outcomes[: self.longest]):
            wins += bool(outcome)
            if wins >= self.upper[n]:
                return "high"
            if wins <= self.lower[n]:
                return "low"
        return ""

    def at(self, rate: float) -> Outcome:
        """What it does if the true success rate is `rate`."""
        return _walk(self.upper, self.lower, rate)


@dataclass(frozen=True)
class PairTest:
    """Decides whether the second of two checkpoints is better, worse or the same on paired episodes.

    Only pairs that differ count. If both are equally good, it says `same` except with probability <= alpha; if of the
    pairs that differ the share `side.high` goes one way, it says so except with probability <= beta (nearly: the
    wrong side may win first, which is rarer than alpha / 2)."""

    side: RateTest

    def decide(self, before: Sequence[bool], after: Sequence[bool]) -> str:
        """`better`, `worse`, `same`, or "" while undecided; pairs in the order of the plan."""
        gains = [bool(a) for b, a in zip(before, after, strict=True) if bool(a) != bool(b)]
        up, down = self.side.decide(gains), self.side.decide([not g for g in gains])
        if up == down == "low":
            return "same"
        return "better" if up == "high" else "worse" if down == "high" else ""


@lru_cache(maxsize=64)
def rate_test(low: float, high: float, *, alpha: float = 0.05, beta: float = 0.05) -> RateTest:
    """The test between two rates. Raises ValueError unless 0 < low < high < 1 and the errors are below a half."""
    if not 0 < low < high < 1:
        raise ValueError(f"rates low = {low}, high = {high}: expected 0 < low < high < 1")
    if not (0 < alpha < 0.5 and 0 < beta < 0.5):
        raise ValueError(f"errors alpha = {alpha}, beta = {beta}: expected numbers between 0 and 0.5, such as 0.05")
    fixed = fixed_size(low, high, alpha=alpha, beta=beta)
    longest = ceil(LONGEST * fixed)
    above, below = log((1 - beta) / alpha), log((1 - alpha) / beta)
    last = (above - below) / 2
    # Each error falls as its own threshold rises, and hardly moves with the other one.
    for _ in range(2):
        above = _least(above, lambda a, b=below: _walk(*_lines(low, high, longest, a, b, last), low).high <= alpha)
        below = _least(below, lambda b, a=above: _walk(*_lines(low, high, longest, a, b, last), high).high >= 1 - beta)
    found = _lines(low, high, longest, above, below, last)
    if _walk(*found, low).high > alpha or _walk(*found, high).high < 1 - beta:
        raise ValueError(f"no test of at most {longest} episodes tells {low} from {high}; choose rates further apart")
    return RateTest(low, high, alpha, beta, fixed, *found)


def pair_test(share: float = 0.7, *, alpha: float = 0.05, beta: float = 0.05) -> PairTest:
    """The paired test; `share` of the pairs that differ is what counts as a difference worth finding."""
    if not 0.5 < share < 1:
        raise ValueError(f"share = {share}: expected a number between 0.5 and 1, such as 0.7")
    return PairTest(rate_test(0.5, share, alpha=alpha / 2, beta=beta))


def fixed_size(low: float, high: float, *, alpha: float, beta: float) -> int:
    """Fewest episodes with which an exact one-sided binomial test of size alpha misses `high` at most with beta."""
    z = [NormalDist().inv_cdf(1 - e) for e in (alpha, beta)]
    spread = z[0] * (low * (1 - low)) ** 0.5 + z[1] * (high * (1 - high)) ** 0.5
    n = max(1, int(0.6 * (spread / (high - low)) ** 2))
    while True:
        tail = np.cumsum(_binomial(n, low)[::-1])[::-1]  # P(S >= s)
        least = int(np.argmax(np.append(tail, 0.0) <= alpha))
        if least <= n and _binomial(n, high)[:least].sum() <= beta:
            return n
        n += 1


def confidence_sequence(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """An interval that covers the success rate at all times at once, however often one looks and whenever one stops.

    The rates that a Beta(1/2, 1/2) mixture does not beat by 1 / (1 - level) (Ville's inequality; Robbins 1970)."""
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials: expected 0 <= successes <= trials")
    if not 0 < level < 1:
        raise ValueError(f"confidence level {level}: expected a number between 0 and 1, such as 0.95")
    if trials == 0:
        return 0.0, 1.0
    failures = trials - successes
    mixture = lgamma(successes + 0.5) + lgamma(failures + 0.5) - lgamma(trials + 1) - 2 * lgamma(0.5)

    def kept(rate: float) -> bool:
        likelihood = (successes * log(rate) if successes else 0.0) + (failures * log1p(-rate) if failures else 0.0)
        return mixture - likelihood < -log(1 - level)

    middle, edges = successes / trials, []
    for end in (0.0, 1.0):
        inside, outside = min(max(middle, 1e-12), 1 - 1e-12), end
        if middle == end:
            edges.append(end)
            continue
        for _ in range(50):
            half = (inside + outside) / 2
            inside, outside = (half, outside) if kept(half) else (inside, half)
        edges.append(inside)
    return edges[0], edges[1]


def _least(start: float, keeps: Callable[[float], bool]) -> float:
    """The smallest threshold that keeps a promise, by halving; thresholds above `start` if even that does not."""
    good = start
    while not keeps(good) and good < 4 * start:
        good *= 1.1
    bad = 0.0
    for _ in range(HALVINGS):
        half = (good + bad) / 2
        good, bad = (half, bad) if keeps(half) else (good, half)
    return good


def _lines(
    low: float, high: float, longest: int, above: float, below: float, last: float
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The counts of successes at which the log-likelihood ratio reaches the thresholds; they meet at the end."""
    win, loss = log(high / low), log((1 - high) / (1 - low))
    n = np.arange(1, longest + 1)
    upper = np.ceil((above - n * loss) / (win - loss) - 1e-9).astype(int)
    lower = np.floor((-below - n * loss) / (win - loss) + 1e-9).astype(int)
    upper[-1] = ceil((last - longest * loss) / (win - loss) - 1e-9)
    lower[-1] = upper[-1] - 1
    return tuple(upper.tolist()), tuple(lower.tolist())


def _walk(upper: Sequence[int], lower: Sequence[int], rate: float) -> Outcome:
    """Follow the probability of every (episodes, successes) that has not ended the test."""
    alive = np.zeros(len(upper) + 1)
    alive[0], said, expected = 1.0, 0.0, 0.0
    for n in range(len(upper)):
        expected += alive.sum()
        alive[1:] = alive[1:] * (1 - rate) + alive[:-1] * rate
        alive[0] *= 1 - rate
        said += alive[max(0, upper[n]) :].sum()
        alive[max(0, upper[n]) :] = 0.0
        alive[: max(0, lower[n] + 1)] = 0.0
    return Outcome(float(said), float(expected))


def _binomial(n: int, rate: float) -> np.ndarray:
    """P(S = s) [n + 1]."""
    return np.array([
        exp(lgamma(n + 1) - lgamma(s + 1) - lgamma(n - s + 1) + s * log(rate) + (n - s) * log1p(-rate))
        for s in range(n + 1)
    ])  # fmt: skip
