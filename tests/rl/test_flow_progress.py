"""Reward for moving what the plan moves: shares of the way, telescoping, new plans, and life without a tracker."""

from typing import Any

import numpy as np
import pytest
import torch

from pretrained.demos.tracks import Tracked
from rl.rewards.flow_progress import GIVEN, TRACKS, FlowProgress, plan_begins
from tests.rl.test_rewards import GAMMA, make_segment

SIZE = 16


class Told:
    """The grey of a picture says by how many pixels all points have moved to the right; 255 hides them."""

    def __call__(self, frames: np.ndarray, points: np.ndarray) -> Tracked:
        moved = frames[:, 0, 0, 0].astype(float) - float(frames[0, 0, 0, 0])
        tracks = points[:, None] + moved[None, :, None] * np.array([1.0, 0.0])
        return Tracked(tracks, np.broadcast_to(frames[:, 0, 0, 0] < 255, tracks.shape[:2]))


def plan(way: float) -> torch.Tensor:
    """[3, 4, 2] in [-1, 1]: two points that go `way` pixels to the right, and one that stays."""
    start = torch.tensor([[2.0, 3.0], [4.0, 8.0], [9.0, 9.0]])
    steps = torch.arange(4)[None, :, None] / 3 * torch.tensor([[[way, 0.0]], [[way, 0.0]], [[0.0, 0.0]]])
    return 2 * (start[:, None] + steps + 0.5) / SIZE - 1


def segment(moved: list[int], plans: list[torch.Tensor], **changes: Any) -> Any:
    """One stream whose pictures show these shifts, one more than decisions."""
    t = len(plans)
    grey = torch.tensor(moved, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, SIZE, SIZE, 3)
    features = {TRACKS: torch.stack(plans)[None], GIVEN: torch.ones(1, t, 1)}
    starts = torch.zeros(1, t, dtype=torch.bool)
    starts[0, 0] = True
    fields = {"frames": {"eye": torch.stack([grey[:-1], grey[1:]], 1)[None]}, "features": features, "starts": starts}
    return make_segment(1, t, **{**fields, **changes})


def term(**options: Any) -> FlowProgress:
    made = FlowProgress(**{"camera": "eye", "tracker": {}, **options})
    made._model = Told()
    return made


def test_shares_of_the_way_telescope() -> None:
    last = torch.tensor([[False, False, True]])
    walked = segment([0, 2, 1, 6], [plan(8.0)] * 3, truncated=last)
    made = term()
    paid = made(walked, GAMMA)[0]
    assert made.report["potential"] == pytest.approx((2 / 8 + 1 / 8 + 6 / 8) / 3)
    elapsed = torch.cat([torch.zeros(1, dtype=torch.int64), walked.duration[0].cumsum(0)])
    assert float((GAMMA ** elapsed[:-1].float() * paid).sum()) == pytest.approx(GAMMA ** float(elapsed[-1]) * 6 / 8)
    over = term()(segment([0, 2, 1, 6], [plan(8.0)] * 3, terminated=last), GAMMA)[0]  # nothing is left at an end
    assert float((GAMMA ** elapsed[:-1].float() * over).sum()) == pytest.approx(0.0, abs=1e-6)


def test_a_new_plan_begins_anew_and_an_old_one_pays_nothing() -> None:
    plans = [plan(8.0), plan(8.0), plan(4.0), plan(4.0)]
    walked = segment([0, 4, 8, 10, 12], plans, duration=torch.ones(1, 4, dtype=torch.int64))
    assert plan_begins(walked).tolist() == [[0, 0, 2, 2]]
    dense = term(mode="dense")(walked, GAMMA)[0]
    np.testing.assert_allclose(dense, [0.5, 0.5, 0.5, 0.5], atol=1e-6)
    shaped = term()(walked, GAMMA)[0]
    np.testing.assert_allclose(shaped, [GAMMA * 0.5, GAMMA - 0.5, GAMMA * 0.5 - 1, GAMMA - 0.5], atol=1e-6)
    walked.version = 3
    np.testing.assert_allclose(term(mode="dense", anneal=4)(walked, GAMMA)[0], dense / 4, atol=1e-6)
    earlier = segment([0, 4, 8, 10, 12], plans, starts=torch.zeros(1, 4, dtype=torch.bool))
    assert plan_begins(earlier).tolist() == [[-1, -1, 2, 2]]  # the first plan was made before
    np.testing.assert_allclose(term(mode="dense")(earlier, GAMMA)[0], [0, 0, 0.5, 0.5], atol=1e-6)


def test_hidden_points_missing_plans_and_still_plans_pay_nothing() -> None:
    hidden = term(mode="dense")(segment([0, 255, 255], [plan(8.0)] * 2), GAMMA)
    still = term(mode="dense")(segment([0, 4, 8], [plan(1.0)] * 2), GAMMA)
    none = segment([0, 4, 8], [plan(8.0)] * 2)
    none.features[GIVEN] = torch.zeros(1, 2, 1)
    assert not hidden.any()
    assert not still.any()
    assert not term(mode="dense")(none, GAMMA).any()
    lost = segment([0, 4, 8], [plan(8.0)] * 2, valid=torch.tensor([[False, False]]))
    assert not term(mode="dense")(lost, GAMMA).any()


def test_a_lost_tracker_is_survived_and_bad_settings_are_named(caplog: pytest.LogCaptureFixture) -> None:
    walked = segment([0, 4], [plan(8.0)])
    made = FlowProgress(camera="eye", tracker={"_target_": "pretrained.demos.optical.Optical", "enlarge": 0})
    assert not made(walked, GAMMA).any()
    assert made.report == {"lost": 1.0}
    assert "no tracker" in caplog.text
    with pytest.raises(ValueError, match="expected 'hint/plan/tracks' and 'ear'"):
        term(camera="ear")(walked, GAMMA)
    with pytest.raises(ValueError, match="mode 'sparse' is not known"):
        term(mode="sparse")
    with pytest.raises(ValueError, match="got 3 with mode 'pbrs'"):
        term(anneal=3)
