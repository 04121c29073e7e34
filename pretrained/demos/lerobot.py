"""LeRobot datasets in a local folder, formats v2.0, v2.1 and v3.0, read without the package of that name.

    meta/info.json     codebase_version, fps, data_path, video_path, features {name: {dtype, shape, names}}
    v2   one Parquet file and one video per camera and episode; meta/episodes.jsonl, meta/tasks.jsonl
    v3   files of several episodes; meta/episodes/*/*.parquet says in which one each is, and from which second on

Row t holds what was seen when action t was chosen. Pictures are taken as stored, as RGB with row 0 on top.
"""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from envs.types import EnvSpec
from pretrained.demos.libero import noops

VERSIONS = ("v2.0", "v2.1", "v3.0")
Names = Mapping[str, str]  # what we call a camera, a proprioception entry or "action" -> what the dataset calls it


@dataclass(frozen=True)
class Clip:
    """The stretch of a video that shows one episode."""

    path: Path
    start_s: float
    frames: int
    fps: float

    def read(self, size: tuple[int, int]) -> np.ndarray:
        """uint8 [frames, Y, X, 3]. Raises ValueError if the video is damaged, shorter, or of another size."""
        import imageio_ffmpeg

        if not self.path.is_file():
            raise ValueError(f"{self.path} is missing; download the whole dataset, videos included")
        # Half a frame early, so that rounding cannot skip the first one.
        seek = ["-ss", f"{self.start_s - 0.5 / self.fps:.6f}"] if self.start_s > 0.5 / self.fps else []
        out = np.empty((self.frames, *size, 3), np.uint8)
        count = 0
        try:
            limit = ["-fps_mode", "passthrough", "-frames:v", str(self.frames)]
            stream = imageio_ffmpeg.read_frames(str(self.path), input_params=seek, output_params=limit)
            meta: Any = next(stream)
            found = (meta["size"][1], meta["size"][0])
            if found != size:
                stream.close()
                raise ValueError(
                    f"{self.path} shows {found[0]}x{found[1]}, expected {size[0]}x{size[1]}; set the size of that "
                    "camera in the environment to that of the dataset"
                )
            for count, frame in enumerate(stream, start=1):
                out[count - 1] = np.frombuffer(frame, np.uint8).reshape(*size, 3)
        except (OSError, RuntimeError, StopIteration, KeyError) as e:
            last = (str(e).strip().splitlines() or ["no frame"])[-1]
            raise ValueError(
                f"{self.path} cannot be decoded ({last}); it is damaged or of a codec that ffmpeg here does not know: "
                "download it again, or convert it to H.264 or AV1"
            ) from e
        if count != self.frames:
            raise ValueError(
                f"{self.path} ends after {count} of {self.frames} frames from second {self.start_s:g}; "
                "download it again"
            )
        return out


@dataclass(frozen=True)
class LerobotEpisode:
    """One demonstration; pictures stay on disk until `images`."""

    dataset: "Dataset"
    index: int
    cameras: Mapping[str, tuple[int, int]]
    names: Names
    rows: np.ndarray  # int64 [T] frames of the episode that are used
    actions: np.ndarray  # float32 [T, A]
    proprio: np.ndarray  # float32 [T, P]
    instruction: str

    def __len__(self) -> int:
        return len(self.actions)

    def images(self, camera: str) -> np.ndarray:
        """uint8 [T, Y, X, 3], row 0 on top."""
        key = self.names.get(camera, f"observation.images.{camera}")
        return self.dataset.pictures(self.index, key, self.cameras[camera])[self.rows]


