"""The smallest proposal: the same vector always, or a new random one each time. For tests and as a control."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pretrained.types import ObsBatch, Rng, randn


class Constant:
    """Attaches hint `name` [N, D]: `value`, plus normal noise of standard deviation `noise`."""

    def __init__(
        self, *, value: Sequence[float] = (0.0,), noise: float = 0.0, name: str = "plan", every: int = 1
    ) -> None:
        """A random control is `value` of zeros and `noise` 1: whatever is gained with it, the plan did not give."""
        if every < 1 or noise < 0.0 or len(value) == 0:
            raise ValueError(
                f"constant proposal: expected every >= 1, noise >= 0, a value; got {every}, {noise}, {value}"
            )
        self.every, self.name, self.noise = every, name, noise
        self.value = torch.tensor(list(value), dtype=torch.float32)

    def __call__(self, obs: ObsBatch, rng: Rng) -> dict[str, Tensor]:
        """The hint for each of N observations."""
        hint = self.value.repeat(len(obs), 1)
        if self.noise:
            hint = hint + self.noise * randn(hint.shape, rng)
        return {self.name: hint}
