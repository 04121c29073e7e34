"""Spoc in the real loop: segments of a simulator, with a cache that goes from one to the next, and PPO on them."""

import math

import pytest
import torch

from envs.vector import SimVector
from rl.collect import Collector
from rl.learner import Learner
from rl.ppo import Ppo
from rl.rewards import build_terms
from tests.toy_parts import SUCCESS, make_policy, toy, toy_spec


@pytest.mark.parametrize("context", ["episode", "segment"])
def test_ppo_over_segments_that_share_a_cache(context: str) -> None:
    """The learner refuses a first log-ratio above 1e-4, which a cache mistaken at a border would give."""
    policy = make_policy("spoc", toy_spec(discrete=True), window=6, switches={"context": context}, vision="pixels")
    vector = SimVector([toy(discrete=True)] * 3)
    try:
        collector = Collector(vector, policy, decisions=7, gamma=0.99, lockstep=True)
        learner = Learner(policy, Ppo(lr=1e-3, epochs=2, minibatches=3), build_terms(SUCCESS))
        starts = []
        for version in range(3):
            segment = collector.collect(version)
            starts.append(segment.starts)
            assert segment.features["maps"].dtype == torch.float16
            assert bool((segment.memory["count"] > 0).any()) == (version > 0 and context == "episode")
            metrics = learner.update(segment)
            assert metrics["loss/first_log_ratio"] < 1e-4
            assert all(math.isfinite(v) for v in metrics.values())
            if context == "episode":  # acting and learning look at the same moments
                assert metrics["loss/rollout_log_prob_gap"] < 1e-3
        assert not bool(starts[1][:, 0].all())  # some segment begins in the middle of an episode
    finally:
        vector.close()
