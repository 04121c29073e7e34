"""Episodes of `launch.py collect` as whole walks: frames in order, for policies that remember.

The file is that of `pretrained.demos.libero`, written here with `align="exact"`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from envs.types import EnvSpec
from pretrained.demos.libero import camera_key, read_file, reading, stored_spec


@dataclass(frozen=True)
class RecordedWalk:
    """One demonstration; frames stay in the file."""

    folder: Path  # names its house: episodes whose seeds share a block share it
    name: str
    task: str
    actions: np.ndarray  # int64 [T]
    last_actions: np.ndarray  # int64 [T]
    in_hand: np.ndarray  # int64 [T]
    instruction: str
    file: Path

    def __len__(self) -> int:
        return len(self.actions)

    def frames(self, camera: str, rows: slice) -> np.ndarray:
        """uint8 [T, Y, X, 3] of the moments `rows`."""
        with reading(self.file) as file:
            frames = file["data"][self.name]["obs"][camera_key(camera)][rows]
        return np.ascontiguousarray(frames[:, ::-1])  # our files keep row 0 at the bottom


def read_recorded(path: Path, *, in_hand: str, start: int) -> tuple[EnvSpec, list[RecordedWalk]]:
    """All episodes of a file, and the environment they are of.

    Raises ValueError if the file does not say its environment, or if the actions are not discrete; `start` stands for
    the last action before the first one."""
    env = stored_spec(path)
    if env is None or not env.num_actions or in_hand not in env.proprio:
        what = "does not say its environment" if env is None else f"is of {env.env_id}"
        raise ValueError(f"{path} {what}; expected one that was collected with env=ai2thor")
    held, walks = list(env.proprio).index(in_hand), []
    with reading(path) as file:
        attributes = {k: (str(g.attrs["task"]), int(g.attrs["seed"])) for k, g in file["data"].items()}
        executed = {k: g["executed_actions"][:, 0].round().astype(np.int64) for k, g in file["data"].items()}
    for episode in read_file(path, env=env):
        task, seed = attributes[episode.name]
        actions = episode.actions[:, 0].round().astype(np.int64)
        walks.append(
            RecordedWalk(
                folder=path / str(seed // env.seed_block),
                name=episode.name,
                task=task,
                actions=actions,
                last_actions=np.concatenate([[start], executed[episode.name][:-1]]),  # what a policy remembers
                in_hand=(episode.proprio[:, held] > 0.5).astype(np.int64),
                instruction=episode.instruction.lower(),
                file=path,
            )
        )
    return env, walks
