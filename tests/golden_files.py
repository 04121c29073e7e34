"""Where recorded tensors of other implementations lie: $TEMPER_GOLDEN, else ../shared/golden, else tests/golden."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]


def folders() -> list[Path]:
    """Where to look, in this order; the first folder that has a file wins."""
    named = os.environ.get("TEMPER_GOLDEN")
    return [Path(named) if named else ROOT.parent / "shared" / "golden", ROOT / "tests" / "golden"]


def golden(name: str) -> Path:
    """The file `name`, such as "flare_eval/gae_ppo.json"; skips the test, saying why, if it is nowhere."""
    for folder in folders():
        if (folder / name).is_file():
            return folder / name
    pytest.skip(f"golden file {name} is in none of {[str(f) for f in folders()]}; set TEMPER_GOLDEN")


def golden_json(name: str) -> dict[str, Any]:
    """A parsed JSON file."""
    return json.loads(golden(name).read_text())


def golden_tensors(name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    return load_file(golden(name))
