"""What each row saw of late, as policies ask for it: in collection and in evaluation."""

from collections.abc import Sequence

import numpy as np
import torch

from envs.types import Observation
from envs.vector import SimVector
from pretrained.types import ObsBatch


class History:
    """The last L observations of each row, oldest first."""

    def __init__(self, vector: SimVector, length: int) -> None:
        n, spec = vector.num_envs, vector.env_spec
        self.images = {c: np.zeros((n, length, y, x, 3), np.uint8) for c, (y, x) in spec.cameras.items()}
        self.proprio = np.zeros((n, length, spec.proprio_dim), np.float32)
        self.texts = [""] * n

    def push(self, i: int, obs: Observation, *, first: bool) -> None:
        """Append; the first observation of an episode fills the whole history."""
        for store, value in [(self.images[c], obs.images[c]) for c in self.images] + [(self.proprio, obs.proprio)]:
            if first:
                store[i] = value
            else:
                store[i, :-1] = store[i, 1:]
                store[i, -1] = value
        self.texts[i] = obs.instruction

    def batch(self, rows: Sequence[int]) -> ObsBatch:
        """A copy of these rows."""
        index = list(rows)
        return ObsBatch(
            images={c: torch.from_numpy(v[index]) for c, v in self.images.items()},
            proprio=torch.from_numpy(self.proprio[index]),
            texts=[self.texts[i] for i in index],
        )
