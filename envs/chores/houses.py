"""Where houses come from: generated for the embedded simulator, or brought in ProcTHOR's format.

A source gives the house of a number, and says how many there are. Needs the standard library alone; Python 3.8 syntax.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Protocol, Sequence, Tuple

from envs.cache import cache_root, locked
from envs.types import EnvError

SPLITS = ("train", "val", "test")
SCHEMA = "1.0.0"
LEAP = 1_000_003  # a prime, so that every house of a file is reached
LEAST, MOST = 6, 24  # houses entered for one episode
Point = Tuple[float, float]


class Houses(Protocol):
    """A source of houses."""

    def count(self, split: str) -> int:
        """How many different houses a split has."""
        ...

    def get(self, split: str, number: int) -> Dict[str, Any]:
        """A house by its number in [0, count)."""
        ...


def to_enter(number: int, count: int) -> List[int]:
    """The houses to try for an episode, in turn: its own, then distant ones.

    Were it the next ones, neighbouring episodes would end in the same house where few houses offer their task."""
    return [(number + further * LEAP) % count for further in range(max(LEAST, min(MOST, count)))]


class Generated:
    """Endless houses; those of two splits differ in plan and models."""

    def __init__(self, *, databases: str = "", limit: int = 0, rooms: Optional[int] = None) -> None:
        """`databases` is the folder of ProcTHOR's asset databases, "" the usual one; `limit` houses per split.

        `rooms` of each house, null: one to six."""
        if rooms is not None and not 1 <= rooms <= 6:
            raise EnvError(f"ai2thor: rooms={rooms}; expected 1 to 6, or null for houses of one to six")
        self.databases, self.limit, self.rooms = databases, limit, rooms

    def count(self, split: str) -> int:
        """As many as seeds, unless limited."""
        return self.limit or 2**30

    def get(self, split: str, number: int) -> Dict[str, Any]:
        """Build one."""
        from envs.thor_mini.data import databases
        from envs.thor_mini.generate import house

        return house(number, databases(self.databases or None), rooms=self.rooms, split=split)


class HouseFile:
    """Houses somebody brings: one .json, a .jsonl or .jsonl.gz, or a folder with one such file per split."""

    def __init__(self, path: str) -> None:
        """Raises EnvError if there is no such file. A file that is not one of a folder's is divided: each tenth
        house belongs to val, the one after it to test; of fewer than ten, all belong to every split."""
        root = Path(path)
        self.path = path
        self.files: Dict[str, Lines] = {}
        if root.is_dir():
            for split in SPLITS:
                for name in (f"{split}.jsonl.gz", f"{split}.jsonl"):
                    if (root / name).is_file() and split not in self.files:
                        self.files[split] = Lines(root / name)
        elif root.is_file():
            self.files[""] = Lines(root)
        if not self.files:
            raise EnvError(
                f"ai2thor: there are no houses at '{path}'; expected a house (.json), houses one a line (.jsonl, "
                ".jsonl.gz), or a folder with train.jsonl.gz, val.jsonl.gz and test.jsonl.gz"
            )

    def count(self, split: str) -> int:
        """How many there are."""
        return len(self._members(split)[1])

    def get(self, split: str, number: int) -> Dict[str, Any]:
        """Read one and check it."""
        lines, members = self._members(split)
        return check_house(lines.read(members[number]), f"{lines.path}, house {members[number]}")

    def number(self, index: int, split: str) -> int:
        """The number that `get` takes for a house's index in its file."""
        members = self._members(split)[1]
        if index not in members:
            raise EnvError(f"ai2thor: house {index} is not in split '{split}' of {self.path}; it has {len(members)}")
        return members.index(index)

    def index(self, number: int, split: str) -> int:
        """The house's index in its file, of the number that `get` takes."""
        return self._members(split)[1][number]

    def _members(self, split: str) -> Tuple[Lines, Sequence[int]]:
        if "" not in self.files:
            if split not in self.files:
                raise EnvError(f"ai2thor: {self.path} has no split '{split}', only {sorted(self.files)}")
            return self.files[split], range(len(self.files[split]))
        lines = self.files[""]
        if len(lines) < 10:
            return lines, range(len(lines))
        part = {"val": (0,), "test": (1,)}.get(split, tuple(range(2, 10)))
        return lines, [i for i in range(len(lines)) if i % 10 in part]


class Lines:
    """JSON objects, one a line, found by their number without reading the others."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._plain = _unpacked(path) if path.suffix == ".gz" else path
        self._offsets: Optional[List[int]] = None

    def __len__(self) -> int:
        return len(self._index())

    def read(self, number: int) -> Any:
        """The object in a line. Raises EnvError if it is no JSON."""
        with self._plain.open("rb") as file:
            file.seek(self._index()[number])
            text = file.read() if self.path.suffix == ".json" else file.readline()
        try:
            return json.loads(text)
        except ValueError as e:
            raise EnvError(f"{self.path}, house {number}: not JSON ({e})") from e

    def _index(self) -> List[int]:
        if self._offsets is None:
            self._offsets = [0]
            if self.path.suffix != ".json":
                place, self._offsets = 0, []
                with self._plain.open("rb") as file:
                    for line in file:
                        if line.strip():
                            self._offsets.append(place)
                        place += len(line)
        return self._offsets


def _unpacked(path: Path) -> Path:
    """The file without its compression, made once in the user's cache."""
    stat = path.stat()
    name = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    target = cache_root() / "houses" / f"{name}.jsonl"
    with locked(target):
        if not target.exists():
            partial = target.with_suffix(".part")
            try:
                with gzip.open(path, "rb") as source, partial.open("wb") as out:
                    while block := source.read(1 << 20):
                        out.write(block)
            except (OSError, EOFError) as e:
                partial.unlink(missing_ok=True)
                raise EnvError(f"{path} cannot be unpacked ({e}); download it again") from e
            os.replace(partial, target)
    return target


def check_house(house: Any, where: str) -> Dict[str, Any]:
    """The house, if it is one. Raises EnvError otherwise."""
    if not isinstance(house, dict) or "rooms" not in house or "objects" not in house:
        raise EnvError(f"{where}: this is no ProcTHOR house; expected an object with rooms, walls, doors and objects")
    schema = house.get("metadata", {}).get("schema", "none")
    if schema != SCHEMA:
        raise EnvError(f"{where}: its schema is {schema}, expected {SCHEMA}; convert it, or generate it again")
    return house


def rooms_of(house: Dict[str, Any]) -> Dict[str, List[Point]]:
    """Floor polygons (x, z) by room id."""
    return {str(r["id"]): [(float(p["x"]), float(p["z"])) for p in r["floorPolygon"]] for r in house["rooms"]}


def room_at(rooms: Dict[str, List[Point]], x: float, z: float) -> Optional[str]:
    """The room that a point lies in, None outside."""
    for name, polygon in rooms.items():
        odd = False
        for (x0, z0), (x1, z1) in zip(polygon, [*polygon[1:], polygon[0]]):
            if (z0 > z) != (z1 > z) and x < x0 + (z - z0) / (z1 - z0) * (x1 - x0):
                odd = not odd
        if odd:
            return name
    return None


def make_houses(kind: str, *, databases: str = "", limit: int = 0, rooms: Optional[int] = None) -> Houses:
    """ "generated", or the path of a file or folder; `rooms` chooses among generated ones only."""
    if kind == "generated":
        return Generated(databases=databases, limit=limit, rooms=rooms)
    if rooms is not None:
        raise EnvError(f"ai2thor: rooms={rooms} is for generated houses, and houses is '{kind}'; leave rooms null")
    return HouseFile(kind)
