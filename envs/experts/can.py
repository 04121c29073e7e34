"""Expert of robosuite's PickPlaceCan: grasp the can, carry it over the wall between the bins, let it down."""

from __future__ import annotations

import numpy as np

from envs.experts.waypoints import (
    CLOSED,
    OPEN,
    State,
    Waypoint,
    WaypointScript,
    held,
    nearest_direction,
    offset,
    pick,
)
from envs.types import Observation

CARRY = 0.25  # metres above the bin's floor while crossing
SHOULDER = np.array([-0.5, -0.1])  # where the robot stands
NEARER = np.array([-0.05, -0.05, 0.0])  # the bin's middle is at the end of the arm's reach; this is still well inside


def _sideways(state: State) -> np.ndarray:
    """Fingers across the arm's own direction: any other way, the wrist runs into its limit over the far bin."""
    x, y = state["eef_pos"][:2] - SHOULDER
    return np.array([-y, x, 0.0])


class CanExpert:
    """Puts the can into its bin in about 120 steps; success counts only once the hand has moved away from it."""

    def __init__(self, *, task: str = "PickPlaceCan", noise: float = 0.0, seed: int = 0) -> None:
        """`noise` is the standard deviation, in action units, on every entry but the gripper's."""
        self._script = WaypointScript(noise=noise, seed=seed)

    def reset(self, obs: Observation) -> None:
        """Plan for a new episode."""
        first = obs.privileged
        # A can is round: any direction will do, so keep the fingers along whichever axis is nearest.
        axis = nearest_direction(first, (np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])))
        goal = first["goal_pos"] + NEARER
        floor = float(goal[2])
        over = offset(goal, up=CARRY)
        self._script.start(
            [
                *pick("Can", finger=lambda state: axis, hover=0.1, close_steps=9, aside=0.01),
                Waypoint(
                    lambda state: np.array([*state["eef_pos"][:2], floor + CARRY]),
                    CLOSED,
                    near=0.03,
                    patience=40,
                    check=held("Can", within=0.06),
                ),
                Waypoint(
                    lambda state: over, CLOSED, _sideways, near=0.03, patience=100, check=held("Can", within=0.06)
                ),
                Waypoint(lambda state: offset(goal, up=0.07), CLOSED, _sideways, near=0.02, patience=40),
                Waypoint(lambda state: offset(goal, up=0.07), OPEN, _sideways, near=0.0, patience=5),
                Waypoint(lambda state: over, OPEN, _sideways),
            ]
        )

    def act(self, obs: Observation) -> np.ndarray:
        """The action [7] for this observation."""
        return self._script.act(obs)
