"""Kernels against numbers computed by hand and against the papers' formulas."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrained import chain
from pretrained.diffusion import alpha_bars
from pretrained.heads import Link, bounded_std, draw, entropy, log_prob, mode

CPU = torch.device("cpu")


def link_index(k: int) -> Tensor:
    return torch.tensor([[k]])


def scalar(value: float) -> Tensor:
    return torch.full((1, 1, 1, 1), value)


def step(kernel: chain.Kernel, k: int, x: float, out: float, *, ode: bool = False) -> tuple[float, float]:
    link = kernel.transition(link_index(k), scalar(x), scalar(out), scalar(0.0), ode)
    return float(link.mean), float(link.std.expand_as(link.mean))


# --- flows ---


def test_flow_noise_is_an_euler_step_with_bounded_noise() -> None:
    kernel = chain.FlowNoise(steps=4, min_std=0.05, max_std=0.2, std=0.1)
    assert step(kernel, 2, 0.5, -1.0) == pytest.approx((0.25, 0.1))
    assert step(chain.FlowNoise(steps=4, clamp=1.0), 0, 1.5, 0.0)[0] == 1.0
    assert float(kernel.prepare(link_index(3), scalar(0.0))[1]) == 0.75  # never 1


def test_bounded_std_interpolates_the_log_variance() -> None:
    raw = torch.tensor([-50.0, 0.0, 50.0])
    middle = math.sqrt(0.05 * 0.2)
    assert torch.allclose(bounded_std(raw, 0.05, 0.2, middle), torch.tensor([0.05, middle, 0.2]))
    # ReinFlow: exp(1/2 (lv_min + (lv_max - lv_min) (tanh g + 1) / 2)) with g = 0.3
    low, high = 2 * math.log(0.05), 2 * math.log(0.2)
    expected = math.exp(0.5 * (low + (high - low) * (math.tanh(0.3) + 1) / 2))
    assert float(bounded_std(torch.tensor(0.3), 0.05, 0.2, middle)) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="min_std"):
        chain.FlowNoise(min_std=0.3, max_std=0.2)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_flow_sde_is_the_published_step(k: int) -> None:
    """Flow-GRPO in its own convention: t = 1 is noise, v = noise - data, and time runs down."""
    steps, a, x, w = 4, 0.7, 0.4, -0.8
    t, delta, v = 1 - k / steps, 1 / steps, 0.8
    sigma = a * math.sqrt(t / (1 - t))
    mean = x - delta * v - sigma**2 * delta / (2 * t) * (x + (1 - t) * v)
    ours = step(chain.FlowSde(steps=steps, level=a), k, x, w)
    assert ours == pytest.approx((mean, sigma * math.sqrt(delta)), rel=1e-5)


def test_flow_sde_starts_with_the_next_grid_value_in_the_denominator() -> None:
    # sigma = a sqrt(1 / dt): mean = x + dt w - a^2 / 2 x, std = a
    assert step(chain.FlowSde(steps=4, level=0.5), 0, 0.4, -0.8) == pytest.approx((0.4 - 0.2 - 0.125 * 0.4, 0.5))


def test_flow_sde_keeps_the_marginals_of_the_ode() -> None:
    """Data N(0, s^2): the velocity is linear in x, so both variances follow by recursion, without sampling."""
    s = 0.4

    def final_variance(steps: int, *, ode: bool) -> float:
        kernel, variance = chain.FlowSde(steps=steps, level=0.5), 1.0
        for k in range(steps):
            t = k / steps
            slope = (t * s**2 - (1 - t)) / (t**2 * s**2 + (1 - t) ** 2)  # E[data - noise | x] / x
            gain, std = step(kernel, k, 1.0, slope, ode=ode)
            variance = gain**2 * variance + (0.0 if ode else std**2)
        return variance

    error = {n: [abs(final_variance(n, ode=ode) / s**2 - 1) for ode in (False, True)] for n in (20, 1000)}
    assert max(error[1000]) < 0.01
    assert error[1000][0] < 0.3 * error[20][0]


def test_one_random_link_is_drawn_and_the_others_follow_the_ode() -> None:
    kernel = chain.FlowSde(steps=4, level=0.5, links="one")

    def network(x: Tensor, time: Tensor, cond: Tensor) -> tuple[Tensor, None]:
        return -x + time[..., None, None], None

    rngs = [torch.Generator().manual_seed(i) for i in range(64)]
    drawn = chain.sample(kernel, network, torch.zeros(64, 1), (2, 3), rngs, execute=2)
    assert (drawn.active.sum(1) == 1).all()
    assert drawn.active.any(0).all()  # every link has its turn
    x = drawn.trace[:, :-1]
    time = torch.arange(4) / 4
    ode = x + (-x + time[None, :, None, None]) / 4
    still = (drawn.trace[:, 1:] - ode).abs().amax((2, 3)) < 1e-6
    assert torch.equal(still, ~drawn.active)
    scores, _ = chain.score(kernel, network, torch.zeros(64, 1), drawn.trace, execute=2)
    assert torch.allclose(scores, drawn.log_prob, atol=1e-5)


# --- diffusion ---


def test_cosine_schedule() -> None:
    f = [math.cos((i / 5 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(6)]
    bars = alpha_bars(5, 0.999, CPU)
    assert bars[:4].tolist() == pytest.approx([f[i + 1] / f[0] for i in range(4)], rel=1e-5)
    assert float(bars[4]) == pytest.approx(float(bars[3]) * 0.001, rel=1e-4)
    assert float(alpha_bars(1, 0.97, CPU)) == pytest.approx(0.03)


def test_ddpm_is_the_posterior() -> None:
    kernel = chain.Ddpm(steps=5, min_std=0.01, clamp=None)
    bars, t, x, epsilon = alpha_bars(5, 0.97, CPU).double(), 2, 0.3, -0.5
    ab, before = float(bars[t]), float(bars[t - 1])
    beta = 1 - ab / before
    mean = (x - beta / math.sqrt(1 - ab) * epsilon) / math.sqrt(1 - beta)  # Ho et al. 2020, equation 11
    std = math.sqrt(beta * (1 - before) / (1 - ab))
    assert step(kernel, 5 - 1 - t, x, epsilon) == pytest.approx((mean, std), rel=1e-4)


def test_ddpm_floor_and_clamp() -> None:
    kernel = chain.Ddpm(steps=5, min_std=0.1)
    mean, std = step(kernel, 4, 0.3, 40.0)  # the last link: its posterior has no noise, and the sample is beyond -1
    assert (mean, std) == pytest.approx((-1.0, 0.1), abs=1e-5)


@pytest.mark.parametrize("k", range(6))
def test_ddim_with_eta_one_and_all_steps_is_ddpm(k: int) -> None:
    ddim = chain.Ddim(steps=6, train_steps=6, first=1.0, eta=1.0, min_std=1e-6)
    ddpm = chain.Ddpm(steps=6, min_std=1e-6)
    for x, epsilon in ((0.3, 0.2), (-1.2, 0.7), (0.9, -1.5)):
        assert step(ddim, k, x, epsilon) == pytest.approx(step(ddpm, k, x, epsilon), rel=1e-3, abs=1e-5)


def test_ddim_greedy_is_eta_zero() -> None:
    noisy, quiet = chain.Ddim(eta=1.0), chain.Ddim(eta=0.0)
    assert step(noisy, 1, 0.3, 0.2, ode=True)[0] == pytest.approx(step(quiet, 1, 0.3, 0.2)[0])
    assert step(noisy, 1, 0.3, 0.2)[0] != pytest.approx(step(quiet, 1, 0.3, 0.2)[0])


def test_ddim_steps_cover_the_schedule_and_end_clean() -> None:
    kernel = chain.Ddim(steps=5, train_steps=100, first=0.9)
    times = kernel.prepare(torch.arange(5)[None], torch.zeros(1, 5, 1, 1))[1][0]
    assert ((1 - times) * 100 - 1).tolist() == pytest.approx([89, 71, 53, 35, 17], abs=1e-4)
    assert step(kernel, 4, 0.0, 0.5)[1] == pytest.approx(0.1)  # the floor: the exact step has no noise
    with pytest.raises(ValueError, match="do not fit"):
        chain.Ddim(steps=50, train_steps=20)


# --- EDM ---


def test_edm_grid_and_ancestral_step() -> None:
    kernel = chain.Edm(steps=3, sigma_min=0.1, sigma_max=10.0, rho=7.0, sigma_data=0.5, min_std=0.01)
    sigma, after = (10 ** (1 / 7) + 0.5 * (0.1 ** (1 / 7) - 10 ** (1 / 7))) ** 7, 0.1
    x, out = 0.6, -0.3
    clean = 0.25 / (sigma**2 + 0.25) * x + sigma * 0.5 / math.sqrt(sigma**2 + 0.25) * out
    up = math.sqrt(after**2 * (sigma**2 - after**2) / sigma**2)
    down = math.sqrt(after**2 - up**2)
    mean = x + (x - clean) / sigma * (down - sigma)
    assert step(kernel, 1, x, out) == pytest.approx((mean, up), rel=1e-4)
    last = 0.25 / (0.01 + 0.25) * x + 0.1 * 0.5 / math.sqrt(0.26) * out
    assert step(kernel, 2, x, out) == pytest.approx((last, 0.01), rel=1e-4)


def test_edm_preconditioning_makes_the_target_exact() -> None:
    """Answering the lesson's target denoises to the action, whatever the noise."""
    kernel = chain.Edm(sigma_data=0.5)
    actions = torch.rand(64, 2, 3) * 2 - 1
    lesson = kernel.lesson(actions, torch.Generator().manual_seed(0))
    sigma = torch.exp(-4 * lesson.time)[:, None, None]
    total = sigma**2 + 0.25
    clean = lesson.input * 0.25 / total.sqrt() + lesson.target * sigma * 0.5 / total.sqrt()
    assert torch.allclose(clean, actions, atol=1e-4)


