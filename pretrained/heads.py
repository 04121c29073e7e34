"""What one link of a chain is: a distribution over the next point, and how to draw from it, score it, measure it.

`draw`, `log_prob` and `entropy` are shared by every kernel, so that the numbers of a rollout and those of the
learner come from the same lines. The two kernels of one link, `Gaussian` and `Categorical`, live here; the kernels
of many links are in `pretrained.chain`. Shapes: B rows, M links, H chunk length, A action dim, C categories.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)

# (network input [B, M, H, A], time [B or 1, M], condition [B, D]) -> (output [B, M, H, A or C], noise head or None)
Network = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]


class Link(NamedTuple):
    """Distribution of x_{k+1} given x_k. Elements are independent."""

    mean: Tensor  # [B, M, H, A]; the logit of +1 for binary entries; the logits [B, M, 1, C] if `categorical`
    std: Tensor  # broadcasts against mean; ignored where the element is discrete
    binary: tuple[int, ...] = ()  # action entries that are -1 or +1
    categorical: bool = False  # x is the index of a category, [B, M, 1, 1]


class Lesson(NamedTuple):
    """One imitation example per row: what the network is shown and what it should answer."""

    input: Tensor  # [B, H, A]
    time: Tensor  # [B]
    target: Tensor  # [B, H, A]


class Kernel(Protocol):
    """One family of chains. Frozen, holds no tensors; `steps` is K, the number of links."""

    @property
    def steps(self) -> int: ...

    @property
    def discrete(self) -> bool:
        """The chain ends in one integer instead of an action chunk."""
        ...

    @property
    def noise_head(self) -> str:
        """Which learned noise the kernel wants: "none", "state" (a network) or "free" (a parameter per element)."""
        ...

    def start(self, noise: Tensor) -> Tensor:
        """x_0 from standard normal noise."""
        ...

    def prepare(self, k: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Network input and time of link k: int64 [B or 1, M], x [B, M, H, A]."""
        ...

    def transition(self, k: Tensor, x: Tensor, out: Tensor, raw: Tensor | None, ode: bool = False) -> Link:
        """Distribution of x_{k+1}; `ode` gives the noiseless sampler's step as its mean instead."""
        ...

    def active(self, uniform: Tensor) -> Tensor:
        """bool [N, K]: the links that are drawn, from `uniform` [N]."""
        ...

    def lesson(self, actions: Tensor, rng: torch.Generator) -> Lesson: ...

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """[B, H, A] imitation loss of each element."""
        ...


def draw(link: Link, noise: Tensor) -> Tensor:
    """A sample, from standard normal `noise` [B, M, H, A]; discrete elements use it through its quantile."""
    if link.categorical:
        uniform = torch.special.ndtr(noise)
        index = (uniform > F.softmax(link.mean, -1).cumsum(-1)).sum(-1, keepdim=True)
        return index.clamp(max=link.mean.shape[-1] - 1).to(link.mean.dtype)
    x = link.mean + link.std * noise
    for i in link.binary:
        x[..., i] = torch.where(torch.special.ndtr(noise[..., i]) < torch.sigmoid(link.mean[..., i]), 1.0, -1.0)
    return x


def mode(link: Link) -> Tensor:
    """The most likely sample."""
    if link.categorical:
        return link.mean.argmax(-1, keepdim=True).to(link.mean.dtype)
    if not link.binary:
        return link.mean
    x = link.mean.clone()
    for i in link.binary:
        x[..., i] = torch.where(x[..., i] > 0, 1.0, -1.0)
    return x


def log_prob(link: Link, x: Tensor, execute: int) -> Tensor:
    """[B, M] float32: log-density of x [B, M, H, A], summed over the first `execute` rows of the chunk."""
    if link.categorical:
        picked = F.log_softmax(link.mean, -1).gather(-1, x.long())
        return picked.flatten(2).sum(-1)
    mean, std = link.mean[:, :, :execute], link.std.expand_as(link.mean)[:, :, :execute]
    x = x[:, :, :execute]
    terms = -0.5 * ((x - mean) / std) ** 2 - std.log() - HALF_LOG_TWO_PI
    if link.binary:
        terms = terms.clone()
        for i in link.binary:
            terms[..., i] = F.logsigmoid(mean[..., i] * x[..., i])
    # The sum runs over up to some hundred terms of either sign; float64 keeps the order of summation out of it.
    return terms.flatten(2).sum(-1, dtype=torch.float64).float()


