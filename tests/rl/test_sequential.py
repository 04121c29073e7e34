"""Early ends keep their errors, by hand, exactly and on simulated coins, and save what they promise to save."""

import math

import numpy as np
import pytest

from rl.sequential import confidence_sequence, fixed_size, pair_test, rate_test


def test_fixed_size_by_hand() -> None:
    # One episode tells 0.04 from 0.96 at errors of 0.05: high if it succeeds.
    assert fixed_size(0.04, 0.96, alpha=0.05, beta=0.05) == 1
    # 0.1 or 0.9 at 0.05: one success of one is too likely (0.1), two of two too unlikely (0.81); two of three do it.
    assert fixed_size(0.1, 0.9, alpha=0.05, beta=0.05) == 3


@pytest.mark.parametrize(("low", "high", "error"), [(0.5, 0.7, 0.05), (0.8, 0.9, 0.05), (0.3, 0.6, 0.01)])
def test_promises_hold_on_coins_and_half_the_episodes_are_saved(low: float, high: float, error: float) -> None:
    test, rng, runs = rate_test(low, high, alpha=error, beta=error), np.random.default_rng(0), 4000
    assert test.at(low).high <= error
    assert 1 - test.at(high).high <= error
    for rate in (low, high):
        wins = np.cumsum(rng.random((runs, test.longest)) < rate, 1)
        up, down = wins >= np.array(test.upper), wins <= np.array(test.lower)
        assert (up | down)[:, -1].all()  # it always ends
        end = np.argmax(up | down, 1)
        said, exact = up[np.arange(runs), end].mean(), test.at(rate)
        assert abs(said - exact.high) < 4 * math.sqrt(error * (1 - error) / runs) + 1e-3
        assert (end + 1).mean() == pytest.approx(exact.episodes, rel=0.05)
    saved = 1 - (test.at(low).episodes + test.at(high).episodes) / 2 / test.fixed
    assert saved >= 0.48
    assert max(test.at(r).episodes for r in np.linspace(low, high, 9)) < test.fixed


def test_decisions_follow_the_order_of_the_plan() -> None:
    test = rate_test(0.3, 0.7)
    assert test.decide([]) == ""
    assert test.decide([True] * 20) == "high"
    assert test.decide([False] * 20) == "low"
    first = next(n for n in range(1, 21) if test.decide([True] * n))
    assert test.decide([True] * (first - 1)) == ""
    assert test.decide([True] * first + [False] * 50) == "high"  # what comes after a decision has no say
    assert test.decide([True, False] * test.longest) in ("high", "low")


def test_pairs_that_agree_say_nothing() -> None:
    test = pair_test(0.8)
    assert test.decide([True, False] * 200, [True, False] * 200) == ""
    assert test.decide([False] * 20, [True] * 20) == "better"
    assert test.decide([True] * 20, [False] * 20) == "worse"
    assert test.decide([True, False] * 60, [False, True] * 60) == "same"


def test_pairs_keep_their_errors() -> None:
    rng, runs, test = np.random.default_rng(1), 600, pair_test(0.8)
    said = {0.5: [], 0.8: []}
    for share, verdicts in said.items():
        for _ in range(runs):
            gains = (rng.random(test.side.longest) < share).tolist()
            verdicts.append(test.decide([not g for g in gains], gains))
    assert sum(v == "same" for v in said[0.5]) / runs >= 0.95 - 0.027  # three standard errors
    assert sum(v == "better" for v in said[0.8]) / runs >= 0.95 - 0.027
    assert not {"", None} & {*said[0.5], *said[0.8]}


def test_an_interval_for_any_time_is_wider_than_one_for_a_single_look() -> None:
    low, high = confidence_sequence(50, 100)
    assert 0.3 < low < 0.4038 < 0.5962 < high < 0.7  # Wilson's: see test_stats
    assert confidence_sequence(0, 0) == (0.0, 1.0)
    assert confidence_sequence(0, 20)[0] == 0.0
    assert confidence_sequence(20, 20)[1] == 1.0
    assert confidence_sequence(0, 20)[1] == pytest.approx(1 - confidence_sequence(20, 20)[0])
    with pytest.raises(ValueError, match="5 successes of 4"):
        confidence_sequence(5, 4)


def test_it_covers_at_every_look_at_once() -> None:
    rng, held, runs, looks = np.random.default_rng(2), 0, 200, (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144)
    for _ in range(runs):
        rate = float(rng.uniform(0.05, 0.95))
        wins = np.cumsum(rng.random(144) < rate)
        ends = [confidence_sequence(int(wins[n - 1]), n) for n in looks]
        held += all(low <= rate <= high for low, high in ends)
    assert held / runs >= 0.95 - 0.046  # three standard errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((0.7, 0.5, 0.05), "0 < low < high < 1"), ((0.5, 0.7, 0.6), "between 0 and 0.5"), ((0.0, 0.7, 0.05), "0 < low")],
)
def test_nonsense_is_refused(arguments: tuple[float, float, float], words: str) -> None:
    low, high, error = arguments
    with pytest.raises(ValueError, match=words):
        rate_test(low, high, alpha=error, beta=error)
    with pytest.raises(ValueError, match="share = 0.5"):
        pair_test(0.5)
