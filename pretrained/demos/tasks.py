"""The tasks of a data set in the CHORES layout, written down so that env=ai2thor can set them again (sim.task_file).

    python -m pretrained.demos.tasks /data/chores tasks.jsonl --split val

One line per episode: what was asked, in which house, from which pose. As in FLaRe, reinforcement learning then starts
where the demonstrations did.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from envs.chores.tasks import read_spec
from envs.types import EnvError
from pretrained.demos.spoc import open_sensors, task_folders, text

PLACE = "last_agent_location"  # [T + 1, 6] x, y, z, and pitch, yaw, roll in degrees
log = logging.getLogger(__name__)


def specs(root: Path, *, tasks: Sequence[str] = (), split: str = "val") -> Iterator[dict[str, Any]]:
    """The written tasks of all episodes that are whole; others are named in the log."""
    for folder in task_folders(root, tasks, split):
        table = json.loads((folder / f"house_id_to_sub_house_id_{split}.json").read_text())
        for house in sorted(table, key=int):
            place = folder / split / f"{int(house):06d}"
            with open_sensors(place) as file:
                for name in table[house]:
                    try:
                        yield _spec(file[str(name)], int(house))
                    except (KeyError, ValueError, EnvError) as e:
                        log.warning("%s/%s is left out: %s", place, name, e)


def _spec(group: Any, house: int) -> dict[str, Any]:
    spec = json.loads(text(group["templated_task_spec"][()]))
    x, y, z, _, yaw, _ = (float(v) for v in group[PLACE][0])
    spec |= {"house_index": house, "agent_starting_position": [x, y, z], "agent_y_rotation": yaw}
    spec.setdefault("expert_length", len(group["last_action_str"]) - 1)
    read_spec(spec)
    return spec


def main(words: Sequence[str] | None = None) -> int:
    """Write them; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pretrained.demos.tasks", description=__doc__)
    parser.add_argument("root", type=Path, help="a data set in the CHORES layout, or one task of it")
    parser.add_argument("out", type=Path, help="the .jsonl file to write")
    parser.add_argument("--split", default="val")
    parser.add_argument("--tasks", nargs="*", default=(), help="names of task folders; all if left out")
    given = parser.parse_args(words)
    try:
        lines = [json.dumps(spec) for spec in specs(given.root, tasks=given.tasks, split=given.split)]
    except (ValueError, OSError) as e:
        sys.stderr.write(f"{e}\n")
        return 2
    given.out.write_text("".join(line + "\n" for line in lines))
    sys.stdout.write(f"{len(lines)} tasks in {given.out}\n")
    return 0 if lines else 1


if __name__ == "__main__":
    sys.exit(main())
