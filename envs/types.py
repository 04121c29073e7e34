"""What crosses the border between simulators and everything else.

Needs the standard library and numpy only and keeps to Python 3.8 syntax, because it is imported in simulator
processes of that era. Letters: A action dim, P proprioception dim, Y,X image size.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Dict, Mapping, Protocol, Tuple

import numpy as np


class EnvError(RuntimeError):
    """An environment refused a request; the message says what was wrong, what was expected and the fix."""


class BadState(EnvError):
    """The simulator itself went wrong (a non-finite state, a lost context): the child is replaced."""


class ResetNeeded(EnvError):
    """`step` was called before `reset`, or after the episode had ended."""


@dataclass(frozen=True)
class EnvSpec:
    """What an environment offers and accepts. Everything is plain data, so it travels as JSON."""

    env_id: str  # "<simulator>/<name>", for example "robosuite/Lift"
    cameras: Dict[str, Tuple[int, int]]  # camera -> (Y, X); the order is the order policies see
    proprio: Dict[str, str]  # name of each proprioception entry -> SI unit; its order is the vector's order
    actions: Tuple[str, ...]  # name of each action entry
    low: Tuple[float, ...]  # [A] smallest legal action, env units
    high: Tuple[float, ...]  # [A] largest legal action, env units
    control_hz: float
    max_steps: int  # an episode is truncated after this many steps
    tasks: Tuple[str, ...]  # names accepted by `reset`
    action_convention: str  # for example "osc_pose_delta"; checkpoints refuse another one
    num_actions: int = 0  # > 0: the action is one integer in [0, num_actions), and A = 1
    privileged: Dict[str, Tuple[int, ...]] = field(default_factory=dict)  # name -> shape of simulator state
    renderer: str = ""  # if not the simulator's own; checkpoints refuse the pictures of another
    seed_block: int = 1  # so many seeds, from a multiple of it on, share what is slow to build (a house)
    perturbation: str = ""  # what is changed for the eyes, as JSON (envs/perturb.py); "" for nothing

    @property
    def action_dim(self) -> int:
        return len(self.actions)

    @property
    def proprio_dim(self) -> int:
        return len(self.proprio)

    @cached_property
    def bounds(self) -> Tuple[np.ndarray, np.ndarray]:
        """Low and high [A] as arrays."""
        return np.asarray(self.low), np.asarray(self.high)

    def to_json(self) -> Dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> EnvSpec:
        return EnvSpec(
            env_id=data["env_id"],
            cameras={name: (int(size[0]), int(size[1])) for name, size in data["cameras"].items()},
            proprio=dict(data["proprio"]),
            actions=tuple(data["actions"]),
            low=tuple(float(v) for v in data["low"]),
            high=tuple(float(v) for v in data["high"]),
            control_hz=float(data["control_hz"]),
            max_steps=int(data["max_steps"]),
            tasks=tuple(data["tasks"]),
            action_convention=data["action_convention"],
            num_actions=int(data["num_actions"]),
            privileged={name: tuple(int(n) for n in shape) for name, shape in data["privileged"].items()},
            renderer=str(data.get("renderer", "")),
            seed_block=int(data.get("seed_block", 1)),
            perturbation=str(data.get("perturbation", "")),
        )


@dataclass(frozen=True)
class EnvConfig:
    """How to start an environment in a child process; the `env` group of the configuration."""

    sim: Dict[str, Any]  # {"_target_": "envs.robosuite.Robosuite", **keyword arguments}
    process: str = "own"  # each simulator's own, or "shared" with its rollout worker: for light ones (envs/inline.py)
    python: str = ""  # interpreter of the child; "" takes .venvs/<sim>/bin/python if it is there, else the present one
    tasks: Tuple[str, ...] = ()  # the tasks to use; () takes all of the spec
    step_deadline_s: float = 60.0  # a chunk or reset that takes longer counts as hung
    open_deadline_s: float = 300.0  # likewise for starting the simulator
    memory_mib: int = 4096  # a child that has grown beyond this is replaced before its next episode
    video: Dict[str, Tuple[int, int]] = field(default_factory=dict)  # cameras of videos, for people: name -> (Y, X)
    perturb: Any = ""  # what is changed for the eyes (envs/perturb.py); goes to the adapter with `sim`
    tables: Dict[str, Any] = field(default_factory=dict)  # node of a benchmark's tables, for evaluations (rl/tables.py)

    def __post_init__(self) -> None:
        if self.process not in ("own", "shared"):
            raise EnvError(f"env.process '{self.process}' is unknown; expected own or shared")
        if self.perturb:
            object.__setattr__(self, "sim", {**self.sim, "perturb": self.perturb})


@dataclass(frozen=True)
class Observation:
    """One environment, one moment."""

    images: Dict[str, np.ndarray]  # camera -> uint8 [Y, X, 3], RGB, row 0 on top; empty if not rendered
    proprio: np.ndarray  # float32 [P]
    instruction: str
    privileged: Dict[str, np.ndarray]  # float64; for rewards, experts and tests, never for a policy
    notes: Mapping[str, Any] = field(
        default_factory=dict
    )  # at reset: JSON about the episode, likewise not for policies
    unseen: bool = False  # no camera shows the robot's hand, so that pictures may stay while it moves


@dataclass(frozen=True)
class Step:
    """What one control step led to."""

    obs: Observation  # at the end of an episode this is the true final observation
    reward: float  # the benchmark's own reward
    terminated: bool  # the task ended
    truncated: bool  # the clock ended
    success: bool


class Env(Protocol):
    """What an adapter implements. Constructed in a child process with the keyword arguments of its YAML file."""

    spec: EnvSpec

    def reset(self, task: str, seed: int) -> Observation:
        """Start an episode. The same task and seed give the same initial state. Raises EnvError on an unknown task."""
        ...

    def step(self, action: np.ndarray, render: bool = True) -> Step:
        """Advance one control step; `action` [A] in env units. `render=False` leaves `obs.images` empty."""
        ...

    def render(self) -> Dict[str, np.ndarray]:
        """Camera images of the present state, without advancing it."""
        ...

    def close(self) -> None:
        """Free the simulator; calling it again does nothing."""
        ...


def check_action(spec: EnvSpec, action: np.ndarray) -> np.ndarray:
    """Return `action` [A] as float64, or raise EnvError naming the entry that is not finite or out of bounds."""
    action = np.asarray(action, dtype=np.float64)
    if action.shape != (spec.action_dim,):
        raise EnvError(f"{spec.env_id}: action has shape {action.shape}, expected ({spec.action_dim},)")
    low, high = spec.bounds
    if not spec.num_actions and ((action >= low) & (action <= high)).all():  # the common case; false for nan
        return action.copy()
    bad = ~np.isfinite(action)
    if bad.any():
        name = spec.actions[int(np.flatnonzero(bad)[0])]
        raise EnvError(f"{spec.env_id}: action '{name}' is not finite: {action.tolist()}; check the policy's output")
    outside = (action < low - 1e-6) | (action > high + 1e-6)
    if outside.any():
        i = int(np.flatnonzero(outside)[0])
        raise EnvError(
            f"{spec.env_id}: action '{spec.actions[i]}' = {action[i]:.6g} is outside [{low[i]:g}, {high[i]:g}]; "
            "clip it, or check the action convention of the policy"
        )
    if spec.num_actions and action[0] != int(action[0]):
        raise EnvError(f"{spec.env_id}: discrete action {action[0]!r} is not an integer")
    return np.clip(action, low, high)
