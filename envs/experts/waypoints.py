"""Waypoint scripts for a gripper under pose control: go near each target in turn, with retries.

For actions [dx, dy, dz, droll, dpitch, dyaw, gripper] of robosuite's OSC_POSE controller (robosuite and LIBERO):
1 means 5 cm or 0.5 rad per step in world axes, gripper -1 opens and +1 closes. Where actions are joint positions
(controller JOINT_TARGET), the same motions of the hand are given as goals of the joints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from envs.joint_targets import goals
from envs.types import EnvError, Observation

State = Mapping[str, np.ndarray]  # Observation.privileged
OPEN, CLOSED = -1.0, 1.0
METRES_PER_UNIT, RADIANS_PER_UNIT = 0.05, 0.5
GAIN, TURN_GAIN = 2.0, 1.0  # the controller needs several steps for one command, so ask for more than the error
FUNNEL_SLOPE = 4.0  # while descending: metres to stay up for each metre aside


@dataclass(frozen=True)
class Waypoint:
    """Somewhere to bring the hand. It is left when the hand is near enough, or after `patience` steps."""

    target: Callable[[State], np.ndarray]  # where the grip site should be, from the present state
    grip: float  # OPEN or CLOSED
    finger: Optional[Callable[[State], np.ndarray]] = None  # direction the fingers should open in; None: as it is
    near: float = 0.01  # metres; 0 means: stay for all of `patience`
    patience: int = 60
    speed: float = 1.0  # largest command per axis
    check: Optional[Callable[[State], bool]] = None  # asked on leaving; if false, the script starts again


class WaypointScript:
    """Follows waypoints; the last one is held. Adds the noise to what it returns, then clips."""

    def __init__(self, *, noise: float = 0.0, seed: int = 0) -> None:
        """`noise` is the standard deviation, in action units, on every entry but the gripper's."""
        self._noise = noise
        self._rng = np.random.default_rng(seed)
        self._waypoints: List[Waypoint] = []
        self._index = 0
        self._waited = 0
        self._posture: Optional[np.ndarray] = None  # of the episode's first state

    def start(self, waypoints: Sequence[Waypoint]) -> None:
        """Begin an episode with this plan."""
        self._waypoints = list(waypoints)
        self._index = self._waited = 0
        self._posture = None

    def act(self, obs: Observation) -> np.ndarray:
        """The action for this observation: [7], or seven joint positions and the gripper."""
        if not self._waypoints:
            raise EnvError("the expert has no plan; call reset with the episode's first observation")
        state = obs.privileged
        self._advance(state)
        point = self._waypoints[self._index]
        self._waited += 1
        action = np.zeros(7)
        action[:3] = np.clip(
            GAIN / METRES_PER_UNIT * (point.target(state) - state["eef_pos"]), -point.speed, point.speed
        )
        wanted = None if point.finger is None else point.finger(state)
        action[3:6] = np.clip(TURN_GAIN / RADIANS_PER_UNIT * turn_error(state, wanted), -0.5, 0.5)
        if self._noise:
            action[:6] += self._noise * self._rng.standard_normal(6)
        action[6] = point.grip
        action = np.clip(action, -1.0, 1.0)
        if "hand_jacobian" not in state:
            return action
        if self._posture is None:
            self._posture = np.array(state["joint_pos"])
        motion = np.concatenate([METRES_PER_UNIT * action[:3], RADIANS_PER_UNIT * action[3:6]])
        return np.concatenate([goals(state, motion, self._posture), action[6:]])

    def _advance(self, state: State) -> None:
        point = self._waypoints[self._index]
        there = point.near > 0 and float(np.linalg.norm(point.target(state) - state["eef_pos"])) < point.near
        if not there and self._waited < point.patience:
            return
        if point.check is not None and not point.check(state):
            self._index = self._waited = 0
        elif self._index + 1 < len(self._waypoints):
            self._index, self._waited = self._index + 1, 0


def turn_error(state: State, finger: Optional[np.ndarray]) -> np.ndarray:
    """Rotation vector (world axes) that points the hand straight down and its fingers along `finger`, either way."""
    x, y, z, w = state["eef_quat"]
    approach = np.array([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)])  # the hand's z axis
    error = np.cross(approach, [0.0, 0.0, -1.0])
    if finger is not None:
        have, want = state["finger_axis"], finger
        angle = np.arctan2(want[1], want[0]) - np.arctan2(have[1], have[0])
        error[2] = (angle + np.pi / 2) % np.pi - np.pi / 2  # a gripper turned by half a turn is the same gripper
    return error


def object_centre(state: State, name: str) -> np.ndarray:
    """Middle of the box around an object's collision shapes."""
    return (state[f"{name}_low"] + state[f"{name}_high"]) / 2


def box_axes(quaternion: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """The two horizontal side directions of an upright box with this orientation (xyzw)."""
    x, y, z, w = quaternion
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return np.array([np.cos(yaw), np.sin(yaw), 0.0]), np.array([-np.sin(yaw), np.cos(yaw), 0.0])


def nearest_direction(state: State, choices: Sequence[np.ndarray]) -> np.ndarray:
    """The direction among `choices` that the fingers can take with the least turning."""
    return max(choices, key=lambda axis: abs(float(np.dot(axis, state["finger_axis"]))))


def narrow_direction(state: State, name: str) -> np.ndarray:
    """The world axis along which an object's box is narrowest: where fingers fit best."""
    size = (state[f"{name}_high"] - state[f"{name}_low"])[:2]
    return np.array([1.0, 0.0, 0.0]) if size[0] <= size[1] else np.array([0.0, 1.0, 0.0])


def held(name: str, *, within: float = 0.05) -> Callable[[State], bool]:
    """A check that the object's middle is within this distance of the grip site."""
    return lambda state: bool(np.linalg.norm(object_centre(state, name) - state["eef_pos"]) < within)


def offset(point: np.ndarray, *, up: float) -> np.ndarray:
    """`point` moved up by some metres."""
    return point + np.array([0.0, 0.0, up])


def pick(
    name: str,
    *,
    finger: Callable[[State], np.ndarray],
    grasp: Optional[Callable[[State], np.ndarray]] = None,
    hover: float = 0.08,
    close_steps: int = 8,
    aside: float = 0.02,
) -> List[Waypoint]:
    """Waypoints that end with the fingers closed on object `name`; `grasp` is where, the box's middle if None.

    The hand goes down only while it is less than `aside` metres beside the object, so that no finger lands on it.
    """
    where = grasp or (lambda state: object_centre(state, name))

    def funnel(state: State) -> np.ndarray:
        target = where(state)
        beside = float(np.linalg.norm((target - state["eef_pos"])[:2]))
        return offset(target, up=min(hover, FUNNEL_SLOPE * max(beside - aside, 0.0)))

    return [
        Waypoint(lambda state: offset(where(state), up=hover), OPEN, finger, near=0.025),
        Waypoint(funnel, OPEN, finger, near=0.012),
        Waypoint(where, CLOSED, finger, near=0.0, patience=close_steps),
    ]


def memo(function: Callable[[State], np.ndarray]) -> Callable[[State], np.ndarray]:
    """`function` of the first state it sees, for ever: for directions and places that must not move with the object."""
    seen: Dict[str, np.ndarray] = {}

    def first(state: State) -> np.ndarray:
        if "value" not in seen:
            seen["value"] = np.array(function(state))
        return seen["value"]

    return first
