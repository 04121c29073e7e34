"""What an episode asks for: the task types of CHORES, their horizons, and their written form.

A task file holds one JSON object per line, with the keys that SPOC's data has under `templated_task_spec`. Standard
library only; Python 3.8 syntax.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from envs.stretch import HORIZON, HORIZONS
from envs.types import EnvError

NAVIGATE = (
    "ObjectNavType",
    "ObjectNavRoom",
    "ObjectNavRelAttribute",
    "ObjectNavLocalRef",
    "ObjectNavAffordance",
    "ObjectNavDescription",
)
GRASP = ("PickupType", "FetchType")
ROOMS = ("RoomVisit", "RoomNav")
TYPES = (*NAVIGATE, *GRASP, *ROOMS)
LEGACY = {"SimpleExploreHouse": "RoomVisit", "ObjectNavOpenVocab": "ObjectNavDescription"}
SAMPLED = tuple(t for t in TYPES if t != "ObjectNavDescription")  # that needs sentences written about single objects


@dataclass(frozen=True)
class Chore:
    """One task in one house."""

    task_type: str
    instruction: str
    targets: Tuple[str, ...] = ()  # object ids, any of which counts
    rooms: Tuple[str, ...] = ()  # RoomNav: room ids, any of which counts
    category: str = ""  # of the target
    start: Optional[Tuple[float, float, float, float]] = None  # x, y, z, yaw
    expert_length: Optional[int] = None  # actions


def horizon(task_type: str) -> int:
    """Steps that an evaluation allows."""
    return HORIZONS.get(task_type, HORIZON)


def check_type(name: str) -> str:
    """The present name of a task type. Raises EnvError if there is none."""
    name = LEGACY.get(name, name)
    if name not in TYPES:
        raise EnvError(f"ai2thor: task type '{name}' is unknown; expected one of {', '.join(TYPES)}")
    return name


def read_spec(spec: Mapping[str, Any]) -> Chore:
    """A chore in SPOC's written form. Raises EnvError naming the key that is missing."""
    try:
        kind = check_type(str(spec["task_type"]))
        x, y, z = (float(v) for v in spec["agent_starting_position"])
        start = (x, y, z, float(spec["agent_y_rotation"]))
        targets: Tuple[str, ...] = ()
        rooms: Tuple[str, ...] = ()
        category = ""
        if kind in NAVIGATE or kind in GRASP:
            category = str(spec["synsets"][0])
            targets = tuple(spec["broad_synset_to_object_ids"][category])
        if kind == "RoomNav":
            category = str(spec["room_types"][0])
            rooms = tuple(spec["room_ids"][category])
        length = spec.get("expert_length")
        return Chore(
            kind,
            str(spec["natural_language_spec"]).lower(),
            targets,
            rooms,
            category,
            start,
            None if length is None else int(length),
        )
    except (KeyError, IndexError, TypeError, ValueError) as e:
        raise EnvError(
            f"ai2thor: this task is not whole: {type(e).__name__} {e}; it has {sorted(spec)}: expected task_type, "
            "natural_language_spec, agent_starting_position, agent_y_rotation, and synsets with "
            "broad_synset_to_object_ids, or room_types with room_ids"
        ) from e


def write_spec(chore: Chore, house_index: int) -> Dict[str, Any]:
    """The written form of a chore that has a start, in the house of that number; what `read_spec` reads."""
    assert chore.start is not None
    spec: Dict[str, Any] = {
        "task_type": chore.task_type,
        "house_index": house_index,
        "natural_language_spec": chore.instruction,
        "agent_starting_position": list(chore.start[:3]),
        "agent_y_rotation": chore.start[3],
    }
    if chore.task_type in NAVIGATE or chore.task_type in GRASP:
        spec["synsets"] = [chore.category]
        spec["broad_synset_to_object_ids"] = {chore.category: list(chore.targets)}
    if chore.task_type == "RoomNav":
        spec["room_types"], spec["room_ids"] = [chore.category], {chore.category: list(chore.rooms)}
    return spec if chore.expert_length is None else {**spec, "expert_length": chore.expert_length}


class TaskFile:
    """Tasks that somebody wrote down: (house number, chore) by type."""

    def __init__(self, path: str) -> None:
        """Reads a .jsonl or .jsonl.gz file; raises EnvError naming the line that cannot be used."""
        self.tasks: Dict[str, List[Tuple[int, Chore]]] = {}
        file = Path(path)
        if not file.is_file():
            raise EnvError(f"ai2thor: the task file {path} does not exist; expected one JSON object per line")
        opened: Any = gzip.open if file.suffix == ".gz" else open
        with opened(file, "rt") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    spec = json.loads(line)
                    house, chore = int(spec["house_index"]), read_spec(spec)
                except (ValueError, KeyError, TypeError, EnvError) as e:
                    raise EnvError(f"{path}, line {number}: {e}") from e
                self.tasks.setdefault(chore.task_type, []).append((house, chore))

    def pick(self, task_type: str, seed: int) -> Tuple[int, Chore]:
        """The task that a seed stands for."""
        there = self.tasks.get(task_type)
        if not there:
            raise EnvError(f"ai2thor: the task file has no {task_type}, only {sorted(self.tasks)}")
        return there[seed % len(there)]
