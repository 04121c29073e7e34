"""What time costs: one per executed step."""

from torch import Tensor

from rl.types import Segment


class Steps:
    """Give it a negative weight."""

    needs: frozenset[str] = frozenset()

    def __call__(self, segment: Segment, gamma: float) -> Tensor:
        """[N, T] executed steps of each decision."""
        return segment.duration.to(segment.env_reward)
