"""The expert of the toy tasks: it reads where the target is and goes there."""

from __future__ import annotations

import numpy as np

from envs.toy import MOVES, STEP
from envs.types import Observation


class ToyExpert:
    """Goes straight at the target (or, with `num_actions`, takes the move that brings it nearest)."""

    def __init__(self, *, task: str, noise: float = 0.0, seed: int = 0, num_actions: int = 0) -> None:
        """`noise` is the standard deviation added to each velocity, or the chance of a random move."""
        self.task, self.noise, self.num_actions = task, noise, num_actions
        self.rng = np.random.default_rng(seed)

    def reset(self, obs: Observation) -> None:
        """Nothing to remember: every action follows from the observation."""

    def act(self, obs: Observation) -> np.ndarray:
        """The action [A] for this observation, inside the action space."""
        offset = (obs.privileged["target"] - obs.privileged["hand"]) / STEP
        if self.num_actions:
            if self.noise and self.rng.random() < self.noise:
                return np.array([self.rng.integers(self.num_actions)], dtype=np.float64)
            return np.array([np.argmin(np.hypot(*(offset - MOVES).T))], dtype=np.float64)
        if self.noise:
            offset = np.clip(offset, -1.0, 1.0) + self.noise * self.rng.standard_normal(2)
        return np.clip(offset, -1.0, 1.0)
