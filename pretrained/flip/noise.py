"""Noise of FLIP's video model: schedules, the loss, and samplers that keep the history as it is.

DDPM with learned variances (Ho et al. 2020; Nichol and Dhariwal 2021; Peebles and Xie 2023) on latents [B, T, C, Y, X]
whose first frames are known. Schedules are tables in float64; a respaced one has fewer steps of the same noise, and
tells the network the numbers of the steps it was trained on.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrained.types import Rng, randn

STEPS, FIRST, LAST = 1000, 1e-4, 0.02  # of the schedule trained on
Net = Callable[[Tensor, Tensor], Tensor]  # latents, steps int64 [B] -> noise and variance [B, T, 2C, Y, X]


@dataclass(frozen=True)
class Schedule:
    """Tables over the steps, float64; entry 0 is the cleanest. `told` is what the network hears of each step."""

    betas: Tensor
    told: Tensor  # int64

    @property
    def steps(self) -> int:
        return len(self.betas)

    @property
    def kept(self) -> Tensor:
        """How much of the variance is signal: the running product of 1 - beta."""
        return torch.cumprod(1 - self.betas, 0)

    @property
    def kept_before(self) -> Tensor:
        return torch.cat([self.betas.new_ones(1), self.kept[:-1]])

    @property
    def posterior_variance(self) -> Tensor:
        return self.betas * (1 - self.kept_before) / (1 - self.kept)

    @property
    def posterior_log_variance(self) -> Tensor:
        """The cleanest step has variance zero, and gets that of the next one."""
        variance = self.posterior_variance
        return torch.cat([variance[1:2], variance[1:]]).log() if len(variance) > 1 else variance.log()

    @property
    def of_clean(self) -> Tensor:
        """Weight of the clean sample in the posterior mean."""
        return self.betas * self.kept_before.sqrt() / (1 - self.kept)

    @property
    def of_noisy(self) -> Tensor:
        """Weight of the noisy sample in the posterior mean."""
        return (1 - self.kept_before) * (1 - self.betas).sqrt() / (1 - self.kept)


def linear(steps: int = STEPS) -> Schedule:
    """The schedule of `steps` steps; the betas of a short one are larger. Raises ValueError if one reaches 1."""
    scale = STEPS / steps
    if scale * LAST >= 1:
        raise ValueError(f"a schedule of {steps} steps has a beta of {scale * LAST:g}; expected more than 20 steps")
    return Schedule(torch.linspace(scale * FIRST, scale * LAST, steps, dtype=torch.float64), torch.arange(steps))


def respaced(base: Schedule, steps: int, *, strided: bool = False) -> Schedule:
    """`steps` of the steps of `base`: from its first to its last, or `strided` at a whole number apart, as for DDIM."""
    total = base.steps
    if not 1 <= steps <= total:
        raise ValueError(f"{steps} steps of a schedule of {total}: expected 1 to {total}")
    if strided:
        strides = [s for s in range(1, total + 1) if len(range(0, total, s)) == steps]
        if not strides:
            raise ValueError(f"no whole stride takes {steps} of {total} steps; choose another number, such as 20 or 50")
        chosen = list(range(0, total, strides[0]))
    else:
        stride = (total - 1) / (steps - 1) if steps > 1 else 1
        chosen = sorted({round(i * stride) for i in range(steps)})
    kept = base.kept[chosen]
    before = torch.cat([kept.new_ones(1), kept[:-1]])
    return Schedule(1 - kept / before, base.told[chosen])


@dataclass(frozen=True)
class Posterior:
    """Where the sample of one step less noise is."""

    mean: Tensor
    log_variance: Tensor
    clean: Tensor  # what the network takes for the clean sample
    noise: Tensor


def posterior(schedule: Schedule, out: Tensor, x: Tensor, t: Tensor, *, clip: float = 0.0) -> Posterior:
    """From the network's answer for x at the schedule's steps t [B]; `clip` bounds the clean sample, unless it is 0."""
    noise, between = out.chunk(2, 2)
    share = (between + 1) / 2  # of the larger of two bounds of the log-variance
    log_variance = share * at(schedule.betas.log(), t, x) + (1 - share) * at(schedule.posterior_log_variance, t, x)
    kept = schedule.kept
    clean = at((1 / kept).sqrt(), t, x) * x - at((1 / kept - 1).sqrt(), t, x) * noise
    clean = clean.clamp(-clip, clip) if clip else clean
    mean = at(schedule.of_clean, t, x) * clean + at(schedule.of_noisy, t, x) * x
    return Posterior(mean, log_variance, clean, noise)


def noisy(schedule: Schedule, clean: Tensor, t: Tensor, noise: Tensor, known: int) -> Tensor:
    """Latents at step t; the first `known` frames stay clean."""
    x = at(schedule.kept.sqrt(), t, clean) * clean + at((1 - schedule.kept).sqrt(), t, clean) * noise
    return torch.cat([clean[:, :known], x[:, known:]], 1)


def losses(schedule: Schedule, net: Net, clean: Tensor, t: Tensor, noise: Tensor, known: int) -> dict[str, Tensor]:
    """`mse` of the noise and `bound`, the bits of the variances, each [B]; the loss is their sum."""
    x = noisy(schedule, clean, t, noise, known)
    out = net(x, schedule.told.to(t.device)[t])
    return {
        "mse": _mean((out.chunk(2, 2)[0] - noise)[:, known:] ** 2),
        "bound": _bits(schedule, out, x, clean, t, known),
    }


def _bits(schedule: Schedule, out: Tensor, x: Tensor, clean: Tensor, t: Tensor, known: int) -> Tensor:
    """Variational bound of one step, in bits per element; only the variances learn from it."""
    noise, between = out.chunk(2, 2)
    guess = posterior(schedule, torch.cat([noise.detach(), between], 2), x, t)
    true = at(schedule.of_clean, t, x) * clean + at(schedule.of_noisy, t, x) * x
    log_true, log_guess = at(schedule.posterior_log_variance, t, x), guess.log_variance
    gap = (true - guess.mean) ** 2
    kl = 0.5 * (-1 + log_guess - log_true + (log_true - log_guess).exp() + gap * (-log_guess).exp())
    surprise = -_log_bins(clean, guess.mean, 0.5 * log_guess)
    first = (t == 0).view(-1, *[1] * (x.ndim - 1))
    return _mean(torch.where(first, surprise, kl)[:, known:]) / math.log(2)


def _log_bins(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-probability of a bin of width 2/255 around x; the outermost bins are open."""
    centred, scale = x - mean, (-log_std).exp()
    below, above = _normal_cdf(scale * (centred - 1 / 255)), _normal_cdf(scale * (centred + 1 / 255))
    low, high = above.clamp(min=1e-12).log(), (1 - below).clamp(min=1e-12).log()
    inside = (above - below).clamp(min=1e-12).log()
    return torch.where(x < -0.999, low, torch.where(x > 0.999, high, inside))


