"""Rewards of following a plan, and of staying near a prior."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rl.rewards.plan_tracking import GOALS, PlanTracking, follow
from rl.rewards.prior import PriorKl
from tests.rl.test_rewards import GAMMA, make_segment
from tests.toy_parts import checkpoint, make_policy
from tests.toy_parts import make_segment as acted


def near(places: list[tuple[int, int]], k: int = 5) -> torch.Tensor:
    """Likenesses [1, T, 2, K] of pictures that show just these places of a plan, before and after."""
    return torch.nn.functional.one_hot(torch.tensor(places), k).float()[None]


def flags(t: int, *on: int) -> torch.Tensor:
    out = torch.zeros(1, t, dtype=torch.bool)
    out[0, list(on)] = True
    return out


def test_the_pointer_never_goes_back_nor_leaps() -> None:
    walked = near([(0, 1), (1, 3), (3, 0), (0, 4), (4, 4)])
    before, after = follow(walked, flags(5, 0), flags(5), reach=4)
    assert (5 * after[0]).tolist() == [1, 3, 3, 4, 4]
    assert (5 * before[0]).tolist() == [0, 1, 3, 3, 4]
    leaps = near([(0, 4), (4, 4)])
    # A picture that fits a place out of reach fits none within: the pointer stays.
    assert (5 * follow(leaps, flags(2, 0), flags(2), reach=2)[1][0]).tolist() == [0, 0]


def test_a_new_plan_gives_back_what_was_gained_on_the_last() -> None:
    walked = near([(0, 2), (2, 4), (0, 1)])
    before, after = follow(walked, flags(3, 0), flags(3, 2), reach=4)
    assert (5 * after[0]).tolist() == [2, 4, 1]
    assert (5 * before[0]).tolist() == [0, 2, 4]
    begun = follow(walked, flags(3, 0, 2), flags(3), reach=4)  # a new episode owes nothing
    assert (5 * begun[0][0]).tolist() == [0, 2, 0]


class Places:
    """The grey of a picture says which place it shows."""

    def __call__(self, frames: Any) -> torch.Tensor:
        return torch.eye(5)[frames[:, 0, 0, 0].astype(int)]


def test_it_telescopes_and_says_what_is_missing(caplog: pytest.LogCaptureFixture) -> None:
    places = [0, 1, 1, 3, 4]
    grey = torch.tensor(places, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 4, 4, 3)
    frames = {"eye": torch.stack([grey[:-1], grey[1:]], 1)[None]}
    goals = torch.eye(5).expand(1, 4, 5, 5)
    segment = make_segment(1, 4, frames=frames, features={GOALS: goals}, truncated=flags(4, 3), starts=flags(4, 0))
    term = PlanTracking(embedder={}, camera="eye")
    term._model = Places()
    paid = term(segment, GAMMA)[0]
    elapsed = torch.cat([torch.zeros(1, dtype=torch.int64), segment.duration[0].cumsum(0)])
    assert float((GAMMA ** elapsed[:-1].float() * paid).sum()) == pytest.approx(GAMMA ** float(elapsed[-1]) * 0.8)
    assert term.report["potential"] == pytest.approx((0.2 + 0.2 + 0.6 + 0.8) / 4)
    with pytest.raises(ValueError, match="expected 'hint/plan/goals' and 'ear'"):
        PlanTracking(embedder={}, camera="ear")(segment, GAMMA)
    lost = PlanTracking(
        embedder={"_target_": "pretrained.flip.judge.LivEmbedder", "checkpoint_path": "gone"}, camera="eye"
    )
    assert not lost(segment, GAMMA).any()
    assert lost.report == {"lost": 1.0}
    assert "no embedder" in caplog.text


@pytest.mark.parametrize("family", ["gaussian", "flow"])
def test_the_prior_is_as_far_away_as_its_log_probs_say(family: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "step_000001", family)
    policy = make_policy(family)
    segment = acted(policy, n=8, t=12)
    term = PriorKl(checkpoint=str(folder))
    near_by = term(segment, GAMMA)
    policy_again = PriorKl(checkpoint=str(folder))
    assert torch.equal(near_by, policy_again(segment, GAMMA))
    assert near_by.abs().max() < 1e-3  # the same weights
    other = make_policy(family)
    with torch.no_grad():
        for p in other.actor.parameters():
            p.add_(0.03 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    moved = acted(other, n=8, t=12)
    cost = term(moved, GAMMA)
    assert float(cost.mean()) < -0.01  # a divergence is positive
    assert cost.abs().max() <= 20
    moved.valid[0] = False
    assert not term(moved, GAMMA)[0].any()
    with pytest.raises(ValueError, match="cap = 0"):
        PriorKl(checkpoint=str(folder), cap=0.0)
