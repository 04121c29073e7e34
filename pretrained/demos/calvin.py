"""CALVIN's own dataset: one split (`training` or `validation`), of which the language-annotated windows are read.

    episode_0000000.npz              one frame: rgb_static, rgb_gripper, robot_obs [15], scene_obs [24],
                                     actions [7] (absolute), rel_actions [7], gripper 1 open, -1 close
    ep_start_end_ids.npy             int [plays, 2] first and last frame of each recording
    lang_annotations/auto_lang_ann.npy   a pickled dict: language {ann, task, emb}, info {indx: [(first, last)]}

Frame t holds what was seen when its action was chosen; both ends of a window belong to it. The pickle is read by a
reader that knows arrays, numbers and texts and runs nothing. Depth and tactile images are not read.
`python -m pretrained.demos.calvin SPLIT OUT.hdf5` packs the windows into one file, which reads many times faster than
a file per frame.
"""

import argparse
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs.calvin.env import PROPRIO, calvin_spec
from envs.calvin.scenes import SIZES
from envs.pickles import read_pickle
from envs.types import EnvSpec
from pretrained.demos.libero import DemoWriter, Recorded, noops

ANNOTATIONS = Path("lang_annotations") / "auto_lang_ann.npy"
RANGES = "ep_start_end_ids.npy"
SPLITS = ("training", "validation")
ACTIONS = {"calvin_relative": "rel_actions", "calvin_absolute": "actions"}  # action convention -> array of a frame
MAX_ANNOTATIONS = 1 << 30  # bytes; the largest official file has some 30 MB

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Annotations:
    """The annotated windows of a split."""

    texts: list[str]
    tasks: list[str]
    windows: np.ndarray  # int64 [n, 2] first and last frame


@dataclass(frozen=True)
class CalvinEpisode:
    """One annotated window; pictures stay on disk until `images`."""

    split: Path
    frames: np.ndarray  # int64 [T] numbers of the frames that are used
    cameras: dict[str, tuple[int, int]]
    actions: np.ndarray  # float32 [T, A]
    proprio: np.ndarray  # float32 [T, P]
    instruction: str
    task: str

    def __len__(self) -> int:
        return len(self.actions)

    def images(self, camera: str) -> np.ndarray:
        """uint8 [T, Y, X, 3], row 0 on top."""
        size = (*self.cameras[camera], 3)
        return np.stack([read_frame(self.split, int(i), {camera: size})[camera] for i in self.frames])


def is_dataset(path: Path) -> bool:
    """Whether a folder is a split, or holds the splits, of a CALVIN dataset."""
    return any((folder / RANGES).is_file() for folder in (path, *(path / split for split in SPLITS)))


def read_split(root: Path, *, env: EnvSpec, drop_noops: bool = False) -> list[CalvinEpisode]:
    """All annotated windows of a split, checked against `env`."""
    key, columns = _layout(root, env)
    annotations = read_annotations(root)
    out = []
    for text, task, (first, last) in zip(annotations.texts, annotations.tasks, annotations.windows, strict=True):
        frames = np.arange(first, last + 1)
        rows = [read_frame(root, int(i), {key: (7,), "robot_obs": (15,)}) for i in frames]
        actions = np.stack([row[key] for row in rows]).astype(np.float32)
        proprio = np.stack([row["robot_obs"] for row in rows]).astype(np.float32)[:, columns]
        keep = np.flatnonzero(~noops(actions)) if drop_noops else np.arange(len(frames))
        if len(keep):
            cameras = dict(env.cameras)
            out.append(CalvinEpisode(root, frames[keep], cameras, actions[keep], proprio[keep], text, task))
    return out


def pack(root: Path, out: Path, *, env: EnvSpec | None = None) -> Path:
    """Write the annotated windows of a split to a file of demonstrations; a packing that was stopped goes on."""
    env = env or calvin_spec("D", sizes=SIZES)
    identity = {"calvin": str(root.resolve()), "cameras": {k: list(v) for k, v in env.cameras.items()}}
    writer = DemoWriter(out, env=env, identity=identity)
    episodes = read_split(root, env=env)
    for number, episode in enumerate(episodes):
        if number not in writer.stored:
            writer.add(number, _recorded(episode))
            log.info("%s: %d of %d windows", out, number + 1, len(episodes))
    return writer.finish(range(len(episodes)), {"windows": len(episodes)})


