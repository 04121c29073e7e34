"""An environment's configuration names what makes its tables; the evaluation loop knows none of them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.load import choices, load
from envs.build import build
from envs.types import EnvSpec, Observation
from rl.evaluate import EvaluateRun, evaluate
from rl.tables import NoTables, Tabled, make_tables
from rl.types import EpisodeRecord
from rl.walks import Walks
from tests.toy_parts import checkpoint, toy

SIM: dict[str, Any] = {"hold": 1, "max_steps": 30}


class Distances:
    """How far each episode went from where it began, and by how many steps."""

    def __init__(self, *, unit: float = 1.0) -> None:
        self.unit, self.begun = unit, list[int]()
        self.first: dict[int, np.ndarray] = {}
        self.way: dict[int, tuple[int, float]] = {}

    def begin(self, episode: int, spec: EnvSpec, first: Observation) -> None:
        self.begun.append(episode)
        self.first[episode], self.way[episode] = first.proprio.copy(), (0, 0.0)

    def follow(self, episode: int, actions: np.ndarray, obs: Observation) -> None:
        far = float(np.abs(obs.proprio - self.first[episode]).max())
        self.way[episode] = (self.way[episode][0] + len(actions), far / self.unit)

    def write(self, out: Path, records: Sequence[EpisodeRecord]) -> Tabled:
        (out / "distances.txt").write_text("far\n")
        columns = {k: {"steps": self.way[k][0], "far": self.way[k][1], "success": "not this"}
                   for k, r in enumerate(records) if r.valid}  # fmt: skip
        return Tabled(columns, {"begun": self.begun, "unit": self.unit})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("run") / "step_000001", "flow", execute=2)


def test_tables_of_ones_own_need_no_edit_elsewhere(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of six episodes lose their simulator in every attempt, and begin again each time."""
    monkeypatch.setattr(Distances, "__module__", "rl.tables")
    monkeypatch.setattr("rl.tables.Distances", Distances, raising=False)
    config = replace(toy(**SIM, crash_at=1, fault_seed=2), tables={"_target_": "rl.tables.Distances", "unit": 0.5})
    summary = evaluate(EvaluateRun(str(trained), config, str(tmp_path), episodes=6, workers=2, videos=0, quiet=True))
    rows = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert [r["valid"] for r in rows] == [True] * 4 + [False] * 2
    assert all("steps" not in r for r in rows[4:])
    assert [r["steps"] for r in rows[:4]] == [r["length"] for r in rows[:4]]
    assert all(r["far"] > 0 and r["success"] in (True, False) for r in rows[:4])
    assert summary["unit"] == 0.5
    assert sorted(summary["begun"]) == [0, 1, 2, 3, 4, 4, 4, 5, 5, 5]
    assert (tmp_path / "distances.txt").is_file()


def test_without_a_name_there_are_none(tmp_path: Path) -> None:
    tables = make_tables(toy(**SIM))
    assert isinstance(tables, NoTables)
    assert tables.write(tmp_path, []) == Tabled()


def test_configurations_name_tables_that_can_be_made() -> None:
    named = {}
    for name in choices("env"):
        if node := load("evaluate", [f"env={name}"])["env"].get("tables"):
            named[name] = type(build(node)).__name__
    assert named == {"ai2thor": "Walks", "calvin": "Chains", "calvin_chains": "Chains"}
    config = build(load("evaluate", ["env=ai2thor"])["env"])
    assert isinstance(make_tables(config), Walks)
