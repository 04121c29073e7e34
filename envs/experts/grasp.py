"""Picking something up with Stretch's arm, which looks to the robot's right: face it sideways, reach over it, take it.

Needs numpy alone; Python 3.8 syntax.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from envs.chores.route import bearing
from envs.thor_robot import turn

ABOVE = 0.05  # metres between the top of the target and the middle of the hand
REACH = (0.36, 0.86)  # metres from the robot to the hand, arm in and out
ROOM = 0.06  # metres beyond its reach that the hand still grasps
ALIGNED = 3.1  # degrees: half of the smallest turn
LEVEL, OVER = 0.025, 0.035  # metres
PATIENCE = 110  # steps before it gives up
HIGHEST = 1.1  # metres of lift


class Grasp:
    """One attempt, from a place near the target."""

    def __init__(self) -> None:
        self.begun = False
        self.steps = self.blocked = 0
        self.lift = 0.0  # metres to stay above the wanted height, after something was in the way
        self.last = ""

    def act(self, state: Any) -> str:
        """The name of the next action."""
        self.begun = True
        self.steps += 1
        if state["target_held"] or self.steps > PATIENCE:
            return "done"
        if state["target_graspable"] and self.last != "pickup":
            return self._say("pickup")
        return self._say(self._place(state))

    def lift_first(self, state: Any) -> str:
        """Raise the hand above the target before it comes near furniture; "" once it is up, or cannot go higher."""
        target, hand, arm = (np.asarray(state[k]) for k in ("target", "hand", "arm"))
        rise = target[1] + target[4] / 2 + ABOVE - hand[1]
        blocked = self.last == "move_arm_up" and not state["worked"]
        self.last = "" if blocked or rise < 0.08 or arm[0] > HIGHEST - 0.05 else "move_arm_up"
        return self.last

    def _say(self, name: str) -> str:
        self.last = name
        return name

    def _place(self, state: Any) -> str:
        agent, target, hand, arm = (np.asarray(state[k]) for k in ("agent", "target", "hand", "arm"))
        stuck = not state["worked"] and self.last != "pickup"
        yaw = math.radians(agent[3])
        ahead, right = np.array([math.sin(yaw), math.cos(yaw)]), np.array([math.cos(yaw), -math.sin(yaw)])
        to_target, to_hand = target[[0, 2]] - agent[[0, 2]], hand[[0, 2]] - agent[[0, 2]]
        away = float(np.hypot(*to_target))
        out = float(to_target @ right - to_hand @ right)
        if stuck and (rescue := self._rescue(arm, out)):
            return rescue
        # Where the robot must look for its arm to point at the target.
        side = math.degrees(math.acos(np.clip(float(to_hand @ ahead) / max(away, 0.05), -1.0, 1.0)))
        off = turn(agent[3], bearing(agent[[0, 2]], target[[0, 2]]) - side)
        if away > REACH[1] + ROOM or away < REACH[0] - ROOM:
            return self._shift(agent, target, arm, away)
        rise = target[1] + target[4] / 2 + ABOVE + self.lift - hand[1]
        beside = abs(off) > ALIGNED or out > OVER
        if beside and rise > LEVEL and arm[0] < HIGHEST - 0.01:
            return "move_arm_up" if rise > 0.08 else "move_arm_up_small"
        if abs(off) > ALIGNED:
            if arm[1] > 0.05 and abs(off) > 12:
                return "move_arm_in"
            large, way = abs(off) > 15, "right" if off > 0 else "left"
            return f"rotate_{way}" if large else f"rotate_{way}_small"
        if abs(out) > OVER:
            way, large = "out" if out > 0 else "in", abs(out) > 0.09
            return f"move_arm_{way}" if large else f"move_arm_{way}_small"
        return "move_arm_down_small" if rise < 0.06 else "move_arm_down"

    def _rescue(self, arm: np.ndarray, out: float) -> str:
        """After an action that something prevented: higher, or the other way."""
        self.blocked += 1
        if self.last.startswith("move_arm_up"):  # something is above it; turns of the base do not mind the arm
            return "rotate_right"
        if self.last.startswith(("rotate", "move_arm_out", "wrist")) and arm[0] < HIGHEST - 0.05:
            self.lift = min(self.lift + 0.06, 0.3)
            return "move_arm_up_small" if self.blocked % 2 else "move_arm_up"
        if self.last.startswith("move_arm_down"):  # upon the target, or beside it
            self.lift = 0.0
            return ("move_arm_out_small", "move_arm_in_small", "wrist_open", "wrist_close")[self.blocked % 4]
        if self.last.startswith(("move_ahead", "move_back")):
            return "move_arm_in" if arm[1] > 0.02 else "rotate_left_small"
        return ""

    def _shift(self, agent: np.ndarray, target: np.ndarray, arm: np.ndarray, away: float) -> str:
        """Nearer, or away, with the arm drawn in."""
        if arm[1] > 0.02:
            return "move_arm_in"
        off = turn(agent[3], bearing(agent[[0, 2]], target[[0, 2]]))
        if abs(off) > 20:
            return "rotate_right" if off > 0 else "rotate_left"
        return "move_ahead" if away > REACH[1] else "move_back"
