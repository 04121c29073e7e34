"""Collection that goes on elsewhere, from what was kept at a border, delivers the same segment to the bit."""

from dataclasses import fields
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

from envs.types import EnvConfig
from envs.vector import SimVector
from pretrained.tensors import flatten, unflatten
from rl.border import fits, go_back, keep
from rl.collect import Collector
from rl.types import Segment
from tests.toy_parts import make_policy, toy

LIFT = EnvConfig(
    {"_target_": "envs.robosuite.Robosuite", "name": "Lift", "cameras": {"agentview": [16, 16]}, "max_steps": 8}
)
needs_robosuite = pytest.mark.skipif(find_spec("robosuite") is None, reason="robosuite is NOT installed")


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(v, b[k]) for k, v in a.items())
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


def stored(border: dict[str, Any]) -> dict[str, Any]:
    """As it comes out of a checkpoint."""
    tensors: dict[str, torch.Tensor] = {}
    return unflatten(flatten(border, "", tensors), tensors)


def without_clocks(segment: Segment) -> Segment:
    segment.stats = {k: v for k, v in segment.stats.items() if not k.endswith("_s")}
    return segment


@pytest.mark.parametrize(
    "env",
    [pytest.param(LIFT, id="lift", marks=[pytest.mark.sim, needs_robosuite]), pytest.param(toy(max_steps=7), id="toy")],
)
def test_the_next_segments_are_the_same(env: EnvConfig) -> None:
    """Episodes of 8 and 7 steps, decisions of 3, segments of 2 decisions: borders lie inside episodes and at ends."""
    vector = SimVector([env])
    try:
        policy = make_policy("flow", vector.env_spec, execute=3)
        shared: dict[str, Any] = {"decisions": 2, "gamma": 0.99, "needs": frozenset({"privileged"}), "lockstep": True}
        one = Collector(vector, policy, **shared)
        one.collect(0)
        kept = keep(one)
        assert sum(kept["chunks"][0]) == 6
        assert fits(kept, 1)
        assert not fits(kept, 2)
        assert not fits(None, 1)
        first = [without_clocks(one.collect(version)) for version in (1, 2, 3)]
        if not one.ready[0]:
            vector.wait()
            vector.take(0)
        two = Collector(vector, policy, begin=False, seed=5, **shared)
        go_back(two, stored(kept))
        again = [without_clocks(two.collect(version)) for version in (1, 2, 3)]
        for a, b in zip(first, again, strict=True):
            assert [f.name for f in fields(Segment) if not equal(getattr(a, f.name), getattr(b, f.name))] == []
        assert one.episodes[0].name.endswith(":2")  # two episodes have ended since
        assert two.episodes == one.episodes
        assert all(map(torch.equal, (g.get_state() for g in two.rng), (g.get_state() for g in one.rng)))
    finally:
        vector.close()