def read_annotations(root: Path) -> Annotations:
    """The windows, checked to lie inside the recordings of this split."""
    path = root / ANNOTATIONS
    content = _safe_object(path)
    try:
        texts = [str(text) for text in content["language"]["ann"]]
        tasks = [str(task) for task in content["language"]["task"]]
        windows = np.array([[int(n) for n in pair] for pair in content["info"]["indx"]])
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{path} is no list of language annotations ({type(e).__name__}: {e})") from e
    if not (len(texts) == len(tasks) == len(windows) > 0) or windows.shape != (len(texts), 2):
        raise ValueError(
            f"{path} has {len(texts)} texts, {len(tasks)} tasks and windows of shape {windows.shape}; expected as many "
            "of each, and at least one: download it again"
        )
    ranges = _array(root / RANGES)
    if ranges.ndim != 2 or ranges.shape[1] != 2:
        raise ValueError(f"{root / RANGES} has shape {ranges.shape}; expected [recordings, 2]: download it again")
    inside = (windows[:, :1] >= ranges[:, 0]) & (windows[:, 1:] <= ranges[:, 1]) & (windows[:, :1] <= windows[:, 1:])
    outside = np.flatnonzero(~inside.any(axis=1))
    if len(outside):
        first, last = windows[outside[0]]
        raise ValueError(
            f"{path}: window {outside[0]} spans frames {first} to {last}, which is in no recording of {root} "
            f"({ranges.min()} to {ranges.max()}); these annotations belong to another split or dataset"
        )
    return Annotations(texts, tasks, windows)


def read_frame(root: Path, number: int, wanted: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Arrays of one frame by name, each of the wanted shape."""
    path = root / f"episode_{number:07d}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in wanted if name in file.files}
            there = file.files
    except FileNotFoundError as e:
        raise ValueError(f"{path} is missing; download the whole split") from e
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
        raise ValueError(f"{path} is truncated or damaged ({e}); download it again") from e
    for name, shape in wanted.items():
        if name not in found:
            raise ValueError(f"{path} has no '{name}', only {sorted(there)}; is this a CALVIN dataset?")
        if found[name].shape != shape:
            raise ValueError(
                f"{path}: '{name}' has shape {found[name].shape}, expected {shape}; set the size of that camera in the "
                "environment to that of the dataset, or download it again"
            )
        if found[name].dtype.kind == "f" and not np.isfinite(found[name]).all():
            raise ValueError(f"{path}: '{name}' is not finite; download it again, or leave this frame's window out")
    for name in found.keys() & set(ACTIONS.values()):
        if abs(found[name][-1]) != 1:
            raise ValueError(
                f"{path}: the gripper command of '{name}' is {found[name][-1]:g}; expected exactly 1 (open) or -1 "
                "(close): download it again, or leave this frame's window out"
            )
    return found


def _layout(root: Path, env: EnvSpec) -> tuple[str, list[int]]:
    """The array that holds the actions, and the columns of `robot_obs` that are the proprioception."""
    if not (root / RANGES).is_file():
        splits = [split for split in SPLITS if (root / split / RANGES).is_file()]
        raise ValueError(f"{root} is no split of a CALVIN dataset; name one of {[str(root / s) for s in splits]}")
    if env.action_convention not in ACTIONS:
        raise ValueError(
            f"{root} holds CALVIN's actions, and '{env.env_id}' takes '{env.action_convention}'; expected one of "
            f"{', '.join(ACTIONS)}: use env=calvin"
        )
    unknown = [name for name in env.proprio if name not in PROPRIO] + [c for c in env.cameras if c not in SIZES]
    if unknown:
        raise ValueError(f"{root} has no '{unknown[0]}', which '{env.env_id}' shows; expected some of {list(PROPRIO)}")
    return ACTIONS[env.action_convention], [list(PROPRIO).index(name) for name in env.proprio]


def _recorded(episode: CalvinEpisode) -> Recorded:
    states = [read_frame(episode.split, int(i), {"robot_obs": (15,), "scene_obs": (24,)}) for i in episode.frames]
    rewards = np.zeros(len(episode), np.float32)
    rewards[-1] = 1.0
    actions = episode.actions.astype(np.float64)
    return Recorded(
        images={camera: episode.images(camera) for camera in episode.cameras},
        proprio=episode.proprio,
        actions=actions,
        executed=actions,
        rewards=rewards,
        states=np.stack([np.concatenate([row["robot_obs"], row["scene_obs"]]) for row in states]),
        instruction=episode.instruction,
        task=episode.task,
        seed=int(episode.frames[0]),
        success=True,
    )


# --- files that may hold anything -------------------------------------------------------------------------------------


def _safe_object(path: Path) -> dict[str, Any]:
    """The dict inside a .npy file of one Python object."""
    try:
        if path.stat().st_size > MAX_ANNOTATIONS:
            raise ValueError(f"it is larger than {MAX_ANNOTATIONS >> 20} MiB")
        with path.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(stream)
            if shape != () or dtype.kind != "O":
                raise ValueError(f"it holds an array of {dtype} {shape}, expected one dict")
            content = read_pickle(stream)[0]
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, expected a dict")
        return content
    except FileNotFoundError as e:
        raise ValueError(f"{path} is missing; only annotated windows are read: download lang_annotations too") from e
    except Exception as e:  # whatever a damaged or hostile file makes the readers raise
        raise ValueError(f"{path} cannot be read ({type(e).__name__}: {e}); download it again") from e


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise ValueError(f"{path} cannot be read ({e}); download it again") from e


def main(arguments: Sequence[str] | None = None) -> None:
    """Pack a split from the command line."""
    parser = argparse.ArgumentParser(description="pack the annotated windows of a CALVIN split into one file")
    parser.add_argument("split", type=Path)
    parser.add_argument("out", type=Path)
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pack(chosen.split, chosen.out)


if __name__ == "__main__":
    main()
