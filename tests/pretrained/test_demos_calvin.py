"""CALVIN's dataset: windows of a split as demonstrations, packing, and files that are damaged, hostile or misplaced."""

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from envs.calvin.env import calvin_spec
from envs.calvin.scenes import SIZES
from pretrained.demos import Demos
from pretrained.demos.calvin import main, pack, read_annotations, read_split
from pretrained.demos.files import read_episodes

FIRST, FRAMES = 100, 24
WINDOWS = [(102, 106), (110, 117)]
SPEC = calvin_spec("D", sizes=SIZES)


def frame(number):
    rng = np.random.default_rng(number)
    action = np.concatenate([rng.uniform(-1, 1, 6), [1.0 if number % 2 else -1.0]])
    return {
        "rgb_static": rng.integers(0, 255, (200, 200, 3), dtype=np.uint8),
        "rgb_gripper": rng.integers(0, 255, (84, 84, 3), dtype=np.uint8),
        "depth_static": np.zeros((2, 2), np.float32),
        "robot_obs": rng.normal(size=15),
        "scene_obs": rng.normal(size=24),
        "actions": action * [2, 2, 2, 2, 2, 2, 1],
        "rel_actions": action,
    }


def annotate(split, windows=WINDOWS, **content):
    """As the official files: a dict, pickled into an array of one object."""
    texts = [f"sentence {i}" for i in range(len(windows))]
    language = {"ann": texts, "task": ["open_drawer"] * len(windows), "emb": np.zeros((len(windows), 1, 8), np.float32)}
    stored = {"language": language, "info": {"episodes": [], "indx": windows}, **content}
    (split / "lang_annotations").mkdir(exist_ok=True)
    np.save(split / "lang_annotations" / "auto_lang_ann.npy", stored, allow_pickle=True)  # type: ignore[arg-type]


@pytest.fixture
def split(tmp_path: Path) -> Path:
    folder = tmp_path / "task_D_D" / "training"
    folder.mkdir(parents=True)
    for number in range(FIRST, FIRST + FRAMES):
        np.savez(folder / f"episode_{number:07d}.npz", **frame(number))
    np.save(folder / "ep_start_end_ids.npy", np.array([[100, 108], [109, 123]]))
    annotate(folder)
    return folder


def test_windows_are_demonstrations(split):
    first, second = read_split(split, env=SPEC)
    assert (len(first), len(second)) == (5, 8)
    assert (first.instruction, first.task) == ("sentence 0", "open_drawer")
    for row, number in enumerate(range(110, 118)):
        stored = frame(number)
        assert np.array_equal(second.actions[row], stored["rel_actions"].astype(np.float32))
        assert np.array_equal(second.proprio[row], stored["robot_obs"].astype(np.float32))
        assert np.array_equal(second.images("rgb_gripper")[row], stored["rgb_gripper"])
    assert second.images("rgb_static").shape == (8, 200, 200, 3)


def test_absolute_actions_and_a_choice_of_proprioception(split):
    absolute = calvin_spec("D", sizes={"rgb_gripper": (84, 84)}, actions="absolute")
    env = replace(absolute, proprio={"gripper_width": "m", "tcp_x": "m"})
    episode = read_split(split, env=env)[0]
    stored = frame(102)
    assert np.array_equal(episode.actions[0], stored["actions"].astype(np.float32))
    assert np.array_equal(episode.proprio[0], stored["robot_obs"][[6, 0]].astype(np.float32))


def test_numpy_numbers_texts_and_arrays_in_the_annotations(split):
    annotate(split, np.array(WINDOWS))
    assert read_annotations(split).windows.tolist() == [list(window) for window in WINDOWS]
    numbers = [(np.int64(first), np.int64(last)) for first, last in WINDOWS]
    language = {"ann": [np.str_("öffne"), "b"], "task": np.array(["open_drawer", "lift"]), "emb": None}
    annotate(split, numbers, language=language)
    found = read_annotations(split)
    assert found.windows.tolist() == [list(window) for window in WINDOWS]
    assert found.texts == ["öffne", "b"]
    assert found.tasks == ["open_drawer", "lift"]


def test_windows_are_read_as_training_data_and_packed_alike(split, tmp_path):
    out = tmp_path / "packed.hdf5"
    assert pack(split, out) == out
    direct, packed = (Demos(path, env=SPEC, horizon=3) for path in (split, out))
    assert len(direct) == len(packed) == 13
    one, two = (demos.batch([0, 4, 12]) for demos in (direct, packed))
    assert one.obs.texts == two.obs.texts == ["sentence 0", "sentence 0", "sentence 1"]
    for camera in SPEC.cameras:
        assert np.array_equal(one.obs.images[camera], two.obs.images[camera])
    assert np.array_equal(one.obs.proprio, two.obs.proprio)
    assert np.allclose(one.actions, two.actions, atol=1e-6)


