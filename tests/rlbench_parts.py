"""The stand-in for RLBench (tests/rlbench_fake) as an environment, and datasets in RLBench's layout made with it."""

import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from envs.types import EnvConfig

FAKE = Path(__file__).resolve().parent / "rlbench_fake"
CAMERAS = {"wrist": [24, 32], "front": [24, 32]}
MODULES = ("rlbench", "pyrep")


def sim(**options: Any) -> dict[str, Any]:
    """The node of an adapter with small pictures."""
    return {"_target_": "envs.rlbench.Rlbench", "cameras": CAMERAS, "launch_gap_s": 0.0, "max_steps": 12, **options}


def config(**options: Any) -> EnvConfig:
    """The same, to be run in children of this interpreter."""
    return EnvConfig(sim=sim(**options), python=sys.executable, step_deadline_s=60.0, open_deadline_s=120.0)


@pytest.fixture
def fake_rlbench(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """RLBench's names mean the stand-in, here and in children."""
    monkeypatch.setenv("RLBENCH_FAKE_MODEL", str(tmp_path_factory.getbasetemp() / "panda.mjb"))
    monkeypatch.syspath_prepend(str(FAKE))
    monkeypatch.setenv("PYTHONPATH", str(FAKE) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path / "cache"))
    yield
    for name in [m for m in sys.modules if m.split(".")[0] in MODULES]:
        del sys.modules[name]
    if "fake_world" in sys.modules:
        sys.modules["fake_world"].shutdown()


def write_dataset(root: Path, task: Any, *, name: str, episodes: int, variation: int = 0) -> Path:
    """Plan demonstrations with a TaskEnvironment and store them as RLBench's generator does; returns `root`."""
    task.set_variation(variation)
    for number in range(episodes):
        np.random.seed(100 * variation + number)
        demo = task.get_demos(1, live_demos=True)[0]
        folder = root / name / f"variation{variation}" / "episodes" / f"episode{number}"
        for camera in CAMERAS:
            (folder / f"{camera}_rgb").mkdir(parents=True)
        for t, frame in enumerate(demo._observations):
            for camera in CAMERAS:
                Image.fromarray(getattr(frame, camera + "_rgb")).save(folder / f"{camera}_rgb" / f"{t}.png")
                setattr(frame, camera + "_rgb", None)
        (folder / "low_dim_obs.pkl").write_bytes(pickle.dumps(demo))
        texts, _ = task.reset()
        (folder.parent.parent / "variation_descriptions.pkl").write_bytes(pickle.dumps(texts))
    return root
