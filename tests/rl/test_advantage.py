"""GAE by hand, against recorded tensors, and the scale of rewards."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rl.advantage import ReturnScale, gae
from tests.golden_files import golden_json, golden_tensors

GAMMA, LAM = 0.9, 0.8


def stream(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float32)


def inputs(n: int, t: int, seed: int = 0) -> dict[str, Tensor]:
    """A random rollout without ends; `next_value` is the next decision's value."""
    rng = torch.Generator().manual_seed(seed)
    value = torch.randn(n, t + 1, generator=rng)
    return {
        "reward": torch.randn(n, t, generator=rng),
        "value": value[:, :-1],
        "next_value": value[:, 1:],
        "duration": torch.ones(n, t, dtype=torch.int64),
        "terminated": torch.zeros(n, t, dtype=torch.bool),
        "truncated": torch.zeros(n, t, dtype=torch.bool),
        "valid": torch.ones(n, t, dtype=torch.bool),
    }


def run(x: dict[str, Tensor], gamma: float = GAMMA, lam: float = LAM) -> tuple[Tensor, Tensor]:
    return gae(**x, gamma=gamma, lam=lam)


def test_by_hand() -> None:
    """Four decisions: the second ends by the task, the fourth by the clock."""
    x = inputs(1, 4)
    x |= {"reward": stream(1, 2, 0, 3), "value": stream(0.5, 1, -1, 2), "next_value": stream(1, 99, 2, 4)}
    x["terminated"][0, 1] = x["truncated"][0, 3] = True
    third = (0 + 0.9 * 2 + 1) + 0.9 * 0.8 * (3 + 0.9 * 4 - 2)
    expected = [(1 + 0.9 * 1 - 0.5) + 0.9 * 0.8 * (2 - 1), 2 - 1, third, 3 + 0.9 * 4 - 2]
    advantage, returns = run(x)
    assert advantage[0].tolist() == pytest.approx(expected)
    assert returns[0].tolist() == pytest.approx([a + v for a, v in zip(expected, [0.5, 1, -1, 2], strict=True)])


def test_a_decision_discounts_by_its_duration() -> None:
    x = inputs(1, 2)
    x |= {"reward": stream(1, 1), "value": stream(0, 0), "next_value": stream(0, 2)}
    x["duration"] = torch.tensor([[3, 5]])
    advantage, _ = run(x)
    last = 1 + 0.9**5 * 2
    assert advantage[0].tolist() == pytest.approx([1 + 0.9**3 * 0.8 * last, last])


def test_lost_rows_get_nothing_and_pass_nothing_on() -> None:
    x = inputs(2, 6)
    x["truncated"][:, 1] = True
    whole, _ = run(x)
    x["valid"][0, 2:4] = False
    x["truncated"][0, 3] = True
    for k in ("reward", "value", "next_value"):  # whatever stands there must not matter
        x[k] = x[k].clone()
        x[k][0, 2:4] = math.nan
    advantage, returns = run(x)
    assert torch.isfinite(advantage).all()
    assert torch.isfinite(returns).all()
    assert (advantage[0, 2:4] == 0).all()
    assert (returns[0, 2:4] == 0).all()
    kept = torch.tensor([0, 1, 4, 5])
    assert torch.equal(advantage[0, kept], whole[0, kept])
    assert torch.equal(advantage[1], whole[1])


def test_the_value_behind_a_termination_does_not_count_but_behind_a_truncation_does() -> None:
    for name, matters in (("terminated", False), ("truncated", True)):
        x = inputs(1, 3)
        x[name][0, 1] = True
        before, _ = run(x)
        x["next_value"] = x["next_value"] + torch.tensor([0.0, 1.0, 0.0])
        after, _ = run(x)
        assert (not torch.equal(before, after)) == matters, name


