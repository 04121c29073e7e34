"""Simulators in the caller's process: the same answers as in their own, and what becomes of one that fails."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from envs.restarts import RestartBudget
from envs.toy import Toy
from envs.types import EnvConfig, EnvError
from envs.vector import Arrival, SimVector
from rl.collect import Collector
from tests.toy_parts import make_policy, toy


@pytest.fixture
def make() -> Iterator[Any]:
    """Makes vectors and stops them."""
    made: list[SimVector] = []

    def vector(config: EnvConfig, n: int = 1, process: str = "shared", **kwargs: Any) -> SimVector:
        made.append(SimVector([replace(config, process=process)] * n, max_chunk=4, **kwargs))
        return made[-1]

    yield vector
    for v in made:
        v.close()


def answer(v: SimVector) -> Arrival:
    assert v.wait() == [0]
    return v.take(0)


def test_answers_are_those_of_a_process_of_its_own(make: Any) -> None:
    """A whole episode in chunks, to the bit: the observations, the rewards, the end, the refusal behind it."""
    rng, lengths = np.random.default_rng(0), []
    shared, own = make(toy()), make(toy(), process="own")
    for v in (shared, own):
        v.send_reset(0, "blue", 7)
    while True:
        one, other = answer(shared), answer(own)
        assert one.obs is not None
        assert other.obs is not None
        assert one.kind == other.kind
        assert one.obs.instruction == other.obs.instruction
        np.testing.assert_array_equal(one.obs.proprio, other.obs.proprio)
        for camera in own.env_spec.cameras:
            np.testing.assert_array_equal(one.obs.images[camera], other.obs.images[camera])
        np.testing.assert_array_equal(one.rewards, other.rewards)
        lengths.append(one.executed)
        assert (one.terminated, one.truncated, one.success) == (other.terminated, other.truncated, other.success)
        if one.terminated or one.truncated:
            break
        chunk = rng.uniform(-1, 1, (3, 2))
        for v in (shared, own):
            v.send_step(0, chunk)
    assert sum(lengths) > 3
    assert shared.pids() == [-1]  # nothing was started
    for v in (shared, own):
        v.send_step(0, np.zeros((1, 2)))
        with pytest.raises(EnvError, match="step before reset"):
            answer(v)


def test_a_segment_is_the_same(make: Any) -> None:
    """What PPO learns from does not depend on where simulators live."""
    segments = []
    for process in ("shared", "own"):
        vector = make(toy(), n=3, process=process)
        policy = make_policy("flow", execute=3)
        segments.append(Collector(vector, policy, decisions=9, gamma=0.9, lockstep=True).collect(0))
    one, other = segments
    for name in ("trace", "log_prob", "value", "next_value", "env_reward", "duration", "starts", "terminated"):
        assert getattr(one, name).equal(getattr(other, name)), name
    assert all(v.equal(other.features[k]) for k, v in one.features.items())
    assert [e.seed for e in one.episodes] == [e.seed for e in other.episodes] != []


def test_one_that_raises_is_built_again(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its episode is lost, and the restart is counted against the budget."""
    vector = make(toy(), budget=RestartBudget(per_window=1))
    vector.send_reset(0, "red", 1)
    first = answer(vector).obs.images["top"].copy()
    step = Toy.step

    def broken(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("physics")

    monkeypatch.setattr(Toy, "step", broken)
    vector.send_step(0, np.zeros((1, 2)))
    lost = answer(vector)
    assert lost.failure is not None
    assert lost.failure.cause == "raised"
    assert "ZeroDivisionError: physics" in lost.failure.detail
    vector.send_reset(0, "red", 1)
    np.testing.assert_array_equal(answer(vector).obs.images["top"], first)
    assert vector.restarts == 1
    vector.send_step(0, np.zeros((1, 2)))
    assert answer(vector).kind == "failed"
    with pytest.raises(EnvError, match="giving up"):
        vector.send_reset(0, "red", 1)
    monkeypatch.setattr(Toy, "step", step)


def test_one_whose_numbers_are_not_finite_is_built_again(make: Any) -> None:
    """The vector's own checks apply as they do to processes."""
    vector = make(toy(nan_at=1, fault_seed=5))
    vector.send_reset(0, "red", 5)
    assert answer(vector).kind == "reset"
    vector.send_step(0, np.zeros((1, 2)))
    lost = answer(vector)
    assert lost.failure is not None
    assert lost.failure.cause == "bad_state"
    vector.send_reset(0, "red", 6)
    assert answer(vector).kind == "reset"


def test_bad_input_is_refused(make: Any) -> None:
    """Another interpreter, an unknown word, and a simulator that cannot be built."""
    with pytest.raises(EnvError, match=r"env.process 'mine' is unknown; expected own or shared"):
        replace(toy(), process="mine")
    with pytest.raises(EnvError, match=r"env.process=shared: envs.toy.Toy runs in /usr/bin/env, not in "):
        make(replace(toy(), python="/usr/bin/env"))
    with pytest.raises(EnvError, match="there is no 'reech'"):
        make(toy(name="reech"))
    assert make(replace(toy(), python=sys.executable)).num_envs == 1
