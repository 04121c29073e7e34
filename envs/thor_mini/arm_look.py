"""What the arm and the gripper look like: a telescope that slides out, a palm, and two fingers.

The cameras must see them, because nothing else tells a policy how high its hand is. Needs numpy alone; Python 3.8
syntax.
"""

from __future__ import annotations

from typing import Tuple

import numpy as np

from envs.thor_mini.arm import HAND_REACH, ROOT, SECTIONS, Arm, Base, hand_yaw, to_world, wrist_point
from envs.thor_mini.mesh import CUBE, PLAIN, Mesh
from envs.thor_mini.scene import Colour

STEEL: Colour = (196, 200, 206)
DARK: Colour = (46, 48, 54)
RUBBER: Colour = (214, 92, 36)
LINK = 0.12  # metres, of a section: longer than the way it slides
THICK, THINNER = 0.034, 0.003  # metres, half the width of the first section, and how much each next one is thinner
GAP, FINGER = 0.05, 0.012  # metres from the middle of the gripper to a finger, and half a finger's width
PALM = 0.08  # metres, its length


def add_arm(mesh: Mesh) -> None:
    """One group per section, from the first to the last, and the gripper; none is a body of the house."""
    for i in range(SECTIONS):
        half = THICK - THINNER * i
        _box(mesh, (-LINK, -half, -half), (0.0, half, half), STEEL)
        mesh.close((0, 0, 0))
    _box(mesh, (-0.03, -0.03, -0.02), (0.03, 0.03, PALM), DARK)
    for side in (-GAP, GAP):
        _box(mesh, (side - FINGER, -0.02, PALM - 0.02), (side + FINGER, 0.02, HAND_REACH), DARK)
        _box(mesh, (side - 0.02, -0.025, HAND_REACH), (side + 0.02, 0.025, HAND_REACH + 0.04), RUBBER)
    _box(mesh, (-GAP, -0.015, PALM - 0.02), (GAP, 0.015, PALM), DARK)
    mesh.close((0, 0, 0))


def arm_poses(base: Base, arm: Arm) -> Tuple[np.ndarray, np.ndarray]:
    """Where the groups are: positions [SECTIONS + 1, 3] and yaws, degrees."""
    ends = arm.extension * np.arange(1, SECTIONS + 1) / SECTIONS
    places = [to_world(base, ROOT[0] + float(end), ROOT[1] + arm.lift, ROOT[2]) for end in ends]
    yaws = np.array([base.yaw] * SECTIONS + [hand_yaw(base, arm)])
    return np.stack([*places, wrist_point(base, arm)]), yaws


def _box(mesh: Mesh, low: Tuple[float, float, float], high: Tuple[float, float, float], colour: Colour) -> None:
    mesh.add(np.array(low) + CUBE * (np.array(high) - np.array(low)), colour, PLAIN)
