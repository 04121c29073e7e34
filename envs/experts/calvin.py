"""Scripted experts of CALVIN's play table: straight-line moves of the target pose, planned from privileged state.

One expert serves single tasks and chains: in chains it plans anew when the task changes. It knows how to use the
drawer, the sliding door, button and switch, and blocks on the table and in the drawer; it does not reach into the
shelf behind the door. A plan that ends without success starts again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Dict, List, Mapping, Optional

import numpy as np

from envs.calvin.instructions import INSTRUCTIONS
from envs.calvin.scenes import BLOCKS, METRES_PER_UNIT, RADIANS_PER_UNIT
from envs.types import EnvError, Observation

State = Mapping[str, np.ndarray]  # Observation.privileged
Point = Callable[[State], np.ndarray]
OPEN, CLOSED = 1.0, -1.0
TASKS = tuple(INSTRUCTIONS)
DOWN = (3.0905, -0.0291)  # roll and pitch of a hand that points down
HOME_YAW = 1.5001
TRAVEL_Z, FRONT_Y = 0.58, -0.11  # metres: free of everything on the table
DRAWER_X, DRAWER_BACK = 0.18, -0.205  # of a shut drawer: between its handle bar and its front
TURN = np.radians(75.0)
PUSH = 0.14
PATIENCE = 45  # steps for one move


@dataclass(frozen=True)
class Move:
    """Bring the hand somewhere on a straight line."""

    goal: Point  # asked once, when the move begins
    grip: float = CLOSED
    yaw: Optional[Callable[[State], float]] = None  # of the hand, rad; None: as it is
    speed: float = 0.7  # largest command along an axis
    near: float = 0.012  # metres
    hold: int = 0  # steps to stay at the end


class CalvinExpert:
    """Acts in relative actions [7]: 2 cm and 0.05 rad a unit."""

    def __init__(self, *, task: str, noise: float = 0.0, seed: int = 0) -> None:
        """`noise` is the standard deviation, in action units, on every entry but the gripper's."""
        unknown = [part for part in task.split("_then_") if part not in (*PLANS, "chain")]
        if unknown:
            raise EnvError(f"the CALVIN expert cannot do '{unknown[0]}'; expected one of {', '.join(PLANS)} or chain")
        self._noise, self._random = noise, np.random.default_rng(seed)
        self._task = ""
        self._moves: List[Move] = []

    def reset(self, obs: Observation) -> None:
        """Begin an episode."""
        self._task = ""

    def act(self, obs: Observation) -> np.ndarray:
        """The action [7] for this observation."""
        state = obs.privileged
        task = TASKS[int(state["task"])]
        if task != self._task:
            self._plan(task, state)
        move = self._present(state)
        action = np.zeros(7)
        toward = (self._goal - state["target"][:3]) / METRES_PER_UNIT
        action[:3] = toward * min(1.0, move.speed / max(float(np.abs(toward).max()), 1e-9))
        wanted = np.array([*DOWN, self._yaw])
        action[3:6] = np.clip(_wrapped(wanted - state["target"][3:]) / RADIANS_PER_UNIT, -0.9, 0.9)
        if self._noise:
            action[:6] += self._noise * self._random.standard_normal(6)
        action[6] = move.grip
        return np.clip(action, -1.0, 1.0)

    def _plan(self, task: str, state: State) -> None:
        if task not in PLANS:
            raise EnvError(f"the CALVIN expert cannot do '{task}'; choose chains of {', '.join(PLANS)}")
        grip = CLOSED if task in NEED_BLOCK else OPEN
        self._task = task
        self._moves = [_retreat(grip), *PLANS[task](state)]
        self._index = -1
        self._next(state)

    def _present(self, state: State) -> Move:
        move = self._moves[self._index]
        there = np.linalg.norm(self._goal - state["robot_obs"][:3]) < move.near
        turned = abs(_wrapped(self._yaw - state["target"][5])) < 0.02
        if there and turned:
            self._stayed += 1
        self._waited += 1
        if self._stayed <= move.hold and self._waited < PATIENCE + move.hold:
            return move
        if self._index + 1 == len(self._moves):
            self._plan(self._task, state)
        else:
            self._next(state)
        return self._moves[self._index]

    def _next(self, state: State) -> None:
        self._index += 1
        self._waited = self._stayed = 0
        move = self._moves[self._index]
        self._goal = np.asarray(move.goal(state), dtype=np.float64)
        self._yaw = float(state["target"][5]) if move.yaw is None else move.yaw(state)


def _wrapped(angle: np.ndarray) -> np.ndarray:
    return (np.asarray(angle) + np.pi) % (2 * np.pi) - np.pi


