"""LIV as a judge: its calibration, and what it refuses."""

import numpy as np
import pytest
import torch

from pretrained.flip.judge import Calibration, LivJudge, fit
from pretrained.flip.value import ValueModel


def test_a_calibration_finds_the_curve_that_labels_were_drawn_from() -> None:
    rng = np.random.default_rng(0)
    true = Calibration(slope=12.0, middle=0.4)
    scores = rng.uniform(0, 1, 4000)
    found = fit(scores, rng.random(4000) < true(scores))
    assert found.slope == pytest.approx(12, rel=0.15)
    assert found.middle == pytest.approx(0.4, abs=0.02)
    assert abs(float(found(scores).mean()) - float(true(scores).mean())) < 0.02


def test_classes_that_do_not_overlap_stay_short_of_certain() -> None:
    found = fit(np.array([0.1, 0.12, 0.11, 0.8, 0.82]), np.array([False] * 3 + [True] * 2))
    said = found(np.array([0.1, 0.81]))
    assert 0 < said[0] < 0.3
    assert 0.7 < said[1] < 1


def test_bad_calibrations_are_named() -> None:
    with pytest.raises(ValueError, match="0 of 2 pictures show the goal"):
        fit(np.array([0.1, 0.2]), np.array([False, False]))
    with pytest.raises(ValueError, match="fall towards the goal"):
        fit(np.array([0.9, 0.8, 0.1, 0.2]), np.array([False, False, True, True]))
    with pytest.raises(ValueError, match="needs its calibration"):
        LivJudge(value=ValueModel(clip="tiny", tokenizer="bytes"))


def test_a_judge_maps_pictures_to_potentials() -> None:
    torch.manual_seed(0)
    judge = LivJudge(value=ValueModel(clip="tiny", tokenizer="bytes"), calibration=[2.0, 0.0], device="cpu")
    frames = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    found = judge(frames, ["lift"] * 3)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-2 * judge.scores(frames, ["lift"] * 3))))
    alone = judge(frames[1:2], ["lift"])
    assert float(alone[0]) == pytest.approx(float(found[1]), abs=1e-5)
