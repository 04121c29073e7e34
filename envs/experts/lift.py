"""Expert of robosuite's Lift: grasp the cube across its nearest pair of sides, and raise it."""

from __future__ import annotations

import numpy as np

from envs.experts.waypoints import (
    CLOSED,
    Waypoint,
    WaypointScript,
    box_axes,
    held,
    memo,
    nearest_direction,
    offset,
    pick,
)
from envs.types import Observation


class LiftExpert:
    """Lifts the cube in about 27 steps."""

    def __init__(self, *, task: str = "Lift", noise: float = 0.0, seed: int = 0) -> None:
        """`noise` is the standard deviation, in action units, on every entry but the gripper's."""
        self._script = WaypointScript(noise=noise, seed=seed)

    def reset(self, obs: Observation) -> None:
        """Plan for a new episode."""
        finger = memo(lambda state: nearest_direction(state, box_axes(state["cube_quat"])))
        table = float(obs.privileged["goal_pos"][2]) - 0.04
        top = memo(lambda state: np.array([*state["eef_pos"][:2], table + 0.12]))
        self._script.start(
            [
                *pick("cube", finger=finger),
                Waypoint(
                    lambda state: offset(state["eef_pos"], up=0.05), CLOSED, near=0.0, patience=8, check=held("cube")
                ),
                Waypoint(top, CLOSED),
            ]
        )

    def act(self, obs: Observation) -> np.ndarray:
        """The action [7] for this observation."""
        return self._script.act(obs)
