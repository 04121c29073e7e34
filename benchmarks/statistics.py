"""Whether the figures of evaluations keep their promises: `python -m benchmarks.statistics [--runs N]`.

Simulated coins: coverage of the intervals, false alarms of the tests, episodes that early ends save at equal errors,
and what choosing the best checkpoint by the seeds that it is reported on pretends. One thread, a few minutes.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from benchmarks.tables import table, write_results, write_section
from rl.sequential import RateTest, confidence_sequence, pair_test, rate_test
from rl.stats import best, mcnemar, paired_difference, wilson

SIZES = (20, 50, 100, 400)
RATES = np.linspace(0.02, 0.98, 49)
GAPS = ((0.5, 0.7), (0.6, 0.8), (0.3, 0.5), (0.8, 0.9), (0.85, 0.95))
SHARES = (0.7, 0.75, 0.8)
CHECKPOINTS = 8  # of equal worth, from which the luckiest is taken


@cache
def ends(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's limits by the number of successes [n + 1]."""
    found = np.array([wilson(s, n) for s in range(n + 1)])
    return found[:, 0], found[:, 1]


def coverage(n: int, runs: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """Of Wilson's interval: simulated over all rates; and the worst and the best of the single rates, simulated too."""
    low, high = ends(n)
    wins = rng.binomial(n, RATES[:, None], (len(RATES), runs))
    hits = ((low[wins] <= RATES[:, None]) & (RATES[:, None] <= high[wins])).mean(1)
    return float(hits.mean()), float(hits.min()), float(hits.max())


def pairs(n: int, p: float, q: float, shared: float, rng: np.random.Generator) -> tuple[list[bool], list[bool]]:
    """Outcomes with rates p and q of n initial states, of which a share is as hard for one as for the other."""
    luck, other = rng.random(n), rng.random(n)
    second = np.where(rng.random(n) < shared, luck, other)
    return (luck < p).tolist(), (second < q).tolist()


def paired_coverage(n: int, runs: int, rng: np.random.Generator) -> float:
    """Of the interval of a change, over several rates and dependences."""
    hits = 0
    for k in range(runs):
        p, q, shared = ((0.3, 0.5, 0.7), (0.6, 0.6, 0.5), (0.8, 0.9, 0.3), (0.5, 0.8, 0.0))[k % 4]
        found = paired_difference(*pairs(n, p, q, shared, rng))
        hits += found.low <= q - p <= found.high
    return hits / runs


def false_alarms(n: int, runs: int, rng: np.random.Generator) -> float:
    """How often exact McNemar says p <= 0.05 of two equally good checkpoints."""
    return sum(mcnemar(*pairs(n, 0.6, 0.6, 0.5, rng)) <= 0.05 for _ in range(runs)) / runs


def always(runs: int, rng: np.random.Generator, longest: int = 400) -> float:
    """How often the interval for any time holds at every one of `longest` looks."""
    held = 0
    for _ in range(runs):
        rate = float(rng.uniform(0.05, 0.95))
        wins = np.cumsum(rng.random(longest) < rate)
        held += all(_within(int(w), n + 1, rate) for n, w in enumerate(wins))
    return held / runs


@cache
def _ends_always(wins: int, n: int) -> tuple[float, float]:
    return confidence_sequence(wins, n)


def _within(wins: int, n: int, rate: float) -> bool:
    low, high = _ends_always(wins, n)
    return low <= rate <= high


def played(test: RateTest, rate: float, runs: int, rng: np.random.Generator) -> tuple[float, float]:
    """Share of simulated runs that say `high`, and their mean number of episodes."""
    wins = np.cumsum(rng.random((runs, test.longest)) < rate, 1)
    up, down = wins >= np.array(test.upper), wins <= np.array(test.lower)
    end = np.argmax(up | down, 1)
    return float(up[np.arange(runs), end].mean()), float((end + 1).mean())


def stopping(runs: int, rng: np.random.Generator) -> tuple[list[list[str]], list[float]]:
    """Rows of the table of early ends, and what each saves at its two rates."""
    rows, saved = [], []
    for error in (0.05, 0.01):
        for low, high in GAPS:
            test = rate_test(low, high, alpha=error, beta=error)
            rows.append(_row(f"rate {low:g} or {high:g}", error, test, (low, high), runs, rng))
            saved += [1 - test.at(rate).episodes / test.fixed for rate in (low, high)]
    for share in SHARES:
        test = pair_test(share).side
        rows.append(_row(f"pairs that differ, share 0.5 or {share:g}", 0.05, test, (0.5, share), runs, rng))
    return rows, saved


def _row(
    name: str, error: float, test: RateTest, rates: Sequence[float], runs: int, rng: np.random.Generator
) -> list[str]:
    (false, at_low), (power, at_high) = (played(test, rate, runs, rng) for rate in rates)
    between = max(test.at(r).episodes for r in np.linspace(rates[0], rates[1], 21))
    saved = 1 - (at_low + at_high) / 2 / test.fixed
    return [name, f"{error:g}", str(test.fixed), f"{at_low:.0f} / {at_high:.0f}", f"{saved:.0%}", f"{between:.0f}",
            str(test.longest), f"{false:.3f} / {1 - power:.3f}"]  # fmt: skip


def winners(runs: int, rng: np.random.Generator, n: int = 50, rate: float = 0.6) -> tuple[list[list[str]], float]:
    """What the best of several equal checkpoints seems to be worth, and how often its interval holds."""
    gains: dict[str, list[float]] = {"the seeds it was chosen by": [], "test seeds": []}
    held = dict.fromkeys(gains, 0)
    for _ in range(runs):
        chosen_by = {str(k): (rng.random(n) < rate).tolist() for k in range(CHECKPOINTS)}
        fresh = (rng.random(n) < rate).tolist()
        for name, outcomes in zip(gains, (chosen_by[best(chosen_by)], fresh), strict=True):
            low, high = wilson(sum(outcomes), n)
            gains[name].append(sum(outcomes) / n - rate)
            held[name] += low <= rate <= high
    rows = [[name, f"{100 * np.mean(g):+.1f} points", f"{held[name] / runs:.1%}"] for name, g in gains.items()]
    return rows, float(np.mean(gains["the seeds it was chosen by"]))


def main() -> int:
    """Simulate, print and write; 1 if a promise is broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.statistics", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--runs", type=int, default=20000, help="simulated runs of each cheap figure")
    runs = parser.parse_args().runs
    rng, few = np.random.default_rng(0), max(500, runs // 5)
    wilsons = {n: coverage(n, runs // 10, rng) for n in SIZES}
    others: dict[str, Callable[[], float]] = {
        "interval of a paired change, 100 pairs": lambda: paired_coverage(100, few, rng),
        "interval for any time, at 400 looks at once": lambda: always(few // 5, rng),
        "exact McNemar, equal checkpoints, 100 pairs: false alarms at 0.05": lambda: false_alarms(100, few, rng),
    }
    figures = {name: measure() for name, measure in others.items()}
    rows, saved = stopping(runs, rng)
    lucky, bias = winners(few, rng)
    text = "\n\n".join([
        table(["Wilson 95 %, episodes", "coverage over rates 0.02 to 0.98", "worst rate", "best rate"],
              [[str(n), *(f"{v:.1%}" for v in found)] for n, found in wilsons.items()]),
        table(["other promises", "simulated"], [[name, f"{v:.1%}"] for name, v in figures.items()]),
        table(["early end", "errors promised", "fixed size", "episodes at each", "saved", "worst between", "at most",
               "errors simulated"], rows),
        table([f"best of {CHECKPOINTS} equal checkpoints, 50 episodes", "looks better by", "interval holds"], lucky),
    ])  # fmt: skip
    print(text)
    write_results({
        "statistics/saved by early ends": {"ratio": float(np.mean(saved)), "goal": 0.5, "least": min(saved),
                                           "most": max(saved)},
        "statistics/wilson coverage, worst size": {"ratio": min(v[0] for v in wilsons.values()), "goal": 0.94},
        "statistics/bias of the luckiest": {"ratio": bias},
    })  # fmt: skip
    sizes = (
        "Fixed size: episodes of the exact binomial test with the same promise. Pairs: only those that differ count."
    )
    write_section("statistics", f"## Promises of the statistics\n\n{text}\n\n{sizes}\n\nCommand: `python -m "
                  f"benchmarks.statistics --runs {runs}`.")  # fmt: skip
    broken = not all(0.94 <= v[0] <= 0.96 for v in wilsons.values()) or np.mean(saved) < 0.5
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
