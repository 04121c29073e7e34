"""What all tests share."""

import os
import sys

os.environ.setdefault("MUJOCO_GL", "osmesa")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as launch.py does
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from envs.types import EnvSpec

torch.set_num_threads(1)  # tests run beside one another and beside simulators


@pytest.fixture
def tiny_spec() -> EnvSpec:
    """Two small cameras, three proprioception entries, two actions."""
    return EnvSpec(
        env_id="toy/tiny",
        cameras={"front": (16, 16), "hand": (16, 16)},
        proprio={"x": "m", "y": "m", "grip": "1"},
        actions=("dx", "dy"),
        low=(-1.0, -1.0),
        high=(1.0, 1.0),
        control_hz=20.0,
        max_steps=20,
        tasks=("red", "blue"),
        action_convention="velocity",
    )


def pytest_unconfigure() -> None:
    """Keep pytest's summary last: MuJoCo's GL context complains when it is freed during interpreter shutdown."""
    for name in ("mujoco.osmesa", "mujoco.egl"):
        if (module := sys.modules.get(name)) is not None:
            module.GLContext.__del__ = lambda self: None
