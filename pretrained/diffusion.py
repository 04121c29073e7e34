"""Diffusion kernels: DDPM and DDIM with a noise floor (DPPO), and EDM with ancestral steps.

See `pretrained.chain` for what a kernel is and for the departures from the papers.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pretrained.heads import Lesson, Link, bounded_std, check_bounds, check_steps, every_link
from pretrained.types import rand, randn


def _column(table: Tensor, k: Tensor) -> Tensor:
    """table[k] [B, M, 1, 1]."""
    return table[k][..., None, None]


@lru_cache(maxsize=64)
def alpha_bars(steps: int, max_beta: float, device: torch.device) -> Tensor:
    """[steps] cosine schedule (Nichol and Dhariwal 2021, s = 0.008, beta <= max_beta); entry 0 is the cleanest."""
    u = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = (1 - f[1:] / f[:-1]).clamp(max=max_beta)
    return torch.cumprod(1 - betas, 0).float().to(device)


def _diffusion_lesson(actions: Tensor, rng: torch.Generator, steps: int, max_beta: float) -> Lesson:
    """Ho et al. 2020: answer the noise in sqrt(ab) a + sqrt(1 - ab) e."""
    t = (rand((len(actions),), rng, actions.device) * steps).long().clamp(max=steps - 1)
    noise = randn(actions.shape, rng, actions.device)
    ab = alpha_bars(steps, max_beta, actions.device)[t][:, None, None]
    time = (steps - 1 - t).to(actions.dtype) / steps
    return Lesson(ab.sqrt() * actions + (1 - ab).sqrt() * noise, time, noise)


def _clean(x: Tensor, epsilon: Tensor, ab: Tensor, clamp: float | None) -> Tensor:
    """The sample that x and the predicted noise imply."""
    clean = (x - (1 - ab).sqrt() * epsilon) / ab.sqrt()
    return clean if clamp is None else clean.clamp(-clamp, clamp)


@dataclass(frozen=True, kw_only=True)
class Ddpm:
    """DDPM with a floor on the noise: DPPO (Ren et al. 2024). Link k is diffusion step K - 1 - k."""

    steps: int = 10
    min_std: float = 0.1
    clamp: float | None = 1.0  # of the predicted sample
    max_beta: float = 0.97  # of the schedule; the papers' 0.999 clamps away the first link's gradient
    discrete = False
    noise_head = "none"

    def __post_init__(self) -> None:
        check_steps("Ddpm", self.steps)

    def start(self, noise: Tensor) -> Tensor:
        """Standard normal."""
        return noise

    def prepare(self, k: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Time k / K."""
        return x, k.to(x.dtype) / self.steps

    def transition(self, k: Tensor, x: Tensor, out: Tensor, raw: Tensor | None, ode: bool = False) -> Link:
        """Posterior of Ho et al. 2020, equations 6 and 7, with the sample the network implies."""
        table = alpha_bars(self.steps, self.max_beta, x.device)
        ab = _column(table, self.steps - 1 - k)
        before = _column(torch.cat([table.new_ones(1), table[:-1]]), self.steps - 1 - k)  # alpha_bar one step cleaner
        alpha = ab / before
        clean = _clean(x, out, ab, self.clamp)
        mean = (before.sqrt() * (1 - alpha) * clean + alpha.sqrt() * (1 - before) * x) / (1 - ab)
        std = ((1 - alpha) * (1 - before) / (1 - ab)).sqrt()
        return Link(mean, std.clamp(min=self.min_std))

    def active(self, uniform: Tensor) -> Tensor:
        """All links."""
        return every_link(uniform, self.steps)

    def lesson(self, actions: Tensor, rng: torch.Generator) -> Lesson:
        """Predict the noise."""
        return _diffusion_lesson(actions, rng, self.steps, self.max_beta)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Squared error."""
        return (out - target) ** 2


@dataclass(frozen=True, kw_only=True)
class Ddim:
    """DDIM (Song et al. 2020) on a subset of the trained steps, eta > 0 while learning: DPPO's sampler for pixels."""

    steps: int = 5
    train_steps: int = 100
    eta: float = 1.0
    min_std: float = 0.1
    clamp: float | None = 1.0
    max_beta: float = 0.97
    first: float = 0.9  # the chain starts at this share of the trained steps
    discrete = False
    noise_head = "none"

    def __post_init__(self) -> None:
        check_steps("Ddim", self.steps)
        if not 0 < self.first <= 1 or round(self.first * self.train_steps) < self.steps:
            raise ValueError(
                f"Ddim: {self.steps} steps do not fit in the first {self.first:g} of {self.train_steps} trained steps; "
                "expected 0 < first <= 1 and first * train_steps >= steps"
            )

    def _step(self, k: Tensor) -> Tensor:
        """Trained step of link k; -1, the clean sample, for k = K."""
        return torch.round(self.first * self.train_steps * (self.steps - k) / self.steps).long() - 1

    def start(self, noise: Tensor) -> Tensor:
        """Standard normal."""
        return noise

    def prepare(self, k: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The time of the trained step."""
        return x, (self.train_steps - 1 - self._step(k)).to(x.dtype) / self.train_steps

    def transition(self, k: Tensor, x: Tensor, out: Tensor, raw: Tensor | None, ode: bool = False) -> Link:
        """Song et al. 2020, equations 12 and 16; the noise is recomputed from the clamped sample."""
        table = alpha_bars(self.train_steps, self.max_beta, x.device)
        table = torch.cat([table.new_ones(1), table])  # entry s + 1 is step s
        ab, after = _column(table, self._step(k) + 1), _column(table, self._step(k + 1) + 1)
        clean = _clean(x, out, ab, self.clamp)
        epsilon = (x - ab.sqrt() * clean) / (1 - ab).sqrt()
        eta = 0.0 if ode else self.eta
        std = eta * ((1 - after) / (1 - ab) * (1 - ab / after)).sqrt()
        mean = after.sqrt() * clean + (1 - after - std**2).clamp(min=0).sqrt() * epsilon
        return Link(mean, std.clamp(min=self.min_std))

    def active(self, uniform: Tensor) -> Tensor:
        """All links."""
        return every_link(uniform, self.steps)

    def lesson(self, actions: Tensor, rng: torch.Generator) -> Lesson:
        """Predict the noise."""
        return _diffusion_lesson(actions, rng, self.train_steps, self.max_beta)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Squared error."""
        return (out - target) ** 2


@lru_cache(maxsize=64)
def sigma_list(
    steps: int, sigma_min: float, sigma_max: float, rho: float, spacing: str, device: torch.device
) -> Tensor:
    """[steps + 1] noise levels, the last 0: Karras et al. 2022, equation 5, or evenly spaced logarithms."""
    u = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    if spacing == "exponential":
        s = sigma_max * (sigma_min / sigma_max) ** u
    else:
        root = 1 / rho
        s = (sigma_max**root + u * (sigma_min**root - sigma_max**root)) ** rho
    return torch.cat([s, s.new_zeros(1)]).float().to(device)


def log_logistic(uniform: Tensor, median: float, scale: float, low: float, high: float) -> Tensor:
    """Noise levels between `low` and `high` whose logarithm is logistic, from uniform numbers; float64 inside."""
    ends = [1 / (1 + math.exp(-(math.log(s) - math.log(median)) / scale)) for s in (low, high)]
    u = uniform.double() * (ends[1] - ends[0]) + ends[0]
    return torch.exp(torch.logit(u) * scale + math.log(median)).float()


@dataclass(frozen=True, kw_only=True)
class Edm:
    """EDM (Karras et al. 2022) with ancestral steps. x is not scaled: x_0 has standard deviation sigma_max.

    Without noise its step is also that of DDIM. `noise: learned` keeps that step and adds noise whose size is learned,
    in units of the standard deviation of the data at the noise level of the next point.
    """

    steps: int = 5
    sigma_data: float = 0.5
    sigma_min: float = 0.05
    sigma_max: float = 20.0
    rho: float = 7.0
    spacing: str = "karras"  # of the noise levels: karras | exponential
    noise: str = "ancestral"  # ancestral | learned
    eta: float = 1.0
    min_std: float = 0.1
    max_std: float = 0.3  # of learned noise
    std: float = 0.15  # of learned noise, at the start
    density: str = "log_normal"  # of the noise levels of imitation: log_normal | log_logistic
    mean_log_sigma: float = -1.2  # of log_normal
    std_log_sigma: float = 1.2
    train_min: float = 0.001  # of log_logistic, whose median is sigma_data, and which ends at sigma_max
    logistic_scale: float = 0.5
    discrete = False

    def __post_init__(self) -> None:
        check_steps("Edm", self.steps)
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"Edm: expected 0 < sigma_min < sigma_max, got {self.sigma_min:g}, {self.sigma_max:g}")
        choices = {
            "spacing": ("karras", "exponential"),
            "noise": ("ancestral", "learned"),
            "density": ("log_normal", "log_logistic"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"Edm: {name} '{getattr(self, name)}' is unknown; expected {' or '.join(known)}")
        if self.noise == "learned":
            check_bounds(self.min_std, self.std, self.max_std)

    @property
    def noise_head(self) -> str:
        """Learned noise needs a network."""
        return "state" if self.noise == "learned" else "none"

    def sigmas(self, device: torch.device | None = None) -> Tensor:
        """[K + 1] the noise levels of the chain."""
        place = torch.device("cpu") if device is None else device
        return sigma_list(self.steps, self.sigma_min, self.sigma_max, self.rho, self.spacing, place)

    def _sigma(self, k: Tensor, device: torch.device) -> Tensor:
        return _column(self.sigmas(device), k)

    def start(self, noise: Tensor) -> Tensor:
        """Normal with standard deviation sigma_max."""
        return noise * self.sigma_max

    def prepare(self, k: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input scaled to unit variance; time is -log(sigma) / 4."""
        sigma = self._sigma(k, x.device)
        return x / (sigma**2 + self.sigma_data**2).sqrt(), -sigma.log()[..., 0, 0] / 4

    def denoised(self, sigma: Tensor, x: Tensor, out: Tensor) -> Tensor:
        """The clean chunk that the network's output implies."""
        total = sigma**2 + self.sigma_data**2
        return x * (self.sigma_data**2 / total) + out * (sigma * self.sigma_data / total.sqrt())

    def transition(self, k: Tensor, x: Tensor, out: Tensor, raw: Tensor | None, ode: bool = False) -> Link:
        """Euler to sigma_down, then noise sigma_up; sigma_down^2 + sigma_up^2 is the next variance."""
        sigma, after = self._sigma(k, x.device), self._sigma(k + 1, x.device)
        clean = self.denoised(sigma, x, out)
        if self.noise == "learned":
            assert raw is not None
            size = (after**2 + self.sigma_data**2).sqrt() / self.sigma_data
            std = bounded_std(raw, self.min_std, self.max_std, self.std) * size
            return Link(clean + (x - clean) * (after / sigma), std)
        up = torch.zeros_like(sigma) if ode else self.eta * after * (1 - (after / sigma) ** 2).sqrt()
        up = torch.minimum(up, after)
        down = (after**2 - up**2).sqrt()
        mean = clean + (x - clean) * (down / sigma)
        return Link(mean, up.clamp(min=self.min_std))

    def active(self, uniform: Tensor) -> Tensor:
        """All links."""
        return every_link(uniform, self.steps)

    def lesson(self, actions: Tensor, rng: torch.Generator) -> Lesson:
        """A chunk with noise of a random level."""
        if self.density == "log_logistic":
            uniform = rand((len(actions),), rng, actions.device)
            sigma = log_logistic(uniform, self.sigma_data, self.logistic_scale, self.train_min, self.sigma_max)
        else:
            normal = randn((len(actions),), rng, actions.device)
            sigma = torch.exp(self.mean_log_sigma + self.std_log_sigma * normal)
        return self.lesson_at(sigma, actions, randn(actions.shape, rng, actions.device))

    def lesson_at(self, sigma: Tensor, actions: Tensor, noise: Tensor) -> Lesson:
        """Preconditioned target for levels [B] and standard normal noise: in it the loss weight of the paper is 1."""
        sigma = sigma[:, None, None]
        x = actions + sigma * noise
        total = sigma**2 + self.sigma_data**2
        target = (actions - x * (self.sigma_data**2 / total)) * (total.sqrt() / (sigma * self.sigma_data))
        return Lesson(x / total.sqrt(), -sigma.log()[:, 0, 0] / 4, target)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Squared error."""
        return (out - target) ** 2
