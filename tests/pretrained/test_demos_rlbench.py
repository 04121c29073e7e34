"""Datasets in RLBench's layout: read, trained on, drawn on, and refused where they are old or damaged."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from envs.rlbench import Rlbench
from envs.rlbench_files import find_demos, load_demo
from envs.types import EnvError, EnvSpec
from pretrained.demos import Demos, resolve
from pretrained.demos.rlbench import dataset_spec, pack, read_dataset
from pretrained.genima.render import RenderRun, render
from pretrained.genima.spheres import Camera
from tests.rlbench_parts import CAMERAS, fake_rlbench, sim, write_dataset

pytestmark = [pytest.mark.sim, pytest.mark.usefixtures("fake_rlbench")]
__all__ = ["fake_rlbench"]
TASK = "reach_target"
SPEC = dataset_spec((TASK,), {c: (y, x) for c, (y, x) in CAMERAS.items()})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two demonstrations of one variation and one of another; made by the first test that asks."""
    return tmp_path_factory.mktemp("rlbench") / "data"


@pytest.fixture
def root(made: Path, fake_rlbench: None) -> Path:
    if not made.exists():
        env = Rlbench(**{k: v for k, v in sim(poses=True, task_state=3).items() if k != "_target_"})
        env.reset(TASK, 0)
        env._show(True)
        write_dataset(made, env._task, name=TASK, episodes=2)
        write_dataset(made, env._task, name=TASK, episodes=1, variation=2)
        env.close()
    return made


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """The dataset, to be damaged."""
    return Path(shutil.copytree(root, tmp_path / "copy"))


def episode(folder: Path) -> Path:
    return folder / TASK / "variation0" / "episodes" / "episode0"


def change(folder: Path, work: Any) -> None:
    """Rewrite the first demonstration's pickle."""
    path = episode(folder) / "low_dim_obs.pkl"
    demo = pickle.loads(path.read_bytes())
    work(demo)
    path.write_bytes(pickle.dumps(demo))


def test_reading(root: Path) -> None:
    episodes = read_dataset(root, env=SPEC)
    assert [e.demo.stored.name.split("/", 1)[1] for e in episodes] == [
        "variation0/episode0", "variation0/episode1", "variation2/episode0"]  # fmt: skip
    assert "red" in episodes[0].instruction
    assert episodes[1].instruction == "touch the red ball with the panda gripper"
    assert "blue" in episodes[2].instruction
    first, demo = episodes[0], load_demo(find_demos(root, TASK)[0])
    assert len(first) == len(demo.frames) - 1
    for t in range(len(first)):
        np.testing.assert_allclose(first.actions[t, :7], demo.misc(t + 1, "joint_position_action")[:7], atol=1e-6)
        np.testing.assert_allclose(first.proprio[t, 1:], demo.frames[t]["joint_positions"], atol=1e-6)
    with Image.open(first.demo.stored.folder / "front_rgb" / "3.png") as image:
        np.testing.assert_array_equal(first.images("front")[3], np.asarray(image))
    assert len(read_dataset(root, env=SPEC, variations=[2])) == 1


def test_a_folder_is_a_dataset_to_pretrain_on(root: Path) -> None:
    assert resolve(root) == [root]
    batch = Demos(paths=root, env=SPEC, horizon=4).batch([0, 5])
    assert batch.actions.shape == (2, 4, 8)


def test_other_kinds_of_action(root: Path) -> None:
    poses = replace(SPEC, action_convention="ee_pose", low=(-2.0,) * 8, high=(2.0,) * 8)
    demo = load_demo(find_demos(root, TASK)[0])
    np.testing.assert_allclose(
        read_dataset(root, env=poses)[0].actions[4, :7], demo.frames[5]["gripper_pose"], atol=1e-6
    )
    delta = replace(SPEC, action_convention="joint_delta", low=(-1.0,) * 8, high=(1.0,) * 8)
    assert np.abs(read_dataset(root, env=delta)[0].actions[:, :7]).max() == pytest.approx(0.1, abs=1e-6)
    with pytest.raises(ValueError, match="no actions of kind 'joint_torque'"):
        read_dataset(root, env=replace(SPEC, action_convention="joint_torque"))