class Dataset:
    """A folder with `meta/info.json`."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        path = self.root / "meta" / "info.json"
        try:
            self.info = json.loads(path.read_text(encoding="utf-8"))
            self.version, self.features = str(self.info["codebase_version"]), dict(self.info["features"])
            self.fps = float(self.info["fps"])
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise ValueError(f"{path} is not the description of a LeRobot dataset ({type(e).__name__}: {e})") from e
        if self.version not in VERSIONS:
            raise ValueError(
                f"{self.root} is a LeRobot dataset of format {self.version}; expected one of {', '.join(VERSIONS)}: "
                "convert it with LeRobot's own scripts"
            )

    @cached_property
    def episodes(self) -> list[dict[str, Any]]:
        """One record per episode, in order; v3's say where the data lie."""
        if self.version.startswith("v2"):
            rows = list(_jsonl(self.root / "meta" / "episodes.jsonl"))
        else:
            files = sorted((self.root / "meta" / "episodes").glob("*/*.parquet"))
            if not files:
                raise ValueError(f"{self.root}/meta/episodes holds no Parquet file; download the whole dataset")
            rows = [row for file in files for row in _parquet(file, skip="stats/").to_pylist()]
        return sorted(rows, key=lambda r: r["episode_index"])

    @cached_property
    def tasks(self) -> dict[int, str]:
        """task_index -> instruction."""
        if self.version.startswith("v2"):
            rows = list(_jsonl(self.root / "meta" / "tasks.jsonl"))
        else:
            rows = _parquet(self.root / "meta" / "tasks.parquet").to_pylist()
        # v3 keeps the text in the index of a data frame, whose column has no fixed name.
        return {int(r["task_index"]): next(str(v) for k, v in r.items() if k != "task_index") for r in rows}

    def data_file(self, record: Mapping[str, Any]) -> Path:
        """Where the numbers of an episode are."""
        return self._file("data_path", record, record.get("data/chunk_index"), record.get("data/file_index"))

    def pictures(self, index: int, key: str, size: tuple[int, int]) -> np.ndarray:
        """All frames of an episode, uint8 [T, Y, X, 3]."""
        record = next(r for r in self.episodes if r["episode_index"] == index)
        if self.features[key]["dtype"] == "video":
            of = f"videos/{key}"
            path = self._file(
                "video_path", record, record.get(f"{of}/chunk_index"), record.get(f"{of}/file_index"), key
            )
            start = float(record.get(f"{of}/from_timestamp") or 0.0)
            return Clip(path, start, int(record["length"]), self.fps).read(size)
        file = self.data_file(record)
        rows = _rows_of(_parquet(file, columns=[key, "episode_index", "frame_index"]), index)
        return np.stack([_decode(row, size, f"{file}: '{key}' of episode {index}") for row in rows[key].to_pylist()])

    def _file(self, template: str, record: Mapping[str, Any], chunk: Any, file: Any, key: str = "") -> Path:
        index = int(record["episode_index"])
        values = {"episode_index": index, "episode_chunk": index // int(self.info.get("chunks_size") or 1000),
                  "chunk_index": chunk, "file_index": file, "video_key": key}  # fmt: skip
        try:
            relative = PurePosixPath(str(self.info[template]).format(**values))
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as e:
            raise ValueError(
                f"{self.root}/meta/info.json: {template} = {self.info.get(template)!r} cannot be filled in for episode "
                f"{index} ({type(e).__name__}: {e}); is the metadata complete?"
            ) from e
        if relative.is_absolute() or ".." in relative.parts:
            raise ValueError(f"{self.root}/meta/info.json: {template} leads out of the dataset: {relative}")
        return self.root / relative


def is_dataset(path: Path) -> bool:
    """Whether a folder claims to be a LeRobot dataset."""
    return (path / "meta" / "info.json").is_file()


