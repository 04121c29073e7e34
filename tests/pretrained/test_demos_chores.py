"""Collected episodes in the CHORES layout: the same walks again, with sensors and the tasks to set again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from envs import stretch
from envs.chores.tasks import Chore, TaskFile, read_spec, write_spec
from envs.types import EnvSpec
from pretrained.demos import tasks
from pretrained.demos.chores import export, main
from pretrained.demos.libero import DemoWriter, Recorded
from pretrained.demos.spoc import CAMERAS, Chores

SIZE = (32, 48)
ACTIONS = {"mug": ("m", "r", "p", "end"), "bed": ("l", "m", "end"), "late": ("m", "m")}
CHORE = Chore("PickupType", "pick up a mug", ("Mug|1",), (), "Mug", (1.0, 0.9, 2.0, 90.0))


def spec() -> EnvSpec:
    privileged = {"worked": (), "agent": (4,), "arm_location": (4,), "target": (6,)}
    return replace(stretch.spec(frame=SIZE), privileged=privileged)


def episode(name: str, seed: int, *, noisy: bool = False, notes: bool = True) -> Recorded:
    """Moment t is grey 10 t; the robot stands at x = t, yaw 30 t; nothing worked at t = 1."""
    labels = np.array([stretch.action_index(a) for a in ACTIONS[name]], dtype=np.float64)[:, None]
    executed, t = labels.copy(), np.arange(len(labels), dtype=np.float64)
    if noisy:
        executed[0] = stretch.action_index("b")
    grey = np.broadcast_to((10 * t).astype(np.uint8).reshape(-1, 1, 1, 1), (len(t), *SIZE, 3))
    nothing = np.zeros_like(t)
    agent, arm = np.stack([t, nothing + 0.9, nothing, 30 * t], 1), np.stack([nothing, 0.1 * t, nothing, nothing], 1)
    states = np.concatenate([agent, arm, np.zeros((len(t), 6)), (t != 1)[:, None]], 1)
    chore = replace(CHORE, instruction=f"pick up a {name}")
    return Recorded(
        images={c: grey for c in CAMERAS},
        proprio=(t >= 2).astype(np.float32)[:, None],
        actions=labels,
        executed=executed,
        rewards=np.zeros(len(t), np.float32),
        states=states,
        instruction=chore.instruction,
        task="PickupType",
        seed=seed,
        success=name != "late",
        notes={"task": write_spec(chore, 100 + seed // 4)} if notes else {},
    )


def collected(path: Path, *episodes: Recorded, env: EnvSpec | None = None) -> Path:
    writer = DemoWriter(path, env=env or spec(), identity={})
    for k, one in enumerate(episodes):
        writer.add(k, one)
        writer.note(k, "success" if one.success else "failure")
    return writer.finish(range(len(episodes)), {})


def test_walks_are_the_same_in_both_layouts(tmp_path: Path) -> None:
    file = collected(tmp_path / "demos.hdf5", episode("mug", 0), episode("bed", 1), episode("mug", 4))
    assert export(file, tmp_path / "chores", split="train") == 3
    ours, theirs = Chores(paths=file), Chores(paths=tmp_path / "chores")
    assert theirs.dropped == {}
    for k in range(3):
        one, other = ours.walk(k), theirs.walk(k)
        for name in ("actions", "last_actions", "in_hand"):
            assert getattr(one, name).tolist() == getattr(other, name).tolist(), (k, name)
        assert (one.instruction, one.task) == (other.instruction, other.task)
        for camera in CAMERAS:
            rows = slice(0, len(one))
            off = one.frames(camera, rows).astype(int) - other.frames(camera, rows)
            assert abs(off.mean((1, 2, 3))).max() < 4  # the videos are compressed
    houses = [theirs.walk(k).folder.name for k in range(3)]
    assert houses == ["000100", "000100", "000101"]  # seeds 0 and 1 share a house


def test_sensors_and_noise(tmp_path: Path) -> None:
    file = collected(tmp_path / "demos.hdf5", episode("mug", 0, noisy=True))
    assert Chores(paths=file).walk(0).last_actions.tolist() == [20, 3, 1, 8]  # what was done, not what is taught
    assert Chores(paths=file).walk(0).actions.tolist() == [0, 1, 8, 4]
    assert main([str(file), str(tmp_path / "out"), "--split", "val"]) == 0
    assert Chores(paths=tmp_path / "out", split="val").walk(0).actions.tolist() == [3, 1, 8, 4]
    with h5py.File(tmp_path / "out" / "PickupType" / "val" / "000100" / "hdf5_sensors.hdf5") as opened:
        group: Any = opened["0"]
        assert group["last_agent_location"][()].tolist()[1:] == [[t, 0.9, 0, 0, 30 * t, 0] for t in (1, 2, 3, 3)]
        assert group["relative_arm_location_metadata"][:, 1] == pytest.approx([0, 0.1, 0.2, 0.3, 0.3])
        assert group["last_action_success"][:, 0].tolist() == [True, False, True, True, True]
        assert group["last_action_is_random"][:, 0].tolist() == [False, True, False, False, False]


def test_the_tasks_can_be_set_again(tmp_path: Path) -> None:
    export(collected(tmp_path / "demos.hdf5", episode("mug", 0)), tmp_path / "chores", split="val")
    assert tasks.main([str(tmp_path / "chores"), str(tmp_path / "tasks.jsonl")]) == 0
    ((house, chore),) = TaskFile(str(tmp_path / "tasks.jsonl")).tasks["PickupType"]
    assert house == 100
    assert (chore.targets, chore.category, chore.expert_length) == (("Mug|1",), "Mug", 4)
    assert chore.start == (0.0, 0.9, 0.0, 0.0)  # where the episode was seen to begin


@pytest.mark.parametrize(
    "chore",
    [
        replace(CHORE, expert_length=7),
        replace(CHORE, task_type="ObjectNavType", targets=("Mug|1", "Mug|2")),
        Chore("RoomNav", "go to a kitchen", (), ("room|1",), "Kitchen", (0.0, 0.9, 1.0, 30.0)),
        Chore("RoomVisit", "visit all 2 rooms", start=(0.0, 0.9, 1.0, 30.0)),
    ],
)
def test_written_chores_are_read_again(chore: Chore) -> None:
    written = write_spec(chore, 12)
    assert (read_spec(written), written["house_index"]) == (chore, 12)


def test_what_cannot_be_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = collected(tmp_path / "demos.hdf5", episode("mug", 0), episode("late", 1))
    assert export(file, tmp_path / "chores") == 1  # the other did not end with `done`
    with pytest.raises(ValueError, match="already holds episodes; choose another folder"):
        export(file, tmp_path / "chores")
    older = collected(tmp_path / "older.hdf5", episode("mug", 0, notes=False))
    assert main([str(older), str(tmp_path / "new")]) == 2
    assert "does not hold its task in written form; collect it again" in capsys.readouterr().err
    one = replace(spec(), cameras={CAMERAS[0]: SIZE})
    few = replace(episode("mug", 0), images={CAMERAS[0]: np.zeros((4, *SIZE, 3), np.uint8)})
    with pytest.raises(ValueError, match=r"has no camera \['raw_manipulation_camera'\]; collect with both"):
        export(collected(tmp_path / "one.hdf5", few, env=one), tmp_path / "new")
    strange = replace(spec(), privileged={"agent": (3,)})
    with pytest.raises(ValueError, match=r"without \['agent', 'arm_location', 'worked'\]"):
        export(collected(tmp_path / "strange.hdf5", episode("mug", 0), env=strange), tmp_path / "new")
