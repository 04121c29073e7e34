"""Demonstration files: both kinds are read alike, windows are cut right, bad files are named."""

import dataclasses
import json

import h5py
import numpy as np
import pytest
import torch

from envs.types import EnvSpec
from pretrained.demos import Demos, DemoWriter, Recorded, stored_spec
from pretrained.demos.libero import ROBOT_STATES, noops

SPEC = EnvSpec(
    env_id="libero/test",
    cameras={"agentview": (6, 8), "robot0_eye_in_hand": (4, 4)},
    proprio=dict.fromkeys(("eef_x", "eef_z", "finger_0"), "m"),
    actions=("dx", "dy", "gripper"),
    low=(-1.0,) * 3,
    high=(1.0,) * 3,
    control_hz=20.0,
    max_steps=50,
    tasks=("pick",),
    action_convention="osc_pose_delta",
)


def recorded(length, k=0):
    """Row t of everything is recognisable: images 10 k + t (top row 255), actions (t, k, 1) / 100."""
    images = {}
    for camera, size in SPEC.cameras.items():
        frames = np.empty((length, *size, 3), dtype=np.uint8)
        frames[:] = (10 * k + np.arange(length)).reshape(-1, 1, 1, 1)
        frames[:, 0] = 255
        images[camera] = frames
    t = np.arange(length)
    actions = np.stack([t, np.full(length, k), np.ones(length)], axis=1) / 100
    proprio = np.stack([t, 10 * t, 0 * t + k], axis=1).astype(np.float32)
    return Recorded(images, proprio, actions, actions + 0.5, np.zeros(length), np.ones((length, 5)), f"pick up {k}",
                    "pick", 1000 + k, True)  # fmt: skip


def written(path, lengths=(4, 3), **kwargs):
    writer = DemoWriter(path, env=SPEC, identity={"seed": 0}, **kwargs)
    for k, length in enumerate(lengths):
        writer.add(k, recorded(length, k))
        writer.note(k, "success")
    return writer.finish(range(len(lengths)), {"success_rate": 1.0})


def official(path, length=5):
    """A file as LIBERO ships them: no proprioception vector, no marks of ours, upside-down images."""
    episode = recorded(length)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": "pick up the soup"})
        data.attrs["macros_image_convention"] = "opengl"
        demo = data.create_group("demo_0")
        demo["actions"] = episode.actions
        demo["robot_states"] = np.arange(length)[:, None] * 100.0 + np.arange(9)
        demo["obs/agentview_rgb"] = episode.images["agentview"][:, ::-1]
        demo["obs/eye_in_hand_rgb"] = episode.images["robot0_eye_in_hand"][:, ::-1]
        demo.attrs["num_samples"] = length
    return path


@pytest.mark.parametrize("in_memory", [True, False])
def test_windows_by_hand(tmp_path, in_memory):
    path = written(tmp_path / "a.hdf5")
    demos = Demos(path, env=SPEC, horizon=3, history=2, in_memory=in_memory)
    assert len(demos) == 7
    assert demos.num_episodes == 2
    batch = demos.batch([0, 3, 5])  # first and last step of demo_0, middle of demo_1
    assert batch.obs.texts == ["pick up 0", "pick up 0", "pick up 1"]
    expected = torch.tensor([[0.0, 1, 2], [3, 3, 3], [1, 2, 2]])
    torch.testing.assert_close(batch.actions[..., 0] * 100, expected)
    assert batch.actions.dtype == torch.float32
    assert batch.is_pad.tolist() == [[False] * 3, [False, True, True], [False, False, True]]
    images = batch.obs.images["agentview"]
    assert images.shape == (3, 2, 6, 8, 3)
    assert images[:, :, 3, 0, 0].tolist() == [[0, 0], [2, 3], [10, 11]]  # the past of a start is the start
    start = demos.batch([4]).obs  # of demo_1: its past is not the end of demo_0
    assert start.images["agentview"][0, :, 3, 0, 0].tolist() == [10, 10]
    assert start.proprio[0, :, 2].tolist() == [1, 1]
    assert (images[:, :, 0] == 255).all()  # row 0 is on top again
    assert batch.obs.images["robot0_eye_in_hand"].shape == (3, 2, 4, 4, 3)
    assert batch.obs.proprio[:, :, 1].tolist() == [[0, 0], [20, 30], [0, 10]]


