"""Action errors by picture: what counts, whole episodes in the interval, and who is shown which picture."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.genima_actions import decide, errors, hold, interval, measure
from pretrained.demos import DemoWriter, Recorded
from pretrained.genima.render import RenderRun, render
from pretrained.types import DemoBatch, ObsBatch
from tests.pretrained.test_genima_render import LENGTH, SIZE, poses, spec

ORDER = ("side", "front")


def demo(actions: list[list[list[float]]], padded: list[list[bool]], proprio: list[list[float]]) -> DemoBatch:
    obs = ObsBatch({}, torch.tensor(proprio)[:, None], ["lift"] * len(proprio))
    return DemoBatch(obs, torch.tensor(actions), torch.tensor(padded))


def test_errors_leave_padding_out() -> None:
    true = [[[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]], [[1.0, 1.0, -1.0], [1.0, 1.0, -1.0]]]
    ours = torch.tensor([[[0.1, 0.3, 0.2], [9.0, 9.0, -1.0]], [[1.0, 1.0, -0.5], [1.0, 1.4, 0.5]]])
    joints, gripper = errors(ours, demo(true, [[False, True], [False, False]], [[0.0] * 3] * 2))
    assert joints == pytest.approx([200.0, 100.0])
    assert gripper == pytest.approx([1.0, 0.5])


def test_hold_keeps_the_joints_and_the_gripper() -> None:
    kept = hold(demo([[[0.0] * 3] * 2] * 2, [[False] * 2] * 2, [[1.0, 0.3, 0.4], [0.0, 0.5, 0.6]]))
    torch.testing.assert_close(kept, torch.tensor([[[0.3, 0.4, -1.0]] * 2, [[0.5, 0.6, 1.0]] * 2]))


def test_the_interval_draws_whole_episodes() -> None:
    values, episodes = np.repeat([0.0, 1.0], 500), np.repeat([0, 1], 500)
    mean, low, high = interval(values, episodes)
    assert (mean, low, high) == (0.5, 0.0, 1.0)  # of two episodes, however many frames they have
    mean, low, high = interval(values, np.arange(1000))
    assert 0.46 < low < mean == 0.5 < high < 0.54


class Reader:
    """A controller whose joint is the mean of its first camera's pictures."""

    spec = SimpleNamespace(cameras={"front": SIZE})

    def encode(self, obs: ObsBatch) -> Any:
        return {"x": torch.as_tensor(obs.images["front"]).float().mean((1, 2, 3, 4))}

    def initial_memory(self, n: int) -> Any:
        return {"n": n}

    def act(self, x: Any, memory: Any, rng: Any, greedy: bool) -> Any:
        assert greedy
        assert len(rng) == memory["n"] == len(x["x"])
        chunk = torch.stack([x["x"], torch.ones_like(x["x"])], -1)[:, None].expand(-1, 3, -1)
        return SimpleNamespace(chunk=chunk), memory


def test_each_row_is_shown_its_pictures(tmp_path: Path) -> None:
    two = replace(
        spec(), actions=("a", "g"), low=(-1.0, -1.0), high=(1.0, 1.0), proprio={"gripper_open": "1", "x": "m"}
    )
    rng, writer = np.random.default_rng(0), DemoWriter(tmp_path / "raw.hdf5", env=two, identity={})
    for k in range(2):
        images = {c: rng.integers(0, 256, (LENGTH, *SIZE, 3), dtype=np.uint8) for c in ("front", "side")}
        rows = np.stack([rng.uniform(-1, 1, LENGTH), np.full(LENGTH, 1.0)], -1)
        one = Recorded(images, rows.astype(np.float32), rows, rows, rows[:, 0], rows, "do", "t", k, True,
                       poses(rng, LENGTH))  # fmt: skip
        writer.add(k, one)
        writer.note(k, "success")
    writer.finish(range(2), {})
    settings: Any = {"demos": str(tmp_path / "raw.hdf5"), "cameras": ORDER, "scale": 9.0, "workers": 1, "quiet": True}
    tiles, still = (str(render(RenderRun(out=str(tmp_path / f"{h}.hdf5"), horizon=h, **settings))) for h in (4, 1))
    rows = {kind: (Reader(), kind) for kind in ("scene", "true", "still", "painted")}
    found = measure(tiles, still, ORDER, 3, rows, lambda scene, *_: torch.from_numpy(scene))
    assert list(found) == [*rows, "hold"]
    assert found["scene"] == found["painted"]  # a painter that changes nothing
    assert len({found[k]["joints"][0] for k in ("scene", "true", "still", "hold")}) == 4
    assert found["scene"]["gripper"] == (1.0, 1.0, 1.0)
    views = {"front": np.full((1, *SIZE, 3), 7, np.uint8), "side": np.zeros((1, *SIZE, 3), np.uint8)}
    assert decide(Reader(), views, demo([[[0.0] * 2] * 3], [[False] * 3], [[0.0, 0.0]]))[0, 0].tolist() == [7.0, 1.0]
