"""The border inside learning: what collection hands to the learner, and what can be plugged in between.

Letters as in `pretrained.types`: [N, T] is N streams of T decisions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pretrained.types import Features, Memory, Metrics, ObsBatch, Policy, Rng

__all__ = ["Algorithm", "Batch", "EpisodeRecord", "Guide", "Metrics", "Proposal", "Reward", "Segment"]


LARGE = 2**24  # bytes of a feature that is worth leaving where it is


@dataclass
class EpisodeRecord:
    """One finished (or lost) episode, for the ledger and for success rates."""

    env: str
    task: str
    seed: int
    success: bool
    length: int  # environment steps
    reward: float  # the benchmark's own, undiscounted sum
    valid: bool = True  # False: the simulator failed; not a task failure, not learned from
    cause: str = ""  # why it is not valid
    version: int = 0  # of the policy at the last decision
    name: str = ""  # in a fine-tuning run: seed of its worker, row and number; no two episodes share it
    guided: int = 0  # decisions that a guide took at its beginning; then its end says little of the policy

    @property
    def counts(self) -> bool:
        """Whether it was a fair trial of the policy."""
        return self.valid and not self.guided


@dataclass
class Segment:
    """N streams of T decisions of one rollout worker."""

    features: Features  # [N, T, ...]
    texts: list[str]
    text_id: Tensor  # int64 [N, T] into texts
    trace: Tensor  # [N, T, K+1, H, A]
    log_prob: Tensor  # [N, T, K]
    active: Tensor  # bool [N, T, K]
    value: Tensor  # [N, T]
    next_value: Tensor  # [N, T] of the next observation, or of the true final one
    env_reward: Tensor  # [N, T] discounted sum of the benchmark's reward over the executed steps
    duration: Tensor  # int64 [N, T] executed steps
    terminated: Tensor  # bool [N, T]
    truncated: Tensor  # bool [N, T]
    starts: Tensor  # bool [N, T] first decision of an episode
    valid: Tensor  # bool [N, T]
    memory: Memory  # at t = 0
    version: int  # of the policy that acted
    privileged: dict[str, Tensor] = field(default_factory=dict)  # [N, T, 2, ...] before and after the chunk
    frames: dict[str, Tensor] = field(default_factory=dict)  # uint8 [N, T, 2, Y, X, 3] likewise
    episodes: list[EpisodeRecord] = field(default_factory=list)  # that ended inside this segment
    stats: dict[str, float] = field(default_factory=dict)  # seconds and counts of the collection
    names: list[str] = field(default_factory=list)  # of the segments that this one was joined from, each with its own

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.value.shape[0]), int(self.value.shape[1])


class Parts:
    """Features of several segments, used as one tensor [N, ...] of which only rows are ever taken: pictures stay where
    they arrived, because a second copy of them would be most of a learner's memory."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)

    @property
    def shape(self) -> torch.Size:
        return torch.Size([sum(len(t) for t in self.tensors), *self.tensors[0].shape[1:]])

    def reshape(self, first: int, *rest: int) -> "Parts":
        """Split or merge leading axes; `first` is what they all have together."""
        parts = [t.reshape(-1, *rest) for t in self.tensors]
        if sum(len(p) for p in parts) != first:
            raise ValueError(f"{tuple(self.shape)} cannot become {(first, *rest)}")
        return Parts(parts)

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Rows in ascending order. Raises ValueError for others."""
        if dim != 0 or bool((index.diff() < 0).any()):
            raise ValueError("only rows in ascending order can be taken of features that lie in several places")
        out = torch.empty(len(index), *self.shape[1:], dtype=self.tensors[0].dtype)
        first = begin = 0
        for tensor in self.tensors:
            end = int(torch.searchsorted(index, first + len(tensor)))
            torch.index_select(tensor, 0, index[begin:end] - first, out=out[begin:end])
            first, begin = first + len(tensor), end
        return out


def join(segments: Sequence[Segment]) -> Segment:
    """Stack segments of equal T along N; large features become Parts, except hints, which rewards read.

    Raises ValueError if the policy versions differ."""
    versions = sorted({s.version for s in segments})
    if len(versions) != 1:
        raise ValueError(f"segments of policy versions {versions} cannot be joined; expected one version")
    first = segments[0]
    if len(segments) == 1:
        return first

    def cat(parts: Sequence[Any]) -> Any:
        if isinstance(parts[0], dict):
            return {k: cat([p[k] for p in parts]) for k in parts[0]}
        return torch.cat(list(parts))

    def kept(parts: Sequence[Tensor]) -> Any:
        return Parts(parts) if sum(p.numel() * p.element_size() for p in parts) >= LARGE else torch.cat(list(parts))

    out: dict[str, Any] = {}
    for f in fields(Segment):
        values = [getattr(s, f.name) for s in segments]
        if f.name == "version":
            out[f.name] = first.version
        elif f.name == "features":
            out[f.name] = {k: (cat if k.startswith("hint/") else kept)([v[k] for v in values]) for k in values[0]}
        elif f.name == "episodes":
            out[f.name] = [e for v in values for e in v]
        elif f.name == "stats":
            out[f.name] = {k: sum(v.get(k, 0.0) for v in values) for k in first.stats}
        elif f.name in ("texts", "names"):
            out[f.name] = [t for v in values for t in v]
        elif f.name == "text_id":
            offsets = [sum(len(s.texts) for s in segments[:i]) for i in range(len(segments))]
            out[f.name] = torch.cat([s.text_id + o for s, o in zip(segments, offsets, strict=True)])
        else:
            out[f.name] = cat(values)
    return Segment(**out)


@dataclass
class Batch:
    """What a loss sees: a segment (or a slice of its streams) and its targets. All [N, T, ...]."""

    features: Features
    trace: Tensor
    starts: Tensor
    memory: Memory
    active: Tensor
    old_log_prob: Tensor  # recomputed by the learner in its own precision
    weight: Tensor  # [N, T] how much likelier the decisions were just before learning than when they were taken
    old_value: Tensor
    advantage: Tensor
    returns: Tensor
    valid: Tensor

    def rows(self, index: Tensor) -> "Batch":
        """The streams in `index`."""

        def take(v: Any) -> Any:
            if isinstance(v, dict):
                return {k: take(x) for k, x in v.items()}
            return v.index_select(0, index)  # copies whole rows, where v[index] takes a picture's bytes one by one

        return Batch(**{f.name: take(getattr(self, f.name)) for f in fields(Batch)})


class Reward(Protocol):
    """A named, pure, unweighted term; weights live in the configuration."""

    needs: frozenset[str]  # subset of {"frames", "privileged"}

    def __call__(self, segment: Segment, gamma: float) -> Tensor:
        """[N, T] reward of each decision."""
        ...


class Proposal(Protocol):
    """A plan attached to observations; its hints are stored in the features."""

    every: int  # decisions between two calls per environment

    def __call__(self, obs: ObsBatch, rng: Rng) -> dict[str, Tensor]:
        """Hints [N, ...] from one generator, or one per row."""
        ...


@runtime_checkable
class Guide(Protocol):
    """A proposal that also takes the first decisions of some training episodes, which are not learned from."""

    def lead(self, seed: int, version: int) -> int:
        """How many decisions of the episode of this seed."""
        ...

    def guide(self, obs: ObsBatch) -> np.ndarray:
        """Chunks float64 [N, H, A]."""
        ...


class Algorithm(Protocol):
    """A frozen dataclass whose fields are its hyper-parameters."""

    epochs: int
    minibatches: int
    max_grad_norm: float
    max_kl: float | None
    gamma: float

    def loss(self, policy: Policy, batch: Batch, stage: Any) -> tuple[Tensor, Metrics]: ...
