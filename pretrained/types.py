"""The border between policies and everything that uses them.

Letters: N environments (streams), T decisions, H chunk length, E executed steps of a chunk, A action dim,
K links of a policy chain, L observation history, P proprioception dim, Y,X image size. Batch first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from envs.types import EnvSpec

Metrics = dict[str, float]
Features = dict[str, Tensor]  # what `encode` returns and a segment stores; every value is [N, ...] or [N, T, ...]
Memory = dict[str, Tensor]  # what a policy remembers between decisions, rows along N; {} if memoryless
Rng = torch.Generator | Sequence[torch.Generator]  # one generator for the batch, or one per row


@dataclass(frozen=True)
class PolicySpec:
    """What a policy sees and returns. Stored in checkpoints; a mismatch with the environment is refused."""

    cameras: dict[str, tuple[int, int]]  # camera -> (Y, X), in this order
    proprio: tuple[str, ...]  # names, in this order
    actions: tuple[str, ...]  # names, in this order
    low: tuple[float, ...]  # [A] env units
    high: tuple[float, ...]  # [A] env units
    action_convention: str
    control_hz: float
    num_actions: int = 0  # > 0: discrete, one integer per decision
    horizon: int = 1  # H
    execute: int = 1  # E <= H
    history: int = 1  # L
    links: int = 1  # K
    frozen_links: int = 0  # the first links, drawn by a frozen copy and never scored
    memoryless: bool = True
    image_convention: str = "rgb_uint8_row0_top"

    @property
    def action_dim(self) -> int:
        return len(self.actions)

    @staticmethod
    def of(env: EnvSpec, cameras: Sequence[str] | None = None, **own: Any) -> "PolicySpec":
        """What a policy of `env` sees and does, with all its cameras unless some are named; `own` are other fields.

        Raises ValueError if the environment has no such camera.
        """
        chosen = list(env.cameras if cameras is None else cameras)
        if missing := [c for c in chosen if c not in env.cameras]:
            raise ValueError(f"cameras {missing} are not in {env.env_id}; it has {list(env.cameras)}")
        return PolicySpec(
            cameras={c: env.cameras[c] for c in chosen},
            proprio=tuple(env.proprio),
            actions=env.actions,
            low=env.low,
            high=env.high,
            action_convention=env.action_convention,
            control_hz=env.control_hz,
            num_actions=env.num_actions,
            **own,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> "PolicySpec":
        tuples = ("proprio", "actions", "low", "high")
        fixed: dict[str, Any] = {k: tuple(v) if k in tuples else v for k, v in data.items()}
        fixed["cameras"] = {name: (int(s[0]), int(s[1])) for name, s in data["cameras"].items()}
        return PolicySpec(**fixed)


@dataclass
class ObsBatch:
    """Observations of N environments, history oldest first."""

    images: Mapping[str, np.ndarray | Tensor]  # camera -> uint8 [N, L, Y, X, 3], RGB, row 0 on top
    proprio: np.ndarray | Tensor  # float32 [N, L, P]
    texts: list[str]  # N instructions
    hints: dict[str, Tensor] = field(default_factory=dict)  # from a Proposal; [N, ...]

    def __len__(self) -> int:
        return len(self.texts)


class Decision(NamedTuple):
    """One decision of each of N environments."""

    chunk: Tensor  # [N, H, A] env units, or int64 [N, 1, 1]
    trace: Tensor  # [N, K+1, H, A] the chain x_0 .. x_K, before clipping to the action space
    log_prob: Tensor  # [N, K] float32, summed over the executed elements, one per link
    active: Tensor  # bool [N, K] links that were drawn from their density (others took their mean)
    value: Tensor  # [N]


class Evaluation(NamedTuple):
    """Scores of recorded decisions; M = K, or the number of links asked for."""

    log_prob: Tensor  # [N, T, M]
    entropy: Tensor  # [N, T] mean per executed element and link, nats
    value: Tensor  # [N, T]


@dataclass
class DemoBatch:
    """B windows of demonstrations."""

    obs: ObsBatch  # N = B
    actions: Tensor  # float32 [B, H, A] env units
    is_pad: Tensor  # bool [B, H] beyond the end of the episode


class Policy(Protocol):
    """A chain of K links that samples and scores with one transition function, in float32.

    Every policy is also a `torch.nn.Module` (state_dict, parameters, to, train, eval)."""

    spec: PolicySpec

    def encode(self, obs: ObsBatch) -> Features:
        """Frozen towers; run once per decision, at collection; what the learner needs to score and to learn."""
        ...

    def initial_memory(self, n: int) -> Memory: ...

    def act(self, x: Features, memory: Memory, rng: Rng, greedy: bool = False) -> tuple[Decision, Memory]:
        """Decide for N rows. `greedy` takes every link's mean; the first point of a chain is still drawn."""
        ...

    def evaluate(
        self, x: Features, trace: Tensor, starts: Tensor, memory: Memory, links: Tensor | None = None
    ) -> Evaluation:
        """Score traces [N, T, K+1, H, A]; `starts` [N, T] resets the memory; `links` int64 [N, T, M] picks links."""
        ...

    def value(self, x: Features, memory: Memory) -> Tensor:
        """[N]; what `act` would report as value, without deciding."""
        ...

    def imitation_loss(self, demo: DemoBatch, rng: torch.Generator) -> tuple[Tensor, Metrics]: ...

    def fit_normalizers(self, actions: Tensor, proprio: Tensor) -> None:
        """Set the normaliser buffers from all demonstrated actions [M, A] and proprioception [M, P]."""
        ...


def randn(shape: Sequence[int], rng: Rng, device: torch.device | None = None) -> Tensor:
    """Standard normal float32; with one generator per row, row i depends on generator i alone."""
    if isinstance(rng, torch.Generator):
        return torch.randn(*shape, generator=rng).to(device)
    return torch.stack([torch.randn(*shape[1:], generator=g) for g in rng]).to(device)


def rand(shape: Sequence[int], rng: Rng, device: torch.device | None = None) -> Tensor:
    """Uniform on [0, 1) float32; rows as in `randn`."""
    if isinstance(rng, torch.Generator):
        return torch.rand(*shape, generator=rng).to(device)
    return torch.stack([torch.rand(*shape[1:], generator=g) for g in rng]).to(device)
