"""What an evaluation keeps for the tables of a benchmark, beside success rates.

An environment's YAML file names who makes them: `tables: {_target_: rl.walks.Walks}`. Without a name there are none.
Nothing else of the evaluation loop knows any benchmark.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from envs.build import build
from envs.types import EnvConfig, EnvSpec, Observation
from rl.types import EpisodeRecord


@dataclass(frozen=True)
class Tabled:
    """What tables add to the files of an evaluation."""

    columns: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)  # number of the episode -> name -> value
    summary: Mapping[str, Any] = field(default_factory=dict)  # further keys of summary.json, plain data


class Tables(Protocol):
    """Sees every episode, by its number in the plan; one that is tried again begins again."""

    def begin(self, episode: int, spec: EnvSpec, first: Observation) -> None:
        """The observation after a reset; its arrays are gone at the next one."""
        ...

    def follow(self, episode: int, actions: np.ndarray, obs: Observation) -> None:
        """One decision further: `actions` [n, A], env units, were executed, and this came of them."""
        ...

    def write(self, out: Path, records: Sequence[EpisodeRecord]) -> Tabled:
        """At the end: files of its own in `out`, if any. Episode k of the plan is `records[k]`, valid or not."""
        ...


class NoTables:
    """Success rates alone."""

    def begin(self, episode: int, spec: EnvSpec, first: Observation) -> None:
        """Nothing is kept."""

    def follow(self, episode: int, actions: np.ndarray, obs: Observation) -> None:
        """Nothing is kept."""

    def write(self, out: Path, records: Sequence[EpisodeRecord]) -> Tabled:
        """Nothing is added."""
        return Tabled()


def make_tables(config: EnvConfig) -> Tables:
    """Those that the environment's configuration names."""
    return build(config.tables) if config.tables else NoTables()
