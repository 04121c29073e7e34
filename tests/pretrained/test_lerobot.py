"""LeRobot datasets of each layout are read alike, by name or by number; bad ones are named."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from envs.types import EnvSpec
from pretrained.demos import Demos, stored_spec
from pretrained.demos.lerobot import Clip, read_dataset
from pretrained.imitate import ImitateRun, imitate
from tests.toy_parts import policy_node, toy

FPS, LENGTHS = 10, (7, 5, 9)
TASKS = ("pick the soup", "pick the milk")
TOP, HAND, STATE = "observation.images.top", "observation.images.hand", "observation.state"
SPEC = EnvSpec(
    env_id="test/test",
    cameras={"top": (32, 48), "hand": (16, 16)},
    proprio={"x": "m", "grip": "m", "z": "m"},
    actions=("dx", "dy"),
    low=(-1.0,) * 2,
    high=(1.0,) * 2,
    control_hz=10.0,
    max_steps=50,
    tasks=("pick",),
    action_convention="test",
)
FEATURES: dict[str, dict[str, Any]] = {
    TOP: {"dtype": "video", "shape": [3, 32, 48], "names": ["channels", "height", "width"]},
    HAND: {"dtype": "image", "shape": [16, 16, 3], "names": ["height", "width", "channel"]},
    STATE: {"dtype": "float32", "shape": [3], "names": {"motors": ["z", "x", "y"]}},
    "observation.grip": {"dtype": "float32", "shape": [1], "names": ["grip"]},
    "action": {"dtype": "float32", "shape": [2], "names": ["dx", "dy"]},
}
LAYOUT = {
    "v2": ("data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
           "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"),
    "v3": ("data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
           "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"),
}  # fmt: skip


def f32(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)


def grey(k: int, t: int) -> int:
    """What frame t of episode k shows, far enough apart to survive compression."""
    return 20 + 70 * k + 8 * t


def rows_of(k: int) -> pd.DataFrame:
    """Episode k, shuffled: state (100 k + t, t, -t), grip k, action (t, k) / 100."""
    rows = []
    for t in range(LENGTHS[k]):
        picture = io.BytesIO()
        Image.fromarray(np.full((16, 16, 3), (grey(k, t), 7, 9), np.uint8)).save(picture, "PNG")
        row = {STATE: f32([100 * k + t, t, -t]), "observation.grip": f32([k])}
        row |= {"action": f32([t / 100, k / 100]), HAND: {"bytes": picture.getvalue(), "path": None}}
        row |= {"episode_index": k, "frame_index": t, "task_index": k % 2, "timestamp": t / FPS}
        rows.append(row)
    return pd.DataFrame(rows[::-1])


def write_mp4(path: Path, shades: list[int], codec: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    still = ["-g", "60"]  # one key frame, so that an episode begins anywhere inside
    out = imageio_ffmpeg.write_frames(
        str(path), (48, 32), fps=FPS, codec=codec, macro_block_size=1, output_params=still, quality=9
    )
    out.send(None)
    for shade in shades:
        frame = np.full((32, 48, 3), shade, np.uint8)
        frame[:8] = 255  # the top is bright
        out.send(frame)
    out.close()


def write_parquet(path: Path, table: pd.DataFrame, index: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path, index=index)


def write_dataset(root: Path, version: str, *, codec: str = "libx264", features: Any = FEATURES) -> Path:
    """Three episodes; format 3 has two of them in one file."""
    data, video = LAYOUT[version[:2]]
    (root / "meta").mkdir(parents=True)
    info = {"codebase_version": version, "fps": FPS, "chunks_size": 2, "data_path": data, "video_path": video,
            "total_episodes": len(LENGTHS), "features": features}  # fmt: skip
    (root / "meta" / "info.json").write_text(json.dumps(info))
    shades = [[grey(k, t) for t in range(n)] for k, n in enumerate(LENGTHS)]
    episodes = [{"episode_index": k, "tasks": [TASKS[k % 2]], "length": n} for k, n in enumerate(LENGTHS)]
    if version.startswith("v2"):
        for k in range(len(LENGTHS)):
            place = {"episode_chunk": k // 2, "episode_index": k, "video_key": TOP}
            write_parquet(root / data.format(**place), rows_of(k))
            write_mp4(root / video.format(**place), shades[k], codec)
        lines = [{"task_index": i, "task": task} for i, task in enumerate(TASKS)]
        (root / "meta" / "tasks.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        (root / "meta" / "episodes.jsonl").write_text("".join(json.dumps(x) + "\n" for x in episodes))
        return root
    for file, group in enumerate([[0, 1], [2]]):
        place, start = {"chunk_index": 0, "file_index": file, "video_key": TOP}, 0
        write_parquet(root / data.format(**place), pd.concat([rows_of(k) for k in group]))
        write_mp4(root / video.format(**place), [s for k in group for s in shades[k]], codec)
        for k in group:
            of, end = f"videos/{TOP}", start + LENGTHS[k]
            episodes[k] |= {"data/chunk_index": 0, "data/file_index": file, f"{of}/chunk_index": 0,
                            f"{of}/file_index": file, f"{of}/from_timestamp": start / FPS,
                            f"{of}/to_timestamp": end / FPS, "stats/action/mean": [0.0]}  # fmt: skip
            start = end
    write_parquet(root / "meta" / "episodes" / "chunk-000" / "file-000.parquet", pd.DataFrame(episodes))
    write_parquet(root / "meta" / "tasks.parquet", pd.DataFrame({"task_index": [0, 1]}, index=list(TASKS)), index=True)
    return root


@pytest.fixture(scope="module", params=["v2.0", "v2.1", "v3.0"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("lerobot") / "soup", request.param)


@pytest.mark.parametrize("in_memory", [True, False])
def test_windows_are_those_of_the_episodes(dataset: Path, in_memory: bool) -> None:
    demos = Demos(dataset, env=SPEC, horizon=2, history=2, in_memory=in_memory)
    assert (demos.num_episodes, len(demos)) == (3, sum(LENGTHS))
    batch = demos.batch([0, 6, 8, 20])  # ends of the first, the second frame of the second, the very last
    assert batch.obs.texts == ["pick the soup", "pick the soup", "pick the milk", "pick the soup"]
    torch.testing.assert_close(batch.actions[..., 0] * 100, torch.tensor([[0.0, 1], [6, 6], [1, 2], [8, 8]]))
    torch.testing.assert_close(batch.actions[:, 0, 1] * 100, torch.tensor([0.0, 0, 1, 2]))
    proprio = [[0.0, 0, 0], [6, 0, 6], [1, 1, 101], [8, 2, 208]]  # x, grip, z
    torch.testing.assert_close(batch.obs.proprio[:, -1], torch.tensor(proprio))
    seen = [grey(0, 0), grey(0, 6), grey(1, 1), grey(2, 8)]
    before = [grey(0, 0), grey(0, 5), grey(1, 0), grey(2, 7)]
    hand, top = (torch.as_tensor(batch.obs.images[c]).float() for c in ("hand", "top"))
    assert hand.shape == (4, 2, 16, 16, 3)
    assert hand[:, 1, 5, 5, 0].tolist() == seen
    assert hand[:, 0, 5, 5, 0].tolist() == before
    assert top.shape == (4, 2, 32, 48, 3)
    torch.testing.assert_close(top[:, 1, 20, 20], torch.tensor(seen)[:, None].expand(4, 3).float(), atol=3.0, rtol=0)
    torch.testing.assert_close(top[:, 0, 20, 20, 0], torch.tensor(before).float(), atol=3.0, rtol=0)
    assert (top[:, :, 2] > 245).all()  # row 0 is on top


def test_every_frame_of_videos_in_av1(tmp_path: Path) -> None:
    """The codec that LeRobot takes by itself; the second episode begins between two key frames."""
    root = write_dataset(tmp_path / "soup", "v3.0", codec="libsvtav1")
    for k, episode in enumerate(read_dataset(root, env=SPEC)):
        found = episode.images("top")[:, 20, 20].astype(float)
        expected = np.array([grey(k, t) for t in range(LENGTHS[k])])[:, None]
        np.testing.assert_allclose(found, expected.repeat(3, 1), atol=3.5)


def test_features_may_be_named(dataset: Path) -> None:
    names = {"front": TOP, "a": f"{STATE}[2]", "b": f"{STATE}[z]", "c": "observation.grip", "action": "action"}
    spec = replace(SPEC, cameras={"front": (32, 48)}, proprio=dict.fromkeys("abc", "m"), actions=("dy", "dx"))
    (episode, *_) = read_dataset(dataset, env=spec, names=names)
    assert episode.images("front").shape == (7, 32, 48, 3)
    np.testing.assert_array_equal(episode.proprio[3], [-3, 3, 0])
    np.testing.assert_allclose(episode.actions[:, 1], np.arange(7) / 100)  # found by its name
    other = replace(spec, actions=("forward", "left"))  # names that the dataset does not know: taken as they stand
    np.testing.assert_allclose(read_dataset(dataset, env=other, names=names)[0].actions[:, 0], np.arange(7) / 100)


def test_steps_without_motion_can_be_dropped(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "soup", "v2.1")
    kept = read_dataset(root, env=SPEC, drop_noops=True)[1]
    assert len(kept) == 5  # all move
    path = root / LAYOUT["v2"][0].format(episode_chunk=0, episode_index=1)
    table = pd.read_parquet(path)
    table["action"] = [f32([0.0 if t in (2, 3) else 0.5, 0.01]) for t in table["frame_index"]]
    table.to_parquet(path, index=False)
    kept = read_dataset(root, env=SPEC, drop_noops=True)[1]
    assert kept.rows.tolist() == [0, 1, 4]
    assert kept.images("hand")[:, 0, 0, 0].tolist() == [grey(1, t) for t in (0, 1, 4)]


def test_a_policy_is_trained_on_one(tmp_path: Path) -> None:
    """The toy's interface; where it comes from is said by env, since the dataset does not."""
    features = FEATURES | {STATE: FEATURES[STATE] | {"names": ["hand_x", "hand_y", "y"]}}
    root = write_dataset(tmp_path / "soup", "v3.0", features=features)
    assert stored_spec(root) is None
    run = ImitateRun(
        policy=policy_node("gaussian"), demos=str(root), out=str(tmp_path / "run"), names={"top": HAND}, env=toy(),
        steps=2, batch_size=4, val_fraction=0.34, save_every=2, quiet=True,
    )  # fmt: skip
    assert imitate(run).name == "step_00000002"
    with pytest.raises(ValueError, match="does not say what it is of"):
        imitate(replace(run, env=None, out=str(tmp_path / "other")))