def read_dataset(
    root: Path, *, env: EnvSpec, names: Names | None = None, drop_noops: bool = False
) -> list[LerobotEpisode]:
    """All demonstrations of a dataset, checked against `env`.

    Without an entry in `names`, camera `c` is the feature `observation.images.c`, a proprioception entry is the
    element of that name of a feature `observation...`, and the action is `action`. An element is named as
    `feature[number]` or `feature[element]`.
    """
    dataset, names = Dataset(root), dict(names or {})
    unknown = sorted(set(names) - {*env.cameras, *env.proprio, "action"})
    if unknown:
        raise ValueError(
            f"names = {unknown} are no cameras or proprioception of '{env.env_id}'; expected some of "
            f"{[*env.cameras, *env.proprio, 'action']}"
        )
    _check_cameras(dataset, env, names)
    action = names.get("action", "action")
    order = _action_order(dataset, action, env)
    places = [_place(dataset, env, entry, names) for entry in env.proprio]
    columns = sorted({action, *(key for key, _ in places), "episode_index", "frame_index", "task_index"})
    out, table, open_file = [], None, Path()
    for record in dataset.episodes:
        file, index = dataset.data_file(record), int(record["episode_index"])
        if file != open_file:
            table, open_file = _parquet(file, columns=columns), file
        rows, where = _rows_of(table, index), f"{file}: episode {index}"
        if len(rows) != int(record["length"]):
            raise ValueError(f"{where} has {len(rows)} rows, its metadata say {record['length']}; download it again")
        actions = _numbers(rows, action, where)[:, order]
        proprio = np.stack([_numbers(rows, key, where)[:, i] for key, i in places], 1) if places else None
        keep = np.flatnonzero(~noops(actions)) if drop_noops else np.arange(len(actions))
        if not len(keep):
            continue
        seen = np.zeros((len(actions), 0), np.float32) if proprio is None else proprio
        text = dataset.tasks.get(int(rows["task_index"][0].as_py()))
        if text is None:
            raise ValueError(f"{where}: task_index {rows['task_index'][0]} is not in meta/tasks; download it again")
        out.append(LerobotEpisode(dataset, index, dict(env.cameras), names, keep, actions[keep], seen[keep], text))
    return out


# --- what the features are ------------------------------------------------------------------------------------------


def _check_cameras(dataset: Dataset, env: EnvSpec, names: Names) -> None:
    pictures = {k: f for k, f in dataset.features.items() if f.get("dtype") in ("video", "image")}
    for camera, size in env.cameras.items():
        key = names.get(camera, f"observation.images.{camera}")
        if key not in pictures:
            raise ValueError(
                f"{dataset.root} has no camera '{camera}' ({key}); it has {sorted(pictures)}: say which it is with "
                f"names={{{camera}: FEATURE}}, or choose cameras of '{env.env_id}' among them"
            )
        shape = [int(n) for n in pictures[key]["shape"]]
        found = tuple(shape[1:] if shape[0] == 3 and shape[-1] != 3 else shape[:2])  # channels may come first
        if found != size:
            raise ValueError(
                f"{dataset.root}: '{key}' is {found[0]}x{found[1]}, camera '{camera}' of '{env.env_id}' is "
                f"{size[0]}x{size[1]}; set the size of that camera to that of the dataset"
            )


def _action_order(dataset: Dataset, key: str, env: EnvSpec) -> list[int]:
    """Columns of the action in the order of `env`; by name if the dataset names them as we do."""
    if key not in dataset.features:
        raise ValueError(
            f"{dataset.root} has no feature '{key}'; it has {sorted(dataset.features)}: say which is the action with "
            "names={action: FEATURE}"
        )
    width, called = _width(dataset.features[key]), _elements(dataset.features[key])
    if width != env.action_dim:
        raise ValueError(
            f"{dataset.root}: '{key}' has {width} entries {called or ''}, environment '{env.env_id}' takes "
            f"{env.action_dim} {list(env.actions)}; use demonstrations of this environment"
        )
    if sorted(called) == sorted(env.actions):
        return [called.index(name) for name in env.actions]
    return list(range(width))


