"""A frozen copy of a policy's actor, which draws the first links of its chain while the last ones are fine-tuned.

DPPO (Ren et al. 2024) fine-tunes the last K' links only: those before them decide little, and freezing them keeps the
policy near what was imitated and saves the learner their scores.
"""

from copy import deepcopy

from torch import nn


class FrozenActor(nn.Module):
    """Copies of the actor, and of noise head and encoder where they are trained, taken when fine-tuning begins."""

    def __init__(self, actor: nn.ModuleDict, noise: nn.Module | None, encoder: nn.Module | None) -> None:
        super().__init__()
        self.actor, self.noise, self.encoder = deepcopy(actor), deepcopy(noise), deepcopy(encoder)
        self.requires_grad_(False)

    def take(self, actor: nn.ModuleDict, noise: nn.Module | None, encoder: nn.Module | None) -> None:
        """Become what these are now."""
        for own, part in ((self.actor, actor), (self.noise, noise), (self.encoder, encoder)):
            if own is not None and part is not None:
                own.load_state_dict(part.state_dict())
