"""Read a ProcTHOR house file (schema 1.0.0) into a `Scene`.

The files are what ProcTHOR-10k, SPOC and AI2-THOR's own tests use. An opening's offsets count from the first of the two
lowest corners of `wall0`, and from the other end on `wall1`; a position is the centre of an object's bounding box; the
walls of a room run clockwise seen from above, so that the room lies to their right. Walls of the outside are left out:
what can be seen of them is the back of a room's own wall.
"""

from __future__ import annotations

import math
import zlib
from typing import Any, List, Mapping, Optional, Tuple

import numpy as np

from envs.thor_mini.data import Databases
from envs.thor_mini.materials import look, sky_colour, type_colours
from envs.thor_mini.scene import Body, Colour, Opening, Room, Scene, Wall
from envs.types import EnvError

SCHEMA = "1.0.0"
ROOM_TYPES = ("Kitchen", "LivingRoom", "Bedroom", "Bathroom")
DOOR_DEPTH = 0.06  # metres; of a closed door, which is an object that one sees and bumps into
DENSITY = 180.0  # kg per cubic metre of bounding box: a full mug 0.3 kg, a pot 2 kg, a chair 40 kg


def load(house: Mapping[str, Any], databases: Databases) -> Scene:
    """The scene of a house file. EnvError for another schema, an unknown asset or a malformed part."""
    if not isinstance(house, Mapping):
        raise EnvError(f"a house is a JSON object, got {type(house).__name__}")
    metadata = _get(house, "metadata", "the house")
    schema = _get(metadata, "schema", "metadata")
    if schema != SCHEMA:
        raise EnvError(f"house schema '{schema}' is not known; expected '{SCHEMA}' (ProcTHOR-10k)")
    parameters = _get(house, "proceduralParameters", "the house")
    rooms = [_room(row, i) for i, row in enumerate(_rows(house, "rooms"))]
    if not rooms:
        raise EnvError("the house has no rooms; expected at least one with a floorPolygon")
    walls = _walls(house, {room.room_id: room for room in rooms})
    bodies: List[Body] = []
    _openings(house, walls, bodies)
    for row in _rows(house, "objects"):
        _object(row, None, databases, bodies)
    names = [body.object_id for body in bodies]
    if len(set(names)) < len(names):
        raise EnvError(f"two objects of the house are called '{next(n for n in names if names.count(n) > 1)}'")
    ceiling = max((wall.height for wall in walls), default=2.5)
    sky = parameters.get("skyboxColor")
    return Scene(
        name=str(house.get("id") or metadata.get("roomSpecId") or "house"),
        rooms=rooms,
        walls=walls,
        bodies=bodies,
        ceiling=ceiling,
        start=_start(_get(metadata, "agent", "metadata")),
        ceiling_colour=_material(parameters.get("ceilingMaterial") or {"name": "PureWhite"}, "ceilingMaterial")[1],
        seed=zlib.crc32(repr([(r.room_id, r.polygon.tolist()) for r in rooms]).encode()),
        sky_colour=_colour(sky, "skyboxColor")
        if sky
        else sky_colour(databases.skies.get(str(parameters.get("skyboxId")))),
    )


# --- parts of the file --------------------------------------------------------------------------------------------


def _get(row: Any, key: str, where: str) -> Any:
    if not isinstance(row, Mapping) or key not in row:
        raise EnvError(f"malformed house: {where} has no '{key}'")
    return row[key]


def _rows(house: Mapping[str, Any], key: str) -> List[Mapping[str, Any]]:
    rows = _get(house, key, "the house")
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise EnvError(f"malformed house: '{key}' is not a list of objects")
    return rows


def _numbers(point: Any, keys: str, where: str) -> List[float]:
    try:
        values = [float(point[key]) for key in keys]
    except (KeyError, TypeError, ValueError):
        values = [math.nan]
    if not all(math.isfinite(v) for v in values):
        raise EnvError(f"malformed house: {where} is {point!r}; expected numbers {', '.join(keys)}")
    return values


def _colour(row: Any, where: str) -> Colour:
    r, g, b = (round(255 * min(1.0, max(0.0, c))) for c in _numbers(row, "rgb", where))
    return r, g, b


def _material(row: Any, where: str) -> Tuple[str, Colour]:
    """Name and colour of a material, which old files give as a bare name."""
    if isinstance(row, str):
        return row, look(row).colour
    name = str(_get(row, "name", where))
    tint = _colour(row["color"], where + ".color") if row.get("color") else None
    return name, look(name, tint).colour


