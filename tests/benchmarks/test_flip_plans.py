"""The table of plans: paired differences, shares of the calls, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.flip_plans import Arm, measure, row, starts
from pretrained.demos.tracks import Shard
from pretrained.flip.planner import Future, Planner
from tests.pretrained.test_flip_stage import shard


class World:
    """Imagines pictures that grow brighter by chance, and is worth 0.1 more with more than ten steps."""

    def __init__(self) -> None:
        self.steps, self.eta, self.history = 0, None, 1
        self.size, self.device = (32, 32), torch.device("cpu")

    def imagine(self, pictures: torch.Tensor, texts: list[str], rngs: list[torch.Generator]) -> Future:
        score = torch.cat([torch.rand(1, generator=g) for g in rngs]) + (0.1 if self.steps > 10 else 0.0)
        return Future(torch.zeros(len(texts), 4, 3, 2), pictures[:, -1:].expand(-1, 2, -1, -1, -1), score)


def test_the_same_starts_and_seeds_are_compared(tmp_path: Path) -> None:
    planner, found = Planner(beams=1, candidates=2, segments=2, gamma=1.0), Shard(shard(tmp_path / "shard"))
    arms = {n: measure(World(), planner, found, 4, n, None, seed=0) for n in (50, 20, 5)}  # type: ignore[arg-type]
    np.testing.assert_allclose(arms[20].values, arms[50].values)
    np.testing.assert_allclose(arms[5].values, arms[50].values - 0.2, atol=1e-6)
    assert (arms[50].values >= arms[50].first).all()
    assert arms[50].values.std() > 0
    with pytest.raises(ValueError, match="the shard has 4 episodes, expected at least 5"):
        starts(found, 5)


def test_a_row_says_what_is_lost_for_which_share_of_the_calls() -> None:
    full = Arm(np.array([1.0, 2.0, 3.0]), np.array([0.5, 1.0, 1.0]), 9.0)
    less = Arm(full.values - np.array([0.1, 0.2, 0.3]), full.first, 0.5)
    cells, gain, share = row("DDIM, 20", 40, less, full, 1000)
    assert cells[:3] == ["DDIM, 20", "40", "1/25"]
    assert gain[0] == pytest.approx(-0.2)
    assert gain[1] <= -0.2 <= gain[2] < 0
    assert share[0] == pytest.approx(-0.1)
    assert row("full", 1000, full, full, 1000)[0][4:6] == ["", ""]