def _normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation, which the recorded losses have."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@torch.no_grad()
def sample(
    schedule: Schedule,
    net: Net,
    history: Tensor,
    frames: int,
    rng: Rng | None = None,
    *,
    eta: float | None = None,
    noises: Sequence[Tensor] | None = None,
    clip: float = 0.0,
) -> Tensor:
    """Latents [B, known + frames, C, Y, X] after the history [B, known, C, Y, X].

    Ancestral if `eta` is None, else DDIM (Song et al. 2021) with that share of its noise: 0 is deterministic. `noises`
    (one for the start and one per step) stand for what `rng` would draw. Raises ValueError if a network's answer is not
    finite."""
    known, shape = history.shape[1], (len(history), history.shape[1] + frames, *history.shape[2:])
    draws = iter(noises) if noises is not None else None
    draw = _drawn(shape, rng, history.device) if draws is None else lambda: next(draws).to(history)
    x = torch.cat([history, draw()[:, known:]], 1)
    for k in reversed(range(schedule.steps)):
        t = torch.full((len(x),), k, dtype=torch.int64, device=x.device)
        out = net(x, schedule.told.to(t.device)[t])
        if not bool(torch.isfinite(out).all()):
            raise ValueError(
                f"the video model answers NaN or infinity at step {int(schedule.told[k])}; its weights or "
                "precision are broken: load another checkpoint, or compute in float32"
            )
        guess = posterior(schedule, out, x, t, clip=clip)
        x = _ancestral(guess, k, draw()) if eta is None else _ddim(schedule, guess, x, t, eta, draw)
        x = torch.cat([history, x[:, known:]], 1)
    return x


def _ancestral(guess: Posterior, k: int, noise: Tensor) -> Tensor:
    return guess.mean + (0.5 * guess.log_variance).exp() * noise if k else guess.mean


def _ddim(s: Schedule, guess: Posterior, x: Tensor, t: Tensor, eta: float, draw: Callable[[], Tensor]) -> Tensor:
    kept, before = at(s.kept, t, x), at(s.kept_before, t, x)
    noise = (x - kept.sqrt() * guess.clean) / (1 - kept).sqrt()  # again, since the clean sample may be clipped
    std = eta * ((1 - before) / (1 - kept) * (1 - kept / before)).sqrt()
    moved = before.sqrt() * guess.clean + (1 - before - std**2).clamp(min=0).sqrt() * noise
    return moved + std * draw() if eta else moved


def _drawn(shape: Sequence[int], rng: Rng | None, device: torch.device) -> Callable[[], Tensor]:
    if rng is None:
        raise ValueError("sampling needs a generator, or the noise of each step")
    return lambda: randn(shape, rng, device)


def at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """table[t] as [B, 1, ...] in the type of `like`."""
    return table.to(like.device)[t].to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def _mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)
