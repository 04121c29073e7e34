"""Point tracks: the exact tracker in a small world and in MuJoCo, and shards."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrained.demos.tracks import Scene, Shard, TrackedEpisode, follow, lift, pad_clips, project, write
from tests.golden_files import golden_tensors

WORLD = """<mujoco><visual><map znear="0.01"/></visual><worldbody><light pos="0 0 3"/>
  <camera name="eye" pos="0 -1 0.6" xyaxes="1 0 0 0 0.5 0.86" fovy="50"/>
  <geom type="plane" size="2 2 0.1"/>
  <body name="box" pos="0 0 0.1"><freejoint/><geom type="box" size="0.12 0.12 0.1"/></body>
  <body name="wall" pos="0.25 -0.3 0.1"><geom type="box" size="0.1 0.02 0.15"/></body></worldbody></mujoco>"""
Y, X = 48, 64


@pytest.fixture(scope="module")
def slid() -> Scene:
    """A box that slides and turns, until a wall hides it, as MuJoCo shows it."""
    mujoco: Any = pytest.importorskip("mujoco")
    model = mujoco.MjModel.from_xml_string(WORLD)
    data, camera = mujoco.MjData(model), model.camera("eye").id
    parts: dict[str, list[np.ndarray]] = {k: [] for k in ("x", "r", "cx", "cr", "depth", "body")}
    with mujoco.Renderer(model, Y, X) as renderer:
        for t in range(6):
            angle = 0.1 * t
            data.qpos[:7] = [0.05 * t, 0, 0.1, np.cos(angle / 2), 0, 0, np.sin(angle / 2)]
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera="eye")
            renderer.enable_depth_rendering()
            parts["depth"].append(renderer.render().copy())
            renderer.disable_depth_rendering()
            renderer.enable_segmentation_rendering()
            geoms = renderer.render()[..., 0].copy()
            renderer.disable_segmentation_rendering()
            parts["body"].append(np.where(geoms >= 0, model.geom_bodyid[np.maximum(geoms, 0)], -1))
            parts["x"].append(data.xpos.copy())
            parts["r"].append(data.xmat.reshape(-1, 3, 3).copy())
            parts["cx"].append(data.cam_xpos[camera].copy())
            parts["cr"].append(data.cam_xmat[camera].reshape(3, 3).copy())
    stacked = {k: np.stack(v) for k, v in parts.items()}
    return Scene(stacked["x"], stacked["r"], stacked["cx"], stacked["cr"], 50.0, stacked["depth"], stacked["body"])


def every_point() -> np.ndarray:
    rows, columns = np.mgrid[0:Y:4, 0:X:4]
    return np.stack([columns.ravel(), rows.ravel()], 1).astype(float)


def test_points_of_a_body_move_as_the_body_does(slid: Scene) -> None:
    points = every_point()
    owner = slid.bodies[0, points[:, 1].astype(int), points[:, 0].astype(int)]
    tracks, visible = follow(slid, points)
    still = owner != 1
    assert (owner == 1).sum() > 5
    assert np.abs(tracks[still] - points[still][:, None]).max() < 1e-6
    assert (np.linalg.norm(tracks[~still][:, 5] - points[~still], axis=1) > 3).all()
    # What is visible is at the depth that is rendered there: the projected point is on the rendered surface.
    start = lift(slid, 0, points, slid.depth[0, points[:, 1].astype(int), points[:, 0].astype(int)])
    local = (start - slid.positions[0, 1]) @ slid.rotations[0, 1]
    for t in range(6):
        moved = local @ slid.rotations[t, 1].T + slid.positions[t, 1]
        pixels, depth = project(slid, t, moved)
        chosen = visible[:, t] & ~still
        np.testing.assert_allclose(tracks[chosen, t], pixels[chosen], atol=1e-6)
        column, row = np.rint(pixels[chosen]).astype(int).T
        assert np.median(np.abs(slid.depth[t, row, column] - depth[chosen])) < 0.01


def test_what_is_hidden_is_not_visible(slid: Scene) -> None:
    points = every_point()
    owner = slid.bodies[0, points[:, 1].astype(int), points[:, 0].astype(int)]
    tracks, visible = follow(slid, points)
    last = np.rint(tracks[:, 5]).astype(int)
    inside = (last >= 0).all(1) & (last[:, 0] < X) & (last[:, 1] < Y)
    behind = inside & (owner == 1)
    behind[behind] &= slid.bodies[5, last[behind, 1], last[behind, 0]] == 2
    assert behind.sum() > 0
    assert not visible[behind, 5].any()
    covered = (owner == 0) & (slid.bodies[5, points[:, 1].astype(int), points[:, 0].astype(int)] == 1)
    assert covered.sum() > 0
    assert not visible[covered, 5].any()
    assert visible[:, 0].all()


def test_projection_and_its_inverse(slid: Scene) -> None:
    points = every_point()
    pixels, depth = project(slid, 0, lift(slid, 0, points, np.full(len(points), 0.7)))
    np.testing.assert_allclose(pixels, points, atol=1e-9)
    np.testing.assert_allclose(depth, 0.7, atol=1e-12)


def test_points_outside_are_named(slid: Scene) -> None:
    with pytest.raises(ValueError, match=r"1 points to track lie outside .* \[64\.0, 3\.0\]"):
        follow(slid, np.array([[64.0, 3.0], [3.0, 3.0]]))


def episode(frames: int = 9, text: str = "go", seed: int = 0, length: int = 4) -> TrackedEpisode:
    rng = np.random.default_rng(seed)
    clips = frames - length + 1
    tracks = 2 + 10 * rng.random((clips, 5, length, 2))
    return TrackedEpisode(
        rng.integers(0, 256, (frames, 16, 16, 3), dtype=np.uint8), tracks, rng.random((clips, 5, length)) > 0.5, text
    )


def test_shards_give_back_what_was_written(tmp_path: Path) -> None:
    a, b = episode(), episode(6, "stop", 1)
    write(tmp_path / "shard", [a, b])
    shard = Shard(tmp_path / "shard")
    assert len(shard) == 6 + 3
    clips = np.array([2, 7])
    flow = shard.flow(clips)
    np.testing.assert_allclose(flow.tracks[0], a.tracks[2], atol=1 / 127)
    np.testing.assert_allclose(flow.tracks[1], b.tracks[1], atol=1 / 127)
    np.testing.assert_array_equal(flow.visible[1], b.visible[1])
    before, after = shard.pictures(clips, history=4)
    np.testing.assert_array_equal(before[0], a.frames[[0, 0, 1, 2]])
    np.testing.assert_array_equal(after[0], a.frames[3:6])
    np.testing.assert_array_equal(before[1], b.frames[[0, 0, 0, 1]])
    np.testing.assert_array_equal(after[1], b.frames[2:5])
    assert shard.instructions(clips) == ["go", "stop"]


def test_positions_may_lie_apart_and_the_last_frame_be_held(tmp_path: Path) -> None:
    long = episode(9)
    apart = replace(long, tracks=long.tracks[:3], visible=long.visible[:3])
    write(tmp_path / "apart", [apart], stride=2)
    before, after = Shard(tmp_path / "apart").pictures(np.array([2]), history=3)
    np.testing.assert_array_equal(before[0], long.frames[[0, 0, 2]])
    np.testing.assert_array_equal(after[0], long.frames[[4, 6, 8]])
    held = replace(long, tracks=np.full((9, 5, 4, 2), 3.0), visible=np.ones((9, 5, 4), bool))
    write(tmp_path / "held", [held], stride=2)
    np.testing.assert_array_equal(Shard(tmp_path / "held").pictures(np.array([6]), history=1)[1][0],
                                  long.frames[[8, 8, 8]])  # fmt: skip
    with pytest.raises(ValueError, match="6 clips, expected 3"):
        write(tmp_path / "apart", [long], stride=2)


def test_shards_are_small_and_split_by_episode(tmp_path: Path) -> None:
    write(tmp_path / "shard", [episode(seed=i) for i in range(10)])
    shard = Shard(tmp_path / "shard")
    train, val = shard.split(0.2, seed=1)
    assert {len(train), len(val)} == {48, 12}
    assert not {int(c) // 6 for c in train} & {int(c) // 6 for c in val}
    per_clip = shard.tracks[0].nbytes + shard.seen[0].nbytes
    assert per_clip == 5 * 4 * 2 * 2 + 5
    with pytest.raises(ValueError, match="leaves none"):
        shard.split(1.0, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": np.zeros((3, 16, 16, 3), np.uint8)}, "too short for a clip of 4"),
        ({"tracks": np.full((6, 5, 4, 2), np.nan)}, "not finite"),
        ({"tracks": np.full((6, 5, 4, 2), 16.0)}, "begin outside of the picture"),
        ({"frames": np.zeros((9, 16, 16, 3), np.float32)}, "expected uint8"),
        ({"visible": np.ones((6, 5, 3), bool)}, "visibility"),
    ],
)
def test_bad_episodes_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "shard", [replace(episode(), **change)])
    assert not (tmp_path / "shard").exists()


def test_bad_shards_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no shard of tracks"):
        Shard(tmp_path)
    with pytest.raises(ValueError, match="no episode to write"):
        write(tmp_path / "shard", [])
    with pytest.raises(ValueError, match="episode 1 has another resolution"):
        write(tmp_path / "shard", [episode(), episode(length=5)])


def test_padding_is_the_recorded_one() -> None:
    io = golden_tensors("flip_cvae/io.safetensors")
    clips, padded = io["padding.clips"].numpy(), io["padding.padded"].numpy()
    history = len(padded) - len(clips) - 2 * (clips.shape[1] - 1) + 1
    np.testing.assert_array_equal(pad_clips(clips, history=history), padded)
