"""What CALVIN's four scenes, robot and cameras are made of: numbers of the official configuration.

Source: github.com/mees/calvin_env (commit 797142c) and github.com/mees/calvin. Lengths in metres, angles in radians
unless named otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Tuple

Box = Tuple[Tuple[float, float, float], Tuple[float, float, float]]  # two opposite corners

TIME_STEP, GRAVITY = 1.0 / 240.0, -9.8
CONTROL_HZ, SUBSTEPS = 30.0, 8
SCALE = 0.8  # of table and blocks

ROBOT_URDF, ROBOT_BASE = "franka_panda/panda_longer_finger.urdf", (-0.34, -0.46, 0.24)
PEDESTAL_RADIUS, PEDESTAL_LENGTH, PEDESTAL_POSITION = 0.13, 0.24, (-0.39, -0.46, 0.12)
ARM_JOINTS, FINGER_JOINTS = (0, 1, 2, 3, 4, 5, 6), (9, 11)
TCP_LINK, CAMERA_LINK = 15, 14
HOME_JOINTS = (-1.21779206, 1.03987646, 2.11978261, -2.34205014, -0.87015947, 1.64119353, 0.55344866)
FINGER_OPEN = 0.04
ARM_FORCE, ARM_VELOCITY, FINGER_VELOCITY = 200.0, 2.0, 1.0
OPEN_FORCE, CLOSE_FORCE = 2.0, 200.0
FIXTURE_FORCE = 4.0
JOINT_LOW = (-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973)
JOINT_HIGH = (2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973)
METRES_PER_UNIT, RADIANS_PER_UNIT = 0.02, 0.05  # of relative actions

SLIDE, DRAWER, BUTTON, SWITCH = "base__slide", "base__drawer", "base__button", "base__switch"
LIGHT_LINKS = {"lightbulb": "light_link", "led": "led_link"}
LIGHT_ON = {"lightbulb": (1, 1, 0, 1), "led": (0, 1, 0, 1)}
LIGHT_OFF = (1, 1, 1, 1)

BLOCKS = ("red", "blue", "pink")
DRAWER_RANGE, SWITCH_RANGE = 0.22, 0.088


@dataclass(frozen=True)
class Scene:
    """One layout of the table. Its blocks are in the order in which they are loaded and observed."""

    blocks: Tuple[Tuple[str, str], ...]  # (colour, size)
    surfaces: Dict[str, Box]  # where a default reset puts blocks
    slide_range: float  # of the sliding door; it opens to the left
    slide_x: float  # the door's handle when shut
    button_x: float
    switch_x: float

    @property
    def block_names(self) -> Tuple[str, ...]:
        return tuple(f"block_{colour}" for colour, _ in self.blocks)


def _surfaces(table: Tuple[float, float], left: Tuple[float, float], right: Tuple[float, float]) -> Dict[str, Box]:
    """Ranges along x; the rest is the same in all scenes."""
    return {
        "table": ((table[0], -0.15, 0.46), (table[1], -0.03, 0.46)),
        "slider_left": ((left[0], 0.05, 0.46), (left[1], 0.12, 0.46)),
        "slider_right": ((right[0], 0.05, 0.46), (right[1], 0.12, 0.46)),
    }


SCENES = {
    "A": Scene(
        (("pink", "small"), ("blue", "big"), ("red", "middle")),
        _surfaces((-0.2, 0.35), (-0.32, -0.16), (-0.05, 0.13)),
        slide_range=0.28,
        slide_x=0.04,
        button_x=-0.28,
        switch_x=0.3,
    ),
    "B": Scene(
        (("red", "small"), ("blue", "big"), ("pink", "middle")),
        _surfaces((-0.35, 0.15), (-0.12, 0.06), (0.15, 0.33)),
        slide_range=0.304,
        slide_x=0.228,
        button_x=0.28,
        switch_x=-0.32,
    ),
    "C": Scene(
        (("blue", "small"), ("red", "big"), ("pink", "middle")),
        _surfaces((0.0, 0.35), (-0.12, 0.06), (0.15, 0.3)),
        slide_range=0.24,
        slide_x=0.2,
        button_x=-0.12,
        switch_x=-0.32,
    ),
    "D": Scene(
        (("red", "middle"), ("blue", "small"), ("pink", "big")),
        _surfaces((0.0, 0.35), (-0.32, -0.16), (-0.05, 0.13)),
        slide_range=0.28,
        slide_x=0.04,
        button_x=-0.12,
        switch_x=0.3,
    ),
}


@dataclass(frozen=True)
class Lens:
    """A pinhole camera."""

    fov_deg: float
    near: float
    far: float


LENSES = {"rgb_static": Lens(10.0, 0.01, 10.0), "rgb_gripper": Lens(75.0, 0.01, 2.0)}
SIZES = {"rgb_static": (200, 200), "rgb_gripper": (84, 84)}  # (Y, X)
STATIC_EYE = (2.871459009488717, -2.166602199425597, 2.555159848480571)
STATIC_TARGET = (-0.026242351159453392, -0.0302329882979393, 0.3920000493526459)
STATIC_UP = (0.4041403970338857, 0.22629790978217404, 0.8862616969685161)