@pytest.mark.parametrize("seed", range(3))
def test_at_lambda_one_the_return_is_the_discounted_sum(seed: int) -> None:
    """Checked step by step of the environment, not by the recursion over decisions."""
    rng = torch.Generator().manual_seed(seed)
    x = inputs(3, 12, seed)
    x["duration"] = torch.randint(1, 5, (3, 12), generator=rng)
    x["terminated"] = torch.rand(3, 12, generator=rng) < 0.15
    x["truncated"] = (torch.rand(3, 12, generator=rng) < 0.15) & ~x["terminated"]
    _, returns = run(x, 0.95, 1.0)
    for i in range(3):
        for t in range(12):
            total, elapsed = 0.0, 0
            for s in range(t, 12):
                total += 0.95**elapsed * float(x["reward"][i, s])
                elapsed += int(x["duration"][i, s])
                if x["terminated"][i, s]:
                    break
                if x["truncated"][i, s] or s == 11:
                    total += 0.95**elapsed * float(x["next_value"][i, s])
                    break
            assert float(returns[i, t]) == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_golden(kind: str) -> None:
    """Recorded where time-outs are treated as terminations."""
    meta = golden_json("flare_eval/gae_ppo.json")
    g = {k.removeprefix(kind + "/"): v for k, v in golden_tensors("flare_eval/gae_ppo.safetensors").items()}
    value = g["in/values"][..., 0].T
    x: dict[str, Any] = inputs(*value.shape)
    x |= {"reward": g["in/rewards"][..., 0].T, "value": value, "terminated": g["in/not_done_after_step"][..., 0].T == 0}
    x["next_value"] = torch.cat([value[:, 1:], g["in/next_value"]], 1)
    advantage, returns = run(x, meta["gamma"], meta["gae_lambda"])
    close = meta["suggested_tolerance"]
    torch.testing.assert_close(advantage.T[..., None], g["out/advantages"], **close)
    torch.testing.assert_close(returns.T[..., None], g["out/returns"], **close)
    normalised = (advantage - advantage.mean()) / (advantage.std() + 1e-5)
    torch.testing.assert_close(normalised.T[..., None], g["out/advantages_normalised"], **close)
    for end in meta["episode_ends"]:
        assert x["terminated"][end["env"], end["step"]]


# --- the scale of rewards ---


def segment(t: int, seed: int, scale: float = 5.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reward, duration, done, valid of two streams."""
    rng = torch.Generator().manual_seed(seed)
    done = torch.rand(2, t, generator=rng) < 0.2
    reward = scale * torch.randn(2, t, generator=rng)
    return reward, torch.randint(1, 4, (2, t), generator=rng), done, torch.ones(2, t, dtype=torch.bool)


def test_return_scale_divides_by_the_deviation_of_running_returns() -> None:
    scale = ReturnScale(GAMMA)
    parts = [segment(20, seed) for seed in range(3)]
    outs = [scale(*p) for p in parts]
    seen = []
    for i in range(2):
        running = 0.0
        for reward, duration, done, _ in parts:
            for t in range(20):
                running = running * GAMMA ** int(duration[i, t]) + float(reward[i, t])
                seen.append(running)
                running *= not done[i, t]
    std = float(torch.tensor(seen, dtype=torch.float64).std(correction=0))
    assert scale.std == pytest.approx(std, rel=1e-3)
    assert torch.allclose(outs[-1], parts[-1][0] / scale.std)


def test_return_scale_clips_ignores_lost_rows_and_resumes() -> None:
    a, b = ReturnScale(GAMMA), ReturnScale(GAMMA)
    reward, duration, done, valid = segment(20, 0)
    a(reward, duration, done, valid)
    valid = valid.clone()
    valid[0, 5:9] = False
    spoiled = reward.clone()
    spoiled[0, 5:9] = 1e9
    before = a.count
    out = a(spoiled, duration, done, valid)
    assert a.count - before == pytest.approx(36)
    assert a.std < 100
    assert float(out.abs().max()) == 10.0
    b.load(a.state())
    assert torch.equal(a(*segment(20, 1)), b(*segment(20, 1)))


def test_return_scale_of_no_reward_is_no_reward() -> None:
    scale = ReturnScale(GAMMA)
    _, duration, done, valid = segment(20, 0)
    assert (scale(torch.zeros(2, 20), duration, done, valid) == 0).all()
