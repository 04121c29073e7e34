"""Episodes of `launch.py collect env=ai2thor` in the CHORES layout: videos, sensors, and the tasks in written form.

    python -m pretrained.demos.chores runs/demos.hdf5 /data/chores --split train

The layout has one list of actions, those that were done, so the steps of an expert with noise are in it as they were,
marked by `last_action_is_random`. Left out are sensors that only a Unity build could tell: boxes in pictures, and
alignments.
"""

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs import stretch
from envs.types import EnvSpec
from pretrained.demos.libero import reading
from pretrained.demos.recorded import RecordedWalk, read_recorded
from pretrained.demos.spoc import CAMERAS, START, write_walk
from pretrained.demos.tasks import PLACE

ARM = "relative_arm_location_metadata"  # [T + 1, 4] x, y, z and yaw in degrees
SENSED = {"agent": 4, "arm_location": 4, "worked": 1}  # privileged entries that are needed, and their sizes
DONE = stretch.action_index("done")

log = logging.getLogger(__name__)


def export(file: Path, root: Path, *, split: str = "train") -> int:
    """Write all episodes of a collected file that ended with `done`; returns how many.

    Raises ValueError if the file lacks a camera or the written tasks, or if `root` already has episodes."""
    refuse_present(root)
    env, walks = read_recorded(file, in_hand=stretch.IN_HAND, start=START)
    if missing := [c for c in CAMERAS if c not in env.cameras]:
        raise ValueError(f"{file} has no camera {missing}; collect with both, as env=ai2thor has them by default")
    columns, written, places = _columns(env, file), 0, Counter()
    for walk in walks:
        with reading(file) as opened:
            group: Any = opened["data"][walk.name]
            notes = json.loads(group["notes"][()]) if "notes" in group else {}
            executed, states = group["executed_actions"][:, 0].round().astype(np.int64), group["states"][()]
        if "task" not in notes:
            raise ValueError(f"{file}:{walk.name} does not hold its task in written form; collect it again")
        if executed[-1] != DONE:
            log.warning("%s:%s was cut off by the clock; left out", file, walk.name)
            continue
        house = int(notes["task"]["house_index"])
        _write(root, split, house, str(places[walk.task, house]), walk, executed, notes["task"], states, columns)
        places[walk.task, house] += 1
        written += 1
    return written


def refuse_present(root: Path) -> None:
    """Raises ValueError if a folder already has episodes: houses and names would mix."""
    if there := sorted(root.glob("*/house_id_to_sub_house_id_*.json")):
        raise ValueError(f"{there[0].parent} already holds episodes; choose another folder, or delete it")


def _write(
    root: Path, split: str, house: int, name: str, walk: RecordedWalk, executed: np.ndarray, task: dict[str, Any],
    states: np.ndarray, columns: dict[str, slice],
) -> None:  # fmt: skip
    """One episode. `done` moves nothing, so the moment after it looks like the one before."""

    def lasting(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([rows, rows[-1:]])

    agent = lasting(states[:, columns["agent"]])
    place = np.zeros((len(agent), 6))
    place[:, :3], place[:, 4] = agent[:, :3], agent[:, 3]
    random = np.concatenate([[False], executed != walk.actions])
    write_walk(
        root,
        task=walk.task,
        split=split,
        house=house,
        name=name,
        frames={c: lasting(walk.frames(c, slice(None))) for c in CAMERAS},
        actions=[stretch.ACTIONS[a][0] for a in executed],
        in_hand=lasting(walk.in_hand),
        spec=task,
        sensors={
            PLACE: place,
            ARM: lasting(states[:, columns["arm_location"]]),
            "last_action_success": np.append(states[:, columns["worked"]][:, 0] > 0.5, True)[:, None],
            "last_action_is_random": random[:, None],
        },
    )


def _columns(env: EnvSpec, file: Path) -> dict[str, slice]:
    """Where the needed entries are in `states`, which join all privileged ones in the order of their names."""
    found, at = {}, 0
    for name in sorted(env.privileged):
        size = int(np.prod(env.privileged[name]))
        found[name] = slice(at, at + size)
        at += size
    if wrong := [k for k, n in SENSED.items() if k not in found or found[k].stop - found[k].start != n]:
        raise ValueError(f"{file} is of {env.env_id} without {wrong}; expected one collected with env=ai2thor")
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Convert a file; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pretrained.demos.chores", description=__doc__)
    parser.add_argument("file", type=Path, help="a .hdf5 file of launch.py collect")
    parser.add_argument("root", type=Path, help="the folder to write")
    parser.add_argument("--split", default="train")
    given = parser.parse_args(words)
    try:
        count = export(given.file, given.root, split=given.split)
    except (ValueError, OSError) as e:
        sys.stderr.write(f"{e}\n")
        return 2
    sys.stdout.write(f"{count} episodes in {given.root}\n")
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main())
