"""Find CALVIN's URDF, mesh and texture files and check that they are the ones that the environment was proven with."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Dict, Iterator, List, Optional

from envs.cache import sha256_of
from envs.types import EnvError

CHECKSUMS = Path(__file__).with_name("data.sha256")  # lines of `sha256sum`; paths as they are under calvin_env's data/
SHARED = ("franka_panda/", "plane/", "blocks/")  # what every scene needs besides its own table
LANDMARKS = ("franka_panda", "blocks", "plane")
BELOW = ("", "data", "calvin_env/data")  # where the data lie in the data folder itself and in the two checkouts
CHECKS = ("hash", "present")
HOW_TO = (
    "get them with `git clone https://github.com/mees/calvin_env` and set CALVIN_DATA to its folder `data` "
    "(or to the checkout)"
)


def find_data() -> Path:
    """The folder with `franka_panda`, `blocks`, `plane` and the tables.

    Looks at $CALVIN_DATA (that folder, or a checkout of calvin_env or calvin), an installed calvin_env and
    `../shared/assets/calvin` beside the repository, in this order. Raises EnvError listing them if all are empty.
    """
    named = os.environ.get("CALVIN_DATA", "")
    if named:
        folder = _data_folder(Path(named).expanduser())
        if folder is None:
            raise EnvError(f"CALVIN_DATA={named} has no {' / '.join(LANDMARKS)} folders; {HOW_TO}")
        return folder
    looked: List[str] = ["$CALVIN_DATA (not set)"]
    for place in _places():
        looked.append(str(place))
        folder = _data_folder(place)
        if folder is not None:
            return folder
    raise EnvError(f"CALVIN's data (robot, tables, blocks) were not found. Looked at: {'; '.join(looked)}. {HOW_TO}")


def check_data(folder: Path, scene: str, *, how: str = "hash") -> None:
    """Check the files that a scene needs, by content (about 50 ms) or only that they are there.

    Raises EnvError naming the first file that is missing or differs.
    """
    if how not in CHECKS:
        raise EnvError(f"data_check '{how}' is unknown; expected one of {', '.join(CHECKS)}")
    for name, digest in checksums(scene).items():
        path = folder / name
        if not path.is_file():
            raise EnvError(f"CALVIN's data in {folder} are incomplete: {name} is missing; {HOW_TO}")
        if how == "hash" and sha256_of(path) != digest:
            raise EnvError(
                f"{path} differs from the file this environment was proven with, so motion or pictures would differ "
                f"too; {HOW_TO}, or accept the difference with `env.sim.data_check=present`"
            )


def checksums(scene: str = "") -> Dict[str, str]:
    """Path below the data folder -> SHA-256, for one scene or for all."""
    needed = (*SHARED, f"calvin_table_{scene}")
    lines = CHECKSUMS.read_text(encoding="utf-8").splitlines()
    pairs = [line.split("  ", 1) for line in lines]
    return {name: digest for digest, name in pairs if name.startswith(needed)}


def _data_folder(path: Path) -> Optional[Path]:
    for below in BELOW:
        if all((path / below / name).is_dir() for name in LANDMARKS):
            return path / below
    return None


def _places() -> Iterator[Path]:
    found = importlib.util.find_spec("calvin_env")
    if found is not None and found.origin:
        yield Path(found.origin).parent.parent
    yield Path(__file__).resolve().parents[3] / "shared" / "assets" / "calvin"