# --- what is wrong ---


def broken(root: Path, **info: Any) -> Path:
    path = root / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | info))
    return root


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebase_version": "v1.6"}, "format v1.6; expected one of v2.0, v2.1, v3.0"),
        ({"fps": None}, "not the description of a LeRobot dataset"),
        ({"data_path": "../../{episode_index}.parquet"}, "leads out of the dataset"),
        ({"data_path": "data/{chapter}.parquet"}, "data_path = 'data/{chapter}.parquet' cannot be filled in"),
        ({"features": {k: v for k, v in FEATURES.items() if k != HAND}}, r"no camera 'hand'.*names=\{hand: FEATURE\}"),
        (
            {"features": {k: v for k, v in FEATURES.items() if k != "action"}},
            "no feature 'action'.*which is the action",
        ),
        ({"features": FEATURES | {TOP: FEATURES[TOP] | {"shape": [3, 64, 48]}}}, "is 64x48, camera 'top'.*is 32x48"),
        ({"features": FEATURES | {"action": FEATURES["action"] | {"shape": [7]}}}, "has 7 entries.*takes 2"),
        ({"features": FEATURES | {STATE: FEATURES[STATE] | {"names": None}}}, r"no proprioception 'x'.*NUMBER"),
    ],
)
def test_metadata_that_does_not_fit(dataset: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    root = broken(shutil.copytree(dataset, tmp_path / "soup"), **change)
    with pytest.raises(ValueError, match=message):
        read_dataset(root, env=SPEC)


def test_names_that_mean_nothing(dataset: Path, tmp_path: Path) -> None:
    for names, message in (
        ({"nose": TOP}, "names = .'nose'. are no cameras or proprioception"),
        ({"x": f"{STATE}[3]"}, r"no proprioception 'x' \(observation.state\[3\]\)"),
        ({"x": f"{STATE}[w]"}, "no proprioception 'x'"),
        ({"x": "observation.missing"}, "no proprioception 'x'"),
    ):
        with pytest.raises(ValueError, match=message):
            read_dataset(dataset, env=SPEC, names=names)


def test_files_that_are_damaged_or_missing(dataset: Path, tmp_path: Path) -> None:
    data, video = (sorted(dataset.glob(f"{folder}/**/*.{kind}"))[0].relative_to(dataset)
                   for folder, kind in (("data", "parquet"), ("videos", "mp4")))  # fmt: skip
    root = shutil.copytree(dataset, tmp_path / "soup")
    (root / video).write_bytes((dataset / video).read_bytes()[:300])
    first = read_dataset(root, env=SPEC)[0]
    with pytest.raises(ValueError, match=rf"{video.name} cannot be decoded .*H.264 or AV1"):
        first.images("top")
    (root / video).unlink()
    with pytest.raises(ValueError, match="is missing; download the whole dataset"):
        first.images("top")
    (root / data).write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=rf"{data.name} cannot be read .*Git LFS"):
        read_dataset(root, env=SPEC)
    table = pd.read_parquet(dataset / data)
    for change, message in (
        (table.drop(columns="action"), r"no column \['action'\]"),
        (table[table["frame_index"] != 2], "has 6 rows, its metadata say 7"),
        (table.assign(task_index=9), "task_index 9 is not in meta/tasks"),
        (table.assign(action=[f32([np.nan, 0])] * len(table)), "'action' is nan at step 0"),
    ):
        change.to_parquet(root / data, index=False)
        with pytest.raises(ValueError, match=message):
            read_dataset(root, env=SPEC)
    table.assign(**{HAND: [{"bytes": b"no picture", "path": None}] * len(table)}).to_parquet(root / data, index=False)
    with pytest.raises(ValueError, match="episode 0 holds a picture that cannot be decoded"):
        read_dataset(root, env=SPEC)[0].images("hand")


def test_a_video_that_is_short_or_of_another_size(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", [50, 90], "libx264")
    clip = Clip(tmp_path / "a.mp4", 0.1, 1, FPS)
    assert abs(int(clip.read((32, 48))[0, 20, 20, 0]) - 90) < 4
    with pytest.raises(ValueError, match="ends after 2 of 3 frames from second 0"):
        replace(clip, start_s=0.0, frames=3).read((32, 48))
    with pytest.raises(ValueError, match="shows 32x48, expected 16x16"):
        clip.read((16, 16))