# --- one link, and lessons ---


def test_log_prob_and_entropy_by_hand() -> None:
    link = Link(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2), torch.tensor([0.5, 2.0]))
    x = torch.tensor([0.5, 1.0]).view(1, 1, 1, 2)
    # log N(0.5; 0, 0.5) + log N(1; 1, 2)
    expected = -0.5 - math.log(0.5) - math.log(2.0) - math.log(2 * math.pi)
    assert float(log_prob(link, x, 1)) == pytest.approx(expected, rel=1e-6)
    nats = 0.5 * (math.log(2 * math.pi * math.e * 0.25) + math.log(2 * math.pi * math.e * 4.0)) / 2
    assert float(entropy(link, 1)) == pytest.approx(nats, rel=1e-6)


def test_bernoulli_gripper() -> None:
    mean = torch.tensor([0.2, 1.0]).view(1, 1, 1, 2).expand(1, 20_000, 1, 2)
    link = Link(mean, torch.tensor(0.1), binary=(1,))
    x = draw(link, torch.randn(mean.shape, generator=torch.Generator().manual_seed(0)))
    assert set(x[..., 1].unique().tolist()) == {-1.0, 1.0}
    share = 1 / (1 + math.exp(-1.0))
    assert float((x[..., 1] > 0).float().mean()) == pytest.approx(share, abs=0.01)
    one = Link(mean[:, :1], torch.tensor(0.1), binary=(1,))
    gauss = float(torch.distributions.Normal(0.2, 0.1).log_prob(torch.tensor(0.25)))
    for value, p in ((1.0, share), (-1.0, 1 - share)):
        point = torch.tensor([0.25, value]).view(1, 1, 1, 2)
        assert float(log_prob(one, point, 1)) == pytest.approx(gauss + math.log(p), rel=1e-5)
    assert mode(one).flatten().tolist() == pytest.approx([0.2, 1.0])
    flat = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert 2 * float(entropy(one, 1)) - float(torch.distributions.Normal(0.2, 0.1).entropy()) == pytest.approx(flat)


