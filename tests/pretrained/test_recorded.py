"""Collected episodes as whole walks, and as the windows that SPOC's imitation reads."""

from pathlib import Path

import numpy as np
import pytest

from envs import stretch
from envs.types import EnvSpec
from pretrained.demos.libero import DemoWriter, Recorded
from pretrained.demos.spoc import START, Chores


def spec(**changes: object) -> EnvSpec:
    from dataclasses import replace

    return replace(stretch.spec(frame=(16, 28), tasks=("FetchType",)), seed_block=4, **changes)  # type: ignore[arg-type]


def write(path: Path, env: EnvSpec, lengths: list[int], *, action: float | None = None) -> Path:
    writer = DemoWriter(path, env=env, identity={})
    rng = np.random.default_rng(0)
    for i, length in enumerate(lengths):
        images = {c: rng.integers(0, 255, (length, y, x, 3), dtype=np.uint8) for c, (y, x) in env.cameras.items()}
        actions = np.arange(length, dtype=np.float64)[:, None] % 20 if action is None else np.full((length, 1), action)
        held = (np.arange(length)[:, None] >= length - 2).astype(np.float32)
        episode = Recorded(images, held, actions, actions, np.zeros(length), np.zeros((length, 1)), "Find A Mug",
                           "FetchType", seed=100 + i, success=True)  # fmt: skip
        writer.add(i, episode)
        writer.note(i, "success")
    return writer.finish(range(len(lengths)), {})


def test_windows_hold_what_was_recorded(tmp_path: Path) -> None:
    path = write(tmp_path / "demo.hdf5", spec(), [5, 9])
    demos = Chores(paths=path, window=6)
    assert (len(demos), demos.env.cameras, demos.all_actions().shape) == (2, spec().cameras, (14, 1))
    batch = demos.batch([0, 1], draw=3)
    assert batch.obs.texts == ["find a mug"] * 2
    start = int(batch.obs.hints["time"][1, 0])
    assert batch.actions[1, :, 0].tolist() == list(range(start, start + 6))
    last = batch.obs.hints["last_action"][1].tolist()
    assert last == [START if t == 0 else t - 1 for t in range(start, start + 6)]
    assert batch.is_pad[0].tolist() == [False] * 5 + [True]
    assert batch.obs.proprio[0, :, 0].tolist() == [0, 0, 0, 1, 1, 0]
    walk = demos.walk(0)
    assert np.array_equal(walk.frames(stretch.NAVIGATION, slice(0, 5)), batch.obs.images[stretch.NAVIGATION][0, :5])


def test_row_zero_is_on_top_again(tmp_path: Path) -> None:
    env = spec()
    path = tmp_path / "demo.hdf5"
    write(path, env, [3])
    rng = np.random.default_rng(0)
    first = rng.integers(0, 255, (3, 16, 28, 3), dtype=np.uint8)
    assert np.array_equal(Chores(paths=path).walk(0).frames(stretch.NAVIGATION, slice(0, 3)), first)


def test_episodes_of_a_house_stay_together(tmp_path: Path) -> None:
    demos = Chores(paths=write(tmp_path / "demo.hdf5", spec(), [3] * 12))
    train, held = demos.split(0.34, 0)
    assert held is not None
    houses = [{str(w.folder) for w in part.tasks["FetchType"]} for part in (train, held)]
    assert not houses[0] & houses[1]
    assert sorted(map(len, houses)) == [1, 2]


def test_one_camera_is_enough(tmp_path: Path) -> None:
    env = spec(cameras={stretch.NAVIGATION: (16, 28)})
    batch = Chores(paths=write(tmp_path / "demo.hdf5", env, [4])).batch([0])
    assert list(batch.obs.images) == [stretch.NAVIGATION]


def test_files_of_other_robots_are_refused(tmp_path: Path, tiny_spec: EnvSpec) -> None:
    writer = DemoWriter(tmp_path / "toy.hdf5", env=tiny_spec, identity={})
    images = {c: np.zeros((2, y, x, 3), np.uint8) for c, (y, x) in tiny_spec.cameras.items()}
    zeros = np.zeros((2, 2))
    writer.add(
        0, Recorded(images, np.zeros((2, 3), np.float32), zeros, zeros, np.zeros(2), zeros, "go", "red", 0, True)
    )
    path = writer.finish([0], {})
    with pytest.raises(ValueError, match="toy.hdf5 is of toy/tiny; expected one that was collected with env=ai2thor"):
        Chores(paths=path)
