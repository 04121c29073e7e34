"""Demonstrations of any format behind the paths that a run names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from envs.types import EnvSpec
from pretrained.demos import calvin, lerobot, libero, rlbench
from pretrained.demos.lerobot import Names, is_dataset


class Episode(Protocol):
    """One demonstration, of whatever format."""

    @property
    def actions(self) -> np.ndarray:
        """float32 [T, A]"""
        ...

    @property
    def proprio(self) -> np.ndarray:
        """float32 [T, P]"""
        ...

    @property
    def instruction(self) -> str: ...

    def __len__(self) -> int: ...

    def images(self, camera: str) -> np.ndarray:
        """uint8 [T, Y, X, 3], row 0 on top; read from disk at each call."""
        ...


def resolve(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """HDF5 files, and folders of LeRobot, CALVIN and RLBench datasets, behind files and folders, in order.

    Raises ValueError listing what is on disk if there is none."""
    files: list[Path] = []
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        path = Path(path)
        if path.is_dir():
            known = is_dataset(path) or calvin.is_dataset(path) or rlbench.is_dataset(path)
            inside = [path] if known else sorted(path.glob("*.hdf5"))
            if not inside:
                raise ValueError(
                    f"{path} holds neither a *.hdf5 file nor a LeRobot dataset (meta/info.json) nor a split of CALVIN "
                    f"({calvin.RANGES}) nor RLBench's <task>/variation<v>/episodes; expected demonstrations there: "
                    "make some with 'collect'"
                )
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            near = next(p for p in path.absolute().parents if p.is_dir())
            there = sorted(str(p.relative_to(near)) for p in near.glob("*.hdf5"))[:12]
            unfinished = path.with_name(path.name + ".parts").is_dir()
            hint = "its collection was not finished: run the same 'collect' again" if unfinished else "check the name"
            raise ValueError(f"demonstrations {path} do not exist; {near} holds {there or 'no *.hdf5 file'}; {hint}")
    if not files:
        raise ValueError("no demonstrations were named; expected at least one file or folder")
    return files


def stored_spec(paths: str | Path | Sequence[str | Path]) -> EnvSpec | None:
    """The environment of the demonstrations, if the files say it (ours do, LeRobot's do not)."""
    found = (libero.stored_spec(path) for path in resolve(paths) if not path.is_dir())
    return next((spec for spec in found if spec is not None), None)


def read_episodes(
    paths: str | Path | Sequence[str | Path],
    *,
    env: EnvSpec,
    align: str = "as_stored",
    drop_noops: bool = False,
    names: Names | None = None,
) -> list[Episode]:
    """All demonstrations, checked against `env`. `align` is for official LIBERO files, `names` for LeRobot datasets."""
    episodes: list[Episode] = []
    for path in resolve(paths):
        if path.is_dir() and is_dataset(path):
            episodes += lerobot.read_dataset(path, env=env, names=names, drop_noops=drop_noops)
        elif names:
            raise ValueError(f"names = {dict(names)} are for LeRobot datasets, and {path} is none; leave them out")
        elif path.is_dir() and rlbench.is_dataset(path):
            episodes += rlbench.read_dataset(path, env=env)
        elif path.is_dir():
            episodes += calvin.read_split(path, env=env, drop_noops=drop_noops)
        else:
            episodes += libero.read_file(path, env=env, align=align, drop_noops=drop_noops)
    return episodes
