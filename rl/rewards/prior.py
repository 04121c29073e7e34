"""Staying near a policy that is known to be sensible, such as the one imitated with plans: minus the KL divergence.

The prior sees the same observation and the same plan. Each decision pays log p_prior - log p of its own sample, whose
mean is minus the divergence (as in Ziegler et al. 2019), so no algorithm has to know of it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pretrained.checkpoint import find, load_policy
from rl.types import Segment


class PriorKl:
    """Minus the log-ratio of each decision to a frozen policy, nats over all links and executed steps."""

    needs: frozenset[str] = frozenset()

    def __init__(self, *, checkpoint: str, overrides: Mapping[str, Any] | None = None, cap: float = 20.0) -> None:
        """`cap` bounds what one decision pays or costs."""
        if cap <= 0:
            raise ValueError(f"prior: cap = {cap:g}, expected more than 0")
        self.checkpoint, self.overrides, self.cap = checkpoint, dict(overrides or {}), cap
        self._prior: Any = None

    @torch.no_grad()
    def __call__(self, segment: Segment, gamma: float) -> Tensor:
        """[N, T] reward of each decision; 0 where the segment is not valid."""
        if self._prior is None:  # late: settings are built where nothing is to be loaded
            prior: Any = load_policy(find(self.checkpoint), overrides=self.overrides)
            self._prior = prior.eval()
        scored = self._prior.evaluate(segment.features, segment.trace, segment.starts, segment.memory).log_prob
        if scored.shape != segment.log_prob.shape:
            raise ValueError(
                f"prior: {self.checkpoint} scores {scored.shape[-1]} links, the policy {segment.log_prob.shape[-1]}; "
                "expected the same kind of policy: give the number of links in `overrides`"
            )
        ratio = ((segment.log_prob - scored) * segment.active).sum(-1).clamp(-self.cap, self.cap)
        return torch.where(segment.valid, -ratio, torch.zeros_like(ratio)).to(segment.env_reward)