# --- moves ------------------------------------------------------------------------------------------------------------


def _at(x: float, y: float, z: float) -> Point:
    return lambda state: np.array([x, y, z])


def _home_yaw(state: State) -> float:
    return HOME_YAW


def _retreat(grip: float) -> Move:
    """Away from whatever the hand was at: back from the cabinet, then up."""

    def goal(state: State) -> np.ndarray:
        x, y, z = state["robot_obs"][:3]
        return np.array([x, min(y, FRONT_Y), max(z, TRAVEL_Z)])

    return Move(goal, grip, near=0.02)


def _by_hand(*points: Point, speed: float = 0.6) -> List[Move]:
    """A closed hand along these points."""
    return [Move(point, CLOSED, _home_yaw, speed=speed if i else 0.8) for i, point in enumerate(points)]


def _move_slider(side: float) -> Callable[[State], List[Move]]:
    """Push the door's handle from the other side: `side` is -1 to move it left, 1 right."""

    def plan(state: State) -> List[Move]:
        x = float(state["slide_handle"][0])
        beside, end = x - 0.085 * side, x + 0.24 * side
        return _by_hand(
            _at(beside, FRONT_Y, 0.6), _at(beside, -0.03, 0.55), _at(beside, -0.009, 0.535), _at(end, -0.009, 0.535)
        )

    return plan


def _open_drawer(state: State) -> List[Move]:
    out = float(state["scene_obs"][1])
    back = DRAWER_BACK - out
    return _by_hand(
        _at(DRAWER_X, -0.3 - out, 0.55), _at(DRAWER_X, back, 0.5), _at(DRAWER_X, back, 0.361),
        _at(DRAWER_X, DRAWER_BACK - 0.24, 0.361),
    )  # fmt: skip


def _close_drawer(state: State) -> List[Move]:
    front = float(state["drawer_handle"][1]) - 0.065
    return _by_hand(
        _at(DRAWER_X, front, 0.55), _at(DRAWER_X, front, 0.371), _at(DRAWER_X, DRAWER_BACK - 0.07, 0.371)
    )  # fmt: skip


def _press_button(state: State) -> List[Move]:
    x = float(state["button_handle"][0])
    return _by_hand(_at(x, -0.121, 0.56), _at(x, -0.121, 0.465))


def _switch_on(state: State) -> List[Move]:
    x = float(state["switch_handle"][0])
    far = x > 0
    return _by_hand(
        _at(x, -0.1, 0.6), _at(x, -0.063, 0.499), _at(x - 0.013 * far, 0.0, 0.494), _at(x - 0.037 * far, 0.032, 0.582)
    )


def _switch_off(state: State) -> List[Move]:
    """Over the lever's upper end, then down on it; to the right of the table that is where the arm ends."""
    x = float(state["switch_handle"][0])
    aside = [-0.05, -0.05, -0.085, -0.075, -0.06] if x > 0 else [0.0] * 5
    way = [(-0.1, 0.62, 0.03), (-0.05, 0.69, 0.03), (0.05, 0.67, 0.02), (0.056, 0.612, 0.012), (0.03, 0.54, 0.012)]
    return [Move(_at(x + dx, y, z), CLOSED, _home_yaw, speed=0.6, near=near) for dx, (y, z, near) in zip(aside, way)]


def _grasp(colour: str) -> List[Move]:
    """Ends with the fingers closed on the block, across its long side."""

    def above(state: State) -> np.ndarray:
        return state[f"{colour}_pos"] + np.array([0.0, 0.0, 0.1 if state[f"{colour}_pos"][2] > 0.4 else 0.2])

    def along(state: State) -> float:
        return _nearest(_yaw_of(state[f"{colour}_quat"]), float(state["target"][5]))

    def block(state: State) -> np.ndarray:
        return state[f"{colour}_pos"] + np.array([0.0, 0.0, 0.001])

    return [
        Move(above, OPEN, along, speed=0.8),
        Move(block, OPEN, speed=0.5, near=0.006, hold=1),
        Move(block, CLOSED, near=1.0, hold=7),
    ]


def _lift(colour: str) -> Callable[[State], List[Move]]:
    up: Point = lambda state: state["robot_obs"][:3] + np.array([0.0, 0.0, 0.13])  # noqa: E731
    return lambda state: [*_grasp(colour), Move(up, CLOSED, speed=0.5)]


