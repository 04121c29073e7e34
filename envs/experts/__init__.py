"""Scripted experts on privileged simulator state, so that Temper can make its own demonstrations."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from envs.build import locate
from envs.types import EnvError, Observation

# Adding one: a file here, and its line. The key is the env_id, or "<simulator>/*".
EXPERTS = {
    "toy/*": "envs.experts.toy.ToyExpert",
    "robosuite/Lift": "envs.experts.lift.LiftExpert",
    "robosuite/PickPlaceCan": "envs.experts.can.CanExpert",
    "libero/*": "envs.experts.libero.LiberoExpert",
}


class Expert(Protocol):
    """Acts from `Observation.privileged`; one instance per environment."""

    def reset(self, obs: Observation) -> None:
        """Begin an episode with its first observation."""
        ...

    def act(self, obs: Observation) -> np.ndarray:
        """The action [A], inside the action space."""
        ...


def make_expert(env_id: str, task: str, noise: float = 0.0, seed: int = 0) -> Expert:
    """The expert for an environment; raises EnvError if there is none."""
    target = EXPERTS.get(env_id) or EXPERTS.get(env_id.split("/")[0] + "/*")
    if target is None:
        raise EnvError(f"no scripted expert for '{env_id}'; there are experts for {', '.join(sorted(EXPERTS))}")
    extra = {}
    if env_id == "toy/reach_discrete":
        from envs.toy import MOVES

        extra["num_actions"] = len(MOVES)
    return locate(target)(task=task, noise=noise, seed=seed, **extra)