def test_targets_are_drawn_where_the_joints_were(root: Path, tmp_path: Path) -> None:
    packed = pack(root, tmp_path / "packed.hdf5", env=SPEC)
    with h5py.File(packed, "r") as file:
        poses = file["data"]["demo_0"]["poses"]
        joint, length = poses["joint_poses"][0, 5, :3], len(poses["joint_poses"])
        camera = Camera(poses["intrinsics"]["front"][0], poses["camera"]["front"][0], CAMERAS["front"])
        assert json.loads(file["data"].attrs["temper_outcomes"])["0"] == "success"
    assert camera.project(joint)[2] > 0
    tiles = render(RenderRun(demos=str(packed), out=str(tmp_path / "tiles.hdf5"), workers=1, quiet=True, scale=12.0))
    with h5py.File(tiles, "r") as file:
        obs = file["data"]["demo_0"]["obs"]
        target, seen = (obs[k][()][:, ::-1] for k in ("target_rgb", "tile(wrist,front)_rgb"))
    assert 0 < len(target) <= length
    at = camera.project(load_demo(find_demos(root, TASK)[0]).misc(min(21, length - 1) - 1, "joint_poses")[5][:3])
    x, y = int(at[0]) + CAMERAS["wrist"][1], int(at[1])
    changed = np.abs(target[0].astype(int) - seen[0]).sum(-1) > 0
    assert changed[max(0, y - 2) : y + 3, x - 2 : x + 3].any()


def test_a_stored_start_is_restored(root: Path) -> None:
    env = Rlbench(**{k: v for k, v in sim(demos=str(root), task_state=3).items() if k != "_target_"})
    try:
        for seed in (0, 1, 2, 3):
            obs = env.reset(TASK, seed)
            demo = load_demo(find_demos(root, TASK)[seed % 3])
            np.testing.assert_allclose(obs.privileged["task_state"], demo.frames[0]["task_low_dim_state"])
            assert obs.notes["variation"] == demo.start.variation
            assert obs.notes["demo"].endswith(demo.stored.folder.name)
    finally:
        env.close()


def old(demo: Any) -> None:
    for frame in demo._observations:
        del frame.misc["joint_poses"]


def test_old_datasets_have_no_targets(copy: Path, tmp_path: Path) -> None:
    change(copy, old)
    assert len(read_dataset(copy, env=SPEC)) == 3
    with pytest.raises(ValueError, match="frame 0 does not say joint_poses; the dataset is too old"):
        pack(copy, tmp_path / "out.hdf5", env=SPEC)


def test_demonstrations_beyond_the_limits_are_left_out(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    def turn(demo: Any) -> None:
        demo._observations[2].misc["joint_position_action"][3] = 0.5

    change(copy, turn)
    assert len(read_dataset(copy, env=SPEC)) == 2
    assert "leave the bounds" in caplog.text
    shutil.rmtree(copy / TASK / "variation2")
    shutil.rmtree(episode(copy).with_name("episode1"))
    with pytest.raises(ValueError, match="all 1 demonstrations"):
        read_dataset(copy, env=SPEC)


def test_damage_is_named(copy: Path, tmp_path: Path) -> None:
    path = episode(copy) / "low_dim_obs.pkl"
    whole = path.read_bytes()

    def refused(words: str, env: EnvSpec = SPEC) -> None:
        with pytest.raises((ValueError, EnvError)) as found:
            read_dataset(copy, env=env)
        assert words in str(found.value)

    path.write_bytes(whole[: len(whole) // 2])
    refused("cannot be read as data")
    mark = tmp_path / "was_run"
    path.write_bytes(b"cposix\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR.")
    refused("asks for 'posix.system'")
    assert not mark.exists()
    path.write_bytes(pickle.dumps({"no": "demo"}))
    refused("expected a Demo")
    change_to = pickle.loads(whole)
    change_to._observations[1].joint_positions = np.full(7, np.nan)
    path.write_bytes(pickle.dumps(change_to))
    refused("frame 1 has joint_positions")
    path.write_bytes(whole)
    refused("has no camera 'overhead'", replace(SPEC, cameras={"overhead": (24, 32)}))
    refused("the camera's size is (32, 24, 3)", replace(SPEC, cameras={"front": (32, 24)}))
    (episode(copy) / "front_rgb" / "1.png").unlink()
    refused("pictures for")
    shutil.rmtree(episode(copy) / "front_rgb")
    refused("has no camera 'front'; it has ['wrist']")
    shutil.rmtree(copy / TASK / "variation0")
    (copy / TASK / "variation2" / "variation_descriptions.pkl").unlink()
    refused("no variation_descriptions.pkl")
    with pytest.raises(EnvError, match="has no task 'open_drawer'; it has"):
        find_demos(copy, "open_drawer")
    with pytest.raises(ValueError, match="has no task of"):
        read_dataset(copy, env=replace(SPEC, tasks=("open_drawer",)))
    with pytest.raises(ValueError, match="proprioception"):
        read_dataset(copy, env=replace(SPEC, proprio={"joint_0": "rad"}))
