"""Generalised advantage estimation over decisions (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

One decision lasts `duration` environment steps, so it discounts by gamma ** duration; lambda is per decision. The sum
is cut where an episode ends; the value behind the end counts at truncation only, and it is the value of the true
final observation.
"""

import torch
from torch import Tensor

from rl.reduce import moments


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    duration: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    *,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns [N, T] from rewards, values and episode ends, all [N, T].

    `next_value` is the value of the next observation, or of the final one. Rows that are not `valid` get 0 and cut
    the sum.
    """
    discount = gamma ** duration.to(value.dtype)
    bootstrap = discount * next_value * (~terminated)
    delta = torch.where(valid, reward + bootstrap - value, 0.0)  # also where a lost row is not finite
    carry = discount * lam * (~(terminated | truncated)) * valid
    advantage = torch.zeros_like(value)
    running = torch.zeros_like(value[:, 0])
    for t in range(value.shape[1] - 1, -1, -1):
        running = delta[:, t] + carry[:, t] * running
        advantage[:, t] = running
    return advantage, torch.where(valid, advantage + value, 0.0)


class ReturnScale:
    """Divides rewards by the running standard deviation of the discounted return (as DPPO does, arXiv:2409.00588).

    Rewards are clipped to +-10 after scaling. Streams must keep their order from one segment to the next. Learners
    that train together share the statistics.
    """

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        self.count, self.mean, self.m2 = 1e-4, 0.0, 0.0
        self.running: Tensor | None = None

    def __call__(self, reward: Tensor, duration: Tensor, done: Tensor, valid: Tensor) -> Tensor:
        """Scaled rewards [N, T]; updates the statistics with this segment first."""
        n, decisions = reward.shape
        running = self.running
        if running is None or running.shape[0] != n:
            running = torch.zeros(n, dtype=torch.float64)
        returns = []
        for t in range(decisions):
            running = running * self.gamma ** duration[:, t].double() + reward[:, t].double()
            returns.append(running[valid[:, t]])
            running = running * ~(done[:, t] | ~valid[:, t])
        self.running = running
        self._absorb(torch.cat(returns))
        return (reward / self.std).clamp(-10, 10)

    @property
    def std(self) -> float:
        return max((self.m2 / self.count) ** 0.5, 1e-3)

    def _absorb(self, x: Tensor) -> None:
        n, mean, m2 = moments(x)
        if not n:
            return
        delta, total = mean - self.mean, self.count + n
        self.m2 += m2 + delta**2 * self.count * n / total
        self.mean += delta * n / total
        self.count = total

    def state(self) -> dict[str, Tensor | float]:
        """For checkpoints."""
        running = self.running if self.running is not None else torch.zeros(0, dtype=torch.float64)
        return {"count": self.count, "mean": self.mean, "m2": self.m2, "running": running}

    def load(self, state: dict[str, Tensor | float]) -> None:
        """Continue from `state()`."""
        self.count, self.mean, self.m2 = (float(state[k]) for k in ("count", "mean", "m2"))
        running = torch.as_tensor(state["running"])
        self.running = running if len(running) else None
