"""Reward from the simulator's own measure of progress."""

import torch
from torch import Tensor

from rl.types import Segment

MODES = ("pbrs", "dense")


class Progress:
    """A term on a privileged scalar Phi in [0, 1].

    "pbrs" is potential-based shaping, F = gamma ** d * Phi(s') - Phi(s), with Phi = 0 at true termination and Phi
    kept at truncation: over an episode it telescopes to a constant, so the optimal policy stays the same.
    "dense" pays Phi(s') itself. It is stronger, but changes what is optimal: reaching the goal late may pay more."""

    needs: frozenset[str] = frozenset({"privileged"})

    def __init__(self, *, mode: str = "pbrs", key: str = "progress") -> None:
        """`key` names the privileged scalar."""
        if mode not in MODES:
            raise ValueError(f"progress: mode '{mode}' is not known; expected one of {', '.join(MODES)}")
        self.mode, self.key = mode, key

    def __call__(self, segment: Segment, gamma: float) -> Tensor:
        """[N, T] reward of each decision; 0 where the segment is not valid."""
        before, after = self._potential(segment)
        if self.mode == "dense":
            return torch.where(segment.valid, after, torch.zeros_like(after))
        return shaped(before, after, segment, gamma)

    def _potential(self, segment: Segment) -> tuple[Tensor, Tensor]:
        """Phi before and after each decision, [N, T] each."""
        if self.key not in segment.privileged:
            raise ValueError(
                f"progress: the segment has no privileged '{self.key}', only {sorted(segment.privileged)}; choose an "
                f"environment that offers '{self.key}', collect privileged state, or drop this reward term"
            )
        phi = segment.privileged[self.key].float()
        shape = (*segment.shape, 2)
        if phi.numel() != segment.value.numel() * 2 or tuple(phi.shape[:3]) != shape:
            raise ValueError(f"progress: '{self.key}' has shape {tuple(phi.shape)}, expected one number each: {shape}")
        phi = phi.reshape(shape)
        return phi[..., 0], phi[..., 1]


def shaped(before: Tensor, after: Tensor, segment: Segment, gamma: float) -> Tensor:
    """F = gamma ** d * Phi(s') - Phi(s) [N, T] (Ng et al. 1999), Phi = 0 at true termination; 0 where not valid."""
    after = torch.where(segment.terminated, torch.zeros_like(after), after)
    reward = gamma ** segment.duration.to(after.dtype) * after - before
    # `where`, not a product: the state of a simulator that failed may be NaN.
    return torch.where(segment.valid, reward, torch.zeros_like(reward))