def test_packing_goes_on_where_it_stopped(split, tmp_path):
    broken = split / "episode_0000112.npz"
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"episode_0000112.npz is truncated or damaged"):
        pack(split, tmp_path / "out.hdf5")
    assert not (tmp_path / "out.hdf5").exists()
    broken.write_bytes(content)
    main([str(split), str(tmp_path / "out.hdf5")])
    assert len(read_episodes(tmp_path / "out.hdf5", env=SPEC)) == 2


def test_a_hostile_annotation_file_runs_nothing(split, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    annotate(split, info=Evil())
    with pytest.raises(ValueError, match="asks for '(posix|nt|os).mkdir'"):
        read_split(split, env=SPEC)
    assert not (tmp_path / "executed").exists()


def test_damaged_annotations_are_named(split):
    path = split / "lang_annotations" / "auto_lang_ann.npy"
    whole = path.read_bytes()
    for content in (b"", whole[:40], whole[:-9], b"not an array at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"auto_lang_ann.npy cannot be read .*download it again"):
            read_annotations(split)
    np.save(path, np.zeros(3))
    with pytest.raises(ValueError, match="expected one dict"):
        read_annotations(split)
    annotate(split, language={"ann": ["one"], "task": ["a", "b"]})
    with pytest.raises(ValueError, match="1 texts, 2 tasks"):
        read_annotations(split)
    annotate(split, info={})
    with pytest.raises(ValueError, match="no list of language annotations.*indx"):
        read_annotations(split)
    path.unlink()
    with pytest.raises(ValueError, match="missing; only annotated windows are read"):
        read_annotations(split)


def test_the_wrong_split_is_refused(split):
    annotate(split, [(102, 106), (200_000, 200_063)])
    with pytest.raises(ValueError, match="window 1 spans frames 200000 to 200063.*another split"):
        read_split(split, env=SPEC)
    annotate(split, [(105, 112)])  # across two recordings
    with pytest.raises(ValueError, match="in no recording"):
        read_split(split, env=SPEC)
    with pytest.raises(ValueError, match=rf"is no split of a CALVIN dataset; name one of .*{re.escape(str(split))}"):
        read_episodes(split.parent, env=SPEC)


def test_damaged_frames_are_named(split):
    path = split / "episode_0000104.npz"
    np.savez(path, **{**frame(104), "rel_actions": np.full(7, np.nan)})
    with pytest.raises(ValueError, match=r"episode_0000104.npz: 'rel_actions' is not finite"):
        read_split(split, env=SPEC)
    np.savez(path, **{k: v for k, v in frame(104).items() if k != "robot_obs"})
    with pytest.raises(ValueError, match="has no 'robot_obs', only"):
        read_split(split, env=SPEC)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(ValueError, match="truncated or damaged"):
        read_split(split, env=SPEC)
    path.unlink()
    with pytest.raises(ValueError, match=r"episode_0000104.npz is missing"):
        read_split(split, env=SPEC)


@pytest.mark.parametrize(("kind", "stored"), [("relative", "rel_actions"), ("absolute", "actions")])
def test_a_gripper_command_that_is_neither_open_nor_close_is_named(split, kind, stored):
    whole = frame(104)
    np.savez(split / "episode_0000104.npz", **{**whole, stored: np.append(whole[stored][:6], 0.5)})
    with pytest.raises(ValueError, match=rf"0104.npz: the gripper command of '{stored}' is 0.5; expected exactly 1 "):
        read_split(split, env=calvin_spec("D", sizes=SIZES, actions=kind))


def test_another_environment_is_refused(split):
    small = calvin_spec("D", sizes={"rgb_static": (64, 64)})
    with pytest.raises(ValueError, match=r"'rgb_static' has shape \(200, 200, 3\), expected \(64, 64, 3\)"):
        read_split(split, env=small)[0].images("rgb_static")
    with pytest.raises(ValueError, match="takes 'osc_pose_delta'; expected one of calvin_relative"):
        read_split(split, env=replace(SPEC, action_convention="osc_pose_delta"))
    with pytest.raises(ValueError, match="has no 'agentview'"):
        read_split(split, env=replace(SPEC, cameras={"agentview": (8, 8)}))
    with pytest.raises(ValueError, match="are for LeRobot datasets"):
        read_episodes(split, env=SPEC, names={"action": "a"})
