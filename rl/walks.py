"""What an evaluation keeps of navigation episodes, for the tables of `rl.navigation`.

Simulators whose robot walks tell it by the privileged entries `agent` (x, y, z, ...) and `worked`, and by the notes of
a reset: `rooms`, and if known `expert_length`, `best_distance` and `category`.
"""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs import stretch
from envs.types import EnvSpec, Observation
from pretrained.types import Decision
from rl.navigation import Walked, aggregate, inside, marking
from rl.types import EpisodeRecord

NEEDED = {"agent", "worked"}
MARKS = "sub_done"  # the action that marks a room
STRETCH = "spoc_stretch_20"  # the convention of actions that have names
BAR = 20  # characters of a certain action's bar


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


def walks_in(spec: EnvSpec) -> bool:
    """Whether an environment tells what the tables need."""
    return set(spec.privileged) >= NEEDED


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


def caption(spec: EnvSpec, decision: Decision, row: int) -> str:
    """What one environment decided, how likely that was, and the critic's value; of discrete actions."""
    index, chance = int(decision.chunk[row, 0, 0]), math.exp(float(decision.log_prob[row].sum()))
    name = stretch.ACTIONS[index][0] if spec.action_convention == STRETCH else f"action {index}"
    return f"{name}  {'|' * round(BAR * chance)} {100 * chance:.0f} %  value {float(decision.value[row]):.2f}"


def _position(obs: Observation) -> np.ndarray:
    return np.array(obs.privileged["agent"][:3], dtype=np.float64)


def _mark_of(spec: EnvSpec) -> int:
    return stretch.action_index(MARKS) if spec.action_convention == STRETCH else -1
