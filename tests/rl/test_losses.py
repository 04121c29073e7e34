"""Loss functions by hand, and against recorded losses and gradients."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rl.losses import clip_range, explained_variance, lag_weight, log_ratio, masked_mean, policy_loss, value_loss
from tests.golden_files import golden_json, golden_tensors

EVERYWHERE = torch.ones(1, 1, 1, dtype=torch.bool)


def test_masked_mean() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, math.nan]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, False]])
    mean = masked_mean(x, mask)
    assert mean.item() == 2.0
    mean.backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.tensor([[0.5, 0.0], [0.5, 0.0]]))
    assert float(masked_mean(x, torch.zeros_like(mask)).detach()) == 0.0
    assert float(masked_mean(torch.tensor([[[1.0, 3.0]]]), EVERYWHERE)) == 2.0  # the mask is broadcast


def test_log_ratio_each_sum_mean_and_inactive_links() -> None:
    new, old = torch.tensor([[[1.0, 2.0, 5.0]]]), torch.tensor([[[0.0, 4.0, math.nan]]])
    active = torch.tensor([[[True, True, False]]])
    each = log_ratio(new, old, active, links="each", divisor=1.0)
    assert each[0, 0].tolist() == [1.0, -2.0, 0.0]
    assert log_ratio(new, old, active, links="each", divisor=4.0)[0, 0].tolist() == [0.25, -0.5, 0.0]
    assert log_ratio(new, old, active, links="sum", divisor=1.0)[0, 0].tolist() == [-1.0]
    assert log_ratio(new, old, active, links="sum", divisor=4.0)[0, 0].tolist() == [-0.25]


def test_lag_weight_is_the_ratio_of_densities_with_a_cap() -> None:
    """Weighted by it, a mean over the old policy's decisions is a mean over the new one's."""
    old, new = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.3, 0.3, 0.4])
    reward = torch.tensor([1.0, 5.0, -2.0])
    weight = lag_weight(new.log()[:, None, None], old.log()[:, None, None], torch.ones(3, 1, 1).bool(), 2.0)[:, 0]
    assert float((old * weight * reward).sum()) == pytest.approx(float((new * reward).sum()))
    now, then = torch.tensor([[[1.0, 9.0]]]), torch.tensor([[[0.5, 0.0]]])
    assert float(lag_weight(now, then, torch.tensor([[[True, False]]]), 9.0)) == pytest.approx(math.exp(0.5))
    assert float(lag_weight(now, then, torch.ones(1, 1, 2).bool(), 9.0)) == 9.0


def test_clip_range_grows_from_base_to_clip() -> None:
    assert clip_range(1, 0.2, 0.01).tolist() == pytest.approx([0.2])
    assert clip_range(1, 0.2, None).tolist() == pytest.approx([0.2])
    assert clip_range(3, 0.2, None).tolist() == pytest.approx([0.2] * 3)
    grown = clip_range(5, 0.01, 0.001)
    assert torch.isfinite(grown).all()
    assert grown[0].item() == pytest.approx(0.001)
    assert grown[-1].item() == pytest.approx(0.01)
    assert (grown.diff() > 0).all()
    assert grown[2].item() == pytest.approx(0.001 + 0.009 * (math.exp(1.5) - 1) / (math.exp(3) - 1))


@pytest.mark.parametrize(
    ("log_r", "advantage", "dual", "expected", "slope"),
    [
        (0.0, 2.0, None, -2.0, -2.0),
        (math.log(1.5), 2.0, None, -1.2 * 2.0, 0.0),  # clipped above: no gradient
        (math.log(0.5), 2.0, None, -0.5 * 2.0, -1.0),  # below, with a good action: pulled back
        (math.log(1.5), -2.0, None, 1.5 * 2.0, 3.0),
        (math.log(0.5), -2.0, None, 0.8 * 2.0, 0.0),
        (math.log(5.0), -2.0, None, 10.0, 10.0),
        (math.log(5.0), -2.0, 3.0, 6.0, 0.0),  # dual clip: no more than 3 |A|
        (math.log(5.0), 2.0, 3.0, -2.4, 0.0),  # of negative advantages only
    ],
)
def test_policy_loss_by_hand(log_r: float, advantage: float, dual: float | None, expected: float, slope: float) -> None:
    delta = torch.full((1, 1, 1), log_r, requires_grad=True)
    loss, stats = policy_loss(delta, torch.full((1, 1, 1), advantage), EVERYWHERE, torch.tensor(0.2), dual_clip=dual)
    loss.backward()
    assert float(loss) == pytest.approx(expected)
    assert delta.grad is not None
    assert float(delta.grad) == pytest.approx(slope, abs=1e-6)
    ratio = math.exp(log_r)
    assert float(stats["kl"]) == pytest.approx(ratio - 1 - log_r, abs=1e-6)
    assert float(stats["clip_fraction"]) == float(abs(ratio - 1) > 0.2)
    assert float(stats["max_log_ratio"]) == pytest.approx(abs(log_r))


def test_policy_loss_has_a_clip_range_for_each_link_and_a_mask() -> None:
    delta = torch.log(torch.tensor([[[1.05, 1.05], [3.0, 3.0]]]))
    mask = torch.tensor([[[True], [False]]])
    loss, stats = policy_loss(delta, torch.ones(1, 2, 1), mask, torch.tensor([0.01, 0.1]))
    assert float(loss) == pytest.approx(-(1.01 + 1.05) / 2)
    assert float(stats["clip_fraction"]) == 0.5
    assert float(stats["max_log_ratio"]) == pytest.approx(math.log(1.05))


def test_value_loss_by_hand() -> None:
    mask = torch.tensor([[True, True, False]])
    value, old, returns = torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[0.0, 2.9, 0.0]]), torch.tensor([[2.0, 0, 0]])
    assert float(value_loss(value, old, returns, mask, clip=None)) == pytest.approx((0.5 * 1 + 0.5 * 9) / 2)
    clipped = (0.5 * (0.2 - 2.0) ** 2 + 0.5 * 9) / 2  # the first is held back to 0.2, and that is worse
    assert float(value_loss(value, old, returns, mask, clip=0.2)) == pytest.approx(clipped)
    huber = (0.5 * 1 + 1.0 * (3 - 0.5)) / 2
    assert float(value_loss(value, old, returns, mask, clip=None, huber=1.0)) == pytest.approx(huber)


def test_explained_variance() -> None:
    returns, mask = torch.tensor([[1.0, 2.0, 3.0, 99.0]]), torch.tensor([[True, True, True, False]])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.zeros_like(returns), returns, mask) == pytest.approx(0.0)
    assert explained_variance(returns, torch.ones_like(returns), mask) == 0.0


# --- recorded ---

CLIP, VALUE_COEF, ENTROPY_COEF = 0.1, 0.5, 0.01  # of the recorded variants, as their names and conventions say


def our_parts(g: dict[str, Tensor], logits: Tensor, value: Tensor, variant: str) -> dict[str, Tensor]:
    """[T, B] arrays are as good as [N, T]: no loss mixes entries."""
    plain = variant == "flare_ppo" or variant.startswith("warmup")
    valid = torch.ones_like(value, dtype=torch.bool)
    value_part = value_loss(
        value, g["in/values"][..., 0], g["out/returns"][..., 0], valid, clip=None if plain else CLIP
    )
    if variant.startswith("warmup"):
        return {"value": value_part, "total": value_part}
    law = torch.distributions.Categorical(logits=logits)
    new = law.log_prob(g["in/actions"])
    torch.testing.assert_close(new, g["ppo_out/log_prob_of_actions"])
    delta = log_ratio(new[..., None], g["in/old_log_probs"][..., None], valid[..., None], links="sum", divisor=1.0)
    advantage = g["out/advantages" if plain else "out/advantages_normalised"]
    action, _ = policy_loss(delta, advantage, valid[..., None], torch.tensor(CLIP))
    entropy = masked_mean(law.entropy(), valid)
    total = action + VALUE_COEF * value_part - (0.0 if plain else ENTROPY_COEF) * entropy
    return {"value": value_part, "action": action, "entropy": -entropy, "total": total}


def cases() -> list[tuple[str, str]]:
    try:
        losses: dict[str, Any] = golden_json("flare_eval/gae_ppo.json")["losses"]
    except pytest.skip.Exception:
        return [("-", "-")]  # the test itself skips with the reason
    return [(kind, variant) for kind in losses for variant in losses[kind]]


@pytest.mark.parametrize(("kind", "variant"), cases())
def test_golden(kind: str, variant: str) -> None:
    meta = golden_json("flare_eval/gae_ppo.json")
    g = {k.removeprefix(kind + "/"): v for k, v in golden_tensors("flare_eval/gae_ppo.safetensors").items()}
    logits, value = g["ppo_in/new_logits"].requires_grad_(), g["ppo_in/new_values"][..., 0].requires_grad_()
    parts = our_parts(g, logits, value, variant)
    close = meta["suggested_tolerance"]
    recorded = meta["losses"][kind][variant]
    expected = {"total": recorded["total"]} | {k: v for k, v in recorded["parts"].items() if k in parts}
    assert set(expected) == set(parts)
    for name, number in expected.items():
        assert float(parts[name]) == pytest.approx(number, abs=close["atol"], rel=close["rtol"]), name
    parts["total"].backward()
    checked = 0
    for name, x in (("logits", logits), ("values", value)):
        key = f"ppo_out/{variant}/grad_{name}"
        if key in g:
            assert x.grad is not None
            torch.testing.assert_close(x.grad.view_as(g[key]), g[key], **close)
            checked += 1
    assert checked == (1 if variant.startswith("warmup") else 2)
    if variant.startswith("warmup"):
        assert logits.grad is None
