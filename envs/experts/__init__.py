"""Scripted experts on privileged simulator state, so that Temper can make its own demonstrations."""

from __future__ import annotations

import importlib.util
from typing import Any, Dict, List, Protocol

import numpy as np

from envs.build import locate
from envs.types import EnvError, Observation


class Expert(Protocol):
    """Acts from `Observation.privileged`; one instance per environment.

    Constructed with the keyword arguments `task`, `noise` (standard deviation of the noise added to each action
    entry but the gripper's, in action units) and `seed` (of that noise).
    """

    def reset(self, obs: Observation) -> None:
        """Begin an episode with its first observation."""
        ...

    def act(self, obs: Observation) -> np.ndarray:
        """The action [A], inside the action space."""
        ...


def candidates(env_id: str) -> List[str]:
    """Where the expert of an environment may live: a file for the task family, else one for the whole simulator.

    "robosuite/Lift" -> envs.experts.lift.LiftExpert, "robosuite/PickPlaceCan" -> envs.experts.can.CanExpert,
    "libero/libero_object" -> envs.experts.libero.LiberoExpert.
    """
    simulator, _, name = env_id.partition("/")
    names = [name.replace("PickPlace", "", 1) if name.startswith("PickPlace") else name, simulator]
    return [f"envs.experts.{n.lower()}.{n[0].upper()}{n[1:]}Expert" for n in names if n.isidentifier()]


def make_expert(env_id: str, task: str, noise: float = 0.0, seed: int = 0) -> Expert:
    """The expert for an environment; raises EnvError if there is none."""
    extra: Dict[str, Any] = {}
    if env_id == "toy/reach_discrete":
        from envs.toy import MOVES

        extra["num_actions"] = len(MOVES)
    for target in candidates(env_id):
        if importlib.util.find_spec(target.rpartition(".")[0]) is not None:
            return locate(target)(task=task, noise=noise, seed=seed, **extra)
    raise EnvError(f"there is no scripted expert for '{env_id}'; expected one of {', '.join(candidates(env_id))}")
