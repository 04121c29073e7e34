"""Chains: every policy goes from x_0 to x_K in K links, each a distribution that can be drawn from and scored.

A kernel is one family of links: `FlowNoise` and `FlowSde` are here, `Ddpm`, `Ddim` and `Edm` in `pretrained.diffusion`,
`Gaussian` and `Categorical`, of one link, in `pretrained.heads`; all can be named as `pretrained.chain.<Name>`. Each
has exactly one `transition`, which `sample` and `score` both call, on one time grid, in float32: sampler and scorer
cannot drift apart. x is the normalised action chunk, roughly [-1, 1].

Time of flows is t_k = k / K with noise at 0 and data at 1; the network is never asked at t = 1. Diffusion kernels
give the network a time that also grows from noise to data. docs/chains.md has the formulas.

Departures from the papers, on purpose:
- Noise is not clipped (DPPO, ReinFlow clip at 3 sigma), nor are log-probs: densities are exact and integrate to 1.
- ReinFlow's grid bug (sampling on linspace(0, 1, K), scoring on k / K) is not reproduced.
- log N(x_0) does not depend on the weights; it is left out of the log-prob.
- A log-prob counts the executed rows of each link, although rows that are not executed influence later links.
- Diffusion schedules end less noisy (`max_beta` 0.97 instead of 0.999; DDIM starts at `first` * train_steps): where
  sqrt(alpha_bar) is tiny, the clamp of the predicted sample leaves the first link without gradient.
- Greedy decisions follow the noiseless sampler (the ODE, eta = 0), which is each link's mean where noise is additive.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pretrained.diffusion import Ddim, Ddpm, Edm
from pretrained.heads import (
    Categorical,
    Gaussian,
    Kernel,
    Lesson,
    Link,
    Network,
    bounded_std,
    check_bounds,
    check_steps,
    draw,
    entropy,
    every_link,
    log_prob,
    mode,
)
from pretrained.types import Rng, rand, randn

__all__ = ["Categorical", "Chain", "Ddim", "Ddpm", "Edm", "FlowNoise", "FlowSde", "Gaussian", "sample", "score"]


class Chain(NamedTuple):
    """What `sample` returns."""

    trace: Tensor  # [N, K+1, H, A]
    log_prob: Tensor  # [N, K]
    active: Tensor  # bool [N, K]


class Base(NamedTuple):
    """Who draws the first links of a chain whose last ones are fine-tuned."""

    links: int
    network: Network
    cond: Tensor  # [N, D]


@torch.no_grad()
def sample(
    kernel: Kernel,
    network: Network,
    cond: Tensor,
    shape: tuple[int, int],
    rng: Rng,
    *,
    execute: int,
    greedy: bool = False,
    zero_start: bool = False,
    base: Base | None = None,
) -> Chain:
    """Run the chain for every row of cond [N, D]; `shape` is (H, A), `zero_start` takes x_0 from zero noise.

    Links of `base` are drawn like the others, but they are not active, and their log-prob is 0.
    """
    n, device = len(cond), cond.device
    noise = randn((n, kernel.steps + 1, *shape), rng, device)
    active = kernel.active(rand((n, 1), rng, device).squeeze(1))
    if greedy:
        active = torch.zeros_like(active)
    x = kernel.start(noise[:, :1] * (0.0 if zero_start and greedy else 1.0))
    points, scores = [x], []
    for i in range(kernel.steps):
        k = torch.full((1, 1), i, dtype=torch.int64, device=device)  # of all rows, so that time is embedded once
        inputs, time = kernel.prepare(k, x)
        frozen = base if base is not None and i < base.links else None
        out, raw = network(inputs, time, cond) if frozen is None else frozen.network(inputs, time, frozen.cond)
        link = kernel.transition(k, x, out, raw)
        drawn = active[:, i, None, None, None]
        if bool(drawn.all()):
            x_next = draw(link, noise[:, i + 1 : i + 2])
        else:
            still = mode(kernel.transition(k, x, out, raw, ode=True))
            x_next = torch.where(drawn, draw(link, noise[:, i + 1 : i + 2]), still)
        scores.append(log_prob(link, x_next, execute) if frozen is None else x.new_zeros(n, 1))
        x = x_next
        points.append(x)
    if base is not None:
        active = active & (torch.arange(kernel.steps, device=device) >= base.links)
    return Chain(torch.cat(points, 1), torch.cat(scores, 1), active)


def score(
    kernel: Kernel,
    network: Network,
    cond: Tensor,
    trace: Tensor,
    *,
    execute: int,
    links: Tensor | None = None,
    first: int = 0,
) -> tuple[Tensor, Tensor]:
    """Log-prob [B, M] of the links int64 [B, M] (all K if None) of traces [B, K+1, H, A], and entropy [B].

    Links before `first` belong to another network: their log-prob is 0, as `sample` has it.
    """
    if links is None:
        k = torch.arange(first, kernel.steps, device=trace.device)[None]
        x, x_next = trace[:, first:-1], trace[:, first + 1 :]
    else:
        k = links
        index = links[:, :, None, None].expand(-1, -1, *trace.shape[2:])
        x, x_next = trace.gather(1, index), trace.gather(1, index + 1)
    inputs, time = kernel.prepare(k, x)
    out, raw = network(inputs, time, cond)
    link = kernel.transition(k, x, out, raw)
    scores = log_prob(link, x_next, execute)
    if links is None:
        scores = torch.nn.functional.pad(scores, (first, 0))
    elif first:
        scores = scores * (links >= first)
    return scores, entropy(link, execute).mean(-1)


def flow_lesson(actions: Tensor, rng: torch.Generator, times: str, *, noise: Tensor | None = None) -> Lesson:
    """Rectified flow (Liu et al. 2022): x_t = t a + (1 - t) e, answer a - e. `noise` e is drawn unless given."""
    u = rand((len(actions),), rng, actions.device)
    if times == "logit_normal":
        t = torch.sigmoid(randn((len(actions),), rng, actions.device))
    elif times == "beta":  # Beta(1.5, 1) has the distribution function b^1.5; more weight near the noise
        t = 0.999 * (1 - u ** (2 / 3))
    else:
        t = u
    noise = randn(actions.shape, rng, actions.device) if noise is None else noise
    s = t[:, None, None]
    return Lesson(s * actions + (1 - s) * noise, t, actions - noise)


def _check_times(times: str) -> None:
    if times not in ("uniform", "logit_normal", "beta"):
        raise ValueError(f"times '{times}' is unknown; expected uniform, logit_normal or beta")


@dataclass(frozen=True, kw_only=True)
class FlowNoise:
    """Flow with learned noise: ReinFlow (Zhang et al. 2025), Flow-Noise of pi_RL (Chen et al. 2025)."""

    steps: int = 4
    min_std: float = 0.05
    max_std: float = 0.2
    std: float = 0.1  # at the start
    clamp: float | None = None  # bound of every link's mean; ReinFlow uses 1
    times: str = "uniform"  # of imitation: uniform | logit_normal | beta
    discrete = False
    noise_head = "state"

    def __post_init__(self) -> None:
        check_steps("FlowNoise", self.steps)
        _check_times(self.times)
        check_bounds(self.min_std, self.std, self.max_std)

    def start(self, noise: Tensor) -> Tensor:
        """Standard normal."""
        return noise

    def prepare(self, k: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """t = k / K."""
        return x, k.to(x.dtype) / self.steps

    def transition(self, k: Tensor, x: Tensor, out: Tensor, raw: Tensor | None, ode: bool = False) -> Link:
        """One Euler step, plus noise of learned size."""
        assert raw is not None
        mean = x + out / self.steps
        if self.clamp is not None:
            mean = mean.clamp(-self.clamp, self.clamp)
        return Link(mean, bounded_std(raw, self.min_std, self.max_std, self.std))

    def active(self, uniform: Tensor) -> Tensor:
        """All links."""
        return every_link(uniform, self.steps)

    def lesson(self, actions: Tensor, rng: torch.Generator) -> Lesson:
        """Rectified flow."""
        return flow_lesson(actions, rng, self.times)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Squared error."""
        return (out - target) ** 2


