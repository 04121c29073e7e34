"""The arm and its gripper: actions become a target pose, inverse kinematics, motor targets.

Relative actions move a target pose that is kept between steps, so errors of the arm do not accumulate in it. Absolute
and joint actions leave that target alone: a later relative action goes on from where it was.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from envs.calvin.scenes import (
    ARM_FORCE,
    ARM_JOINTS,
    ARM_VELOCITY,
    CLOSE_FORCE,
    FINGER_JOINTS,
    FINGER_OPEN,
    FINGER_VELOCITY,
    HOME_JOINTS,
    JOINT_HIGH,
    JOINT_LOW,
    METRES_PER_UNIT,
    OPEN_FORCE,
    RADIANS_PER_UNIT,
    ROBOT_BASE,
    TCP_LINK,
)
from envs.types import EnvError

OBS_SIZE = 15
# The rest pose makes PyBullet take its null-space solver; the limits and ranges only need to be there.
REST = (*HOME_JOINTS, FINGER_OPEN, FINGER_OPEN)
LIMITS = {"lowerLimits": [-7.0] * 9, "upperLimits": [7.0] * 9, "jointRanges": [7.0] * 9, "restPoses": list(REST)}


class Robot:
    """The Panda with long fingers, already loaded into a client."""

    def __init__(self, bullet: Any, client: int, urdf: str) -> None:
        self._b, self._client = bullet, client
        self.uid: int = bullet.loadURDF(urdf, ROBOT_BASE, [0, 0, 0, 1], useFixedBase=True, physicsClientId=client)
        self.gripper_command = 1  # survives resets
        self.target_position = np.zeros(3)
        self.target_euler = np.zeros(3)
        self.joint_targets: Optional[List[float]] = None  # commanded by the last action

    def prepare(self) -> None:
        """Couple the fingers and go to the home pose, before anything else is loaded."""
        b = self._b
        gear = b.createConstraint(
            self.uid, FINGER_JOINTS[0], self.uid, FINGER_JOINTS[1], jointType=b.JOINT_GEAR, jointAxis=[1, 0, 0],
            parentFramePosition=[0, 0, 0], childFramePosition=[0, 0, 0], physicsClientId=self._client,
        )  # fmt: skip
        b.changeConstraint(gear, gearRatio=-1, erp=0.1, maxForce=50, physicsClientId=self._client)
        self.reset(None)

    def reset(self, robot_obs: Optional[np.ndarray]) -> None:
        """Put the joints to entries 6 (gripper width) and 7 to 13 of `robot_obs` [15], or home; the target follows."""
        joints, finger = list(HOME_JOINTS), FINGER_OPEN
        if robot_obs is not None:
            if robot_obs.shape != (OBS_SIZE,) or not np.isfinite(robot_obs).all():
                raise EnvError(f"robot_obs has shape {robot_obs.shape} or is not finite; expected 15 finite numbers")
            joints, finger = robot_obs[7:14].tolist(), float(robot_obs[6]) / 2
        for joint, angle in zip(ARM_JOINTS, joints):
            self._b.resetJointState(self.uid, joint, angle, 0, physicsClientId=self._client)
            self._motor(joint, angle, ARM_FORCE, ARM_VELOCITY)
        for joint in FINGER_JOINTS:
            self._b.resetJointState(self.uid, joint, finger, 0, physicsClientId=self._client)
            self._motor(joint, finger, CLOSE_FORCE, FINGER_VELOCITY)
        self.joint_targets = None
        position, orientation = self.tcp()
        self.target_position = np.array(position)
        self.target_euler = np.array(self._b.getEulerFromQuaternion(orientation))

    # --- actions ---------------------------------------------------------------------------------------------------

    def relative(self, action: np.ndarray) -> None:
        """Move the target by `action` [7]: 2 cm and 0.05 rad (Euler angles, entry by entry) a unit; then gripper."""
        gripper = gripper_command(action[6])
        self.target_position = self.target_position + action[:3] * METRES_PER_UNIT
        self.target_euler = self.target_euler + action[3:6] * RADIANS_PER_UNIT
        self._reach(self.target_position.tolist(), self.target_euler.tolist())
        self._grip(gripper)

    def absolute(self, position: Sequence[float], orientation: Sequence[float], gripper: float) -> None:
        """Go to a pose in world coordinates; `orientation` is three Euler angles or a quaternion (xyzw)."""
        command = gripper_command(gripper)
        self._reach(list(position), list(orientation))
        self._grip(command)

    def joints(self, angles: Sequence[float], gripper: float, *, relative: bool = False) -> None:
        """Drive to seven joint angles, or to the measured ones plus these; not clipped."""
        command = gripper_command(gripper)
        goal = np.asarray(angles, dtype=np.float64)
        if relative:
            goal = goal + np.array(self.arm_angles())
        self.joint_targets = goal.tolist()
        for joint, angle in zip(ARM_JOINTS, goal.tolist()):
            self._motor(joint, angle, ARM_FORCE, ARM_VELOCITY)
        self._grip(command)

    def _reach(self, position: List[float], orientation: List[float]) -> None:
        if len(orientation) == 3:
            orientation = self._b.getQuaternionFromEuler(orientation)
        solution = self._b.calculateInverseKinematics(
            self.uid, TCP_LINK, position, orientation, physicsClientId=self._client, **LIMITS
        )
        angles = np.clip(solution[:7], JOINT_LOW, JOINT_HIGH).tolist()
        if not all(math.isfinite(angle) for angle in angles):
            raise EnvError(f"inverse kinematics found no finite joint angles for the target {position}")
        self.joint_targets = angles
        for joint, angle in zip(ARM_JOINTS, angles):
            self._motor(joint, angle, ARM_FORCE, ARM_VELOCITY)

    def _grip(self, command: int) -> None:
        self.gripper_command = command
        goal, force = (FINGER_OPEN, OPEN_FORCE) if command == 1 else (0.0, CLOSE_FORCE)
        for joint in FINGER_JOINTS:
            self._motor(joint, goal, force, FINGER_VELOCITY)

    def _motor(self, joint: int, goal: float, force: float, velocity: float) -> None:
        self._b.setJointMotorControl2(
            self.uid, joint, self._b.POSITION_CONTROL, targetPosition=goal, force=force, maxVelocity=velocity,
            physicsClientId=self._client,
        )  # fmt: skip

    # --- readings --------------------------------------------------------------------------------------------------

    def tcp(self) -> Any:
        """Position and quaternion (xyzw) between the fingertips, one physics substep old as in the original."""
        return self.link(TCP_LINK)

    def link(self, index: int) -> Any:
        """Position and quaternion (xyzw) of a link's centre of mass, without recomputing kinematics."""
        return self._b.getLinkState(self.uid, index, physicsClientId=self._client)[:2]

    def arm_angles(self) -> List[float]:
        """The seven joint angles."""
        return [state[0] for state in self._b.getJointStates(self.uid, ARM_JOINTS, physicsClientId=self._client)]

    def fingers(self) -> List[float]:
        """Opening of both fingers, metres."""
        return [state[0] for state in self._b.getJointStates(self.uid, FINGER_JOINTS, physicsClientId=self._client)]

    def obs(self) -> np.ndarray:
        """[15]: tcp position, Euler angles, gripper width, joint angles, last gripper command."""
        position, orientation = self.tcp()
        euler = self._b.getEulerFromQuaternion(orientation)
        return np.array(
            [*position, *euler, sum(self.fingers()), *self.arm_angles(), self.gripper_command], dtype=np.float64
        )

    def info(self) -> Dict[str, Any]:
        """The same by name."""
        obs = self.obs().tolist()
        return {
            "tcp_pos": obs[:3],
            "tcp_orn": obs[3:6],
            "gripper_opening_width": obs[6],
            "arm_joint_states": obs[7:14],
            "gripper_action": self.gripper_command,
        }


def gripper_command(value: float) -> int:
    """1 (open) or -1 (close); anything else is refused."""
    if value not in (1, -1):
        raise EnvError(f"the gripper command is {float(value):g}; expected exactly 1 (open) or -1 (close)")
    return int(value)
