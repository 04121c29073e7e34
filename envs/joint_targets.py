"""Absolute joint positions as actions, on robosuite's joint controller, and how those who steer the hand give them.

The controller adds its action to where the joints are, so a goal is given as the way that is left. Its stiffness is
that of OSC_POSE, so that the arm moves alike under both.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, Tuple

import numpy as np

from envs.types import EnvError

JOINTS = 7
STIFFNESS = 150.0  # 1/s^2; JOINT_POSITION's own 50 follows too slowly for tasks that OSC_POSE is quick enough for
TURN = 2 * np.pi  # rad; no joint's way is longer
DAMPING = 0.03  # of the inverse Jacobian, in its singular values' unit
POSTURE = 0.3  # share of its way back to the first posture that the arm is told to go, where the hand does not mind


def settings(config: Mapping[str, Any]) -> Dict[str, Any]:
    """robosuite's configuration of JOINT_POSITION, changed so that an action of 1 is 1 rad."""
    own = {"input_max": TURN, "input_min": -TURN, "output_max": TURN, "output_min": -TURN, "kp": STIFFNESS}
    return {**config, **own}


class JointTargets:
    """Turns goals into what the controller takes, and tells what makes goals out of motions of the hand."""

    def __init__(self, arm: Any) -> None:
        """`arm`: an `envs.mujoco_arm.Arm`."""
        model, robot = arm.model, arm.env.robots[0]
        self._arm = arm
        self._address = np.asarray(robot._ref_joint_pos_indexes)
        self._dofs = np.asarray(robot._ref_joint_vel_indexes)
        joints = [int(np.flatnonzero(model.jnt_qposadr == address)[0]) for address in self._address]
        if len(joints) != JOINTS:
            raise EnvError(
                f"controller JOINT_TARGET: the robot has {len(joints)} joints, expected {JOINTS}; choose robots: Panda"
            )
        self.low, self.high = (model.jnt_range[joints, side].copy() for side in (0, 1))

    def bounds(self, low: np.ndarray, high: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """The controller's own bounds [J + fingers], with the joints' ranges in place of ways."""
        low, high = (np.concatenate([own, side[JOINTS:]]) for own, side in ((self.low, low), (self.high, high)))
        return low, high

    def command(self, action: np.ndarray) -> np.ndarray:
        """Goals [J] and fingers, to what robosuite takes."""
        return np.concatenate([action[: len(self._address)] - self.positions(), action[len(self._address) :]])

    def positions(self) -> np.ndarray:
        """Where the joints are, in rad."""
        return self._arm.data.qpos[self._address]

    def told(self) -> Dict[str, np.ndarray]:
        """joint_range [2, J] in rad, and hand_jacobian [6, J]: how the grip site moves (m, rad in world axes)."""
        import mujoco

        arm = self._arm
        moves, turns = np.zeros((3, arm.model.nv)), np.zeros((3, arm.model.nv))
        mujoco.mj_jacSite(arm.model, arm.data, moves, turns, arm.eef_site)
        jacobian = np.concatenate([moves, turns])[:, self._dofs]
        return {"joint_range": np.stack([self.low, self.high]), "hand_jacobian": jacobian}


def goals(privileged: Mapping[str, np.ndarray], motion: np.ndarray, posture: np.ndarray) -> np.ndarray:
    """Joint goals [J] inside their ranges that bring the hand along `motion` [6] (m and rad in world axes), and the arm
    towards `posture` [J] as far as the hand is not moved by it. Damped least squares."""
    jacobian, joints = privileged["hand_jacobian"], privileged["joint_pos"]
    square = jacobian @ jacobian.T + DAMPING**2 * np.eye(6)
    back = POSTURE * (posture - joints)
    way = back + jacobian.T @ np.linalg.solve(square, motion - jacobian @ back)
    return np.clip(joints + way, *privileged["joint_range"])
