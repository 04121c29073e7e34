"""FLIP's own HDF5 layout, written as its preprocessing does."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from pretrained.demos.tracks import Shard, pad_clips
from pretrained.flip.vae import IMAGENET
from pretrained.importers.flip_data import main, read_episodes

LENGTH, SIZE = 4, 16


def original(path: Path, lengths: tuple[int, ...] = (7, 5), **changes: np.ndarray) -> list[dict[str, np.ndarray]]:
    """A file of episodes, and what is in it."""
    rng, made = np.random.default_rng(0), []
    columns: dict[str, list[np.ndarray]] = {"video": [], "points": [], "idx_indicator": [], "name": []}
    mean, std = (np.array(s).reshape(3, 1, 1) for s in IMAGENET)
    grid = np.stack(np.meshgrid(np.linspace(0, SIZE, 3), np.linspace(0, SIZE, 3)), -1).reshape(9, 2).astype(int)
    for i, frames in enumerate(lengths):
        pixels = rng.integers(0, 256, (frames, SIZE, SIZE, 3), dtype=np.uint8)
        clips = grid[None, None] + np.arange(LENGTH)[None, :, None, None] * rng.uniform(0, 1, (frames - 3, 1, 9, 2))
        video = (pixels.transpose(0, 3, 1, 2) / 255 - mean) / std
        pad = LENGTH - 1
        columns["video"].append(np.concatenate([video[:1].repeat(pad, 0), video, video[-1:].repeat(pad, 0)]))
        columns["points"].append(pad_clips(clips, history=LENGTH).transpose(0, 2, 1, 3))
        columns["idx_indicator"].append(np.r_[np.zeros(pad), np.ones(frames), np.zeros(pad)])
        columns["name"].append(np.array([f"task_{i}".encode()] * (frames + 2 * pad)))
        made.append({"frames": pixels, "clips": clips})
    with h5py.File(path, "w") as file:
        for name, parts in columns.items():
            value = changes.get(name, np.concatenate(parts))
            file["sentence_embedding_name" if name == "name" else name] = value
    return made


def test_episodes_come_back(tmp_path: Path) -> None:
    made = original(tmp_path / "data.hdf5")
    main([str(tmp_path / "data.hdf5"), str(tmp_path / "shard")])
    shard = Shard(tmp_path / "shard")
    assert [e["frames"] for e in shard.episodes] == [7, 5]
    assert [e["instruction"] for e in shard.episodes] == ["task 0", "task 1"]
    np.testing.assert_array_equal(shard.frames[:7], made[0]["frames"])
    flow = shard.flow(np.arange(len(shard)))
    assert flow.tracks.shape == (4 + 2, 4, LENGTH, 2)  # of nine points, five lie on the edge, outside of the picture
    inner = [0, 1, 3, 4]
    np.testing.assert_allclose(flow.tracks[:4].transpose(0, 2, 1, 3), made[0]["clips"][:, :, inner], atol=1 / 100)
    assert flow.visible.all()


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a readable HDF5 file"):
        list(read_episodes(tmp_path / "nothing.hdf5"))
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["video"] = np.zeros((3, 3, 8, 8))
    with pytest.raises(ValueError, match="lacks points, idx_indicator, sentence_embedding_name"):
        list(read_episodes(tmp_path / "other.hdf5"))
    original(tmp_path / "grey.hdf5", video=np.full((24, 3, SIZE, SIZE), 9.0))
    with pytest.raises(ValueError, match="normalised otherwise"):
        list(read_episodes(tmp_path / "grey.hdf5"))
    original(tmp_path / "empty.hdf5", idx_indicator=np.zeros(24))
    with pytest.raises(ValueError, match="no frame that belongs"):
        list(read_episodes(tmp_path / "empty.hdf5"))
