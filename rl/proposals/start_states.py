"""Start-state curriculum: a guide takes the first decisions of training episodes, fewer and fewer of them.

Jump-start RL (Uchendu et al. 2023): the guide leads into states from which the goal is near, such as a policy that
follows plans. Its decisions are executed and never learned from, so the learner's first ratio stays 1; episodes that it
began count in no success rate, and evaluations have no guide. An inner proposal gives the hints, for guide and policy.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.build import build
from pretrained import checkpoint
from pretrained.types import ObsBatch, Policy, Rng

SEED = 7  # of the draws of leads, beside the episode's own


class StartStates:
    """A proposal that also has `lead`, how many decisions the guide takes, and `guide`, which takes them."""

    def __init__(
        self,
        *,
        checkpoint_path: str = "",
        policy: Policy | None = None,
        longest: int = 8,
        share: float = 0.5,
        over: int = 100,
        proposal: Mapping[str, Any] | None = None,
        every: int = 1,
    ) -> None:
        """`checkpoint_path`: the guide (or give a `policy`), without memory. It leads a `share` of the episodes, by 1
        to `longest` decisions at the first policy version and by none from version `over` on. `proposal`: node of what
        gives hints, whose `every` then holds."""
        if longest < 1 or over < 1 or not 0 < share <= 1:
            raise ValueError(f"start states: expected longest >= 1, over >= 1 and 0 < share <= 1, got {longest}, "
                             f"{over} and {share:g}")  # fmt: skip
        if policy is None:
            if not checkpoint_path:
                raise ValueError("start states: name the guide, proposal.checkpoint_path=runs/...")
            policy = checkpoint.load_policy(checkpoint.find(checkpoint_path))
        if not policy.spec.memoryless:
            raise ValueError("start states: the guide has a memory; expected one without, such as memory: none")
        module: Any = policy
        self.policy: Policy = module.eval()
        self.longest, self.share, self.over = longest, share, over
        self.inner: Any = build(proposal) if proposal is not None else None
        self.every = every if self.inner is None else int(self.inner.every)

    def lead(self, seed: int, version: int) -> int:
        """Decisions of the guide in the episode of this seed: the same on every call."""
        rng = np.random.default_rng([SEED, seed])
        most = self.longest * max(0.0, 1 - version / self.over)
        if rng.random() >= self.share:
            return 0
        return int(np.ceil(most * rng.random()))

    @torch.no_grad()
    def guide(self, obs: ObsBatch) -> np.ndarray:
        """float64 [N, H, A]: what the guide does, greedily and with hints of its own."""
        fixed = [torch.Generator().manual_seed(SEED) for _ in range(len(obs))]
        if self.inner is not None:
            obs.hints = self.inner(obs, fixed)
        return self.policy.act(self.policy.encode(obs), {}, fixed, greedy=True)[0].chunk.double().cpu().numpy()

    def __call__(self, obs: ObsBatch, rng: Rng) -> dict[str, Tensor]:
        """The inner proposal's hints, if there is one."""
        return self.inner(obs, rng) if self.inner is not None else {}