def _room(row: Mapping[str, Any], index: int) -> Room:
    room_id = str(_get(row, "id", f"rooms[{index}]"))
    kind = _get(row, "roomType", room_id)
    if kind not in ROOM_TYPES:
        raise EnvError(f"malformed house: {room_id} is a '{kind}'; expected one of {', '.join(ROOM_TYPES)}")
    corners = [_numbers(p, "xz", f"floorPolygon of {room_id}") for p in _get(row, "floorPolygon", room_id)]
    polygon = np.array(corners, np.float64).reshape(-1, 2)
    if len(polygon) < 3 or abs(area(polygon)) < 1e-6:
        raise EnvError(f"malformed house: floorPolygon of {room_id} has no area")
    name, colour = _material(_get(row, "floorMaterial", room_id), f"floorMaterial of {room_id}")
    return Room(room_id, kind, polygon, name, colour)


def area(polygon: np.ndarray) -> float:
    """Of a polygon [V, 2] in x and z, m^2; positive if its corners go clockwise seen from above."""
    x, z = polygon[:, 0], polygon[:, 1]
    return float(0.5 * np.sum(np.roll(x, -1) * z - x * np.roll(z, -1)))


def _walls(house: Mapping[str, Any], rooms: Mapping[str, Room]) -> List[Wall]:
    walls = []
    for index, row in enumerate(_rows(house, "walls")):
        wall_id = str(_get(row, "id", f"walls[{index}]"))
        room_id = str(_get(row, "roomId", wall_id))
        corners = np.array([_numbers(p, "xyz", f"polygon of {wall_id}") for p in _get(row, "polygon", wall_id)])
        if len(corners) < 3:
            raise EnvError(f"malformed house: polygon of {wall_id} has {len(corners)} corners; expected 4")
        if room_id == "exterior":
            continue
        if room_id not in rooms:
            raise EnvError(f"malformed house: {wall_id} is a wall of '{room_id}', which is not among the rooms")
        low = corners[np.argsort(corners[:, 1], kind="stable")]
        name, colour = _material(_get(row, "material", wall_id), f"material of {wall_id}")
        start, end = (float(low[0, 0]), float(low[0, 2])), (float(low[1, 0]), float(low[1, 2]))
        height = float(corners[:, 1].max() - low[0, 1])
        wall = Wall(wall_id, room_id, start, end, height, name, colour)
        if length(wall) < 1e-6 or height < 1e-6:
            raise EnvError(f"malformed house: {wall_id} has no area")
        if row.get("empty"):
            wall.openings.append(Opening(wall_id + "|empty", "empty", 0.0, length(wall), 0.0, height))
        walls.append(wall)
    return walls


def length(wall: Wall) -> float:
    """Of a wall, in metres."""
    return math.hypot(wall.end[0] - wall.start[0], wall.end[1] - wall.start[1])


def _openings(house: Mapping[str, Any], walls: List[Wall], bodies: List[Body]) -> None:
    """Doors and windows, in both faces of their walls; a closed door is a body too."""
    by_id = {wall.wall_id: wall for wall in walls}
    outside = {str(row.get("id")) for row in _rows(house, "walls") if row.get("roomId") == "exterior"}
    for kind in ("door", "window"):
        for index, row in enumerate(_rows(house, kind + "s")):
            name = str(_get(row, "id", f"{kind}s[{index}]"))
            hole = _get(row, "holePolygon", name)
            if not isinstance(hole, list) or len(hole) < 2:
                raise EnvError(f"malformed house: holePolygon of {name} has fewer than two points")
            points = np.array([_numbers(p, "xy", f"holePolygon of {name}") for p in hole])
            (left, bottom), (right, top) = points.min(axis=0), points.max(axis=0)
            asset = str(row.get("assetId", ""))
            is_open = kind == "door" and _stands_open(row, asset)
            body_done = False
            for key, flipped in (("wall0", False), ("wall1", True)):
                wall_id = row.get(key)
                if wall_id is None or wall_id in outside:
                    continue
                if wall_id not in by_id:
                    raise EnvError(f"malformed house: {name} is in '{wall_id}', which is not among the walls")
                wall = by_id[wall_id]
                start, end = (length(wall) - right, length(wall) - left) if flipped else (left, right)
                if start < -0.01 or end > length(wall) + 0.01 or right - left < 0.01:
                    raise EnvError(
                        f"malformed house: {name} reaches from {start:.2f} to {end:.2f} m of {wall_id}, which is "
                        f"{length(wall):.2f} m long"
                    )
                wall.openings.append(Opening(name, kind, start, end, bottom, min(top, wall.height), is_open, asset))
                if kind == "door" and not is_open and not body_done:
                    bodies.append(_closed_door(name, asset, wall, (start, end, bottom, top)))
                    body_done = True


