"""Demonstrations in the LIBERO/robomimic HDF5 layout: a reader, and a writer that a kill cannot leave half done.

    data                  attrs: env_name, problem_info, env_args, macros_image_convention, num_demos, total
    data/demo_i           attrs: num_samples; actions [T, A], states [T, D], robot_states [T, 9], rewards, dones [T]
    data/demo_i/obs       <camera>_rgb uint8 [T, Y, X, 3], upside down if the convention is "opengl"

Files written here also hold proprioception, instruction, task and seed of each episode, and are marked
`align="exact"`: observation t is what was seen when action t was chosen. In official LIBERO files observation t was
taken after action t.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from envs.types import EnvSpec

LAYOUT = 1  # of what we add to the layout
ALIGNMENTS = ("as_stored", "exact")
CAMERA_KEYS = {"agentview": "agentview_rgb", "robot0_eye_in_hand": "eye_in_hand_rgb"}
# Columns of `robot_states`, by the names that proprioception entries of the adapters have.
ROBOT_STATES = ("finger_0", "finger_1", "eef_x", "eef_y", "eef_z", "eef_qx", "eef_qy", "eef_qz", "eef_qw")
NOOP_NORM = 1e-4  # motions below this are no motions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recorded:
    """One episode to write; row t is what was seen when action t was chosen."""

    images: Mapping[str, np.ndarray]  # camera -> uint8 [T, Y, X, 3], row 0 on top
    proprio: np.ndarray  # float32 [T, P]
    actions: np.ndarray  # float64 [T, A] what a policy is to imitate
    executed: np.ndarray  # float64 [T, A] what was done; differs from `actions` if noise was added
    rewards: np.ndarray  # [T]
    states: np.ndarray  # float64 [T, D] simulator state
    instruction: str
    task: str
    seed: int
    success: bool
    poses: Mapping[str, np.ndarray] = field(default_factory=dict)  # [T, ...] where joints and cameras were, if known
    notes: Mapping[str, Any] = field(default_factory=dict)  # JSON about the episode, of its reset


@dataclass(frozen=True)
class Episode:
    """One demonstration, read; images stay on disk until `images`."""

    file: Path
    name: str  # demo_i
    rows: np.ndarray  # int64 [T] observation row that belongs to each action
    actions: np.ndarray  # float32 [T, A]
    proprio: np.ndarray  # float32 [T, P]
    instruction: str
    upside_down: bool

    def __len__(self) -> int:
        return len(self.actions)

    def images(self, camera: str) -> np.ndarray:
        """uint8 [T, Y, X, 3], row 0 on top."""
        with reading(self.file) as file:
            frames = file["data"][self.name]["obs"][camera_key(camera)][()]
        frames = frames[:, ::-1] if self.upside_down else frames
        return np.ascontiguousarray(frames[self.rows])


def camera_key(camera: str) -> str:
    """The dataset name of a camera."""
    return CAMERA_KEYS.get(camera, f"{camera}_rgb")


def stored_spec(path: Path) -> EnvSpec | None:
    """The environment of the demonstrations, if the file says it (ours do)."""
    with reading(path) as file:
        text = file["data"].attrs.get("temper_env_spec")
    return None if text is None else EnvSpec.from_json(json.loads(text))


@contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """An open file; whatever HDF5 finds wrong becomes a ValueError with the path."""
    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get("data"), h5py.Group):
                raise ValueError(
                    f"{path} has no group 'data', only {sorted(file)}; expected the LIBERO/robomimic layout"
                )
            yield file
    except (OSError, KeyError, RuntimeError, TypeError) as e:  # TypeError: a name that means another kind of thing
        raise ValueError(
            f"{path} is not a readable demonstration file ({e}); it is truncated, corrupt or of another layout: "
            "download or collect it again"
        ) from e


def read_file(
    path: Path, *, env: EnvSpec, align: str = "as_stored", drop_noops: bool = False, only: str = ""
) -> list[Episode]:
    """All demonstrations of a file, or the one named `only`, checked against `env`. `align` matters for official files
    only."""
    if align not in ALIGNMENTS:
        raise ValueError(f"align = '{align}' is unknown; expected one of {ALIGNMENTS}")
    episodes = []
    with reading(path) as file:
        data = file["data"]
        shift = align == "exact" and data.attrs.get("align") != "exact"
        convention = str(data.attrs.get("macros_image_convention", "opengl"))
        problem = json.loads(data.attrs.get("problem_info", "{}"))
        names = [only] if only else sorted((k for k in data if k.startswith("demo_")), key=lambda k: int(k[5:]))
        for name in names:
            group = data[name]
            if not group.attrs.get("complete", True):
                log.warning("%s: %s was cut short while being written; ignored", path, name)
                continue
            where = f"{path}:{name}"
            actions = _actions(group, env, where)
            _check_images(group, env, len(actions), where)
            proprio = _proprio(group, env, where)
            keep = np.arange(1 if shift else 0, len(actions))
            if drop_noops:
                keep = keep[~noops(actions)[keep]]
            text = str(group.attrs.get("instruction", problem.get("language_instruction", "")))
            rows = keep - int(shift)
            if len(keep):
                episodes.append(Episode(path, name, rows, actions[keep], proprio[rows], text, convention == "opengl"))
    return episodes


def noops(actions: np.ndarray) -> np.ndarray:
    """bool [T]: no motion, and the gripper (the last entry) as in the step before."""
    still = np.linalg.norm(actions[:, :-1], axis=1) < NOOP_NORM
    same = np.concatenate([[False], actions[1:, -1] == actions[:-1, -1]])
    return still & same


def _actions(group: h5py.Group, env: EnvSpec, where: str) -> np.ndarray:
    actions = np.asarray(group["actions"][()], dtype=np.float32)
    if actions.ndim != 2 or actions.shape[1] != env.action_dim:
        raise ValueError(
            f"{where}: actions have shape {actions.shape}, environment '{env.env_id}' takes (T, {env.action_dim}) "
            f"{list(env.actions)}; use demonstrations of this environment"
        )
    bad = np.argwhere(~np.isfinite(actions))
    if len(bad):
        t, i = bad[0]
        raise ValueError(
            f"{where}: action '{env.actions[i]}' at step {t} is {actions[t, i]}; remove this demonstration"
        )
    return actions


def _check_images(group: h5py.Group, env: EnvSpec, length: int, where: str) -> None:
    for camera, (y, x) in env.cameras.items():
        key = camera_key(camera)
        if key not in group["obs"]:
            there = sorted(k for k in group["obs"] if k.endswith("_rgb"))
            raise ValueError(f"{where} has no camera '{camera}' (obs/{key}); it has {there}: choose cameras among them")
        images = group["obs"][key]
        if images.dtype != np.uint8 or images.shape != (length, y, x, 3):
            raise ValueError(
                f"{where}: obs/{key} is {images.dtype} {images.shape}, expected uint8 ({length}, {y}, {x}, 3); set the "
                f"camera size of '{env.env_id}' to that of the file, or collect again"
            )


def _proprio(group: h5py.Group, env: EnvSpec, where: str) -> np.ndarray:
    """float32 [T, P] in the order of `env.proprio`; official files have it in `robot_states` and `obs`."""
    columns: dict[str, np.ndarray] = {}
    obs = group["obs"]
    if "proprio" in obs:
        columns = dict(zip(json.loads(obs["proprio"].attrs["names"]), obs["proprio"][()].T, strict=True))
    else:
        if "robot_states" in group:
            columns = dict(zip(ROBOT_STATES, group["robot_states"][()].T, strict=False))
        if "joint_states" in obs:
            columns.update({f"joint_{i}": column for i, column in enumerate(obs["joint_states"][()].T)})
    missing = [name for name in env.proprio if name not in columns]
    if missing:
        raise ValueError(
            f"{where} has no proprioception {missing}; it has {sorted(columns)}: choose proprioception of "
            f"'{env.env_id}' among these, or collect again"
        )
    if not env.proprio:
        return np.zeros((len(group["actions"]), 0), dtype=np.float32)
    proprio = np.stack([columns[name] for name in env.proprio], axis=1).astype(np.float32)
    bad = np.argwhere(~np.isfinite(proprio))
    if len(bad):
        name = list(env.proprio)[bad[0][1]]
        raise ValueError(
            f"{where}: proprioception '{name}' at step {bad[0][0]} is not finite; remove this demonstration"
        )
    return proprio


@dataclass
class DemoWriter:
    """Collects episodes, one small file each, and joins them at the end: `path` appears complete or not at all.

    `identity` is what the episodes depend on; a file or a half-done collection of another identity is refused.
    """

    path: Path
    env: EnvSpec
    identity: Mapping[str, Any]
    compression: str | None = "lzf"  # None, "lzf" or "gzip"
    outcomes: dict[int, str] = field(default_factory=dict)  # attempt -> what became of it

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        if self.path.suffix != ".hdf5":
            raise ValueError(f"demonstrations are written to a *.hdf5 file, got '{self.path}'")
        self.parts = self.path.with_name(self.path.name + ".parts")
        self.manifest = self.path.with_suffix(".json")
        self._joined: dict[int, str] = {}
        identity = json.loads(json.dumps(self.identity))
        if self.path.exists():
            with reading(self.path) as file:
                data = file["data"]
                self._refuse_other(json.loads(data.attrs.get("temper_identity", "{}")), identity)
                self._joined = {int(data[k].attrs["attempt"]): k for k in data}
                self._note_all(json.loads(data.attrs["temper_outcomes"]))
        if (self.parts / "identity.json").exists():
            self._refuse_other(json.loads((self.parts / "identity.json").read_text()), identity)
            for line in (self.parts / "outcomes.jsonl").read_text().splitlines():
                if line.endswith("}"):  # the last line may be cut short
                    self._note_all(json.loads(line))
        self.stored = set(self._joined) | {int(p.stem[5:]) for p in self.parts.glob("demo_*.hdf5")}

    def add(self, attempt: int, episode: Recorded) -> None:
        """Store one episode."""
        self._open_parts()
        temporary = self.parts / f".demo_{attempt}.tmp"
        with h5py.File(temporary, "w") as file:
            self._write(file.create_group("demo"), attempt, episode)
        os.replace(temporary, self.parts / f"demo_{attempt}.hdf5")
        self.stored.add(attempt)

    def note(self, attempt: int, outcome: str) -> None:
        """Remember what became of an attempt, so that a resumed collection does not repeat it."""
        self._open_parts()
        self.outcomes[attempt] = outcome
        with (self.parts / "outcomes.jsonl").open("a") as file:
            file.write(json.dumps({str(attempt): outcome}) + "\n")

    def finish(self, keep: Sequence[int], summary: Mapping[str, Any]) -> Path:
        """Join the episodes `keep`, in this order, into `path`, and write the manifest beside it."""
        temporary = self.path.with_name(self.path.name + ".tmp")
        with h5py.File(temporary, "w") as file:
            data = file.create_group("data")
            total = 0
            for i, attempt in enumerate(keep):
                part = self.parts / f"demo_{attempt}.hdf5"
                inside = "demo" if part.exists() else f"data/{self._joined[attempt]}"
                with h5py.File(part if part.exists() else self.path, "r") as source:
                    source.copy(inside, data, name=f"demo_{i}")
                total += int(data[f"demo_{i}"].attrs["num_samples"])
            self._describe(data, len(keep), total)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.manifest.unlink(missing_ok=True)
        os.replace(temporary, self.path)
        manifest = {"demos": len(keep), "steps": total, **summary, "identity": dict(self.identity),
                    "env_spec": self.env.to_json(), "sha256": digest}  # fmt: skip
        written = self.manifest.with_name(self.manifest.name + ".tmp")
        written.write_text(json.dumps(manifest, indent=1))
        os.replace(written, self.manifest)
        shutil.rmtree(self.parts, ignore_errors=True)
        return self.path

    def _open_parts(self) -> None:
        if self.parts.exists():
            return
        self.parts.mkdir(parents=True)
        (self.parts / "outcomes.jsonl").touch()
        (self.parts / "identity.json").write_text(json.dumps(self.identity))

    def _note_all(self, outcomes: Mapping[str, str]) -> None:
        self.outcomes.update({int(k): v for k, v in outcomes.items()})

    def _refuse_other(self, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
        different = [k for k in sorted({*theirs, *ours}) if theirs.get(k) != ours.get(k)]
        if different:
            k = different[0]
            raise ValueError(
                f"{self.path} was begun with {k} = {theirs.get(k)}, now {k} = {ours.get(k)}; choose another 'out', or "
                f"delete it and {self.parts.name}"
            )

    def _describe(self, data: h5py.Group, count: int, total: int) -> None:
        first = data["demo_0"].attrs["instruction"] if count else ""
        data.attrs.update({
            "env_name": self.env.env_id,
            "problem_info": json.dumps({"language_instruction": first}),
            "bddl_file_name": "",
            "env_args": json.dumps({"env_name": self.env.env_id, "type": 1, "env_kwargs": {}}),
            "macros_image_convention": "opengl",
            "num_demos": count,
            "total": total,
            "align": "exact",
            "temper_layout": LAYOUT,
            "temper_env_spec": json.dumps(self.env.to_json()),
            "temper_identity": json.dumps(self.identity),
            "temper_outcomes": json.dumps(self.outcomes),
        })  # fmt: skip

    def _write(self, group: h5py.Group, attempt: int, episode: Recorded) -> None:
        length = len(episode.actions)
        last = np.zeros(length, dtype=np.uint8)
        last[-1] = 1
        columns = dict(zip(self.env.proprio, episode.proprio.T, strict=True))
        group["actions"], group["executed_actions"] = episode.actions, episode.executed
        group["states"], group["rewards"], group["dones"] = episode.states, episode.rewards, last
        if all(name in columns for name in ROBOT_STATES):
            group["robot_states"] = np.stack([columns[name] for name in ROBOT_STATES], axis=1).astype(np.float64)
        for name, rows in episode.poses.items():
            group[f"poses/{name}"] = rows
        if episode.notes:
            group["notes"] = json.dumps(dict(episode.notes))
        obs = group.create_group("obs")
        obs["proprio"] = episode.proprio
        obs["proprio"].attrs["names"] = json.dumps(list(self.env.proprio))
        for camera, images in episode.images.items():
            flipped = np.ascontiguousarray(images[:, ::-1])
            layout = {"chunks": (1, *flipped.shape[1:]), "compression": self.compression} if self.compression else {}
            obs.create_dataset(camera_key(camera), data=flipped, **layout)
        group.attrs.update({"num_samples": length, "instruction": episode.instruction, "task": episode.task,
                            "seed": episode.seed, "success": episode.success, "attempt": attempt})  # fmt: skip
        group.attrs["complete"] = True
