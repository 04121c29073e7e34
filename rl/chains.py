"""The tables of a chain benchmark (CALVIN): tasks solved in a row, their average, and each task by itself.

An episode is a chain that stops at its first failure, and its reward is the number of tasks solved, so everything
follows from the records of the one evaluation loop. The interval of the average adds the Wilson limits of "at least
k tasks", k = 1 to 5: these events are nested, so the sum errs on the wide side, and it never shrinks to a point.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.calvin.chains import LENGTH, OFFICIAL, official_chain, training_chain
from envs.types import EnvSpec, Observation
from rl.stats import wilson
from rl.tables import Tabled
from rl.types import EpisodeRecord

ENV_SUFFIX = "_chains"


class Chains:
    """The `rl.tables.Tables` of CALVIN; without a chain in the records it adds nothing."""

    def begin(self, episode: int, spec: EnvSpec, first: Observation) -> None:
        """The records say it all."""

    def follow(self, episode: int, actions: np.ndarray, obs: Observation) -> None:
        """The records say it all."""

    def write(self, out: Path, records: Sequence[EpisodeRecord]) -> Tabled:
        """`in_a_row` and the rest for the summary."""
        return Tabled(summary=chain_tables(records))


def chain_tables(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """`in_a_row`, `average_length` and `subtasks` of the valid episodes; {} if they are not chains.

    `official` says whether these are all of the benchmark's 1000 chains, once each, and nothing else."""
    good = [r for r in records if r.valid]
    if not good or not good[0].env.endswith(ENV_SUFFIX):
        return {}
    solved = [round(r.reward) for r in good]
    in_a_row = {str(k): _rate(sum(n >= k for n in solved), len(good)) for k in range(1, LENGTH + 1)}
    return {
        "in_a_row": in_a_row,
        "average_length": {
            "value": sum(solved) / len(solved),
            "low": sum(rate["low"] for rate in in_a_row.values()),
            "high": sum(rate["high"] for rate in in_a_row.values()),
        },
        "subtasks": _subtasks(good, solved),
        "official": sorted(r.seed for r in good) == list(range(OFFICIAL)),
    }


def _subtasks(records: Sequence[EpisodeRecord], solved: Sequence[int]) -> dict[str, dict[str, float]]:
    """Of each task that was begun: how often, and how often it was solved."""
    begun: dict[str, list[bool]] = {}
    for record, count in zip(records, solved, strict=True):
        _, tasks = official_chain(record.seed) if record.seed < OFFICIAL else training_chain(record.seed)
        for place, task in enumerate(tasks[: count + 1]):
            begun.setdefault(task, []).append(place < count)
    return {task: _rate(sum(outcomes), len(outcomes)) for task, outcomes in sorted(begun.items())}


def _rate(successes: int, trials: int) -> dict[str, float]:
    low, high = wilson(successes, trials)
    return {"success": successes / trials, "low": low, "high": high, "solved": successes, "trials": trials}
