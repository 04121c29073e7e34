"""The expert of AI2-THOR's household tasks: it walks the simulator's shortest path, looks, grasps, and says so.

It acts from the present state (the privileged entries of envs/ai2thor.py and the notes of the reset), so that it goes
on sensibly after an action that was not its own.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional

import numpy as np

from envs import stretch
from envs.chores.route import bearing
from envs.chores.tasks import GRASP, NAVIGATE
from envs.experts.grasp import Grasp
from envs.thor_robot import turn
from envs.types import EnvError, Observation

ACT: Dict[str, int] = {names[0]: i for i, names in enumerate(stretch.ACTIONS)}
WANDERING = ("move_ahead", "rotate_right", "rotate_left", "move_back", "rotate_left_small", "rotate_right_small")
# Where things are grasped: a pickup that takes nothing, so that imitation sees what comes after one, and small shifts.
FUMBLING = ("pickup", "move_arm_up_small", "move_arm_in_small", "move_arm_out_small", "rotate_left_small",
            "rotate_right_small")  # fmt: skip
ARRIVED, ARRIVED_AT_END = 0.25, 0.12  # metres from a corner of the path, and from its end
ASIDE = 0.1  # metres that a heading may miss the next corner by
NEAR_ENOUGH = 1.5  # metres to what was sought
FACING = 15.0  # degrees
HIGH = 1.2  # metres; what stands higher is lost from view when one comes near
FACES = 6  # turns to the target in an episode
SEARCH = 14  # actions to look for what should be visible
PATIENCE = 12  # steps in one place
LONGEST = 450  # actions, after which it gives up


class Ai2thorExpert:
    """One task type, several episodes."""

    def __init__(self, *, task: str = "ObjectNavType", noise: float = 0.0, seed: int = 0) -> None:
        """`noise` is the chance of a random step or turn of the base or, while it grasps, of a pickup too soon."""
        self.task, self.noise = task, noise
        self.rng = np.random.default_rng(seed)
        self.legs: Optional[List[Dict[str, Any]]] = None

    def reset(self, obs: Observation) -> None:
        """Take over the path of a new episode."""
        self.legs = [dict(leg) for leg in obs.notes["route"]]
        self.leg = self.corner = self.searched = self.still = self.faced = self.steps = 0
        self.facing = self.raised = False
        self.detour: List[str] = []
        self.before: Optional[np.ndarray] = None
        self.grasp = Grasp()

    def act(self, obs: Observation) -> np.ndarray:
        """The action [1] for this observation."""
        if self.legs is None:
            raise EnvError("the expert of ai2thor was asked for an action before an episode; call reset")
        name = self._decide(obs.privileged)
        if self.noise and self.grasp.begun:
            if name not in ("pickup", "done") and self.rng.random() < self.noise:
                name = str(self.rng.choice(FUMBLING))
        elif self.noise and name in WANDERING and self.rng.random() < self.noise:
            name = str(self.rng.choice(WANDERING))
        return np.array([ACT[name]], dtype=np.float64)

    def _decide(self, state: Any) -> str:
        agent, self.steps = np.asarray(state["agent"]), self.steps + 1
        if self.steps > LONGEST:
            return "done"
        self._notice(agent, bool(state["worked"]))
        if self.task in GRASP and not self.raised:
            if up := self.grasp.lift_first(state):
                return up
            self.raised = True
        if self.task in GRASP and (self.grasp.begun or self._walked()):
            return self.grasp.act(state)
        if self.task in NAVIGATE and (done := self._found(state, agent)):
            return done
        if self.detour:
            return self.detour.pop(0)
        step = self._walk(agent)
        if step:
            return step
        if self.task in GRASP:
            return self.grasp.act(state)
        return self._search(state, agent) if self.task in NAVIGATE else "done"

    def _notice(self, agent: np.ndarray, worked: bool) -> None:
        """A robot that is held up goes round."""
        moved = self.before is None or bool(np.abs(agent - self.before).max() > 1e-3)
        self.still = 0 if moved else self.still + 1
        if not worked and not moved and not self.detour and not self.grasp.begun:
            side = "rotate_right" if self.rng.integers(2) else "rotate_left"
            self.detour = [side, side, "move_ahead"] if self.still < PATIENCE else ["move_back", side, "move_ahead"]
        self.before = agent.copy()

    def _walked(self) -> bool:
        return self.legs is not None and self.leg >= len(self.legs)

    def _walk(self, agent: np.ndarray) -> str:
        """The next step along the path, "" at its end."""
        assert self.legs is not None
        while self.leg < len(self.legs):
            corners = self.legs[self.leg]["corners"]
            while self.corner < len(corners):
                x, z = corners[self.corner]
                away = math.hypot(x - agent[0], z - agent[2])
                last = self.corner == len(corners) - 1
                if away > (ARRIVED_AT_END if last else ARRIVED):
                    return towards(agent, (x, z), away)
                self.corner += 1
            room, self.leg, self.corner = self.legs[self.leg]["room"], self.leg + 1, 0
            if room:
                return "sub_done"
        return ""

    def _found(self, state: Any, agent: np.ndarray) -> str:
        """What to do once the target is in view: face it, and say so; "" before."""
        target = np.asarray(state["target"])
        away = math.hypot(target[0] - agent[0], target[2] - agent[2]) - max(target[3], target[5]) / 2
        if state["target_visible"] and (away <= NEAR_ENOUGH or target[1] >= HIGH or self._walked()):
            self.facing = True
        turn_to = self._face(agent, target) if self.facing and self.faced < FACES else ""
        if turn_to:
            self.faced += 1
            return turn_to
        if self.facing and state["target_visible"]:
            return "done"
        self.facing = False  # it is hidden from here: on, and do not turn to it again
        return ""

    def _face(self, agent: np.ndarray, target: np.ndarray) -> str:
        """A turn towards the target, "" if it is ahead."""
        off = turn(agent[3], bearing(agent[[0, 2]], target[[0, 2]]))
        return "" if abs(off) <= FACING else small_or_large(off)

    def _search(self, state: Any, agent: np.ndarray) -> str:
        """At the end of the path, and the target is not in view: face it, then step back, then give up."""
        self.searched += 1
        if self.searched > SEARCH:
            return "done"
        return self._face(agent, np.asarray(state["target"])) or "move_back"


def small_or_large(off: float) -> str:
    """A turn that lessens an angle."""
    side = "right" if off > 0 else "left"
    return f"rotate_{side}" if abs(off) > FACING else f"rotate_{side}_small"


def towards(agent: np.ndarray, goal: Any, away: float) -> str:
    """A turn to, or a step towards, a point (x, z) that is `away` metres off."""
    off = turn(agent[3], bearing(agent[[0, 2]], goal))
    tolerance = min(max(math.degrees(math.atan2(ASIDE, away)), 3.01), FACING)
    return "move_ahead" if abs(off) <= tolerance else small_or_large(off)
