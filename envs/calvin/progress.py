"""How far a task has come: one number in [0, 1] for reward shaping, 1 exactly when the task is done."""

from __future__ import annotations

from typing import Any, Dict, Mapping

import numpy as np

from envs.calvin.oracle import TASKS, is_done, turned_deg
from envs.calvin.scenes import DRAWER, SLIDE, Scene

Info = Mapping[str, Any]
APPROACH = 0.3  # share of the way that bringing the hand to the thing is worth
REACH = 0.3  # metres beyond which the hand counts as far away
ALMOST = 0.99  # what is not done stays below 1


def handles(scene: Scene, info: Info) -> Dict[str, np.ndarray]:
    """Where to touch each fixture [3], in world coordinates, at the doors' present opening."""
    doors = info["scene_info"]["doors"]
    slide, drawer = doors[SLIDE]["current_state"], doors[DRAWER]["current_state"]
    switch = info["scene_info"]["switches"]["base__switch"]["joint_state"]
    return {
        "slide": np.array([scene.slide_x - slide, -0.01, 0.535]),
        "drawer": np.array([0.18, -0.246 - drawer, 0.36]),
        "button": np.array([scene.button_x, -0.12, 0.487]),
        "switch": np.array([scene.switch_x, -0.01 + 0.5 * switch, 0.5 + 0.866 * switch]),
    }


def progress(task: str, scene: Scene, start: Info, now: Info) -> float:
    """A potential of the state: the hand's approach, then the share of the task's own threshold."""
    if is_done(task, start, now):
        return 1.0
    tcp = np.asarray(now["robot_info"]["tcp_pos"])
    near = 1.0 - min(float(np.linalg.norm(tcp - _goal(task, scene, now))) / REACH, 1.0)
    share = float(np.clip(_share(task, start, now), 0.0, 1.0))
    return min(APPROACH * max(near, share) + (1 - APPROACH) * share, ALMOST)


def _goal(task: str, scene: Scene, now: Info) -> np.ndarray:
    places = handles(scene, now)
    for word, handle in (("slider_", "slide"), ("_drawer", "drawer"), ("lightbulb", "switch"), ("led", "button")):
        if task.startswith("move_" + word) or task in ("open" + word, "close" + word) or task.endswith("_" + word):
            return places[handle]
    blocks = now["scene_info"]["movable_objects"]
    named = [name for name in blocks if name[len("block_") :] + "_block" in task]
    tcp = np.asarray(now["robot_info"]["tcp_pos"])
    positions = [np.asarray(blocks[name]["current_pos"]) for name in (named or list(blocks))]
    return min(positions, key=lambda position: float(np.linalg.norm(position - tcp)))


def _share(task: str, start: Info, now: Info) -> float:
    """Which part of the rule's threshold has been covered; 0 for rules without one."""
    _, arguments = TASKS[task]
    if task.startswith(("move_", "open_", "close_")):
        name, change = arguments
        doors = [info["scene_info"]["doors"][name]["current_state"] for info in (start, now)]
        return (doors[1] - doors[0]) / change
    if task.startswith(("push_", "lift_")) and task != "push_into_drawer":
        axis = 0 if task.startswith("push_") else 2
        ends = [info["scene_info"]["movable_objects"][arguments[0]]["current_pos"][axis] for info in (start, now)]
        return (ends[1] - ends[0]) / arguments[1]
    if task.startswith("rotate_"):
        return turned_deg(start, now, arguments[0])[2] / arguments[1]
    return 0.0