def _place(dataset: Dataset, env: EnvSpec, entry: str, names: Names) -> tuple[str, int]:
    """(feature, element) of a proprioception entry."""
    numeric = {k: f for k, f in dataset.features.items() if str(f.get("dtype", "")).startswith(("float", "int"))}
    wanted = names.get(entry, "")
    feature, _, element = wanted.rstrip("]").partition("[")
    if not wanted:
        found = [(k, _elements(f).index(entry)) for k, f in numeric.items()
                 if k.startswith("observation.") and entry in _elements(f)]  # fmt: skip
    elif feature not in numeric:
        found = []
    elif element.isdigit() or not element:
        place = int(element or 0)
        found = [(feature, place)] if place < _width(numeric[feature]) else []
    else:
        called = _elements(numeric[feature])
        found = [(feature, called.index(element))] if called.count(element) == 1 else []
    if found:
        return found[0]
    there = {k: _elements(f) or _width(f) for k, f in numeric.items() if k.startswith("observation.")}
    raise ValueError(
        f"{dataset.root} has no proprioception '{entry}'{f' ({wanted})' if wanted else ''}; it has {there}: say which "
        f"it is with names={{{entry}: 'FEATURE[NUMBER]'}}, or choose proprioception of '{env.env_id}' among these"
    )


def _width(feature: Mapping[str, Any]) -> int:
    return int(np.prod([int(n) for n in feature.get("shape") or (1,)]))


def _elements(feature: Mapping[str, Any]) -> list[str]:
    """Names of a vector's entries: a list, or a list inside a one-entry mapping, or nothing."""
    called = feature.get("names")
    if isinstance(called, Mapping):
        called = next(iter(called.values()), None)
    return [str(n) for n in called] if isinstance(called, list) and len(called) == _width(feature) else []


# --- files ----------------------------------------------------------------------------------------------------------


def _parquet(path: Path, *, columns: list[str] | None = None, skip: str = "") -> Any:
    """A pyarrow table; ValueError if the file is missing, damaged, or has not these columns."""
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        names = parquet.read_schema(path).names
        if missing := sorted(set(columns or ()) - set(names)):
            raise ValueError(f"{path} has no column {missing}; it has {names}: is the dataset complete?")
        chosen = columns or [n for n in names if not (skip and n.startswith(skip))]
        return parquet.read_table(path, columns=chosen)
    except (OSError, pyarrow.ArrowException) as e:
        raise ValueError(
            f"{path} cannot be read ({str(e).splitlines()[0]}); download the whole dataset (a file of a few lines in "
            "its place means that Git LFS has not fetched it)"
        ) from e


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                yield json.loads(line)
    except (OSError, ValueError) as e:
        raise ValueError(f"{path} cannot be read ({e}); download the whole dataset") from e


def _rows_of(table: Any, index: int) -> Any:
    """The rows of an episode, in order."""
    import pyarrow.compute as compute

    rows = table.filter(compute.equal(table["episode_index"], index))  # type: ignore[attr-defined]
    return rows.sort_by("frame_index")


def _numbers(rows: Any, key: str, where: str) -> np.ndarray:
    """float32 [T, n] of a column of numbers or of lists of numbers."""
    values = np.asarray(rows[key].to_pylist(), dtype=np.float32).reshape(len(rows), -1)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"{where}: '{key}' is {values[tuple(bad[0])]} at step {bad[0][0]}; remove this demonstration")
    return values


def _decode(cell: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """An encoded picture of a Parquet cell as uint8 [Y, X, 3]."""
    from PIL import Image

    if not isinstance(cell, Mapping) or not cell.get("bytes"):
        raise ValueError(f"{where} holds no picture; expected its bytes in the Parquet file")
    try:
        image = np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB"))
    except OSError as e:
        raise ValueError(f"{where} holds a picture that cannot be decoded ({e}); download it again") from e
    if image.shape[:2] != size:
        raise ValueError(f"{where} is {image.shape[0]}x{image.shape[1]}, expected {size[0]}x{size[1]}")
    return image