def entropy(link: Link, execute: int) -> Tensor:
    """[B, M]: mean entropy per executed element, nats."""
    if link.categorical:
        logs = F.log_softmax(link.mean, -1)
        return -(logs.exp() * logs).sum(-1).mean(-1)
    mean, std = link.mean[:, :, :execute], link.std.expand_as(link.mean)[:, :, :execute]
    terms = std.log() + HALF_LOG_TWO_PI + 0.5
    if link.binary:
        terms = terms.clone()
        for i in link.binary:
            logit = mean[..., i]
            terms[..., i] = F.softplus(logit) - logit * torch.sigmoid(logit)
    return terms.flatten(2).mean(-1)


def bounded_std(raw: Tensor, low: float, high: float, initial: float) -> Tensor:
    """Standard deviation in [low, high]: tanh of `raw` interpolates the log-variance; raw = 0 gives `initial`."""
    share = math.log(initial / low) / math.log(high / low)  # of the way from low to high, in log space
    offset = math.atanh(min(max(2 * share - 1, -0.999), 0.999))
    return torch.exp(math.log(low) + math.log(high / low) * (torch.tanh(raw + offset) + 1) / 2)


def check_bounds(low: float, initial: float, high: float) -> None:
    """Raise ValueError unless 0 < low <= initial <= high and low < high."""
    if not (0 < low <= initial <= high and low < high):
        raise ValueError(f"noise bounds: expected 0 < min_std <= std <= max_std, got {low:g}, {initial:g}, {high:g}")


def every_link(uniform: Tensor, steps: int) -> Tensor:
    """bool [N, K], all true."""
    return torch.ones(len(uniform), steps, dtype=torch.bool, device=uniform.device)


def check_steps(name: str, steps: int) -> None:
    """Raise ValueError unless the chain has a link."""
    if steps < 1:
        raise ValueError(f"{name}: steps must be at least 1, got {steps}")


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """One link: a Gaussian around the network's chunk, with a learned bounded std and optional Bernoulli entries."""

    std: float = 0.1  # at the start; imitation leaves it there
    min_std: float = 0.02
    max_std: float = 0.5
    binary: tuple[int, ...] = ()  # gripper entries, whose sample is -1 or +1
    steps: int = 1
    discrete = False
    noise_head = "free"

    def __post_init__(self) -> None:
        check_bounds(self.min_std, self.std, self.max_std)
        object.__setattr__(self, "binary", tuple(self.binary))
        if self.steps != 1:
            raise ValueError(f"a Gaussian head has one link, got steps={self.steps}; use a flow or diffusion kernel")

    def start(self, noise: Tensor) -> Tensor:
        """Zeros: the chunk is decided at once."""
        return torch.zeros_like(noise)

    def prepare(self, k: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The network sees zeros at time 0."""
        return x, k.to(x.dtype)

    def transition(self, k: Tensor, x: Tensor, out: Tensor, raw: Tensor | None, ode: bool = False) -> Link:
        """The network's output is the mean."""
        assert raw is not None
        return Link(out, bounded_std(raw, self.min_std, self.max_std, self.std), self.binary)

    def active(self, uniform: Tensor) -> Tensor:
        """The one link is drawn."""
        return every_link(uniform, 1)

    def lesson(self, actions: Tensor, rng: torch.Generator) -> Lesson:
        """Predict the chunk."""
        return Lesson(torch.zeros_like(actions), actions.new_zeros(len(actions)), actions)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Squared error; cross-entropy for binary entries."""
        terms = (out - target) ** 2
        for i in self.binary:
            terms[..., i] = F.binary_cross_entropy_with_logits(
                out[..., i], (target[..., i] > 0).to(out.dtype), reduction="none"
            )
        return terms


@dataclass(frozen=True, kw_only=True)
class Categorical:
    """One link: one of C integers. The trace holds the index as a float."""

    steps: int = 1
    discrete = True
    noise_head = "none"

    def __post_init__(self) -> None:
        if self.steps != 1:
            raise ValueError(f"a categorical head has one link, got steps={self.steps}; leave it out")

    def start(self, noise: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(noise)

    def prepare(self, k: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The network sees zeros at time 0."""
        return x, k.to(x.dtype)

    def transition(self, k: Tensor, x: Tensor, out: Tensor, raw: Tensor | None, ode: bool = False) -> Link:
        """The network's output is the logits."""
        return Link(out, out.new_ones(()), categorical=True)

    def active(self, uniform: Tensor) -> Tensor:
        """The one link is drawn."""
        return every_link(uniform, 1)

    def lesson(self, actions: Tensor, rng: torch.Generator) -> Lesson:
        """Predict the index."""
        return Lesson(torch.zeros_like(actions), actions.new_zeros(len(actions)), actions)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy, [B, 1, 1]."""
        nll = F.cross_entropy(out.flatten(0, 1), target.long().flatten(), reduction="none")
        return nll.view(target.shape)
