"""The 34 tasks: pure functions of what `World.info` gave at the start of a task and what it gives now.

Source: the tasks of github.com/mees/calvin_env. Kept as it is there: `push_into_drawer` does not mind the robot still
touching the block, and several tasks can hold at once.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Set, Tuple

import numpy as np

from envs.calvin.scenes import BLOCKS, DRAWER, SLIDE
from envs.types import EnvError

Info = Mapping[str, Any]
Rule = Callable[..., bool]

MOST_DISPLACED = 0.1  # metres, while rotating
MOST_TILTED_DEG = 30.0
AT_REST = 1.0  # every component of both velocities is below, m/s and rad/s


def achieved(start: Info, now: Info) -> List[str]:
    """All tasks that are done between the two."""
    return [task for task in TASKS if is_done(task, start, now)]


def is_done(task: str, start: Info, now: Info) -> bool:
    """Whether a task is done now, if it began at `start`. Raises EnvError if there is no such task."""
    if task not in TASKS:
        raise EnvError(f"CALVIN has no task '{task}'; expected one of {', '.join(TASKS)}")
    rule, arguments = TASKS[task]
    return bool(rule(start, now, *arguments))


def turned_deg(start: Info, now: Info, block: str) -> Tuple[float, float, float]:
    """How far a block has turned about the fixed x, y and z axes, degrees."""
    turn = _matrix(_block(now, block)["current_orn"]) @ _matrix(_block(start, block)["current_orn"]).T
    return _euler_deg(turn)


# --- rules ------------------------------------------------------------------------------------------------------------


def _rotated(start: Info, now: Info, block: str, degrees: float) -> bool:
    before, after = _block(start, block), _block(now, block)
    x, y, z = turned_deg(start, now, block)
    moved = np.subtract(after["current_pos"], before["current_pos"])
    if not _bodies(after) - {_robot(now)["uid"]}:
        return False  # in the air
    if np.linalg.norm(moved) > MOST_DISPLACED or max(abs(x), abs(y)) >= MOST_TILTED_DEG:
        return False
    return degrees < z < 180 if degrees > 0 else -180 < z < degrees


def _pushed(start: Info, now: Info, block: str, along_x: float) -> bool:
    before, after = _block(start, block), _block(now, block)
    robot = _robot(now)["uid"]
    first = {pair for pair in _pairs(before) if pair[0] != robot}
    last = {pair for pair in _pairs(after) if pair[0] != robot}
    if not first or not last or not first <= last:
        return False  # it left what it lay on
    moved = after["current_pos"][0] - before["current_pos"][0]
    return moved > along_x if along_x > 0 else moved < along_x


def _lifted(start: Info, now: Info, block: str, height: float, link: str) -> bool:
    before, after = _block(start, block), _block(now, block)
    rises = after["current_pos"][2] - before["current_pos"][2] > height
    return rises and _bodies(after) == {_robot(now)["uid"]} and _table_link(start, link) in _pairs(before)


def _placed(start: Info, now: Info, link: str) -> bool:
    robot = _robot(start)
    touched = _bodies(robot)
    held = [name for name, block in _blocks(start).items() if touched == {block["uid"]}]
    if not held or _bodies(_block(start, held[0])) != {robot["uid"]}:
        return False
    after = _block(now, held[0])
    return after["uid"] not in _bodies(_robot(now)) and _table_link(now, link) in _pairs(after)


def _pushed_into(start: Info, now: Info, source: str, target: str) -> bool:
    from_there = [
        name for name, block in _blocks(start).items() if _pairs(block) == {_table_link(start, source)}
    ]  # touched by nothing else
    return any(_table_link(now, target) in _pairs(_block(now, name)) for name in from_there)


def _stacked(start: Info, now: Info) -> bool:
    return any(not _on_blocks(start, name) and _rests_on_blocks(now, name) for name in _blocks(now))


def _unstacked(start: Info, now: Info) -> bool:
    return any(_rests_on_blocks(start, name) and not _on_blocks(now, name) for name in _blocks(now))


def _door_moved(start: Info, now: Info, joint: str, change: float) -> bool:
    doors = (start["scene_info"]["doors"], now["scene_info"]["doors"])
    moved = doors[1][joint]["current_state"] - doors[0][joint]["current_state"]
    return moved > change if change > 0 else moved < change


def _light_switched(start: Info, now: Info, light: str, before: int, after: int) -> bool:
    states = [info["scene_info"]["lights"][light]["logical_state"] for info in (start, now)]
    return states == [before, after]


# --- reading an info --------------------------------------------------------------------------------------------------


def _robot(info: Info) -> Mapping[str, Any]:
    return info["robot_info"]


def _blocks(info: Info) -> Mapping[str, Mapping[str, Any]]:
    return info["scene_info"]["movable_objects"]


def _block(info: Info, name: str) -> Mapping[str, Any]:
    return _blocks(info)[name]


def _pairs(thing: Mapping[str, Any]) -> Set[Tuple[int, int]]:
    """(body, link) of everything that touches it."""
    return {(int(body), int(link)) for body, link in thing["contacts"]}


def _bodies(thing: Mapping[str, Any]) -> Set[int]:
    return {body for body, _ in _pairs(thing)}


def _table_link(info: Info, link: str) -> Tuple[int, int]:
    table = info["scene_info"]["fixed_objects"]["table"]
    return table["uid"], table["links"][link]


def _on_blocks(info: Info, name: str) -> bool:
    """Whether it touches another block."""
    return bool(_bodies(_block(info, name)) & {block["uid"] for block in _blocks(info).values()})


def _rests_on_blocks(info: Info, name: str) -> bool:
    """Whether it touches blocks and nothing else, at rest."""
    block = _block(info, name)
    touched = _bodies(block)
    if not touched or not touched <= {other["uid"] for other in _blocks(info).values()}:
        return False
    speeds = np.concatenate([block["current_lin_vel"], block["current_ang_vel"]])
    return bool((np.abs(speeds) < AT_REST).all())


def _matrix(quaternion: Any) -> np.ndarray:
    """[3, 3] of a quaternion (xyzw)."""
    x, y, z, w = np.asarray(quaternion, dtype=np.float64) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _euler_deg(matrix: np.ndarray) -> Tuple[float, float, float]:
    """Rotations about the fixed x, y and z axes, in this order."""
    x = np.arctan2(matrix[2, 1], matrix[2, 2])
    y = np.arcsin(np.clip(-matrix[2, 0], -1.0, 1.0))
    z = np.arctan2(matrix[1, 0], matrix[0, 0])
    return float(np.degrees(x)), float(np.degrees(y)), float(np.degrees(z))


# --- the tasks, in the benchmark's order ------------------------------------------------------------------------------


def _tasks() -> Dict[str, Tuple[Rule, Tuple[Any, ...]]]:
    tasks: Dict[str, Tuple[Rule, Tuple[Any, ...]]] = {}
    for colour in BLOCKS:
        tasks[f"rotate_{colour}_block_right"] = (_rotated, (f"block_{colour}", -60.0))
        tasks[f"rotate_{colour}_block_left"] = (_rotated, (f"block_{colour}", 60.0))
    for colour in BLOCKS:
        tasks[f"push_{colour}_block_right"] = (_pushed, (f"block_{colour}", 0.1))
        tasks[f"push_{colour}_block_left"] = (_pushed, (f"block_{colour}", -0.1))
    tasks["move_slider_left"] = (_door_moved, (SLIDE, 0.15))
    tasks["move_slider_right"] = (_door_moved, (SLIDE, -0.15))
    tasks["open_drawer"] = (_door_moved, (DRAWER, 0.12))
    tasks["close_drawer"] = (_door_moved, (DRAWER, -0.12))
    places = (("table", 0.05, "base_link"), ("slider", 0.03, "plank_link"), ("drawer", 0.05, "drawer_link"))
    for colour in BLOCKS:
        for place, height, link in places:
            tasks[f"lift_{colour}_block_{place}"] = (_lifted, (f"block_{colour}", height, link))
    tasks["place_in_slider"] = (_placed, ("plank_link",))
    tasks["place_in_drawer"] = (_placed, ("drawer_link",))
    tasks["stack_block"] = (_stacked, ())
    tasks["unstack_block"] = (_unstacked, ())
    for light in ("lightbulb", "led"):
        tasks[f"turn_on_{light}"] = (_light_switched, (light, 0, 1))
        tasks[f"turn_off_{light}"] = (_light_switched, (light, 1, 0))
    tasks["push_into_drawer"] = (_pushed_into, ("base_link", "drawer_link"))
    return tasks


TASKS = _tasks()
