"""What SPOC's Stretch robot in AI2-THOR sees and does: the interface shared by simulators, importers and data.

Needs numpy alone; Python 3.8 syntax.
"""

from __future__ import annotations

from typing import Dict, Tuple

import numpy as np

from envs.types import EnvSpec

# Index order of the action head: long name, the short one that data and checkpoints use, what one of it does.
ACTIONS: Tuple[Tuple[str, str, str], ...] = (
    ("move_ahead", "m", "0.2 m"),
    ("rotate_right", "r", "30 deg"),
    ("rotate_left", "l", "-30 deg"),
    ("move_back", "b", "-0.2 m"),
    ("done", "end", "ends the episode"),
    ("sub_done", "sub_done", "marks a room"),
    ("rotate_left_small", "ls", "-6 deg"),
    ("rotate_right_small", "rs", "6 deg"),
    ("pickup", "p", ""),
    ("move_arm_in", "zm", "-0.1 m"),
    ("move_arm_out", "zp", "0.1 m"),
    ("move_arm_up", "yp", "0.1 m"),
    ("move_arm_down", "ym", "-0.1 m"),
    ("wrist_open", "wp", "-10 deg"),
    ("wrist_close", "wm", "10 deg"),
    ("move_arm_down_small", "yms", "-0.02 m"),
    ("move_arm_in_small", "zms", "-0.02 m"),
    ("move_arm_out_small", "zps", "0.02 m"),
    ("move_arm_up_small", "yps", "0.02 m"),
    ("dropoff", "d", ""),
)
NAVIGATION, MANIPULATION = "raw_navigation_camera", "raw_manipulation_camera"
FRAME = (224, 384)  # of a camera, after the sides are cut off
IN_HAND = "an_object_is_in_hand"
HORIZONS: Dict[str, int] = {"RoomVisit": 1000}  # evaluation steps of a task type; 600 for the others
HORIZON = 600


def action_index(name: str) -> int:
    """The index of a long or short action name; ValueError if there is no such action."""
    for i, names in enumerate(ACTIONS):
        if name in names[:2]:
            return i
    raise ValueError(f"action '{name}' is unknown; expected one of {[short for _, short, _ in ACTIONS]}")


def crop_sides(frame: np.ndarray) -> np.ndarray:
    """Cut 6/396 of the width off both sides: uint8 [..., Y, 396, channels] -> [..., Y, 384, 3]."""
    sides = round(frame.shape[-2] * 6 / 396)
    return frame[..., sides : frame.shape[-2] - sides, :3]


def spec(
    env_id: str = "ai2thor/stretch",
    *,
    frame: Tuple[int, int] = FRAME,
    max_steps: int = HORIZON,
    tasks: Tuple[str, ...] = ("any",),
) -> EnvSpec:
    """The environment as a policy sees it: two cameras, whether something is held, and one of the 20 actions."""
    return EnvSpec(
        env_id=env_id,
        cameras={NAVIGATION: frame, MANIPULATION: frame},
        proprio={IN_HAND: "1"},
        actions=("action",),
        low=(0.0,),
        high=(len(ACTIONS) - 1.0,),
        control_hz=5.0,
        max_steps=max_steps,
        tasks=tasks,
        action_convention="spoc_stretch_20",
        num_actions=len(ACTIONS),
    )
