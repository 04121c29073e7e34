"""RLBench's own planner as an expert: plays the actions that the adapter planned at reset (`live_demos: true`)."""

from __future__ import annotations

import numpy as np

from envs.types import EnvError, Observation


class RlbenchExpert:
    """Replays `notes["demo_actions"]`, and then stays where it is."""

    def __init__(self, *, task: str, noise: float = 0.0, seed: int = 0) -> None:
        self._noise, self._rng = noise, np.random.default_rng(seed)
        self._actions, self._next = np.zeros((0, 8)), 0

    def reset(self, obs: Observation) -> None:
        """Take the plan. Raises EnvError if the adapter made none."""
        if not obs.notes.get("demo_actions"):
            raise EnvError("rlbench: this start comes with no plan; set env.sim.live_demos=true to collect")
        self._actions, self._next = np.asarray(obs.notes["demo_actions"], dtype=np.float64), 0

    def act(self, obs: Observation) -> np.ndarray:
        """Joint positions and the gripper [8]."""
        from envs.rlbench_modes import JOINT_HIGH, JOINT_LOW

        action = self._actions[min(self._next, len(self._actions) - 1)].copy()
        self._next += 1
        action[:7] += self._noise * self._rng.standard_normal(7)
        action[:7] = np.clip(action[:7], JOINT_LOW, JOINT_HIGH)
        return action
