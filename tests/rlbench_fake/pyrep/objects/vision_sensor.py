"""Cameras by name; orientations are CoppeliaSim's Euler angles, R = Rx Ry Rz."""

import mujoco
import numpy as np
from fake_world import TO_PYREP, current


class VisionSensor:
    def __init__(self, name: str) -> None:
        self._id = current().model.camera(name).id

    def still_exists(self) -> bool:
        return True

    def get_position(self) -> np.ndarray:
        return current().model.cam_pos[self._id].copy()

    def set_position(self, position: list[float]) -> None:
        current().model.cam_pos[self._id] = position
        current().forward()

    def get_orientation(self) -> np.ndarray:
        flat = np.zeros(9)
        mujoco.mju_quat2Mat(flat, current().model.cam_quat[self._id])
        turn = flat.reshape(3, 3) * TO_PYREP
        return np.array(
            [np.arctan2(-turn[1, 2], turn[2, 2]), np.arcsin(turn[0, 2]), np.arctan2(-turn[0, 1], turn[0, 0])]
        )

    def set_orientation(self, angles: list[float]) -> None:
        turn = np.eye(3)
        for axis, angle in enumerate(angles):
            quat, flat = np.zeros(4), np.zeros(9)
            mujoco.mju_axisAngle2Quat(quat, np.eye(3)[axis], angle)
            mujoco.mju_quat2Mat(flat, quat)
            turn = turn @ flat.reshape(3, 3)
        mujoco.mju_mat2Quat(current().model.cam_quat[self._id], (turn * TO_PYREP).reshape(-1))
        current().forward()
