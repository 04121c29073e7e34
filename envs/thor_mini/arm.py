"""Stretch's telescopic arm: it looks to the robot's right, slides up and out, and turns a gripper about the vertical.

The limits are those of SPOC's action table; where the arm sits on the base, its length beyond the joints and the size
of the gripper's sphere are chosen here to resemble the robot. Needs numpy alone; Python 3.8 syntax.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from envs.thor_mini.solids import heading

LIFT = (0.0, 1.1)  # metres
EXTENSION = (0.0, 0.52)  # metres
WRIST = (-260.0, 75.0)  # degrees; 0 points along the arm
ROOT = (0.16, 0.05, -0.05)  # metres from the middle of the base: right, up, forward
JOINT_DROP = 0.16297650  # the first joint's height in the root's frame, when the lift is at 0
HAND_REACH = 0.2  # metres from the wrist to the middle of the gripper
HAND_RADIUS = 0.1  # metres, the sphere in which things can be taken
THICKNESS = 0.03  # metres, half the width of arm and hand
SECTIONS = 5  # telescopic
HAND_POINTS = np.linspace(0.0, 1.0, 5)  # shares of the hand that are looked at, from the wrist
NAMES = (
    "stretch_robot_lift_jnt",
    *(f"stretch_robot_arm_{i}_jnt" for i in range(1, SECTIONS + 1)),
    "stretch_robot_wrist_1_jnt",
    "stretch_robot_wrist_2_jnt",
)


@dataclass(frozen=True)
class Arm:
    """Where the joints are."""

    lift: float = 0.1  # metres
    extension: float = 0.0  # metres
    wrist: float = 0.0  # degrees
    openness: float = 30.0  # degrees; shown, never used


@dataclass(frozen=True)
class Base:
    """Where the robot stands: x and z in metres, yaw in degrees."""

    x: float = 0.0
    z: float = 0.0
    yaw: float = 0.0


def clip(arm: Arm) -> Arm:
    """The nearest arm within the limits."""
    return replace(
        arm,
        lift=min(max(arm.lift, LIFT[0]), LIFT[1]),
        extension=min(max(arm.extension, EXTENSION[0]), EXTENSION[1]),
        wrist=min(max(arm.wrist, WRIST[0]), WRIST[1]),
    )


def to_world(base: Base, right: float, up: float, ahead: float) -> np.ndarray:
    """A point of the robot's own frame (origin: on the floor, middle of the base) in the world: [3]."""
    sin, cos = heading(base.yaw)
    return np.array([base.x + right * cos + ahead * sin, up, base.z - right * sin + ahead * cos])


def hand_yaw(base: Base, arm: Arm) -> float:
    """Where the gripper points, in the world, degrees."""
    return base.yaw + 90.0 + arm.wrist


def wrist_point(base: Base, arm: Arm) -> np.ndarray:
    """Where the gripper is joined to the arm: [3]."""
    return to_world(base, ROOT[0] + arm.extension, ROOT[1] + arm.lift, ROOT[2])


def hand_centre(base: Base, arm: Arm) -> np.ndarray:
    """The middle of the gripper's sphere: [3]."""
    sin, cos = heading(hand_yaw(base, arm))
    return wrist_point(base, arm) + HAND_REACH * np.array([sin, 0.0, cos])


def outlines(poses: Sequence[Tuple[Base, Arm]]) -> Tuple[np.ndarray, np.ndarray]:
    """Points along arm and hand, dense enough to find what they touch: [P, 3], pose after pose, and where each ends."""
    bases, arms = [b for b, _ in poses], [a for _, a in poses]
    turns = np.array([(*heading(b.yaw), *heading(hand_yaw(b, a))) for b, a in poses])
    sin, cos, hand_sin, hand_cos = turns.T
    out = np.array([a.extension for a in arms])
    root_x = np.array([b.x for b in bases]) + ROOT[0] * cos + ROOT[2] * sin
    root_z = np.array([b.z for b in bases]) - ROOT[0] * sin + ROOT[2] * cos
    on_arm = np.ceil(out / (2 * THICKNESS)).astype(int)  # points of each pose, before those of the hand
    ends = np.cumsum(on_arm + len(HAND_POINTS))
    pose = np.repeat(np.arange(len(poses)), on_arm + len(HAND_POINTS))
    place = np.arange(len(pose)) - np.concatenate([[0], ends[:-1]])[pose] - on_arm[pose]  # below 0 on the arm
    along = np.where(place < 0, (place + on_arm[pose]) * (2 * THICKNESS), out[pose])
    across = np.where(place < 0, 0.0, (HAND_REACH * HAND_POINTS)[np.maximum(place, 0)])
    points = np.empty((len(pose), 3))
    points[:, 0] = root_x[pose] + (along * cos[pose] + across * hand_sin[pose])
    points[:, 1] = np.array([ROOT[1] + a.lift for a in arms])[pose]
    points[:, 2] = root_z[pose] + (-along * sin[pose] + across * hand_cos[pose])
    return points, ends


# --- as metadata ------------------------------------------------------------------------------------------------------


def vector(point: np.ndarray) -> Dict[str, float]:
    """A point as AI2-THOR writes it."""
    return {"x": float(point[0]), "y": float(point[1]), "z": float(point[2])}


def joints(base: Base, arm: Arm) -> List[Dict[str, Any]]:
    """The joints from the lift to the wrist. The root's z axis points along the arm."""
    straight, still = about_y(base.yaw + 90.0), about_y(0.0)
    root, (sin, cos) = to_world(base, ROOT[0], ROOT[1], ROOT[2]), heading(base.yaw)
    listed = []
    for i, name in enumerate(NAMES):
        out = min(max(i - 1, 0) / SECTIONS, 1.0) * arm.extension
        height = arm.lift + (JOINT_DROP if i <= SECTIONS else 0.0)
        listed.append(
            {
                "name": name,
                "position": {
                    "x": float(root[0]) + out * cos, "y": float(root[1]) + height, "z": float(root[2]) - out * sin,
                },
                "rootRelativePosition": {"x": 0.0, "y": height, "z": out},
                "rotation": straight,
                "rootRelativeRotation": still,
                "localRotation": still,
            }
        )  # fmt: skip
    turned = about_y(arm.wrist)
    listed[-1].update(rotation=about_y(hand_yaw(base, arm)), rootRelativeRotation=turned, localRotation=turned)
    return listed


def about_y(yaw: float) -> Dict[str, float]:
    """A turn about the upright axis as axis and angle; the angle is at most 180 degrees."""
    turn = math.remainder(yaw, 360.0)
    return {"x": 0.0, "y": -1.0 if turn < 0.0 else 1.0, "z": 0.0, "w": abs(turn)}


def steps_between(start: Arm, end: Arm, *, metres: float, degrees: float) -> List[Arm]:
    """The joints after each small step of the way: lift first, then extension, then wrist."""
    way: List[Arm] = []
    at = start
    for name, size in (("lift", metres), ("extension", metres), ("wrist", degrees)):
        here, there = getattr(at, name), getattr(end, name)
        count = math.ceil(abs(there - here) / size - 1e-9)
        for i in range(1, count + 1):
            at = replace(at, **{name: there if i == count else here + (there - here) * i / count})
            way.append(at)
    return way
