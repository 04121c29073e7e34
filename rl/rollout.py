"""What a rollout worker does, whatever process it lives in; and segments and weights as NumPy for the object store.

Ray moves NumPy arrays without a copy but pickles tensors byte by byte, so everything that crosses a process border
is NumPy on the way.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from envs.build import build
from envs.types import EnvConfig
from envs.vector import SimVector
from pretrained.checkpoint import load_policy, read_card
from pretrained.types import Policy
from rl.border import Border, go_back, keep
from rl.collect import Collector
from rl.types import Segment

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class RolloutPlan:
    """Everything a worker needs to start; plain data."""

    checkpoint: str  # gives the architecture and the first weights
    env: EnvConfig
    num_envs: int
    decisions: int  # T
    gamma: float
    seed: int
    policy_overrides: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    proposal: Mapping[str, Any] | None = None  # node
    lockstep: bool = False
    threads: int = 1


class RolloutWorker:
    """Simulators, a copy of the policy and a collector."""

    def __init__(self, plan: RolloutPlan, index: int = 0, incarnation: int = 0, border: Border | None = None) -> None:
        """`incarnation` tells replacements of this worker apart: each draws episodes of its own. With `border` it goes
        on where another one stopped."""
        if plan.threads:
            torch.set_num_threads(plan.threads)
        self.vector = SimVector([plan.env] * plan.num_envs, max_chunk=read_card(plan.checkpoint).policy.horizon)
        try:
            self.policy = load_policy(
                plan.checkpoint, env=self.vector.env_spec, overrides=dict(plan.policy_overrides), spare_cameras=True
            )
            as_module(self.policy).eval()
            self.collector = Collector(
                self.vector,
                self.policy,
                decisions=plan.decisions,
                gamma=plan.gamma,
                seed=(plan.seed * 1000 + incarnation) * 1000 + index,
                needs=frozenset(plan.needs),
                proposal=build(plan.proposal) if plan.proposal else None,
                lockstep=plan.lockstep,
                begin=border is None,
            )
            if border is not None:
                go_back(self.collector, border)
        except BaseException:
            self.vector.close()
            raise
        self.version = -1

    def set_weights(self, weights: Weights, version: int) -> None:
        """Take over the learner's weights."""
        put_weights(self.policy, weights)
        self.version = version

    def sample(self) -> Segment:
        """One segment with the present weights."""
        return self.collector.collect(self.version)

    def border(self) -> Border:
        """Where collection stands, for a resume; between two segments."""
        return keep(self.collector)

    def stop(self) -> None:
        """Stop the simulators; safe to call twice."""
        self.vector.close()


def as_module(policy: Policy) -> torch.nn.Module:
    """The same object, seen as the module that every policy is."""
    assert isinstance(policy, torch.nn.Module)
    return policy


def get_weights(policy: Policy) -> Weights:
    """Trainable weights and buffers as NumPy, without a copy. Frozen towers stay where they are."""
    module = as_module(policy)
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    return {k: v.detach().cpu().numpy() for k, v in module.state_dict().items() if k not in frozen}


def put_weights(policy: Policy, weights: Weights) -> None:
    """Copy weights into the policy. Raises ValueError on names that do not fit."""
    own = as_module(policy).state_dict()
    surplus = sorted(set(weights) - set(own))
    if surplus:
        raise ValueError(f"weights {surplus[:3]} do not exist in this policy; learner and worker differ")
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(torch.from_numpy(np.array(value)))


def to_numpy(segment: Segment) -> Segment:
    """The same segment with arrays instead of tensors."""
    return _map(segment, lambda v: v.numpy() if isinstance(v, torch.Tensor) else v)


def to_torch(segment: Segment) -> Segment:
    """The inverse of `to_numpy`; shares memory with the object store, so tensors must not be written to."""
    return _map(segment, lambda v: _tensor(v) if isinstance(v, np.ndarray) else v)


def _tensor(value: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():  # torch cannot express read-only memory; nobody writes to segments
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(value)


def _map(segment: Segment, f: Any) -> Segment:
    def walk(v: Any) -> Any:
        return {k: walk(x) for k, x in v.items()} if isinstance(v, dict) else f(v)

    return Segment(**{x.name: walk(getattr(segment, x.name)) for x in fields(Segment)})
