"""RLBench's action modes: names and bounds of their entries, and the package's objects behind them.

Arm modes with the suffix `_delta` are the package's `absolute_mode=False`. Poses are x, y, z and a quaternion
x, y, z, w, which is brought to length 1 before the package sees it (it refuses others).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Sequence, Tuple

import numpy as np

from envs.types import EnvError

JOINTS = tuple(f"joint_{i}" for i in range(7))
POSE = ("x", "y", "z", "qx", "qy", "qz", "qw")
# rad; the Panda's range, with the limits that GENIMA's demonstrations are held to
JOINT_LOW = (-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973)
JOINT_HIGH = (2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973)
JOINT_SPEED = (2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61)  # rad/s, of the Panda's data sheet
JOINT_TORQUE = (87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0)  # N m, likewise
WORKSPACE = ((-0.3, -0.5, 0.6), (0.7, 0.5, 1.6))  # m, over RLBench's table
MODES: Mapping[
    str, Tuple[str, Mapping[str, Any], str]
] = {  # ours -> (class in rlbench.action_modes.arm_action_modes, its arguments, action convention)
    "joint_position": ("JointPosition", {"absolute_mode": True}, "joint_position"),
    "joint_delta": ("JointPosition", {"absolute_mode": False}, "joint_delta"),
    "joint_velocity": ("JointVelocity", {}, "joint_velocity"),
    "joint_torque": ("JointTorque", {}, "joint_torque"),
    "pose_planning": ("EndEffectorPoseViaPlanning", {"absolute_mode": True}, "ee_pose"),
    "pose_planning_delta": ("EndEffectorPoseViaPlanning", {"absolute_mode": False}, "ee_pose_delta"),
    "pose_ik": ("EndEffectorPoseViaIK", {"absolute_mode": True}, "ee_pose"),
    "pose_ik_delta": ("EndEffectorPoseViaIK", {"absolute_mode": False}, "ee_pose_delta"),
}
GRIPPERS = {"discrete": ("Discrete", 1.0), "joint": ("GripperJointPosition", 0.04)}  # ours -> (class, open: 1 or m)


@dataclass(frozen=True)
class Mode:
    """One way of acting."""

    arm: str  # a name in MODES
    gripper: str  # a name in GRIPPERS
    collision_checking: bool
    actions: Tuple[str, ...]
    low: Tuple[float, ...]
    high: Tuple[float, ...]

    @property
    def convention(self) -> str:
        return MODES[self.arm][2]

    @property
    def poses(self) -> bool:
        """Whether the arm's part is a pose with a quaternion."""
        return self.convention.startswith("ee_pose")

    def build(self) -> Any:
        """The package's `MoveArmThenGripper`."""
        from rlbench.action_modes import arm_action_modes, gripper_action_modes
        from rlbench.action_modes.action_mode import MoveArmThenGripper

        name, arguments, _ = MODES[self.arm]
        chosen = {**arguments, "collision_checking": True} if self.collision_checking else arguments
        arm = _named(arm_action_modes, name)(**chosen)
        return MoveArmThenGripper(arm, _named(gripper_action_modes, GRIPPERS[self.gripper][0])())

    def command(self, action: np.ndarray) -> np.ndarray:
        """What the package is given for an action [A]. Raises EnvError for a quaternion of length 0."""
        if not self.poses:
            return action
        out = action.copy()
        norm = float(np.linalg.norm(out[3:7]))
        if norm < 1e-6:
            raise EnvError(f"rlbench: the action's quaternion {out[3:7].tolist()} has length 0; expected a rotation")
        out[3:7] /= norm
        return out


def make_mode(
    arm: str,
    gripper: str,
    *,
    collision_checking: bool = False,
    delta: float = 0.1,
    workspace: Sequence[Sequence[float]] = WORKSPACE,
) -> Mode:
    """A mode by name; `delta` bounds `joint_delta` (rad) and positions of `..._delta` (m), `workspace` other poses (m).

    Raises EnvError for what RLBench does not have."""
    if arm not in MODES:
        raise EnvError(f"rlbench: there is no arm mode '{arm}'; expected one of {', '.join(MODES)}")
    if gripper not in GRIPPERS:
        raise EnvError(f"rlbench: there is no gripper mode '{gripper}'; expected one of {', '.join(GRIPPERS)}")
    if collision_checking and not arm.startswith("pose_"):
        raise EnvError(f"rlbench: collisions are only checked in pose modes, not in '{arm}'; leave it out")
    if not delta > 0:
        raise EnvError(f"rlbench: delta is {delta}; expected radians or metres above 0")
    box = np.asarray(workspace, dtype=np.float64)
    if box.shape != (2, 3) or not (box[0] < box[1]).all():
        raise EnvError(f"rlbench: workspace {box.tolist()}; expected two corners in metres, [[x, y, z], [x, y, z]]")
    ones = (1.0,) * 4
    bounds = {
        "joint_position": (JOINT_LOW, JOINT_HIGH),
        "joint_delta": ((-delta,) * 7, (delta,) * 7),
        "joint_velocity": (tuple(-v for v in JOINT_SPEED), JOINT_SPEED),
        "joint_torque": (tuple(-v for v in JOINT_TORQUE), JOINT_TORQUE),
        "ee_pose": ((*box[0].tolist(), *(-v for v in ones)), (*box[1].tolist(), *ones)),
        "ee_pose_delta": ((-delta,) * 3 + tuple(-v for v in ones), (delta,) * 3 + ones),
    }
    low, high = bounds[MODES[arm][2]]
    names = JOINTS if arm.startswith("joint_") else POSE
    return Mode(
        arm, gripper, collision_checking, (*names, "gripper"), (*low, 0.0), (*high, GRIPPERS[gripper][1])
    )  # fmt: skip


def _named(module: Any, name: str) -> Any:
    """A class of the installed version."""
    if not hasattr(module, name):
        raise EnvError(
            f"rlbench: the installed version has no {name} in {module.__name__}; expected RLBench 1.2.0, or choose "
            "another action mode"
        )
    return getattr(module, name)
