"""Demonstrations for SPOC as windows of episodes: in the CHORES layout, or as `launch.py collect` writes them.

In the CHORES layout sensors are in HDF5, and each camera and episode has a video.

    <root>/<task>/house_id_to_sub_house_id_<split>.json       house -> names of its episodes
    <root>/<task>/<split>/<house, 6 digits>/hdf5_sensors.hdf5 one group per episode, arrays of T + 1 rows
    <root>/<task>/<split>/<house>/<camera>__<episode>.mp4     T + 1 or T frames

Row 0 of the arrays is the state before the first action, whose name is empty. Moment t is frame t, sensors t, the last
action in row t; what is to be imitated is the action in row t + 1. The last row only tells where the episode ended.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from envs import stretch
from envs.record import write_video
from envs.types import EnvSpec
from pretrained.demos.recorded import RecordedWalk, read_recorded
from pretrained.progress import Bar
from pretrained.types import DemoBatch, ObsBatch

SENSORS = "hdf5_sensors.hdf5"
CAMERAS = (stretch.NAVIGATION, stretch.MANIPULATION)
START = len(stretch.ACTIONS)  # last action before the first
FPS = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Walk:
    """One demonstration, read; frames stay in the videos."""

    folder: Path  # of its house
    name: str
    task: str
    actions: np.ndarray  # int64 [T]
    last_actions: np.ndarray  # int64 [T]
    in_hand: np.ndarray  # int64 [T]
    instruction: str

    def __len__(self) -> int:
        return len(self.actions)

    def video(self, camera: str) -> Path:
        """The file of a camera."""
        return self.folder / f"{camera}__{self.name}.mp4"

    def frames(self, camera: str, rows: slice) -> np.ndarray:
        """uint8 [T, Y, X, 3] of the moments `rows`."""
        return read_frames(self.video(camera), rows)


class Chores:
    """Windows of episodes of one or several tasks, which take turns; a shorter task starts again.

    One window of each episode is drawn per epoch. Episodes that cannot be read, or whose videos do not fit, are left
    out, counted in `dropped`, and named in the log.
    """

    def __init__(
        self,
        *,
        paths: str | Path | Sequence[str | Path],
        tasks: Sequence[str] = (),
        split: str = "train",
        window: int = 100,
        max_demos: int | None = None,
    ) -> None:
        """`paths`: roots of data sets; `tasks`: names of their folders, () takes all; `window`: moments at most."""
        self.window, self.split_name = window, split
        self.dropped: dict[str, str] = {}  # episode -> why
        groups: dict[str, list[Walk | RecordedWalk]] = {}
        envs: list[EnvSpec] = []
        for root in [Path(p) for p in ([paths] if isinstance(paths, (str, Path)) else paths)]:
            files = [root] if root.suffix == ".hdf5" else sorted(root.glob("*.hdf5"))
            for file in files:
                env, walks = read_recorded(file, in_hand=stretch.IN_HAND, start=START)
                envs.append(env)
                for walk in walks:
                    if not tasks or walk.task in tasks:
                        groups.setdefault(walk.task, []).append(walk)
            for folder in [] if files else task_folders(root, tasks, split):
                groups.setdefault(folder.name, []).extend(self._read_task(folder, split))
        self.tasks = {name: walks[:max_demos] for name, walks in groups.items() if walks}
        if not self.tasks:
            why = dict(list(self.dropped.items())[:3])
            raise ValueError(f"{paths} hold no usable episode of split '{split}': {why}")
        first = next(iter(self.tasks.values()))[0]
        if isinstance(first, Walk):
            envs.append(stretch.spec(frame=frame_size(first.video(CAMERAS[0]))))
        self.env: EnvSpec = envs[0]
        if any(env.cameras != self.env.cameras for env in envs):
            raise ValueError(f"{paths} have cameras {[env.cameras for env in envs]}; expected equal ones")
        self._features: dict[tuple[Path, str], dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.tasks) * max(len(walks) for walks in self.tasks.values())

    @property
    def num_episodes(self) -> int:
        """Different episodes, all tasks together."""
        return sum(len(walks) for walks in self.tasks.values())

    def walk(self, place: int) -> "Walk | RecordedWalk":
        """The episode at a place of the epoch."""
        walks = list(self.tasks.values())[place % len(self.tasks)]
        return walks[(place // len(self.tasks)) % len(walks)]

    def batch(self, index: Sequence[int] | np.ndarray | Tensor, *, images: bool = True, draw: int = 0) -> DemoBatch:
        """A window of each episode `index`, padded to the longest; the same `draw` gives the same windows.

        Images [B, T, ...] unless `encode` was called, which gives the features instead; the hints `last_action` and
        `time` say what came before the window."""
        windows = []
        for row, place in enumerate(np.asarray(index, dtype=np.int64)):
            walk = self.walk(int(place))
            last = max(0, len(walk) - self.window)
            start = int(np.random.default_rng([draw, row]).integers(last + 1))
            windows.append((walk, slice(start, min(start + self.window, len(walk)))))
        actions = _padded([w.actions[rows] for w, rows in windows])
        hints = {
            "last_action": _padded([w.last_actions[rows] for w, rows in windows]),
            "time": _padded([np.arange(rows.start, rows.stop) for _, rows in windows]),
        }
        held = _padded([w.in_hand[rows] for w, rows in windows])
        lengths = torch.tensor([rows.stop - rows.start for _, rows in windows])
        is_pad = torch.arange(actions.shape[1]) >= lengths[:, None]
        frames: dict[str, np.ndarray | Tensor] = {}
        if self._features:
            hints |= self._windows_of_features(windows)
        elif images:
            frames = {c: _padded([w.frames(c, rows) for w, rows in windows]) for c in self.env.cameras}
        obs = ObsBatch(frames, held[..., None].float(), [w.instruction for w, _ in windows], hints)
        return DemoBatch(obs, actions[..., None].float(), is_pad)

    def _windows_of_features(self, windows: "Sequence[tuple[Walk | RecordedWalk, slice]]") -> dict[str, Tensor]:
        parts = [(self._features[w.folder, w.name], rows) for w, rows in windows]
        return {k: _padded([f[k][rows].numpy() for f, rows in parts]) for k in parts[0][0]}

    def encode(self, policy: Any, *, chunk: int = 64, quiet: bool = False) -> None:
        """Run the frozen towers over all frames, once; later batches hold features. For sets that fit in memory."""
        with Bar("encode", total=self.num_episodes, quiet=quiet) as bar:
            for walk in (w for walks in self.tasks.values() for w in walks):
                parts = []
                for first in range(0, len(walk), chunk):
                    rows = slice(first, min(first + chunk, len(walk)))
                    images: dict[str, Any] = {c: walk.frames(c, rows)[:, None] for c in self.env.cameras}
                    held = walk.in_hand[rows, None, None].astype(np.float32)
                    parts.append(policy.encode(ObsBatch(images, held, [walk.instruction] * len(held))))
                self._features[walk.folder, walk.name] = {k: torch.cat([p[k].cpu() for p in parts]) for k in parts[0]}
                bar.advance(1)

    def all_actions(self) -> Tensor:
        """float32 [M, 1]."""
        walks = [w.actions for group in self.tasks.values() for w in group]
        return torch.from_numpy(np.concatenate(walks)[:, None]).float()

    def all_proprio(self) -> Tensor:
        """float32 [M, 1]: whether something is held."""
        walks = [w.in_hand for group in self.tasks.values() for w in group]
        return torch.from_numpy(np.concatenate(walks)[:, None]).float()

    def split(self, fraction: float, seed: int) -> "tuple[Chores, Chores | None]":
        """Training and validation episodes, by house: no house is in both. None if the fraction gives no house."""
        houses = sorted({str(w.folder) for walks in self.tasks.values() for w in walks})
        held = set(np.random.default_rng(seed).permutation(houses)[: round(fraction * len(houses))].tolist())
        if len(held) == len(houses):
            raise ValueError(f"val_fraction = {fraction} of {len(houses)} houses leaves none to train on; lower it")
        rest = self._only(lambda w: str(w.folder) not in held)
        return rest, self._only(lambda w: str(w.folder) in held) if held else None

    def _only(self, wanted: Any) -> "Chores":
        part = object.__new__(Chores)
        part.__dict__.update(self.__dict__)
        chosen = {name: [w for w in walks if wanted(w)] for name, walks in self.tasks.items()}
        part.tasks = {name: walks for name, walks in chosen.items() if walks}
        part._features = {}
        return part

    def _read_task(self, folder: Path, split: str) -> list[Walk]:
        table = json.loads((folder / f"house_id_to_sub_house_id_{split}.json").read_text())
        walks: list[Walk] = []
        for house in sorted(table, key=int):
            place = folder / split / f"{int(house):06d}"
            try:
                with open_sensors(place) as file:
                    for name in table[house]:
                        try:
                            walks.append(_walk(file, place, str(name), folder.name))
                        except ValueError as e:
                            self._drop(f"{place}/{name}", str(e))
            except ValueError as e:
                self._drop(str(place), str(e))
        return walks

    def _drop(self, what: str, why: str) -> None:
        self.dropped[what] = why
        log.warning("%s is left out: %s", what, why)


def task_folders(root: Path, tasks: Sequence[str], split: str) -> list[Path]:
    """The folders of tasks in a data set; ValueError if one that is asked for is missing."""
    index = f"house_id_to_sub_house_id_{split}.json"
    there = sorted(p.parent for p in root.glob(f"*/{index}"))
    if (root / index).is_file():  # the root is itself a task
        there = [root]
    missing = sorted(set(tasks) - {p.name for p in there})
    if missing or not there:
        raise ValueError(
            f"{root} has no <task>/{index} for {missing or 'any task'}; it has tasks {[p.name for p in there]}: "
            "expected the CHORES layout"
        )
    return [p for p in there if not tasks or p.name in tasks]


@contextmanager
def open_sensors(folder: Path) -> Iterator[h5py.File]:
    """The sensor file of a house; ValueError if it cannot be read."""
    try:
        with h5py.File(folder / SENSORS, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError) as e:
        raise ValueError(f"{folder / SENSORS} cannot be read ({e})") from e


def _walk(file: h5py.File, folder: Path, name: str, task: str) -> Walk:
    """One episode. Raises ValueError if it is not whole."""
    if name not in file:
        raise ValueError(f"group '{name}' is missing; the file has {sorted(file)[:8]}")
    group: Any = file[name]
    absent = [k for k in ("last_action_str", "templated_task_spec", stretch.IN_HAND) if k not in group]
    if absent:
        raise ValueError(f"arrays {absent} are missing; it has {sorted(group)}")
    names = [text(row) for row in group["last_action_str"][()]]
    if len(names) < 2 or names[0]:
        raise ValueError(f"expected an empty first action and at least one more, got {names[:2]}")
    actions = np.array([stretch.action_index(n) for n in names[1:]])
    held = group[stretch.IN_HAND][()].reshape(-1)
    if len(held) != len(names):
        raise ValueError(f"{stretch.IN_HAND} has {len(held)} rows, the actions {len(names)}")
    spec = json.loads(text(group["templated_task_spec"][()]))
    if "natural_language_spec" not in spec:
        raise ValueError(f"templated_task_spec has no natural_language_spec, only {sorted(spec)}")
    walk = Walk(folder, name, task, actions, np.concatenate([[START], actions[:-1]]), held[:-1].astype(np.int64),
                str(spec["natural_language_spec"]).lower())  # fmt: skip
    for camera in CAMERAS:
        if not walk.video(camera).is_file():
            raise ValueError(f"{walk.video(camera).name} is missing")
        frames = count_frames(walk.video(camera))
        if frames not in (len(walk), len(walk) + 1):
            raise ValueError(f"{walk.video(camera).name} has {frames} frames for {len(walk)} actions")
    return walk


def text(row: np.ndarray) -> str:
    """The string in zero-padded bytes; of several equal rows the first."""
    row = np.asarray(row)
    flat = row[0] if row.ndim == 2 else row
    return bytes(flat.astype(np.uint8).tolist()).rstrip(b"\0").decode()


def encoded(string: str, length: int) -> np.ndarray:
    """uint8 [length], zero-padded; ValueError if the string is longer."""
    data = string.encode()
    if len(data) > length:
        raise ValueError(f"'{string[:40]}' has {len(data)} bytes, there is room for {length}")
    return np.frombuffer(data.ljust(length, b"\0"), dtype=np.uint8)


def _padded(parts: Sequence[np.ndarray]) -> Tensor:
    """[B, T, ...] with zeros behind the shorter ones."""
    longest = max(len(p) for p in parts)
    return torch.stack([torch.from_numpy(np.pad(p, [(0, longest - len(p))] + [(0, 0)] * (p.ndim - 1))) for p in parts])


# --- videos ----------------------------------------------------------------------------------------------------------


def count_frames(path: Path) -> int:
    """Frames of a video. Raises ValueError if it is none."""
    import imageio_ffmpeg

    try:
        return int(imageio_ffmpeg.count_frames_and_secs(str(path))[0] or 0)
    except (OSError, RuntimeError) as e:
        raise ValueError(
            f"{path} is not a readable video ({(str(e).strip() or 'it is empty').splitlines()[-1]})"
        ) from e


def frame_size(path: Path) -> tuple[int, int]:
    """(Y, X) of a video."""
    return read_frames(path, slice(0, 1)).shape[1:3]


def read_frames(path: Path, rows: slice) -> np.ndarray:
    """uint8 [T, Y, X, 3] of the frames `rows`. Raises ValueError if the video has fewer."""
    import imageio_ffmpeg

    count = rows.stop - rows.start
    select = [
        "-vf",
        f"select=between(n\\,{rows.start}\\,{rows.stop - 1})",
        "-fps_mode",
        "passthrough",
        "-frames:v",
        str(count),
    ]
    frames: list[np.ndarray] = []
    try:
        reader = imageio_ffmpeg.read_frames(str(path), output_params=select)
        x, y = next(reader)["size"]
        frames = [np.frombuffer(data, dtype=np.uint8).reshape(y, x, 3) for data in reader]
    except (OSError, RuntimeError, StopIteration) as e:
        raise ValueError(
            f"{path} is not a readable video ({(str(e).strip() or 'it is empty').splitlines()[-1]})"
        ) from e
    if len(frames) != count:
        raise ValueError(f"{path}: expected frames {rows.start} to {rows.stop - 1}, got {len(frames)} of them")
    return np.stack(frames)


# --- writing ---------------------------------------------------------------------------------------------------------


def write_walk(
    root: Path | str,
    *,
    task: str,
    split: str,
    house: int,
    name: str,
    frames: Mapping[str, np.ndarray],
    actions: Sequence[str],
    in_hand: np.ndarray,
    spec: Mapping[str, Any],
    sensors: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Append one episode to a data set: T actions by name, T + 1 frames uint8 [T + 1, Y, X, 3] and sensors of each
    camera, the task's description, which names the sentence `natural_language_spec`. Its index is written last."""
    rows = len(actions) + 1
    lengths = {**{c: len(v) for c, v in frames.items()}, stretch.IN_HAND: len(in_hand)}
    lengths |= {k: len(v) for k, v in (sensors or {}).items()}
    if wrong := {k: n for k, n in lengths.items() if n != rows}:
        raise ValueError(f"episode {name}: expected {rows} rows, one more than actions, got {wrong}")
    place = Path(root) / task / split / f"{house:06d}"
    place.mkdir(parents=True, exist_ok=True)
    for camera in CAMERAS:
        write_video(place / f"{camera}__{name}.mp4", frames[camera], fps=FPS, enlarge=False)
    with h5py.File(place / SENSORS, "a") as file:
        group = file.create_group(name)
        short = ["", *(stretch.ACTIONS[stretch.action_index(a)][1] for a in actions)]
        group["last_action_str"] = np.stack([encoded(a, 20) for a in short])
        group["templated_task_spec"] = np.tile(encoded(json.dumps(dict(spec)), 10_000), (rows, 1))[:1]
        group[stretch.IN_HAND] = np.asarray(in_hand, dtype=np.int64).reshape(-1, 1)
        group["house_index"] = np.full((rows, 1), house)
        for key, value in (sensors or {}).items():
            group[key] = value
    index = Path(root) / task / f"house_id_to_sub_house_id_{split}.json"
    table = json.loads(index.read_text()) if index.exists() else {}
    table.setdefault(str(house), []).append(name)
    index.write_text(json.dumps(table))