def _stands_open(row: Mapping[str, Any], asset: str) -> bool:
    """A frame has no leaf; a door moves only if the file says that it can be opened."""
    if asset.startswith("Doorframe"):
        return row.get("room0") != row.get("room1")  # a frame to the outside would let agents fall off the house
    return bool(row.get("openable")) and float(row.get("openness", 0)) >= 0.5


def _closed_door(name: str, asset: str, wall: Wall, hole: Tuple[float, float, float, float]) -> Body:
    start, end, bottom, top = hole
    along = (np.array(wall.end) - wall.start) / length(wall)
    x, z = np.array(wall.start) + along * (start + end) / 2
    return Body(
        object_id=name,
        object_type="Doorway",
        asset_id=asset,
        position=np.array([x, (bottom + top) / 2, z]),
        size=np.array([end - start, top - bottom, DOOR_DEPTH]),
        yaw=math.degrees(math.atan2(-along[1], along[0])),
        colours=type_colours("Doorway", asset),
    )


def _object(row: Mapping[str, Any], parent: Optional[str], databases: Databases, bodies: List[Body]) -> None:
    """One object and, below it, what stands on it."""
    object_id = str(_get(row, "id", f"an object {'on ' + parent if parent else ''}".strip()))
    asset_id = str(_get(row, "assetId", object_id))
    asset = databases.assets.get(asset_id)
    kind = asset.object_type if asset is not None else object_id.split("|")[0]
    size = np.array(asset.size if asset is not None else _own_size(row, object_id, asset_id))
    angles = _numbers(row.get("rotation") or {"x": 0, "y": 0, "z": 0}, "xyz", f"rotation of {object_id}")
    material, tint = "", None
    if row.get("material"):
        material, tint = _material(row["material"], f"material of {object_id}")
    if row.get("color"):
        tint = _colour(row["color"], f"color of {object_id}")
    placement = databases.placements.get(kind)
    pickupable = asset.pickupable if asset is not None else not row.get("kinematic", True)
    size = np.maximum(_tilted(size, angles[0], angles[2]), 0.002)
    bodies.append(
        Body(
            object_id=object_id,
            object_type=kind,
            asset_id=asset_id,
            position=np.array(_numbers(_get(row, "position", object_id), "xyz", f"position of {object_id}")),
            size=size,
            yaw=angles[1] % 360,
            pickupable=pickupable,
            receptacle=asset.receptacle if asset is not None else bool(row.get("children")),
            fixed=not pickupable,
            mass=float(max(0.02, DENSITY * np.prod(size))),
            parent=parent,
            colours=type_colours(kind, asset_id, tint),
            material=material or (asset.materials[0] if asset is not None and asset.materials else ""),
            on_wall=placement is not None and placement.on_wall,
        )
    )
    for child in row.get("children") or ():
        _object(child, object_id, databases, bodies)


def _own_size(row: Mapping[str, Any], object_id: str, asset_id: str) -> List[float]:
    """Of an asset that ProcTHOR's databases do not know, Objaverse's for example."""
    for key in ("size", "boundingBox", "axisAlignedBoundingBox"):
        box = row.get(key)
        if isinstance(box, Mapping):
            size = _numbers(box.get("size", box), "xyz", f"{key} of {object_id}")
            if min(size) <= 0:
                raise EnvError(f"malformed house: {key} of {object_id} is {size}; expected positive extents in metres")
            return size
    raise EnvError(
        f"unknown asset '{asset_id}' of {object_id}: it is not in ProcTHOR's asset database and the house gives no "
        "'size' for it ({x, y, z} in metres); Objaverse assets need one"
    )


def _tilted(size: np.ndarray, pitch: float, roll: float) -> np.ndarray:
    """Extents of a box that was turned about z, then x (Unity's order), in a frame that only turns about y."""
    if abs(pitch % 360) < 0.5 and abs(roll % 360) < 0.5:
        return size
    a, b = math.radians(pitch), math.radians(roll)
    about_x = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    about_z = np.array([[math.cos(b), -math.sin(b), 0], [math.sin(b), math.cos(b), 0], [0, 0, 1]])
    return np.abs(about_x @ about_z) @ size


def _start(agent: Any) -> Tuple[float, float, float]:
    x, z = _numbers(_get(agent, "position", "metadata.agent"), "xz", "metadata.agent.position")
    yaw = _numbers(agent.get("rotation") or {"y": 0}, "y", "metadata.agent.rotation")[0]
    return x, z, yaw % 360
