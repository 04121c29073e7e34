"""The benchmark's own reward."""

from torch import Tensor

from rl.types import Segment


class Sparse:
    """What the environment paid, discounted over the executed steps of each decision."""

    needs: frozenset[str] = frozenset()

    def __call__(self, segment: Segment, gamma: float) -> Tensor:
        """[N, T] reward of each decision."""
        return segment.env_reward
