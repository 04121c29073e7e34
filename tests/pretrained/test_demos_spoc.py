"""The CHORES layout: read as it is written, windows cut right, broken episodes left out by name; imitation from it."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from envs import stretch
from pretrained.checkpoint import load_policy
from pretrained.demos.spoc import CAMERAS, START, Chores, encoded, read_frames, text, write_walk
from pretrained.imitate import ImitateRun, imitate, learning_rate
from pretrained.spoc import Spoc

SIZE = (32, 48)
LOOP = ["move_ahead", "rotate_right", "l", "end"]
POLICY: dict[str, Any] = {
    "_target_": "pretrained.spoc.Spoc",
    "vision": "tiny",
    "text": "tiny",
    "width": 32,
    "heads": 2,
    "fusion_layers": 1,
    "fusion_hidden": 32,
    "decoder_layers": 1,
    "grid": [2, 3],
    "dropout": 0.0,
    "max_time": 8,
}


def walk(root: Path, house: int, name: str, length: int = 4, task: str = "ObjectNavType", split: str = "train") -> None:
    """Frame t is grey 10 t (navigation) or 200 - 10 t (manipulation); something is held from the third moment on."""
    grey = 10 * np.arange(length + 1).reshape(-1, 1, 1, 1)
    shade = {CAMERAS[0]: grey, CAMERAS[1]: 200 - grey}
    frames = {c: np.broadcast_to(v, (length + 1, *SIZE, 3)).astype(np.uint8) for c, v in shade.items()}
    write_walk(root, task=task, split=split, house=house, name=name, frames=frames,
               actions=(LOOP * length)[:length], in_hand=np.arange(length + 1) >= 2,
               spec={"natural_language_spec": f"Find a mug in {house}", "task_type": task})  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for house, name, length in ((3, "0", 4), (3, "1", 9), (12, "0", 4)):
        walk(tmp_path, house, name, length)
    walk(tmp_path, 5, "0", 2, task="PickupType")
    return tmp_path


def test_layout_on_disk(root: Path) -> None:
    folder = root / "ObjectNavType"
    assert json.loads((folder / "house_id_to_sub_house_id_train.json").read_text()) == {"3": ["0", "1"], "12": ["0"]}
    assert sorted(p.name for p in (folder / "train" / "000003").iterdir()) == [
        "hdf5_sensors.hdf5", "raw_manipulation_camera__0.mp4", "raw_manipulation_camera__1.mp4",
        "raw_navigation_camera__0.mp4", "raw_navigation_camera__1.mp4",
    ]  # fmt: skip
    with h5py.File(folder / "train" / "000003" / "hdf5_sensors.hdf5") as file:
        group: Any = file["0"]
        assert [text(row) for row in group["last_action_str"][()]] == ["", "m", "r", "l", "end"]
        assert group["an_object_is_in_hand"].shape == (5, 1)


def test_episodes_and_their_order(root: Path) -> None:
    demos = Chores(paths=root)
    assert demos.env == stretch.spec(frame=SIZE)
    assert demos.num_episodes == 4
    assert len(demos) == 6  # two tasks in turn, the shorter one repeats
    assert [demos.walk(i).task for i in range(4)] == ["ObjectNavType", "PickupType"] * 2
    assert [demos.walk(i).name for i in (0, 2, 4)] == ["0", "1", "0"]
    assert {demos.walk(i).folder.name for i in (1, 3, 5)} == {"000005"}
    only = Chores(paths=root, tasks=["PickupType"])
    assert len(only) == only.num_episodes == 1
    assert Chores(paths=root / "PickupType").num_episodes == 1
    assert Chores(paths=root, max_demos=1).num_episodes == 2


def test_windows_by_hand(root: Path) -> None:
    demos = Chores(paths=root, tasks=["ObjectNavType"], window=5)
    batch = demos.batch([0, 1], draw=7)
    start = int(batch.obs.hints["time"][1, 0])
    assert batch.obs.texts == ["find a mug in 3"] * 2
    assert batch.is_pad.tolist() == [[False] * 4 + [True], [False] * 5]
    order = [0, 1, 2, 4]
    assert batch.actions[0, :4, 0].tolist() == order
    assert batch.actions[1, :, 0].tolist() == [order[(start + i) % 4] for i in range(5)]
    assert batch.obs.hints["last_action"][0, :4].tolist() == [START, 0, 1, 2]
    expected = [START if start + i == 0 else order[(start + i - 1) % 4] for i in range(5)]
    assert batch.obs.hints["last_action"][1].tolist() == expected
    assert batch.obs.hints["time"][1].tolist() == list(range(start, start + 5))
    assert batch.obs.proprio[0, :4, 0].tolist() == [0, 0, 1, 1]
    nav, arm = (torch.as_tensor(batch.obs.images[c]).float() for c in CAMERAS)
    assert nav.shape == (2, 5, *SIZE, 3)
    for row, first, count in ((0, 0, 4), (1, start, 5)):
        grey = 10.0 * torch.arange(first, first + count)
        assert (nav[row, :count].mean((1, 2, 3)) - grey).abs().max() < 4  # the videos are compressed
        assert (arm[row, :count].mean((1, 2, 3)) - (200 - grey)).abs().max() < 4
    assert nav[0, 4].abs().max() == 0


def test_windows_are_drawn_anew_and_repeat(root: Path) -> None:
    demos = Chores(paths=root, tasks=["ObjectNavType"], window=3)
    starts = [int(demos.batch([1], draw=d, images=False).obs.hints["time"][0, 0]) for d in range(40)]
    assert set(starts) == set(range(7))
    assert starts == [int(demos.batch([1], draw=d, images=False).obs.hints["time"][0, 0]) for d in range(40)]


def test_houses_are_not_shared_between_splits(root: Path) -> None:
    train, held = Chores(paths=root).split(0.34, seed=0)
    assert held is not None
    houses = [{demos.walk(i).folder for i in range(len(demos))} for demos in (train, held)]
    assert houses[0] & houses[1] == set()
    assert len(houses[0] | houses[1]) == 3
    assert Chores(paths=root).split(0.0, seed=0)[1] is None
    with pytest.raises(ValueError, match="leaves none to train on"):
        Chores(paths=root).split(0.99, seed=0)


def test_features_once_equal_frames_each_time(root: Path) -> None:
    demos = Chores(paths=root, window=3)
    torch.manual_seed(0)
    policy = Spoc(env=demos.env, **{k: v for k, v in POLICY.items() if k != "_target_"}).eval()
    before = policy.imitation_loss(demos.batch([0, 1, 2], draw=3), torch.Generator())[0]
    demos.encode(policy, chunk=2, quiet=True)
    batch = demos.batch([0, 1, 2], draw=3)
    assert batch.obs.images == {}
    assert torch.allclose(policy.imitation_loss(batch, torch.Generator())[0], before, atol=1e-5)


@pytest.mark.parametrize("in_memory", [True, False])
def test_imitation_through_the_one_loop(root: Path, tmp_path: Path, in_memory: bool) -> None:
    run = {
        "policy": POLICY, "demos": str(root), "reader": {"_target_": "pretrained.demos.spoc.Chores", "window": 6},
        "batch_size": 4, "lr": 3e-3, "warmup": 1, "schedule": "constant", "ema": 0.5, "val_fraction": 0.0,
        "in_memory": in_memory, "quiet": True, "log_every": 1,
    }  # fmt: skip
    steps = 40 if in_memory else 2
    last = imitate(ImitateRun(**run, out=str(tmp_path / "run"), steps=steps, save_every=steps))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    policy = load_policy(last)
    assert isinstance(policy, Spoc)
    for name, value in policy.actor.state_dict().items():
        if not name.startswith("value_head."):
            assert torch.equal(value, policy.critic.state_dict()[name]), name
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses[0] == pytest.approx(np.log(20), abs=0.5)
    if in_memory:
        assert np.mean(losses[-5:]) < 0.5 * losses[0]
        half = imitate(ImitateRun(**run, out=str(tmp_path / "half"), steps=20, save_every=20))
        assert half != last
        again = load_policy(imitate(ImitateRun(**run, out=str(tmp_path / "half"), steps=40, save_every=20)))
        weights: Any = again
        assert all(torch.equal(v, policy.state_dict()[k]) for k, v in weights.state_dict().items())


def test_constant_rate() -> None:
    run = ImitateRun(policy={}, demos="", out="", lr=2e-4, warmup=10, steps=100, schedule="constant")
    assert [learning_rate(run, s) for s in (4, 10, 99)] == pytest.approx([1e-4, 2e-4, 2e-4])
    with pytest.raises(ValueError, match="schedule 'linear' is unknown"):
        imitate(ImitateRun(policy={}, demos="", out="", schedule="linear"))


# --- bad input -------------------------------------------------------------------------------------------------------


def test_broken_episodes_are_left_out_and_named(root: Path) -> None:
    folder = root / "ObjectNavType" / "train"
    (folder / "000012" / "raw_navigation_camera__0.mp4").unlink()
    with h5py.File(folder / "000003" / "hdf5_sensors.hdf5", "a") as file:
        group: Any = file["0"]
        group["last_action_str"][2] = encoded("jump", 20)
    (root / "PickupType" / "train" / "000005" / "hdf5_sensors.hdf5").write_bytes(b"\x89HDF broken")
    demos = Chores(paths=root)
    assert [w.name for w in demos.tasks["ObjectNavType"]] == ["1"]
    assert set(demos.tasks) == {"ObjectNavType"}
    assert len(demos.dropped) == 3
    causes = " | ".join(demos.dropped.values())
    assert "raw_navigation_camera__0.mp4 is missing" in causes
    assert "action 'jump' is unknown" in causes
    assert "cannot be read" in causes


def test_video_of_another_length(root: Path) -> None:
    folder = root / "ObjectNavType" / "train" / "000003"
    (folder / "raw_navigation_camera__0.mp4").write_bytes((folder / "raw_navigation_camera__1.mp4").read_bytes())
    demos = Chores(paths=root, tasks=["ObjectNavType"])
    assert list(demos.dropped.values()) == ["raw_navigation_camera__0.mp4 has 10 frames for 4 actions"]
    with pytest.raises(ValueError, match=r"expected frames 8 to 12, got 2 of them"):
        read_frames(folder / "raw_navigation_camera__0.mp4", slice(8, 13))


def test_no_data(tmp_path: Path, root: Path) -> None:
    with pytest.raises(ValueError, match="expected the CHORES layout"):
        Chores(paths=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"for \['RoomVisit'\]; it has tasks \['ObjectNavType', 'PickupType'\]"):
        Chores(paths=root, tasks=["RoomVisit"])
    (root / "PickupType" / "train" / "000005" / "raw_navigation_camera__0.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="hold no usable episode of split 'train'.*is not a readable video"):
        Chores(paths=root, tasks=["PickupType"])


def test_writing_checks_lengths(tmp_path: Path) -> None:
    frames = {c: np.zeros((3, *SIZE, 3), np.uint8) for c in CAMERAS}
    with pytest.raises(ValueError, match="expected 2 rows, one more than actions"):
        write_walk(tmp_path, task="t", split="train", house=0, name="0", frames=frames, actions=["m"],
                   in_hand=np.zeros(2), spec={})  # fmt: skip
    with pytest.raises(ValueError, match="there is room for 2"):
        encoded("abc", 2)
