"""FLIP's own HDF5 files of tracks to shards: python -m pretrained.importers.flip_data DATA.hdf5 runs/tracks

    video            [M, 3, Y, X] float32 with ImageNet's statistics      points  [M, P, F, 2] float32 pixels
    idx_indicator    [M] 1 for frames of an episode, 0 for padding before and behind it
    sentence_embedding_name  [M] the name of the sentence, whose embedding is in a pickle that is not read

Every episode of T frames is padded by F - 1 on either side, and its last F - 1 frames have clips that end earlier and
repeat a position: these are left out, as are points of the grid that lie outside of the picture. Files say nothing of
visibility: all positions count as seen.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from pretrained.demos.tracks import TrackedEpisode, write
from pretrained.flip.vae import IMAGENET

EXPECTED = {"video": 4, "points": 4, "idx_indicator": 1, "sentence_embedding_name": 1}  # name -> dimensions


def read_episodes(path: Path) -> Iterator[TrackedEpisode]:
    """The episodes of a file, one at a time. Raises ValueError if it is of another layout."""
    try:
        file = h5py.File(path, "r")
    except OSError as e:
        raise ValueError(f"{path} is not a readable HDF5 file ({e}); give one that FLIP's preprocessing wrote") from e
    with file:
        wrong = [k for k, n in EXPECTED.items() if k not in file or not isinstance(file[k], h5py.Dataset)
                 or file[k].ndim != n]  # fmt: skip
        if wrong:
            raise ValueError(f"{path} lacks {', '.join(wrong)} (of {sorted(file)}), or has it in another shape; "
                             "expected a file that FLIP's preprocessing wrote")  # fmt: skip
        real = np.flatnonzero(file["idx_indicator"][()])
        if not len(real):
            raise ValueError(f"{path} has no frame that belongs to an episode (idx_indicator is 0 throughout)")
        length = file["points"].shape[2]
        runs = np.split(real, np.flatnonzero(np.diff(real) > 1) + 1)
        inside: np.ndarray | None = None
        for run in runs:
            if len(run) < length:
                raise ValueError(f"{path}: the episode at row {run[0]} has {len(run)} frames, too short for clips of "
                                 f"{length}; remove it")  # fmt: skip
            rows = slice(int(run[0]), int(run[-1]) + 1)
            frames = _pixels(file["video"][rows], path)
            tracks = file["points"][rows.start : rows.stop - length + 1].astype(np.float64)
            if inside is None:
                y, x = frames.shape[1:3]
                start = tracks[0, :, 0]
                inside = ((start >= -0.5) & (start <= np.array([x, y]) - 0.5)).all(1)
            name = file["sentence_embedding_name"][rows.start]
            text = (name.decode() if isinstance(name, bytes) else str(name)).replace("_", " ").strip()
            clipped = tracks[:, inside]
            yield TrackedEpisode(frames, clipped, np.ones(clipped.shape[:3], dtype=bool), text)


def _pixels(video: np.ndarray, path: Path) -> np.ndarray:
    """uint8 [T, Y, X, 3]"""
    mean, std = (np.array(s, dtype=np.float32).reshape(3, 1, 1) for s in IMAGENET)
    pictures = video * std + mean
    if not np.isfinite(pictures).all() or pictures.min() < -0.02 or pictures.max() > 1.02:
        raise ValueError(f"{path}: pictures lie in [{pictures.min():.2f}, {pictures.max():.2f}] once ImageNet's "
                         "statistics are undone, expected [0, 1]; they were normalised otherwise")  # fmt: skip
    return np.rint(pictures.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pretrained.importers.flip_data", description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, help="folder of the shard")
    given = parser.parse_args(words)
    episodes = list(read_episodes(given.data))
    write(given.out, episodes)
    sys.stdout.write(f"{len(episodes)} episodes in {given.out}\n")


if __name__ == "__main__":
    main()
