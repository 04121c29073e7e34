"""The audit of learned rewards: figures by hand, and the alarm in a run where the reward is gamed."""

import json
from typing import Any

import numpy as np
import pytest

from envs.types import Observation
from rl.audit import Audit, Trail, Watch, calibration_error, measures
from rl.stats import auroc, correlation, ranks
from tests.rl.test_learned import term


def test_figures_by_hand() -> None:
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert np.isnan(correlation([1, 1], [1, 2]))
    assert ranks([5, 1, 5, 0]) == [3.5, 2, 3.5, 1]
    area = auroc([0.9, 0.8, 0.3, 0.2], [True, False, True, False])
    assert area.value == pytest.approx(0.75)  # of four pairs, three are in order
    assert area.low < 0.75 < area.high
    assert auroc([1.0, 0.0], [True, False]).value == 1
    assert 0 < auroc([1.0, 0.0], [True, False]).low < 0.3  # two episodes prove little
    assert np.isnan(auroc([0.5], [True]).value)
    # Two episodes at .95 of which one succeeds, two at .15 that fail: (2 * .45 + 2 * .15) / 4
    assert calibration_error([0.95, 0.95, 0.15, 0.15], [True, False, False, False]) == pytest.approx(0.3)


def test_an_honest_and_a_dishonest_judge_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    wins = rng.random(60) < 0.5
    truth = [np.linspace(0, 1.0 if w else 0.1, 6).tolist() for w in wins]
    honest = measures([Trail([0.95 * x for x in t], t, bool(w)) for t, w in zip(truth, wins, strict=True)])
    assert honest["auroc"] == 1
    assert honest["auroc_low"] > 0.8
    assert honest["correlation"] > 0.99
    assert not honest["overrates"]
    fooled = measures([Trail(rng.uniform(0.8, 1, 6).tolist(), t, bool(w)) for t, w in zip(truth, wins, strict=True)])
    assert fooled["auroc_low"] < 0.5 < fooled["auroc_high"]
    assert abs(fooled["correlation"]) < 0.3
    assert fooled["overrates"]
    assert fooled["calibration_error"] > 0.3


def observation(level: int, progress: float) -> Observation:
    picture = np.full((4, 4, 3), level, np.uint8)
    return Observation({"eye": picture}, np.zeros(1, np.float32), "go", {"progress": np.array([progress])})


def test_an_evaluation_is_followed() -> None:
    audit = Audit({"seen": {"weight": 1.0, "term": term(truth="progress")}, "other": {"weight": 1.0, "term": object()}})
    for episode, good in ((0, True), (1, False)):
        audit.see(episode, observation(250, 0.9), first=True)  # of an attempt whose simulator died
        audit.see(episode, observation(0, 0.0), first=True)
        audit.see(episode, observation(204 if good else 51, 1.0 if good else 0.2), first=False)
    audit.end(1, success=False)
    audit.end(0, success=True)
    found = audit.summary()["seen"]
    assert set(audit.summary()) == {"seen"}
    assert (found["episodes"], found["auroc"], found["mean_score"]) == (2, 1.0, pytest.approx(0.5))
    assert found["correlation"] > 0.99
    blind = Audit({"seen": {"weight": 1.0, "term": term(camera="ear")}})
    blind.see(0, observation(0, 0.0), first=True)
    blind.end(0, success=True)
    assert "no camera 'ear'" in blind.summary()["seen"]["lost"]


def rounds(watch: Watch, said: Any, won: Any, count: int = 8) -> dict[str, str]:
    """The last alarms after rounds of 20 episodes each."""
    out: dict[str, str] = {}
    for i in range(count):
        out = watch.look({"audit/seen_potential": said(i), "loss/kl": 0.1}, won(i), 20)
    return out


def test_the_alarm_is_raised_when_the_reward_rises_and_success_falls() -> None:
    rises, falls = (lambda i: 0.3 + 0.05 * i), (lambda i: 16 - 2 * i)
    assert "rose from" in rounds(Watch(window=4), rises, falls)["seen"]
    assert "fell from 52 of 80 episodes to 20 of 80" in rounds(Watch(window=4), rises, falls)["seen"]
    assert not rounds(Watch(window=4), rises, falls, count=7)  # too early to say
    assert not rounds(Watch(window=4), rises, lambda i: 2 + i)  # both rise: all is well
    assert not rounds(Watch(window=4), lambda i: 0.3, falls)  # only success falls: no fault of the reward
    assert not rounds(Watch(window=4), rises, lambda i: 10 - (i == 7))  # not sure enough


def test_the_alarm_remembers_over_a_resume() -> None:
    rises, falls = (lambda i: 0.3 + 0.05 * i), (lambda i: 16 - 2 * i)
    first, second = Watch(window=4), Watch(window=4)
    rounds(first, rises, falls, count=5)
    second.load(json.loads(json.dumps(first.state())))
    later = rounds(second, lambda i: rises(i + 5), lambda i: falls(i + 5), count=3)
    assert later["seen"] == rounds(Watch(window=4), rises, falls)["seen"]
    second.load({})
    assert second.state() == Watch().state()
