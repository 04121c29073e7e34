"""Where CALVIN's interpreter and data are, for its tests."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from envs.calvin.data import find_data
from envs.types import EnvError

ROOT = Path(__file__).resolve().parents[1]
OWN = ROOT / ".venvs" / "calvin" / "bin" / "python"
INTERPRETER = str(OWN) if OWN.exists() else sys.executable


def need_calvin() -> None:
    """Skip, and say why, where PyBullet or the data are missing."""
    if not OWN.exists() and importlib.util.find_spec("pybullet") is None:
        pytest.skip("CALVIN IS NOT TESTED: PyBullet is not installed; run `python launch.py install calvin`")
    try:
        find_data()
    except EnvError as e:
        pytest.skip(f"CALVIN IS NOT TESTED: {e}")


def run(*arguments: str) -> Any:
    """What a program prints last, as JSON, in the simulator's interpreter."""
    everything = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [INTERPRETER, *arguments], env=everything, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith(("{", "["))))
