"""What the arm's part of an action means."""

import mujoco
import numpy as np
from fake_world import current
from pyrep.errors import IKError

from rlbench.backend.exceptions import InvalidActionError


def _check(action, size: int) -> None:
    if np.shape(action) != (size,):
        raise InvalidActionError(f"expected the action shape ({size},), got {np.shape(action)}")


def _pose(action, absolute: bool) -> np.ndarray:
    _check(action, 7)
    if not np.isclose(np.linalg.norm(action[3:]), 1.0):
        raise InvalidActionError("the quaternion is not of length 1")
    if absolute:
        return action
    now, turn, delta = np.zeros(4), np.zeros(4), np.asarray(action)[[6, 3, 4, 5]]
    mujoco.mju_mat2Quat(now, current().tip[:3, :3].reshape(-1))
    mujoco.mju_mulQuat(turn, delta, now)
    return np.concatenate([current().tip[:3, 3] + action[:3], turn[[1, 2, 3, 0]]])


class _Joints:
    def action_shape(self, scene) -> tuple:
        return (7,)


class JointPosition(_Joints):
    def __init__(self, absolute_mode: bool = True) -> None:
        self._absolute = absolute_mode

    def action(self, scene, action) -> None:
        _check(action, 7)
        world = current()
        world.target = action if self._absolute else world.q + action
        world.commanded = world.target
        scene.step()
        world.target = world.q


class JointVelocity(_Joints):
    def action(self, scene, action) -> None:
        _check(action, 7)
        current().velocity = action
        scene.step()
        current().velocity, current().target = np.zeros(7), current().q


class EndEffectorPoseViaPlanning(_Joints):
    def __init__(self, absolute_mode: bool = True, frame: str = "world", collision_checking: bool = False) -> None:
        self._absolute = absolute_mode

    def action(self, scene, action) -> None:
        pose, world = _pose(action, self._absolute), current()
        if not ((pose[:3] > (-0.5, -0.7, 0.7)) & (pose[:3] < (0.9, 0.7, 1.8))).all():
            raise InvalidActionError("outside of the workspace")
        goal = world.solve(pose[:3], pose[3:])
        if goal is None:
            raise InvalidActionError("no path was found")
        world.target = goal
        while np.abs(world.q - goal).max() > 1e-6:
            scene.step()


class EndEffectorPoseViaIK(_Joints):
    def __init__(self, absolute_mode: bool = True, frame: str = "world", collision_checking: bool = False) -> None:
        self._absolute = absolute_mode

    def action(self, scene, action) -> None:
        pose, world = _pose(action, self._absolute), current()
        if np.linalg.norm(pose[:3] - world.tip[:3, 3]) > 0.3:
            raise IKError("too far away")  # some versions let it through
        goal = world.solve(pose[:3], pose[3:])
        if goal is None:
            raise InvalidActionError("no inverse kinematics")
        world.target = goal
        while np.abs(world.q - goal).max() > 1e-6:
            scene.step()