def _rotate(colour: str, side: float) -> Callable[[State], List[Move]]:
    """`side` is -1 to turn right (clockwise from above), 1 left."""

    def here(state: State, up: float) -> np.ndarray:
        return state["robot_obs"][:3] + np.array([0.0, 0.0, up])

    def turned(state: State) -> float:
        return float(state["target"][5]) + side * TURN

    return lambda state: [
        *_grasp(colour),
        Move(lambda s: here(s, 0.02), CLOSED, speed=0.4),
        Move(lambda s: here(s, 0.0), CLOSED, turned),
        Move(lambda s: here(s, -0.022), CLOSED, speed=0.4, hold=3),
        Move(lambda s: here(s, 0.0), OPEN, near=1.0, hold=3),
    ]


def _push(colour: str, side: float) -> Callable[[State], List[Move]]:
    """A closed hand beside the block, then along x; `side` is -1 to the left, 1 to the right."""

    def plan(state: State) -> List[Move]:
        x, y, z = state[f"{colour}_pos"]
        start, end = x - 0.075 * side, x + PUSH * side
        return _by_hand(_at(start, y, 0.56), _at(start, y, z + 0.002), _at(end, y, z + 0.002), speed=0.45)

    return plan


def _place_in_drawer(state: State) -> List[Move]:
    x, y = 0.14, DRAWER_BACK + 0.115 - float(state["scene_obs"][1])
    return [
        Move(_at(x, y, 0.56)),
        Move(_at(x, y, 0.42), speed=0.5),
        Move(_at(x, y, 0.42), OPEN, near=1.0, hold=6),
        Move(_at(x, y, 0.56), OPEN),
    ]


def _stack(state: State) -> List[Move]:
    held = _held(state)
    below = min(
        (c for c in BLOCKS if c != held and 0.4 < state[f"{c}_pos"][2] < 0.48 and state[f"{c}_pos"][1] < 0.0),
        key=lambda c: float(np.linalg.norm(state[f"{c}_pos"] - state["robot_obs"][:3])),
        default=None,
    )
    if below is None:
        raise EnvError("the CALVIN expert sees no block on the table to stack on")
    place = state[f"{below}_pos"] + state["robot_obs"][:3] - state[f"{held}_pos"]  # the hand is not at its middle

    def over(up: float) -> Point:
        return lambda s: place + np.array([0.0, 0.0, up])

    return [
        Move(over(0.12), speed=0.6),
        Move(over(0.044), speed=0.3, near=0.004, hold=3),
        Move(over(0.044), OPEN, near=1.0, hold=6),
        Move(over(0.14), OPEN, speed=0.4),
    ]


def _unstack(state: State) -> List[Move]:
    top = max((c for c in BLOCKS if state[f"{c}_pos"][1] < 0.0), key=lambda c: float(state[f"{c}_pos"][2]))
    return _lift(top)(state)


def _push_into_drawer(state: State) -> List[Move]:
    """Carried there and dropped, which the benchmark's rule accepts."""
    colour = max((c for c in BLOCKS if state[f"{c}_pos"][1] < 0.0), key=lambda c: float(state[f"{c}_pos"][2]))
    return [*_lift(colour)(state), *_place_in_drawer(state)]


def _held(state: State) -> str:
    """The block nearest to the fingers."""
    return min(BLOCKS, key=lambda c: float(np.linalg.norm(state[f"{c}_pos"] - state["robot_obs"][:3])))


def _yaw_of(quaternion: np.ndarray) -> float:
    x, y, z, w = quaternion
    return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))


def _nearest(yaw: float, now: float) -> float:
    """The same grasp with the least turning: half a turn changes nothing."""
    return now + float((yaw - now + np.pi / 2) % np.pi - np.pi / 2)


def _plans() -> Dict[str, Callable[[State], List[Move]]]:
    plans: Dict[str, Callable[[State], List[Move]]] = {
        "move_slider_left": _move_slider(-1.0),
        "move_slider_right": _move_slider(1.0),
        "open_drawer": _open_drawer,
        "close_drawer": _close_drawer,
        "turn_on_lightbulb": _switch_on,
        "turn_off_lightbulb": _switch_off,
        "turn_on_led": _press_button,
        "turn_off_led": _press_button,
        "unstack_block": _unstack,
        "push_into_drawer": _push_into_drawer,
        "place_in_drawer": _place_in_drawer,
        "stack_block": _stack,
    }
    for colour in BLOCKS:
        for where in ("table", "drawer"):
            plans[f"lift_{colour}_block_{where}"] = _lift(colour)
        for side, name in ((-1.0, "right"), (1.0, "left")):
            plans[f"rotate_{colour}_block_{name}"] = _rotate(colour, side)
            plans[f"push_{colour}_block_{name}"] = _push(colour, -side)
    return plans


PLANS = _plans()
NEED_BLOCK = ("place_in_drawer", "place_in_slider", "stack_block")
