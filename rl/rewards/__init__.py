"""Rewards: named, pure, unweighted terms, weighted and summed after collection, never inside an environment.

In configuration: `reward: {success: {weight: 1.0, term: {_target_: rl.rewards.sparse.Sparse}}, ...}`.
"""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from envs.build import build
from rl.types import Metrics, Segment

Terms = Mapping[str, Mapping[str, Any]] | Iterable[tuple[str, Mapping[str, Any]]]


def build_terms(nodes: Terms) -> dict[str, dict[str, Any]]:
    """Build the `term` of every {weight, term} node, once per run; zero-weight terms are left out."""
    built: dict[str, dict[str, Any]] = {}
    for name, weight, term in _entries(nodes):
        if weight != 0.0:
            built[name] = {"weight": weight, "term": build(term) if isinstance(term, Mapping) else term}
    return built


def needs(terms: Terms) -> frozenset[str]:
    """What a collector has to store for these built terms: a subset of {"frames", "privileged"}."""
    return frozenset(need for _, weight, term in _entries(terms) if weight != 0.0 for need in term.needs)


def combine(terms: Terms, segment: Segment, gamma: float) -> tuple[Tensor, Metrics]:
    """Weighted sum [N, T] of built terms, and each one's weighted mean over the valid decisions.

    The breakdown adds up: `reward/total` is the sum of the others. Decisions that are not valid get 0. What learned
    terms report of themselves is under `audit/`."""
    total = torch.zeros_like(segment.env_reward)
    breakdown: Metrics = {}
    audit: Metrics = {}
    for _, weight, term in _entries(terms):
        if weight != 0.0 and hasattr(term, "begin") and all(getattr(segment, need) for need in term.needs):
            term.begin(segment)  # judges elsewhere work while the others are computed here
    for name, weight, term in _entries(terms):
        if weight == 0.0:
            continue
        if isinstance(term, Mapping):
            raise TypeError(
                f"reward '{name}' is still a configuration node; pass the terms through `build_terms` first"
            )
        for need in sorted(term.needs):
            if not getattr(segment, need):
                raise ValueError(
                    f"reward '{name}' needs {need}, and the segment has none; "
                    f"collect with {need} (see `rl.rewards.needs`) or drop the term"
                )
        part = weight * _checked(name, term(segment, gamma), segment)
        total = total + part
        breakdown[f"reward/{name}"] = _mean(part, segment.valid)
        audit |= {f"audit/{name}_{k}": v for k, v in getattr(term, "report", {}).items()}
    breakdown["reward/total"] = _mean(total, segment.valid)
    return total, breakdown | audit


def _entries(terms: Terms) -> list[tuple[str, float, Any]]:
    """(name, weight, term) of each; raises ValueError on a malformed or repeated entry."""
    entries: list[tuple[str, float, Any]] = []
    seen: set[str] = {"total"}
    pairs = cast("Iterable[tuple[str, Any]]", terms.items() if isinstance(terms, Mapping) else terms)
    for name, entry in pairs:
        if name in seen:
            what = "is reserved" if name == "total" else "appears twice"
            raise ValueError(f"reward name '{name}' {what}; give every term a name of its own")
        if not isinstance(entry, Mapping) or set(entry) != {"weight", "term"}:
            got = sorted(entry) if isinstance(entry, Mapping) else type(entry).__name__
            raise ValueError(f"reward '{name}': expected {{weight: number, term: node}}, got {got}")
        seen.add(name)
        entries.append((name, float(entry["weight"]), entry["term"]))
    return entries


def _checked(name: str, reward: Tensor, segment: Segment) -> Tensor:
    """`reward` with 0 where not valid; raises ValueError on a wrong shape or a number that is not finite."""
    if tuple(reward.shape) != segment.shape:
        raise ValueError(f"reward '{name}' has shape {tuple(reward.shape)}, expected [N, T] = {segment.shape}")
    reward = torch.where(segment.valid, reward.to(segment.env_reward), torch.zeros_like(segment.env_reward))
    if not torch.isfinite(reward).all():
        n, t = (int(i) for i in (~torch.isfinite(reward)).nonzero()[0])
        raise ValueError(
            f"reward '{name}' is {float(reward[n, t])} at stream {n}, decision {t}; expected finite numbers"
        )
    return reward


def _mean(x: Tensor, valid: Tensor) -> float:
    return float(x[valid].mean()) if bool(valid.any()) else 0.0