@dataclass(frozen=True, kw_only=True)
class FlowSde:
    """Flow SDE with the ODE's marginals: Flow-GRPO (Liu et al. 2025); one random link: pi_RL (Chen et al. 2025)."""

    steps: int = 4
    level: float = 0.5  # a in sigma(t) = a sqrt((1 - t) / t)
    links: str = "all"  # all | one: which links are stochastic; the others take the ODE step
    times: str = "uniform"
    discrete = False
    noise_head = "none"

    def __post_init__(self) -> None:
        check_steps("FlowSde", self.steps)
        _check_times(self.times)
        if self.links not in ("all", "one"):
            raise ValueError(f"FlowSde: links '{self.links}' is unknown; expected all or one")
        if self.level <= 0:
            raise ValueError(f"FlowSde: level must be positive, got {self.level:g}")

    def start(self, noise: Tensor) -> Tensor:
        """Standard normal."""
        return noise

    def prepare(self, k: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """t = k / K."""
        return x, k.to(x.dtype) / self.steps

    def transition(self, k: Tensor, x: Tensor, out: Tensor, raw: Tensor | None, ode: bool = False) -> Link:
        """Euler-Maruyama step; at t = 0 the next grid value stands in the denominator of sigma."""
        dt = 1.0 / self.steps
        t = (k.to(x.dtype) * dt)[..., None, None]
        below = t.clamp(min=dt)
        std = self.level * torch.sqrt((1 - t) * dt / below)  # sigma sqrt(dt)
        if ode:
            return Link(x + dt * out, std)
        # sigma^2 dt / (2 (1 - t)) = a^2 dt / (2 t): the pull towards the marginal's score
        return Link(x + dt * out - (self.level**2 * dt / (2 * below)) * (x - t * out), std)

    def active(self, uniform: Tensor) -> Tensor:
        """All links, or one at random."""
        if self.links == "all":
            return every_link(uniform, self.steps)
        index = (uniform * self.steps).long().clamp(max=self.steps - 1)
        return torch.nn.functional.one_hot(index, self.steps).bool()

    def lesson(self, actions: Tensor, rng: torch.Generator) -> Lesson:
        """Rectified flow."""
        return flow_lesson(actions, rng, self.times)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Squared error."""
        return (out - target) ** 2