def test_categorical_draws_by_its_probabilities() -> None:
    probabilities = torch.tensor([0.1, 0.6, 0.3])
    link = Link(probabilities.log().expand(1, 30_000, 1, 3), torch.ones(()), categorical=True)
    x = draw(link, torch.randn(1, 30_000, 1, 1, generator=torch.Generator().manual_seed(0)))
    counts = np.bincount(x.flatten().long().numpy(), minlength=3) / 30_000
    assert counts == pytest.approx(probabilities.numpy(), abs=0.01)
    assert torch.allclose(log_prob(link, x, 1).exp(), probabilities[x.flatten().long()][None], atol=1e-6)


@pytest.mark.parametrize("times", ["uniform", "logit_normal", "beta"])
def test_flow_lesson_lies_on_the_straight_path(times: str) -> None:
    kernel = chain.FlowNoise(times=times)
    actions = torch.rand(4000, 1, 1) * 2 - 1
    lesson = kernel.lesson(actions, torch.Generator().manual_seed(0))
    t = lesson.time[:, None, None]
    assert torch.allclose(lesson.input + (1 - t) * lesson.target, actions, atol=1e-5)
    assert (lesson.time >= 0).all()
    assert (lesson.time < 1).all()
    mean = {"uniform": 0.5, "logit_normal": 0.5, "beta": 0.999 * 0.4}[times]  # E[1 - b] = 0.4 for Beta(1.5, 1)
    assert float(lesson.time.mean()) == pytest.approx(mean, abs=0.02)


def test_greedy_start() -> None:
    def network(x: Tensor, time: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(x), torch.zeros_like(x)

    kernel, rng = chain.FlowNoise(steps=2), torch.Generator().manual_seed(0)
    kind = {"execute": 1, "greedy": True}
    zero = chain.sample(kernel, network, torch.zeros(2, 1), (1, 1), rng, zero_start=True, **kind)
    assert zero.trace.flatten().tolist() == pytest.approx([0.0, 0.5, 1.0] * 2)
    drawn = chain.sample(kernel, network, torch.zeros(2, 1), (1, 1), rng, **kind)
    assert drawn.trace[0, 0] != drawn.trace[1, 0]
    assert torch.allclose(drawn.trace[:, 2] - drawn.trace[:, 0], torch.ones(2, 1, 1))


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="times 'cosine'"):
        chain.FlowNoise(times="cosine")
    with pytest.raises(ValueError, match="links 'two'"):
        chain.FlowSde(links="two")
    with pytest.raises(ValueError, match="at least 1"):
        chain.Ddpm(steps=0)
