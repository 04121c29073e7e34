"""A two-room house behind the real Controller, for tests of the AI2-THOR adapter and of what stands on it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs import stretch
from envs.types import EnvConfig
from envs.vector import Arrival, SimVector

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venvs" / "ai2thor" / "bin" / "python"
PARTS = "--parts tests.thor_parts"  # flat pictures of a house built by hand
CAMERAS = {stretch.NAVIGATION: (64, 112), stretch.MANIPULATION: (64, 112)}
TARGETS = ["Apple", "Mug", "Bed", "Book"]


@pytest.fixture(scope="session")
def thor_is_here() -> None:
    """Skip, and say why, where ai2thor is missing."""
    if not PYTHON.exists():
        pytest.skip("AI2-THOR IS NOT TESTED: it is not installed; run `python launch.py install ai2thor`")


@pytest.fixture
def house_file(tmp_path: Path) -> Path:
    """The house as a file."""
    path = tmp_path / "house.json"
    path.write_text(start())
    return path


def start() -> str:
    """The two rooms of tests/thor_parts.py in ProcTHOR's format, as far as the adapter reads it."""
    rooms = []
    for number, kind, low in ((1, "Kitchen", 0.0), (2, "Bedroom", 4.0)):
        corners = [(low, 0.0), (low, 4.0), (low + 4.0, 4.0), (low + 4.0, 0.0)]
        polygon = [{"x": x, "y": 0.0, "z": z} for x, z in corners]
        rooms.append({"id": f"room|{number}", "roomType": kind, "floorPolygon": polygon})
    return json.dumps({"rooms": rooms, "objects": [], "walls": [], "doors": [], "metadata": {"schema": "1.0.0"}})


def sim(file: Path, **options: Any) -> dict[str, Any]:
    """The adapter's node."""
    cameras = {k: list(v) for k, v in CAMERAS.items()}
    plain = {"houses": str(file), "cameras": cameras, "mini_arguments": PARTS, "targets": TARGETS}
    return {"_target_": "envs.ai2thor.Ai2thor", **plain, **options}


def open_vector(file: Path, *, rows: int = 1, **options: Any) -> SimVector:
    """Simulators of the house."""
    config = EnvConfig(sim=sim(file, **options), python=str(PYTHON), step_deadline_s=60.0, open_deadline_s=60.0)
    return SimVector([config] * rows)


def reset(vector: SimVector, task: str, seed: int) -> Arrival:
    """A new episode of row 0."""
    vector.send_reset(0, task, seed)
    vector.wait()
    return vector.take(0)


def act(vector: SimVector, action: str | int, *, render: str = "last") -> Arrival:
    """One action of row 0, by its index or name."""
    index = action if isinstance(action, int) else stretch.action_index(action)
    vector.send_step(0, np.array([[float(index)]]), render)
    vector.wait()
    return vector.take(0)
