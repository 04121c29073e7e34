"""What an evaluation keeps of navigation episodes, for the tables of `rl.navigation`.

Simulators whose robot walks tell it by the privileged entries `agent` (x, y, z, ...) and `worked`, and by the notes of
a reset: `rooms`, and if known `expert_length`, `best_distance` and `category`.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs import stretch
from envs.types import EnvSpec, Observation
from rl.captions import STRETCH
from rl.navigation import Walked, aggregate, episode_metrics, inside, marking
from rl.tables import Tabled
from rl.types import EpisodeRecord

NEEDED = {"agent", "worked"}
MARKS = "sub_done"  # the action that marks a room


class Walks:
    """The `rl.tables.Tables` of robots that walk."""

    def __init__(self) -> None:
        self.walks: dict[int, Walk] = {}

    def begin(self, episode: int, spec: EnvSpec, first: Observation) -> None:
        """Raises ValueError if the simulator does not tell what the tables need."""
        if missing := NEEDED - set(spec.privileged):
            raise ValueError(
                f"tables of walks need the privileged entries {sorted(missing)}, which {spec.env_id} does not have; "
                "take `tables` out of the environment's configuration"
            )
        self.walks[episode] = Walk(spec, first)

    def follow(self, episode: int, actions: np.ndarray, obs: Observation) -> None:
        """One action further: these robots decide before each."""
        self.walks[episode].follow(obs, float(actions[0, 0]))

    def write(self, out: Path, records: Sequence[EpisodeRecord]) -> Tabled:
        """Figures of each episode, and `tables`, also as files."""
        walked = {k: self.walks[k].walked(r) for k, r in enumerate(records) if r.valid}
        columns = {
            k: {"category": w.category, **{name: round(v, 6) for name, v in episode_metrics(w).items()}}
            for k, w in walked.items()
        }
        return Tabled(columns, {"tables": write_tables(out, list(walked.values()))} if walked else {})


class Walk:
    """One episode under way."""

    def __init__(self, spec: EnvSpec, first: Observation) -> None:
        self.notes: dict[str, Any] = dict(first.notes)
        self.positions = [_position(first)]
        self.worked: list[bool] = []
        self.marked: list[str | None] = []
        self.mark = _mark_of(spec)

    def follow(self, obs: Observation, action: float) -> None:
        """One step further."""
        if action == self.mark:
            x, _, z = self.positions[-1]
            rooms = self.notes["rooms"]
            self.marked.append(next((k for k, corners in rooms.items() if inside(x, z, corners)), None))
        self.positions.append(_position(obs))
        self.worked.append(bool(obs.privileged["worked"]))

    def walked(self, record: EpisodeRecord) -> Walked:
        """The episode as the metrics want it."""
        notes, extra = self.notes, {}
        best = float(notes.get("best_distance", -1.0))
        if record.task == "RoomVisit":
            coverage, right = marking(self.marked, len(notes["rooms"]))
            extra = {"coverage": coverage} | ({} if right is None else {"sub_done_acc": right})
        return Walked(
            task=record.task,
            success=record.success,
            positions=np.stack(self.positions),
            worked=self.worked,
            rooms=notes["rooms"],
            expert_length=notes.get("expert_length"),
            best_distance=best if best >= 0 else None,
            category=str(notes.get("category", "")),
            extra=extra,
        )


def write_tables(out: Path, walks: Sequence[Walked]) -> dict[str, dict[str, float]]:
    """Aggregate, write `tables.json` and `tables.csv`, and return the table: row -> column -> mean."""
    table = aggregate(walks)
    (out / "tables.json").write_text(json.dumps(table, indent=1))
    columns = sorted({k for row in table.values() for k in row})
    with (out / "tables.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, fieldnames=["rows", *columns])
        rows.writeheader()
        rows.writerows({"rows": name, **row} for name, row in table.items())
    return table


def _position(obs: Observation) -> np.ndarray:
    return np.array(obs.privileged["agent"][:3], dtype=np.float64)


def _mark_of(spec: EnvSpec) -> int:
    return stretch.action_index(MARKS) if spec.action_convention == STRETCH else -1
