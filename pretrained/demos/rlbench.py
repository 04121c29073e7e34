"""RLBench's own dataset: demonstrations of the tasks of an environment, read as data (envs/rlbench_files.py).

Frame t holds what was seen; the action for it is where frame t + 1 was commanded to be, if that is stored, else where
it was. Demonstrations with actions outside of the environment's bounds are left out, as GENIMA does. Only what is asked
for is read: depth and masks may be missing. `python -m pretrained.demos.rlbench ROOT OUT.hdf5 --tasks A,B` packs a
dataset into one file with the poses that GENIMA's targets are drawn from.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from envs.rlbench import PROPRIO
from envs.rlbench_files import LoadedDemo, StoredDemo, descriptions, find_demos, is_dataset, load_demo
from envs.rlbench_modes import make_mode
from envs.types import EnvSpec
from pretrained.demos.libero import DemoWriter, Recorded

__all__ = ["RlbenchEpisode", "is_dataset", "pack", "read_dataset"]
CONVENTIONS = ("joint_position", "joint_delta", "ee_pose")
SIZES = {name: len(entries) for name, entries in PROPRIO.items()}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RlbenchEpisode:
    """One demonstration; pictures stay on disk until `images`."""

    demo: LoadedDemo
    cameras: dict[str, tuple[int, int]]
    actions: np.ndarray  # float32 [T, A]
    proprio: np.ndarray  # float32 [T, P]
    instruction: str

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def task(self) -> str:
        """RLBench's name of the task."""
        return self.demo.stored.task

    def images(self, camera: str) -> np.ndarray:
        """uint8 [T, Y, X, 3], row 0 on top."""
        folder = self.demo.stored.folder / f"{camera}_rgb"
        return np.stack([_picture(folder / f"{t}.png", self.cameras[camera]) for t in range(len(self))])


def read_dataset(
    root: Path, *, env: EnvSpec, tasks: Sequence[str] = (), variations: Sequence[int] = ()
) -> list[RlbenchEpisode]:
    """The demonstrations of `tasks`, () for those of `env` that are there. Raises ValueError if there are none.

    Those that leave the bounds of the actions are counted in the log and left out."""
    if env.action_convention not in CONVENTIONS:
        raise ValueError(
            f"{root}: RLBench's demonstrations hold no actions of kind '{env.action_convention}'; expected one of "
            f"{', '.join(CONVENTIONS)}"
        )
    fields = _fields(root, env)
    here = {p.parent.parent.name for p in root.glob("*/*/episodes")} | {root.name}
    chosen = list(tasks) or [t for t in env.tasks if t in here]
    if not chosen:
        raise ValueError(f"{root} has no task of '{env.env_id}'; it has {sorted(here)}, expected some of {env.tasks}")
    episodes, outside = [], 0
    for task in chosen:
        for stored in find_demos(root, task, variations):
            episode = _episode(stored, env, fields)
            low, high = (bound.astype(np.float32) for bound in env.bounds)
            if ((episode.actions < low - 1e-6) | (episode.actions > high + 1e-6)).any():
                outside += 1
                log.warning("%s is left out: its actions leave the bounds of '%s'", stored.name, env.env_id)
                continue
            episodes.append(episode)
    if not episodes:
        raise ValueError(f"{root}: all {outside} demonstrations of {chosen} leave the bounds of '{env.env_id}'")
    return episodes


def _fields(root: Path, env: EnvSpec) -> list[str]:
    """RLBench's fields behind the proprioception, which must be whole ones in order."""
    fields = [name for name in PROPRIO if next(iter(PROPRIO[name])) in env.proprio]
    order = list(env.proprio)
    fields.sort(key=lambda name: order.index(next(iter(PROPRIO[name]))))
    if [k for name in fields for k in PROPRIO[name]] != order:
        raise ValueError(f"{root} has no proprioception {order}; expected whole groups of {list(PROPRIO)}: env=rlbench")
    return fields


def _episode(stored: StoredDemo, env: EnvSpec, fields: Sequence[str]) -> RlbenchEpisode:
    demo = load_demo(stored)
    for camera, size in env.cameras.items():
        folder = stored.folder / f"{camera}_rgb"
        if not folder.is_dir():
            there = sorted(p.name.removesuffix("_rgb") for p in stored.folder.glob("*_rgb"))
            raise ValueError(f"{stored.folder} has no camera '{camera}'; it has {there}: choose cameras among them")
        count = sum(1 for _ in folder.glob("*.png"))
        if count != len(demo.frames):
            raise ValueError(f"{folder} has {count} pictures for {len(demo.frames)} frames; download it again")
        _picture(folder / "0.png", size)
    proprio = np.concatenate([demo.array(name, SIZES[name]) for name in fields], 1)[:-1].astype(np.float32)
    texts = descriptions(stored)
    number = int(stored.folder.name.removeprefix("episode"))
    actions = _actions(demo, env.action_convention).astype(np.float32)
    return RlbenchEpisode(demo, dict(env.cameras), actions, proprio, texts[number % len(texts)])


def _actions(demo: LoadedDemo, convention: str) -> np.ndarray:
    """float64 [T - 1, A]."""
    opened = (demo.array("gripper_open", 1)[1:] > 0.5).astype(np.float64)
    if convention == "ee_pose":
        return np.concatenate([demo.array("gripper_pose", 7)[1:], opened], 1)
    joints = demo.array("joint_positions", 7)
    if convention == "joint_delta":
        return np.concatenate([joints[1:] - joints[:-1], opened], 1)
    commanded = [demo.misc(t, "joint_position_action") for t in range(1, len(demo.frames))]
    rows = [joints[t + 1] if c is None else np.asarray(c, dtype=np.float64)[:7] for t, c in enumerate(commanded)]
    return np.concatenate([np.stack(rows), opened], 1)


