"""Demonstrations with targets: whose moment is drawn where, resumption, and a real simulator's poses."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from envs.types import EnvConfig, EnvSpec
from pretrained.demos import Demos, DemoWriter, Recorded, stored_spec
from pretrained.genima import render as module
from pretrained.genima.render import TARGET, RenderRun, render
from pretrained.genima.spheres import Camera, Moment, Style, draw

SIZE, LENGTH = (32, 32), 9
TILE = "tile(side,front)"


def spec() -> EnvSpec:
    return EnvSpec(
        env_id="fake/arm", cameras={"front": SIZE, "side": SIZE}, proprio={"x": "m"}, actions=("a",), low=(-1.0,),
        high=(1.0,), control_hz=20.0, max_steps=20, tasks=("t",), action_convention="fake",
    )  # fmt: skip


def poses(rng: np.random.Generator, length: int) -> dict[str, np.ndarray]:
    """Joints and gripper before cameras at the origin and beside it."""
    joints = np.zeros((length, 7, 7))
    joints[..., :3] = rng.uniform((-0.3, -0.3, 0.8), (0.3, 0.3, 1.2), (length, 7, 3))
    joints[..., 6] = 1
    gripper = np.tile(np.eye(4), (length, 1, 1))
    gripper[:, :3, 3] = rng.uniform((-0.3, -0.3, 0.8), (0.3, 0.3, 1.2), (length, 3))
    out = {
        "joint_poses": joints,
        "gripper_pose": gripper,
        "gripper_open": rng.integers(0, 2, (length, 1)).astype(float),
    }
    for i, camera in enumerate(("front", "side")):
        place = np.eye(4)
        place[0, 3] = 0.1 * i
        out[f"camera/{camera}"] = np.tile(place, (length, 1, 1))
        out[f"intrinsics/{camera}"] = np.tile(np.array([[30.0, 0, 16], [0, 30, 16], [0, 0, 1]]), (length, 1, 1))
    return out


def demos(path: Path, *, count: int = 3, drop: str = "") -> Path:
    rng, writer = np.random.default_rng(0), DemoWriter(path, env=spec(), identity={})
    for k in range(count):
        images = {c: rng.integers(0, 256, (LENGTH, *SIZE, 3), dtype=np.uint8) for c in ("front", "side")}
        rows = rng.uniform(-1, 1, (LENGTH, 1))
        known = {name: v for name, v in poses(rng, LENGTH).items() if not drop or drop not in name}
        writer.add(k, Recorded(images, rows.astype(np.float32), rows, rows, rows[:, 0], rows, f"do {k}", "t", k, True,
                               known))  # fmt: skip
        writer.note(k, "success")
    return writer.finish(range(count), {})


def run(folder: Path, **settings: Any) -> RenderRun:
    return RenderRun(**{"demos": str(folder / "raw.hdf5"), "out": str(folder / "out.hdf5"), "horizon": 3,
                        "workers": 1, "quiet": True, **settings})  # fmt: skip


def picture(file: Path, demo: int, name: str) -> np.ndarray:
    with h5py.File(file, "r") as f:
        return f[f"data/demo_{demo}/obs/{name}_rgb"][()][:, ::-1]  # type: ignore[index]


def test_tiles_show_the_scene_and_the_moment_some_steps_later(tmp_path: Path) -> None:
    raw = demos(tmp_path / "raw.hdf5")
    out = render(run(tmp_path, cameras=["side", "front"]))
    there = stored_spec(str(out))
    assert there is not None
    assert there.cameras == {TILE: (32, 64), TARGET: (32, 64)}
    seen, drawn = picture(out, 1, TILE), picture(out, 1, TARGET)
    assert len(seen) == LENGTH - 2
    assert np.array_equal(seen[:, :, :32], picture(raw, 1, "side")[:-2])
    assert np.array_equal(seen[:, :, 32:], picture(raw, 1, "front")[:-2])
    with h5py.File(raw, "r") as file:
        group: Any = file["data/demo_1/poses"]
        style = Style(scales={"front": 6.5}, horizon=3)
        for t, target in ((0, 3), (4, 7), (6, 7)):  # the last one but one is the last target
            moment = Moment(
                group["joint_poses"][target], group["gripper_pose"][target], group["gripper_open"][target, 0]
            )
            camera = Camera(group["intrinsics/front"][t], group["camera/front"][t], SIZE)
            expected = draw(camera, style.spheres("front", moment), seen[t, :, 32:])
            assert np.array_equal(drawn[t, :, 32:], expected)
            assert (expected != seen[t, :, 32:]).any()
    windows = Demos(str(out), env=there, horizon=2)
    batch = windows.batch([0])
    assert set(batch.obs.images) == {TILE, TARGET}
    assert batch.obs.texts == ["do 0"]


def test_backgrounds_hide_the_scene_and_keep_the_cameras(tmp_path: Path) -> None:
    raw = demos(tmp_path / "raw.hdf5")
    out = render(run(tmp_path, kind="backgrounds"))
    there = stored_spec(str(out))
    assert there is not None
    assert there.cameras == spec().cameras
    seen, drawn = picture(raw, 0, "front")[:-2], picture(out, 0, "front")
    assert (seen == drawn).mean() < 0.05
    assert not np.array_equal(drawn[0], drawn[1])
    again = render(run(tmp_path, kind="backgrounds", out=str(tmp_path / "again.hdf5"), workers=2))
    assert np.array_equal(picture(again, 2, "side"), picture(out, 2, "side"))  # whoever does it


def test_an_interrupted_rendering_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demos(tmp_path / "raw.hdf5")
    whole = render(run(tmp_path, out=str(tmp_path / "whole.hdf5")))
    done: list[int] = []
    episode = module.render_episode

    def third_time_unlucky(*args: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(args[-1])
        return episode(*args)

    monkeypatch.setattr(module, "render_episode", third_time_unlucky)
    with pytest.raises(KeyboardInterrupt):
        render(run(tmp_path))
    assert not (tmp_path / "out.hdf5").exists()
    monkeypatch.setattr(module, "render_episode", lambda *args: done.append(args[-1]) or episode(*args))
    out = render(run(tmp_path))
    assert done == [0, 1, 2]
    assert all(np.array_equal(picture(out, k, TARGET), picture(whole, k, TARGET)) for k in range(3))
    assert render(run(tmp_path)) == out
    assert done == [0, 1, 2]
    with pytest.raises(ValueError, match="begun with horizon = 3, now horizon = 4"):
        render(run(tmp_path, horizon=4))


@pytest.mark.parametrize(
    ("drop", "settings", "words"),
    [
        ("joint_poses", {}, "does not say where the joints were.*env.sim.poses=true"),
        ("side", {}, r"does not say where cameras \['side'\] were, only \['front'\]"),
        ("", {"cameras": ["front", "wrist"]}, r"cameras \['wrist'\] are not in"),
        ("", {"joints": [1, 9]}, r"joints \[9\] do not exist: the robot has 7"),
        ("", {"textures": "nowhere", "kind": "backgrounds"}, "holds no picture"),
    ],
)
def test_mistakes_in_the_data(tmp_path: Path, drop: str, settings: dict[str, Any], words: str) -> None:
    demos(tmp_path / "raw.hdf5", drop=drop)
    with pytest.raises(ValueError, match=words):
        render(run(tmp_path, **settings))


def test_mistakes_in_the_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for settings, words in (({"kind": "x"}, "kind 'x' is unknown"), ({"joints": []}, "one to three"),
                            ({"opacity": 0.0}, "0 < opacity")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            run(tmp_path, **settings)
    with pytest.raises(SystemExit):
        module.main([str(tmp_path / "no.hdf5"), str(tmp_path / "out.hdf5")])
    assert "do not exist" in capsys.readouterr().err


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demos(tmp_path / "raw.hdf5", count=1)
    words = [str(tmp_path / "raw.hdf5"), str(tmp_path / "out.hdf5"), "--cameras", "front,side", "--scales", "side=3",
             "--workers", "1"]  # fmt: skip
    assert module.main(words) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out.hdf5")
    identity = json.loads((tmp_path / "out.json").read_text())["identity"]
    assert identity["scales"] == {"side": 3.0}


@pytest.mark.sim
@pytest.mark.slow
def test_poses_of_robosuite(tmp_path: Path) -> None:
    """Collected by the expert, then drawn: the gripper's sphere is on the gripper, whose place proprioception tells."""
    if importlib.util.find_spec("robosuite") is None:
        pytest.skip("robosuite IS NOT INSTALLED; run `make setup`")
    from pretrained.demos.collect import CollectRun, collect

    sim = {"_target_": "envs.robosuite.Robosuite", "name": "Lift", "poses": True, "core": "fast",
           "cameras": {"agentview": [64, 64], "frontview": [64, 64]}}  # fmt: skip
    raw = collect(CollectRun(env=EnvConfig(sim), out=str(tmp_path / "raw.hdf5"), episodes=1, workers=1, quiet=True))
    with h5py.File(raw, "r") as file:
        group: Any = file["data/demo_0"]
        names = json.loads(group["obs/proprio"].attrs["names"])
        eef = group["obs/proprio"][()][:, [names.index(f"eef_{k}") for k in "xyz"]]
        place, joints = group["poses/gripper_pose"][()][:, :3, 3], group["poses/joint_poses"][()]
        opened = group["poses/gripper_open"][()]
    assert np.abs(place - eef).max() < 1e-4
    assert joints.shape[1:] == (7, 7)
    assert np.ptp(joints[:, 0, :3], axis=0).max() < 1e-6  # the base does not move
    assert np.linalg.norm(joints[:, 6, :3] - place, axis=1).max() < 0.35
    assert 0 <= opened.min() < 0.7 < opened.max() <= 1.01
    out = render(replace(run(tmp_path), scales={"agentview": 4.0}))
    changed = (picture(out, 0, "tile(agentview,frontview)") != picture(out, 0, TARGET)).any(-1).mean((1, 2))
    assert (changed > 0.01).all()
