"""Intervals against hand-computed figures and against simulated coverage."""

import math
import random

import pytest

from rl.stats import best, holm, mcnemar, paired_difference, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.2775328),  # z^2 / (n + z^2)
        (10, 10, 0.7224672, 1.0),
        (50, 100, 0.4038315, 0.5961685),  # 0.5 +- z / (2 sqrt(n + z^2))
        (8, 10, 0.4901625, 0.9433178),  # worked from the formula by hand
    ],
)
def test_wilson_by_hand(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=1e-6)


def test_wilson_without_trials_and_with_nonsense() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert math.isnan(paired_difference([], []).value)
    with pytest.raises(ValueError, match="5 successes of 4"):
        wilson(5, 4)
    with pytest.raises(ValueError, match="confidence level 95"):
        wilson(1, 4, level=95)


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5, 0.9])
def test_wilson_covers_as_promised(rate: float) -> None:
    rng, trials, runs = random.Random(0), 100, 3000
    hits = 0
    for _ in range(runs):
        low, high = wilson(sum(rng.random() < rate for _ in range(trials)), trials)
        hits += low <= rate <= high
    assert 0.93 <= hits / runs <= 0.975


def pairs(both: int, gained: int, lost: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Paired outcomes with these counts."""
    before = [True] * both + [False] * gained + [True] * lost + [False] * neither
    after = [True] * both + [True] * gained + [False] * lost + [False] * neither
    return before, after


def test_mcnemar_by_hand() -> None:
    assert mcnemar(*pairs(5, 5, 0, 5)) == pytest.approx(2 / 32)  # five pairs, all one way
    assert mcnemar(*pairs(5, 6, 2, 5)) == pytest.approx(2 * (1 + 8 + 28) / 256)
    assert mcnemar(*pairs(0, 3, 3, 0)) == 1.0
    assert mcnemar(*pairs(4, 0, 0, 4)) == 1.0
    assert mcnemar(*pairs(5, 2, 6, 5)) == mcnemar(*pairs(5, 6, 2, 5))
    with pytest.raises(ValueError, match="2 episodes before, 1 after"):
        mcnemar([True, False], [True])


def test_paired_difference_newcombe_example() -> None:
    # Newcombe (1998), Statistics in Medicine 17:2635, table II example: 36, 12, 2, 0 of 50 -> 0.2, 0.0569 to 0.3404.
    found = paired_difference(*pairs(36, 12, 2, 0))
    assert found.value == pytest.approx(0.2)
    assert found.low == pytest.approx(0.0569, abs=5e-5)
    assert found.high == pytest.approx(0.3404, abs=5e-5)


def test_paired_difference_covers_as_promised() -> None:
    rng, trials, runs = random.Random(1), 100, 3000
    hits = 0
    for _ in range(runs):
        before, after = [], []
        for _ in range(trials):
            hard = rng.random()  # the same initial state is hard or easy for both
            before.append(hard < 0.3)
            after.append(hard < 0.5 if rng.random() < 0.8 else rng.random() < 0.5)
        interval = paired_difference(before, after)
        hits += interval.low <= 0.2 <= interval.high
    assert 0.93 <= hits / runs <= 0.985


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm's step-down, by hand
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_best_is_the_first_of_equals_and_needs_outcomes() -> None:
    assert best({"a": [True, False], "b": [False, True], "c": [True, True, False, False], "d": []}) == "a"
    with pytest.raises(ValueError, match="nothing to choose from"):
        best({"a": []})
