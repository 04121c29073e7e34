"""How long a judge in an actor is waited for, and how often it is started anew; Ray's part is played by a clock."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray")

from ray.exceptions import GetTimeoutError, RayActorError

from rl import scorer
from rl.scorer import RemoteScorer, ScorerLost


@dataclass
class Actors:
    """Each takes `start_s` until it is up, and `answer_s` for an answer; `dead` ones never give one."""

    start_s: float = 1.0
    answer_s: float = 1.0
    now: float = 0.0
    made: list[Any] = field(default_factory=list)
    dead: bool = False  # the newest one

    def remote(self, cls: type) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._start))

    def _start(self, *arguments: Any) -> Any:
        self.dead, up = False, self.now + self.start_s
        actor = SimpleNamespace(
            open=SimpleNamespace(remote=lambda: (up, None)),
            scores=SimpleNamespace(remote=lambda *_: (max(up, self.now) + self.answer_s, np.array([0.5]))),
        )
        self.made.append(actor)
        return actor

    def get(self, reference: tuple[float, Any], timeout: float) -> Any:
        done, value = reference
        if self.dead:
            raise RayActorError
        if done > self.now + timeout:
            self.now += timeout
            raise GetTimeoutError("timed out")
        self.now = max(self.now, done)
        return value


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> Actors:
    made = Actors()
    monkeypatch.setattr("ray.remote", made.remote)
    monkeypatch.setattr("ray.get", made.get)
    monkeypatch.setattr("ray.kill", lambda actor: None)
    monkeypatch.setattr("rl.placement.beside", lambda: None)
    return made


def remote(restarts: int) -> RemoteScorer:
    return RemoteScorer({}, num_gpus=0.0, restarts=restarts, timeout_s=30.0, batch=1)


def ask(one: RemoteScorer) -> float:
    one.ask(np.zeros((1, 2, 2, 3), np.uint8), ["go"])
    return float(one.answer()[0])


def test_a_start_does_not_count_against_the_time_for_an_answer(actors: Actors) -> None:
    actors.start_s = 100.0
    one = remote(restarts=0)
    assert ask(one) == 0.5
    assert actors.now == 101.0
    actors.answer_s = 31.0
    with pytest.raises(ScorerLost, match="GetTimeoutError"):
        ask(one)
    assert actors.now == 131.0


def test_a_judge_that_never_starts_is_given_up(actors: Actors) -> None:
    actors.start_s = scorer.START_S + 1
    one = remote(restarts=1)
    for _ in range(2):
        with pytest.raises(ScorerLost, match="GetTimeoutError"):
            ask(one)
    with pytest.raises(ScorerLost, match=r"not started again.*GetTimeoutError"):
        ask(one)
    assert actors.now == 2 * scorer.START_S


def test_what_an_update_may_wait_for() -> None:
    remote, here = {"remote": True, "timeout_s": 30.0}, {"timeout_s": 7.0}
    rewards = {"a": {"weight": 1.0, "term": remote}, "b": {"weight": 0.0, "term": remote},
               "c": {"weight": 1.0, "term": here}, "d": {"weight": 2.0, "term": {"remote": True}}}  # fmt: skip
    assert scorer.longest(rewards) == 2 * scorer.START_S + 30.0 + scorer.TIMEOUT_S


def test_rare_losses_are_forgiven_and_frequent_ones_are_not(actors: Actors) -> None:
    one = remote(restarts=1)
    for _ in range(5):  # five losses, with one restart
        for _ in range(scorer.FORGIVEN):
            assert ask(one) == 0.5
        actors.dead = True
        with pytest.raises(ScorerLost, match="RayActorError"):
            ask(one)
    for _ in range(scorer.FORGIVEN - 1):
        assert ask(one) == 0.5
    actors.dead = True
    with pytest.raises(ScorerLost, match="RayActorError"):
        ask(one)
    with pytest.raises(ScorerLost, match="not started again"):
        ask(one)
    assert len(actors.made) == 6