def test_names_are_for_other_datasets(tmp_path):
    with pytest.raises(ValueError, match=r"names = .*'agentview'.* are for LeRobot datasets"):
        Demos(written(tmp_path / "a.hdf5"), env=SPEC, horizon=1, names={"agentview": "observation.images.top"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither a .* file nor a LeRobot dataset"):
        Demos(tmp_path / "empty", env=SPEC, horizon=1)


def test_layout_is_liberos(tmp_path):
    path = written(tmp_path / "a.hdf5")
    with h5py.File(path) as file:
        data = file["data"]
        assert data.attrs["num_demos"] == 2
        assert data.attrs["total"] == 7
        assert json.loads(data.attrs["problem_info"])["language_instruction"] == "pick up 0"
        demo = data["demo_1"]
        assert demo["actions"].shape == (3, 3)
        assert demo["dones"][()].tolist() == [0, 0, 1]
        assert set(demo) == {"actions", "executed_actions", "states", "rewards", "dones", "obs"}
        assert (demo["obs/eye_in_hand_rgb"][:, -1] == 255).all()  # upside down, as in LIBERO's own files
    assert stored_spec(path) == SPEC
    manifest = json.loads(path.with_suffix(".json").read_text())
    assert manifest["demos"] == 2
    assert len(manifest["sha256"]) == 64


def test_robot_states_are_written_when_known(tmp_path):
    spec = dataclasses.replace(SPEC, proprio=dict.fromkeys(reversed(ROBOT_STATES), "m"))
    episode = dataclasses.replace(recorded(2), proprio=np.arange(18, dtype=np.float32).reshape(2, 9))
    writer = DemoWriter(tmp_path / "a.hdf5", env=spec, identity={})
    writer.add(0, episode)
    with h5py.File(writer.finish([0], {})) as file:
        assert file["data/demo_0/robot_states"][0].tolist() == list(range(8, -1, -1))


def test_official_files_and_alignment(tmp_path):
    path = official(tmp_path / "pick_demo.hdf5")
    stored = Demos(path, env=SPEC, horizon=1).batch([2])
    assert stored.obs.texts == ["pick up the soup"]
    assert stored.obs.images["agentview"][0, 0, 3, 0, 0] == 2
    assert (stored.obs.images["agentview"][0, 0, 0] == 255).all()
    assert stored.obs.proprio[0, 0].tolist() == [202.0, 204.0, 200.0]  # eef x, eef z, gripper 0
    exact = Demos(path, env=SPEC, horizon=1, align="exact")
    assert len(exact) == 4
    batch = exact.batch([2])  # action 3 with the observation stored at 2
    torch.testing.assert_close(batch.actions[0, 0, 0], torch.tensor(0.03))
    assert batch.obs.images["agentview"][0, 0, 3, 0, 0] == 2
    assert stored_spec(path) is None
    ours = written(tmp_path / "b.hdf5")
    assert len(Demos(ours, env=SPEC, horizon=1, align="exact")) == 7  # ours need no shift


def test_noops_are_dropped(tmp_path):
    actions = np.array([[0, 0, 1], [0.5, 0, 1], [0, 0, 1], [0, 0, -1], [0, 0, -1]], dtype=np.float32)
    assert noops(actions).tolist() == [False, False, True, False, True]
    writer = DemoWriter(tmp_path / "a.hdf5", env=SPEC, identity={})
    writer.add(0, dataclasses.replace(recorded(5), actions=actions))
    demos = Demos(writer.finish([0], {}), env=SPEC, horizon=1, drop_noops=True)
    assert demos.batch(range(len(demos))).obs.images["agentview"][:, 0, 3, 0, 0].tolist() == [0, 1, 3]


def test_split_is_by_episode(tmp_path):
    path = written(tmp_path / "a.hdf5", lengths=[3] * 10)
    demos = Demos(path, env=SPEC, horizon=2)
    train, val = demos.split(0.2, seed=1)
    assert (train.num_episodes, val.num_episodes) == (8, 2)
    seen = [set(d.batch(range(len(d))).obs.texts) for d in (train, val)]
    assert not seen[0] & seen[1]
    assert len(seen[0] | seen[1]) == 10
    assert train.all_actions().shape == (24, 3)
    assert val.all_proprio().shape == (6, 3)
    assert demos.split(0.0, seed=1)[1] is None
    with pytest.raises(ValueError, match="leaves 0 to train on"):
        demos.split(1.0, seed=1)


def test_several_files_and_max_demos(tmp_path):
    written(tmp_path / "a.hdf5")
    written(tmp_path / "b.hdf5")
    assert Demos(tmp_path, env=SPEC, horizon=1).num_episodes == 4
    assert len(Demos(tmp_path, env=SPEC, horizon=1, max_demos=3)) == 4 + 3 + 4
    with pytest.raises(ValueError, match="max_demos = 9, but .* hold 4"):
        Demos(tmp_path, env=SPEC, horizon=1, max_demos=9)


def test_killed_writer_leaves_no_file_and_goes_on(tmp_path):
    path = tmp_path / "a.hdf5"
    writer = DemoWriter(path, env=SPEC, identity={"seed": 0})
    writer.add(0, recorded(4, 0))
    writer.note(0, "success")
    writer.note(1, "failure")
    (writer.parts / ".demo_2.tmp").write_bytes(b"half")  # killed while writing this one
    with (writer.parts / "outcomes.jsonl").open("a") as file:
        file.write('{"2": "suc')
    with pytest.raises(ValueError, match="was not finished: run the same 'collect' again"):
        Demos(path, env=SPEC, horizon=1)
    again = DemoWriter(path, env=SPEC, identity={"seed": 0})
    assert again.stored == {0}
    assert again.outcomes == {0: "success", 1: "failure"}
    again.add(2, recorded(3, 2))
    again.finish([0, 2], {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.hdf5", "a.json"]
    more = DemoWriter(path, env=SPEC, identity={"seed": 0})  # a finished file can be extended
    more.add(3, recorded(2, 3))
    assert Demos(more.finish([0, 2, 3], {}), env=SPEC, horizon=1).num_episodes == 3
    with pytest.raises(ValueError, match="begun with seed = 0, now seed = 1"):
        DemoWriter(path, env=SPEC, identity={"seed": 1})


def test_incomplete_demo_is_ignored(tmp_path, caplog):
    path = written(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        file["data/demo_0"].attrs["complete"] = False
    assert Demos(path, env=SPEC, horizon=1).num_episodes == 1
    assert "demo_0 was cut short" in caplog.text


@pytest.mark.parametrize("size", [0, 100, 3000])
def test_truncated_file(tmp_path, size):
    path = written(tmp_path / "a.hdf5")
    with path.open("r+b") as file:
        file.truncate(size)
    with pytest.raises(ValueError, match="a.hdf5 is not a readable demonstration file"):
        Demos(path, env=SPEC, horizon=1)


def test_missing_file_lists_what_is_there(tmp_path):
    written(tmp_path / "a.hdf5")
    with pytest.raises(ValueError, match=r"b.hdf5 do not exist; .* holds \['a.hdf5'\]"):
        Demos(tmp_path / "b.hdf5", env=SPEC, horizon=1)


def spoil(path, key, value):
    with h5py.File(path, "a") as file:
        demo = file["data/demo_0"]
        del demo[key]
        if value is not None:
            demo[key] = value


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("actions", np.full((4, 3), np.nan), "demo_0: action 'dx' at step 0 is nan"),
        ("actions", np.zeros((4, 7)), r"actions have shape \(4, 7\), .* takes \(T, 3\)"),
        ("obs/agentview_rgb", None, r"no camera 'agentview' \(obs/agentview_rgb\); it has \['eye_in_hand_rgb'\]"),
        ("obs/agentview_rgb", np.zeros((4, 8, 8, 3), np.uint8), r"uint8 \(4, 8, 8, 3\), expected uint8 \(4, 6, 8, 3\)"),
        ("obs/agentview_rgb", np.zeros((4, 6, 8, 3), np.float32), "agentview_rgb is float32"),
        ("obs/agentview_rgb", np.zeros((3, 6, 8, 3), np.uint8), r"expected uint8 \(4, 6, 8, 3\)"),
        ("obs", None, "is not a readable demonstration file"),
        ("obs/proprio", None, "has no proprioception"),
    ],
)
def test_bad_content_is_named(tmp_path, key, value, message):
    path = written(tmp_path / "a.hdf5")
    spoil(path, key, value)
    with pytest.raises(ValueError, match=message):
        Demos(path, env=SPEC, horizon=1)