def _picture(path: Path, size: tuple[int, int]) -> np.ndarray:
    try:
        with Image.open(path) as image:
            picture = np.asarray(image.convert("RGB"))
    except FileNotFoundError as e:
        raise ValueError(f"{path} is missing; download the demonstration again") from e
    except (OSError, UnidentifiedImageError, SyntaxError) as e:
        raise ValueError(f"{path} is no readable picture ({e}); download the demonstration again") from e
    if picture.shape != (*size, 3):
        raise ValueError(f"{path} is {picture.shape}, the camera's size is {(*size, 3)}; set env.sim.cameras to that")
    return picture


# --- one file, with poses ---------------------------------------------------------------------------------------------


def pack(root: Path, out: Path, *, env: EnvSpec, tasks: Sequence[str] = ()) -> Path:
    """Write the demonstrations, and where joints and cameras were, to one file; a packing that was stopped goes on.

    Raises ValueError if the dataset is too old to say where the joints were."""
    episodes = read_dataset(root, env=env, tasks=tasks)
    identity = {"rlbench": str(root.resolve()), "cameras": {k: list(v) for k, v in env.cameras.items()},
                "tasks": list(tasks)}  # fmt: skip
    writer = DemoWriter(out, env=env, identity=identity)
    for number, episode in enumerate(episodes):
        if number not in writer.stored:
            writer.add(number, _recorded(number, episode))
            writer.note(number, "success")
    return writer.finish(range(len(episodes)), {"source": str(root)})


def _recorded(number: int, episode: RlbenchEpisode) -> Recorded:
    demo, actions = episode.demo, episode.actions.astype(np.float64)
    rewards = np.zeros(len(episode), np.float32)
    rewards[-1] = 1.0
    state = np.concatenate([demo.array("joint_positions", 7), demo.array("joint_velocities", 7)], 1)[:-1]
    return Recorded(
        images={camera: episode.images(camera) for camera in episode.cameras},
        proprio=episode.proprio,
        actions=actions,
        executed=actions,
        rewards=rewards,
        states=state,
        instruction=episode.instruction,
        task=episode.task,
        seed=number,
        success=True,
        poses=poses(demo, list(episode.cameras)),
    )


def poses(demo: LoadedDemo, cameras: Sequence[str]) -> dict[str, np.ndarray]:
    """Where joints [T - 1, 7, 7], gripper and cameras were, as files of `collect` have them."""
    rows = range(len(demo.frames) - 1)
    matrices = np.tile(np.eye(4), (len(rows), 1, 1))
    found = np.stack([np.asarray(_told(demo, t, None, "gripper_matrix"), dtype=np.float64) for t in rows])
    matrices[:, : found.shape[1]] = found
    out = {
        "joint_poses": np.stack([np.asarray(_told(demo, t, "misc", "joint_poses"), dtype=np.float64) for t in rows]),
        "gripper_pose": matrices,
        "gripper_open": demo.array("gripper_open", 1)[:-1],
    }
    for camera in cameras:
        for ours, theirs in (("camera", "extrinsics"), ("intrinsics", "intrinsics")):
            values = [np.asarray(_told(demo, t, "misc", f"{camera}_camera_{theirs}"), dtype=np.float64) for t in rows]
            out[f"{ours}/{camera}"] = np.stack(values)
    return out


def _told(demo: LoadedDemo, t: int, group: str | None, key: str) -> Any:
    value = demo.misc(t, key) if group else demo.frames[t].get(key)
    if value is None:
        raise ValueError(
            f"{demo.stored.folder}: frame {t} does not say {key}; the dataset is too old for targets: generate it "
            "again with RLBench 1.2.0, gripper_matrix switched on"
        )
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    """Pack a dataset from the command line."""
    parser = argparse.ArgumentParser(description="pack a dataset of RLBench into one file")
    parser.add_argument("root", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tasks", required=True, help="separated by commas")
    parser.add_argument("--cameras", default="wrist,front,right_shoulder,left_shoulder")
    parser.add_argument("--size", type=int, default=256)
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tasks = tuple(chosen.tasks.split(","))
    cameras = dict.fromkeys(chosen.cameras.split(","), (chosen.size, chosen.size))
    try:
        pack(chosen.root, chosen.out, env=dataset_spec(tasks, cameras), tasks=tasks)
    except (ValueError, RuntimeError) as e:
        parser.exit(2, f"error: {e}\n")


def dataset_spec(tasks: Sequence[str], cameras: dict[str, tuple[int, int]]) -> EnvSpec:
    """The environment of joint positions that a dataset is packed for."""
    mode = make_mode("joint_position", "discrete")
    proprio = {k: unit for name in ("gripper_open", "joint_positions") for k, unit in PROPRIO[name].items()}
    return EnvSpec(
        env_id="rlbench/panda",
        cameras=cameras,
        proprio=proprio,
        actions=mode.actions,
        low=mode.low,
        high=mode.high,
        control_hz=20.0,
        max_steps=200,
        tasks=tuple(tasks),
        action_convention=mode.convention,
    )


if __name__ == "__main__":
    main()
