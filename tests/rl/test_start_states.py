"""A guide that begins episodes: nothing of it is learned from or counted, and the first ratio stays 1."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from envs.vector import SimVector
from rl.border import go_back, keep
from rl.collect import Collector
from rl.learner import Learner
from rl.ppo import Ppo
from rl.proposals.start_states import StartStates
from rl.rewards import build_terms
from tests.rl.test_border import equal, stored, without_clocks
from tests.toy_parts import SUCCESS, make_policy, toy


@pytest.fixture
def vector() -> Iterator[SimVector]:
    made = SimVector([toy()] * 2, max_chunk=4)
    yield made
    made.close()


def collector(vector: SimVector, **options: Any) -> Collector:
    guide = StartStates(
        **{"policy": make_policy("gaussian", seed=3), "longest": 2, "share": 1.0, "over": 10, **options}
    )
    policy = make_policy("flow", vector.env_spec, execute=3)
    return Collector(vector, policy, decisions=6, gamma=0.9, proposal=guide, lockstep=True)


def test_leads_shrink_and_belong_to_the_episode() -> None:
    guide = StartStates(policy=make_policy(), longest=6, share=0.5, over=10)
    leads = {v: [guide.lead(seed, v) for seed in range(400)] for v in (0, 5, 10)}
    assert leads[0] == [guide.lead(seed, 0) for seed in range(400)]
    assert 150 < sum(n > 0 for n in leads[0]) < 250
    assert (max(leads[0]), max(leads[5]), max(leads[10])) == (6, 3, 0)


def test_guided_decisions_are_executed_and_not_learned_from(vector: SimVector) -> None:
    made = collector(vector)
    guide: Any = made.proposal
    segment = made.collect(0)
    assert segment.shape == (2, 6)
    ended = [e for e in segment.episodes if e.valid]
    assert ended
    assert all(e.guided == guide.lead(e.seed, 0) > 0 for e in ended)
    assert not any(e.counts for e in ended)
    # Steps of the guide are paid for, though no decision of the segment has them.
    told = int(segment.duration.sum())
    assert segment.stats["env_steps"] > told
    assert sum(e.length for e in ended) <= segment.stats["env_steps"]
    # An episode of ten steps, of which one or two decisions of three are the guide's, has at most three of the policy.
    for row in segment.starts:
        runs = np.diff([*row.nonzero().flatten().tolist(), 6])
        assert runs.max() <= 3
    learner = Learner(made.policy, Ppo(epochs=1, minibatches=1, lr=1e-3), build_terms(SUCCESS))
    metrics = learner.update(segment)
    assert metrics["loss/first_log_ratio"] < 1e-4
    assert metrics["loss/rollout_log_prob_gap"] < 1e-4
    late = made.collect(10)  # no episode that begins now is led
    assert any(e.counts for e in late.episodes)


def test_it_goes_on_from_a_border(vector: SimVector) -> None:
    one = collector(vector)
    one.collect(0)
    kept = stored(keep(one))
    expected = without_clocks(one.collect(1))
    other = SimVector([toy()] * 2, max_chunk=4)
    try:
        two = Collector(other, one.policy, decisions=6, gamma=0.9, proposal=one.proposal, lockstep=True, begin=False)
        go_back(two, kept)
        found = without_clocks(two.collect(1))
    finally:
        other.close()
    for name in ("trace", "env_reward", "duration", "starts", "value"):
        assert equal(getattr(found, name), getattr(expected, name)), name
    assert found.episodes == expected.episodes


def test_hints_come_from_the_inner_proposal_and_mistakes_are_named(vector: SimVector) -> None:
    inner = {"_target_": "rl.proposals.constant.Constant", "value": [0.5, 0.25], "every": 3}
    made = collector(vector, proposal=inner)
    assert made.proposal is not None
    assert made.proposal.every == 3
    segment = made.collect(0)
    assert torch.equal(segment.features["hint/plan"], torch.tensor([0.5, 0.25]).expand(2, 6, 2))
    with pytest.raises(ValueError, match="name the guide"):
        StartStates()
    with pytest.raises(ValueError, match="share <= 1"):
        StartStates(policy=make_policy(), share=0.0)
    with pytest.raises(ValueError, match="has a memory"):
        StartStates(policy=make_policy("gaussian", memory="gru"))
