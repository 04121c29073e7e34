"""PPO over chains: one set of hyper-parameters for categorical, Gaussian, flow and diffusion policies.

`links` and `reduction` say how the log-probs of a decision become ratios, and belong together with `clip`: a mean
over n dimensions with clip eps behaves like a sum with n * eps (`docs/chains.md`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from pretrained.types import Metrics
from rl.compute import Scorer
from rl.losses import clip_range, log_ratio, masked_mean, policy_loss, value_loss
from rl.types import Batch


@dataclass(frozen=True)
class Stage:
    """A span of a fine-tuning run with its own losses, freezes and learning rates."""

    iterations: int | None = None
    decisions: int | None = None  # instead: it ends with the iteration that reaches so many; neither: until the end
    losses: tuple[str, ...] = ("policy", "value")
    freeze: tuple[str, ...] = ()  # parameter-name prefixes
    lr_scale: float = 1.0

    def __post_init__(self) -> None:
        unknown = set(self.losses) - {"policy", "value"}
        if unknown or not self.losses:
            raise ValueError(f"stage losses {self.losses}: expected some of 'policy' and 'value'")
        if self.iterations is not None and self.decisions is not None:
            raise ValueError("a stage has both iterations and decisions; keep one")

    def length(self, per_iteration: int) -> int | None:
        """In iterations of so many decisions; None: without end."""
        return self.iterations if self.decisions is None else -(-self.decisions // max(1, per_iteration))


@dataclass(frozen=True)
class Ppo:
    """Hyper-parameters; see the presets in configs/algo."""

    # One rate, or rates by the longest prefix of a parameter's name.
    lr: float | Mapping[str, float] = field(default_factory=lambda: {"": 1e-4, "critic": 1e-3})
    clip: float = 0.01
    clip_base: float | None = None  # clip range of the noisiest link; None: the same for all
    links: Literal["each", "sum"] = "each"
    reduction: Literal["mean", "sum"] = "mean"  # over the executed elements of a chunk (and over links, if summed)
    link_samples: int | None = None  # score that many random active links per decision; None: all
    dual_clip: float | None = None
    gamma: float = 0.99  # per environment step; a decision of d steps discounts by gamma ** d
    gamma_denoise: float = 1.0  # advantage of link i is weighted by gamma_denoise ** (K - 1 - i)
    lam: float = 0.95
    epochs: int = 4
    minibatches: int = 4
    max_grad_norm: float = 1.0
    max_kl: float | None = None  # an iteration's updates end when a minibatch exceeds it
    target_kl: float | None = None  # learning rates follow it: lower after an iteration above, higher after one below
    value_coef: float = 0.5
    value_clip: float | None = None
    value_huber: float | None = None
    entropy_coef: float = 0.0
    normalize_advantage: bool = True
    return_scale: bool = False
    weight_decay: float = 0.0
    lr_warmup: int = 16  # a parameter's first steps; Adam's own first steps are full-size whatever the gradient
    stages: tuple[Any, ...] = ()  # nodes of Stage; empty: one stage to the end

    def __post_init__(self) -> None:
        if self.links == "sum" and self.link_samples is not None:
            raise ValueError("algo.link_samples needs links=each: a sum over links must contain all of them")
        if self.target_kl is not None and not self.target_kl > 0:
            raise ValueError(f"algo.target_kl = {self.target_kl}; expected a positive number, or null for fixed rates")
        stages = tuple(s if isinstance(s, Stage) else Stage(**_tuples(s)) for s in self.stages)
        object.__setattr__(self, "stages", stages or (Stage(),))

    def stage(self, iteration: int, per_iteration: int = 1) -> Stage:
        """The stage that governs this iteration (counted from 0) of a run with so many decisions in each."""
        end = 0
        for stage in self.stages:
            length = stage.length(per_iteration)
            if length is None:
                return stage
            end += length
            if iteration < end:
                return stage
        return self.stages[-1]

    def loss(self, policy: Scorer, batch: Batch, stage: Stage) -> tuple[Tensor, Metrics]:
        """Total loss of a minibatch and what to log."""
        spec = policy.spec
        links = self._pick_links(batch.active)
        old, active = batch.old_log_prob, batch.active
        index = torch.arange(spec.links, device=old.device).expand_as(old)
        if links is not None:
            old, active, index = old.gather(2, links), active.gather(2, links), links
        scored = policy.evaluate(batch.features, batch.trace, batch.starts, batch.memory, links)
        metrics: Metrics = {}
        total = torch.zeros((), device=old.device)
        if "policy" in stage.losses:
            elements = 1 if spec.num_actions else spec.execute * spec.action_dim
            scored_links = spec.links - spec.frozen_links if self.links == "sum" else 1
            divisor = float(elements * scored_links) if self.reduction == "mean" else 1.0
            delta = log_ratio(scored.log_prob, old, active, links=self.links, divisor=divisor)
            weight, clip = self._per_link(index, spec.links, spec.frozen_links)
            mask = batch.valid[..., None] & (active if self.links == "each" else active.any(-1, keepdim=True))
            surrogate, stats = policy_loss(
                delta, (batch.advantage * batch.weight)[..., None] * weight, mask, clip, dual_clip=self.dual_clip
            )
            entropy = masked_mean(scored.entropy, batch.valid)
            total = total + surrogate - self.entropy_coef * entropy
            metrics |= {"loss/policy": surrogate.item(), "loss/entropy": entropy.item()}
            metrics |= {f"loss/{k}": float(v) for k, v in stats.items()}
        if "value" in stage.losses:
            loss = value_loss(
                scored.value,
                batch.old_value,
                batch.returns,
                batch.valid,
                clip=self.value_clip,
                huber=self.value_huber,
            )
            total = total + self.value_coef * loss
            metrics["loss/value"] = loss.item()
        return total, metrics

    def _pick_links(self, active: Tensor) -> Tensor | None:
        """Indices int64 [N, T, M] of links to score, drawn among the active ones; None scores all."""
        if self.link_samples is None or self.link_samples >= active.shape[-1]:
            return None
        weight = active.float() + 1e-9  # rows that lack enough active links fall back to masked ones
        picks = torch.multinomial(weight.reshape(-1, active.shape[-1]), self.link_samples)
        return picks.reshape(*active.shape[:2], self.link_samples)

    def _per_link(self, index: Tensor, num_links: int, frozen: int) -> tuple[Tensor, Tensor]:
        """Advantage weight and clip range for each scored link, or 1 and `clip` if the links are summed."""
        if self.links == "sum":
            return torch.ones(1, device=index.device), torch.tensor(self.clip, device=index.device)
        weight = self.gamma_denoise ** (num_links - 1 - index).to(torch.float32)
        clip = clip_range(num_links - frozen, self.clip, self.clip_base).to(index.device)
        return weight, clip[(index - frozen).clamp(min=0)]  # frozen links are masked


def _tuples(node: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in node.items() if k != "_target_"}
