"""Expert of LIBERO's pick-and-place tasks: grasp the target, carry it over its goal, let it down and let go.

Made for libero_object and libero_spatial, where it solves nearly all initial states of most tasks; it knows nothing of
drawers, doors, stoves or obstacles, so it fails on tasks that need them.
"""

from __future__ import annotations

from typing import Callable, List

import numpy as np

from envs.experts.waypoints import (
    CLOSED,
    OPEN,
    State,
    Waypoint,
    WaypointScript,
    memo,
    narrow_direction,
    object_centre,
    offset,
    pick,
)
from envs.types import Observation

HAND_SPAN = 0.075  # metres between the open fingers, less a margin: wider things are held by their rim
FINGER_DEPTH = 0.035  # how far below a rim the fingertips close
BELOW_TOP = 0.035  # tall things are held at most this far below their top, to keep the palm clear
CLEARANCE = 0.06  # metres between what is carried and the container's rim
SHUT = 0.003  # metres between the fingers when there is nothing in them
CLOSE_STEPS = 11
HOVER = 0.1  # metres above the grasp where the hand lines up before it goes down
CARRY = 0.7  # largest command while carrying: bowls turn in the fingers when jerked


class LiberoExpert:
    """Repeats its plan from the top when a grasp slipped."""

    def __init__(self, *, task: str = "", noise: float = 0.0, seed: int = 0) -> None:
        """`noise` is the standard deviation, in action units, on every entry but the gripper's."""
        self._script = WaypointScript(noise=noise, seed=seed)
        self._attempt = self._closing = 0

    def reset(self, obs: Observation) -> None:
        """Plan for a new episode."""
        self._attempt = self._closing = 0
        self._script.start(_plan(obs.privileged, side=1.0))

    def act(self, obs: Observation) -> np.ndarray:
        """The action [7] for this observation."""
        state = obs.privileged
        if self._closing > CLOSE_STEPS and float(np.abs(state["gripper_qpos"]).sum()) < SHUT:
            self._attempt, self._closing = self._attempt + 1, 0  # it slipped: from the top, bowls by the other side
            self._script.start(_plan(state, side=(-1.0) ** self._attempt))
        action = self._script.act(obs)
        self._closing = self._closing + 1 if action[6] == CLOSED else 0
        return action


def _plan(first: State, *, side: float) -> List[Waypoint]:
    size = first["target_high"] - first["target_low"]
    by_rim = bool(min(size[:2]) > HAND_SPAN)
    if by_rim:
        radial = memo(lambda state: side * _rim_direction(state))
        grasp: Callable[[State], np.ndarray] = lambda state: _rim_point(state, radial(state))  # noqa: E731
        finger = radial
    else:
        grasp, finger = _body_point, memo(lambda state: narrow_direction(state, "target"))
    carried = size[2] + CLEARANCE
    height = max(float(first["goal_high"][2]), float(first["target_low"][2])) + carried

    def lifted(state: State) -> np.ndarray:
        return np.array([*state["eef_pos"][:2], height])

    def over_goal(state: State, up: float) -> np.ndarray:
        """Where the hand must be for the target's middle to be over the goal, its underside `up` above the rim."""
        hold = state["eef_pos"] - object_centre(state, "target")
        below = state["eef_pos"][2] - state["target_low"][2]
        return np.array([*(state["goal_pos"] + hold)[:2], state["goal_high"][2] + below + up])

    def over(state: State) -> np.ndarray:
        return over_goal(state, CLEARANCE)

    def holding(state: State) -> bool:
        return bool(np.linalg.norm(grasp(state) - state["eef_pos"]) < 0.06)

    return [
        Waypoint(lambda state: offset(grasp(state), up=HOVER), OPEN, finger, near=0.013, patience=40),
        *pick("target", finger=finger, grasp=grasp, hover=HOVER - 0.02, close_steps=CLOSE_STEPS),
        Waypoint(lifted, CLOSED, finger, near=0.03, patience=40, check=holding),
        Waypoint(over, CLOSED, finger, near=0.02, patience=80, speed=CARRY),
        Waypoint(lambda state: over_goal(state, 0.005), CLOSED, finger, near=0.012, patience=25, speed=0.6),
        Waypoint(lambda state: state["eef_pos"], OPEN, finger, near=0.0, patience=6),
        Waypoint(lambda state: offset(state["eef_pos"], up=0.05), OPEN, finger, near=0.0, patience=30, check=_never),
    ]


def _never(state: State) -> bool:
    """The episode would have ended had it worked: start again."""
    return False


def _body_point(state: State) -> np.ndarray:
    """The middle of a thing that fits between the fingers, but not deep below its top."""
    point = object_centre(state, "target")
    point[2] = max(point[2], state["target_high"][2] - BELOW_TOP)
    return point


def _rim_direction(state: State) -> np.ndarray:
    """From the middle of a bowl to the spot of its rim that is grasped: to the side, where the hand is free."""
    away = np.array([0.0, 1.0, 0.0])
    return away if state["target_low"][1] + state["target_high"][1] < 2 * state["goal_pos"][1] else -away


def _rim_point(state: State, direction: np.ndarray) -> np.ndarray:
    half = float(np.mean((state["target_high"] - state["target_low"])[:2])) / 2
    point = object_centre(state, "target") + (half - 0.008) * direction
    point[2] = state["target_high"][2] - FINGER_DEPTH
    return point
