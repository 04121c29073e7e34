"""ProcTHOR's databases: assets with bounding boxes and splits, placement, what lies on what, materials, openings.

They come with the `procthor` package (Apache-2.0), which nothing here imports: only its JSON files are read.
"""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from envs.types import EnvError

SPLITS = ("train", "val", "test")
ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "assets": "procthor-ithor-split-asset-database.json",
    "placements": "placement-annotations.json",
    "receptacles": "receptacles.json",
    "holes": "wall-holes.json",
    "materials": "material-database.json",
    "wall_colours": "solid-wall-colors.json",
    "skies": "skyboxes.json",
}
ROOM_KEYS = {"Kitchen": "inKitchens", "LivingRoom": "inLivingRooms", "Bedroom": "inBedrooms", "Bathroom": "inBathrooms"}


@dataclass(frozen=True)
class Asset:
    """One model of an object, without its model: type, size and what can be done with it."""

    asset_id: str
    object_type: str
    size: Tuple[float, float, float]  # metres along its own x, y, z; its front looks along z
    split: Optional[str]  # train | val | test; None: few models of the type, all splits share them
    pickupable: bool
    receptacle: bool
    materials: Tuple[str, ...]


@dataclass(frozen=True)
class Placement:
    """Where objects of a type stand. Weights of rooms: 0 never, 1 sometimes, 2 often."""

    rooms: Dict[str, int]  # room type -> weight
    on_floor: bool
    on_wall: bool
    on_edge: bool
    in_middle: bool
    in_corner: bool
    several: bool  # more than one in a room


@dataclass(frozen=True)
class Databases:
    """All that houses are made from."""

    folder: Path
    assets: Dict[str, Asset]
    placements: Dict[str, Placement]
    contents: Dict[str, Dict[str, float]]  # receptacle type -> object type -> probability
    holes: Dict[str, Tuple[float, float]]  # door or window -> width and height of its opening, metres
    materials: Dict[str, Tuple[str, ...]]  # category -> names
    wall_colours: Tuple[Tuple[int, int, int], ...]
    skies: Dict[str, str]  # name -> time of day

    def of_type(self, object_type: str, split: str) -> List[Asset]:
        """Models of a type that a split may use, in the file's order; [] for an unknown type."""
        return [a for a in self.assets.values() if a.object_type == object_type and a.split in (None, split)]


def find() -> Path:
    """The folder of the databases; EnvError naming all places looked at."""
    named = os.environ.get("PROCTHOR_DATA")
    looked: List[str] = []
    candidates: List[Path] = []
    if named:
        candidates = [Path(named).expanduser()]
    else:
        package = importlib.util.find_spec("procthor")  # finds, does not import: its own imports are heavy
        if package is not None and package.submodule_search_locations:
            candidates.append(Path(next(iter(package.submodule_search_locations))) / "databases")
        candidates.append(ROOT.parent / "shared" / "assets" / "thor")
    for folder in candidates:
        missing = [name for name in FILES.values() if not (folder / name).is_file()]
        if not missing:
            return folder
        looked.append(f"{folder} ({'no such folder' if not folder.is_dir() else 'without ' + ', '.join(missing)})")
    raise EnvError(
        f"ProcTHOR's databases were not found; looked at {'; '.join(looked)}. `pip install --no-deps procthor` brings "
        "them (4 MB to download, 46 MB on disk; what it asks for besides is not needed), or set PROCTHOR_DATA to a "
        "folder with these JSON files"
    )


def databases(folder: Optional[str] = None) -> Databases:
    """Read them once; from `folder`, or from where `find` finds them."""
    return _read(str(folder or find()))


@lru_cache(maxsize=4)
def _read(folder: str) -> Databases:
    raw = {key: _json(Path(folder) / name) for key, name in FILES.items()}
    assets = {row["assetId"]: _asset(row) for rows in raw["assets"].values() for row in rows}
    return Databases(
        folder=Path(folder),
        assets=assets,
        placements={t: _placement(raw["placements"], t) for t in raw["placements"]["onFloor"]},
        contents={r: {t: float(v["p"]) for t, v in row.items()} for r, row in raw["receptacles"].items()},
        holes={name: _opening(row) for name, row in raw["holes"].items()},
        materials={name: tuple(rows) for name, rows in raw["materials"].items()},
        wall_colours=tuple((_byte(c["r"]), _byte(c["g"]), _byte(c["b"])) for c in raw["wall_colours"]),
        skies={name: str(row["timeOfDay"]) for name, row in raw["skies"].items()},
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise EnvError(f"cannot read {path} ({e}); expected one of ProcTHOR's JSON databases") from e


def _asset(row: Dict[str, Any]) -> Asset:
    box = row["boundingBox"]
    return Asset(
        asset_id=row["assetId"],
        object_type=row["objectType"],
        size=(float(box["x"]), float(box["y"]), float(box["z"])),
        split=row.get("split"),
        pickupable=row.get("primaryProperty") == "CanPickup",
        receptacle="Receptacle" in row.get("secondaryProperties", ()),
        materials=tuple(name for _, name in row.get("materials", ())),
    )


def _placement(table: Dict[str, Dict[str, Any]], object_type: str) -> Placement:
    def flag(key: str) -> bool:
        return bool(table[key].get(object_type))

    return Placement(
        rooms={room: int(table[key].get(object_type) or 0) for room, key in ROOM_KEYS.items()},
        on_floor=flag("onFloor"),
        on_wall=flag("onWall"),
        on_edge=flag("onEdge"),
        in_middle=flag("inMiddle"),
        in_corner=flag("inCorner"),
        several=flag("multiplePerRoom"),
    )


def _opening(row: Dict[str, Dict[str, float]]) -> Tuple[float, float]:
    return row["max"]["x"] - row["min"]["x"], row["max"]["y"] - row["min"]["y"]


def _byte(x: float) -> int:
    return round(255 * float(x))
