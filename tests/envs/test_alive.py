"""A robot that stands still is no stuck renderer, however its numbers change."""

import dataclasses
import math

import numpy as np
import pytest

from envs.alive import moved
from envs.types import EnvConfig
from envs.vector import FROZEN_AFTER, SimVector

UNITS = {"x": "m", "roll": "rad", "finger": "m", "q": "1", "command": "1", "speed": "rad/s"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, False),
        ({"x": -0.2}, True),
        ({"x": 0.04}, False),
        ({"roll": 0.6}, True),
        ({"roll": 2 * math.pi - 0.02}, False),  # from just below pi to just above -pi
        ({"roll": -(2 * math.pi - 0.7)}, True),
        ({"finger": 0.08}, False),  # may be hidden by the hand
        ({"command": 2.0, "q": -2.0, "speed": 3.0}, False),
    ],
)
def test_what_every_camera_must_show(change: dict[str, float], expected: bool) -> None:
    values = np.array([change.get(name, 0.0) for name in UNITS], np.float32)
    assert moved(values, UNITS.values()) is expected


@pytest.mark.parametrize(("unit", "kind"), [("m", "failed"), ("1", "step")])
def test_only_motion_makes_a_picture_that_stays_a_failure(unit: str, kind: str) -> None:
    """The same numbers as lengths, and as what a standing robot is told."""
    v = SimVector([EnvConfig(sim={"_target_": "envs.toy.Toy", "max_steps": 100})])
    try:
        v.env_spec = dataclasses.replace(v.env_spec, proprio={"a": unit, "b": unit})
        v.send_reset(0, "red", 1)
        v.wait()
        v.take(0)
        slab, got = v._rows[0].child.slab, ""
        still = slab["image/top"].copy()
        for i in range(2 + FROZEN_AFTER):
            v.send_step(0, np.zeros((1, 2)))
            v.wait()
            slab["image/top"][...] = still
            slab["proprio"][...] = [float(i > 1), 0.0]
            got = v.take(0).kind
            if got == "failed":
                break
        assert got == kind
    finally:
        v.close()
