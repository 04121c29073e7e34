"""Make houses: `house(seed, databases)` gives a ProcTHOR house (schema 1.0.0) that no file ever held.

The numbers are ProcTHOR's own where its databases have them: bounding boxes, openings, which room has what, what lies
on what and how often, which models belong to which split. The procedure is ours and simpler: rooms are rectangles or
Ls, walls meet at right angles, furniture stands at right angles, nothing lies in drawers, fridges or bins.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from envs.thor_mini import plan as planning
from envs.thor_mini.data import SPLITS, Databases
from envs.thor_mini.furnish import Item, Space, fill, furnish, hang
from envs.thor_mini.plan import OUTSIDE, Plan, PlanRoom, Segment, opposite
from envs.types import EnvError

ROOMS = (1, 6)
TRIES = 2000  # a plan of six rooms works out about once in twelve
POSES = ("arm", "default", "locobot", "stretch", "stretchab")


def house(
    seed: int, databases: Databases, *, rooms: Optional[int] = None, types: Sequence[str] = (), split: str = "train"
) -> Dict[str, Any]:
    """A house with so many rooms (1 to 6; drawn if None) or with exactly these types. The same seed, the same house.

    Houses of different splits differ in their plans and in their models. EnvError for what cannot be.
    """
    if split not in SPLITS:
        raise EnvError(f"there is no split '{split}'; expected one of {', '.join(SPLITS)}")
    if rooms is not None and not ROOMS[0] <= rooms <= ROOMS[1]:
        raise EnvError(f"rooms={rooms}: expected {ROOMS[0]} to {ROOMS[1]}")
    for kind in types:
        if kind not in planning.AREAS:
            raise EnvError(f"there is no room type '{kind}'; expected some of {', '.join(planning.AREAS)}")
    if len(types) > ROOMS[1] or (types and rooms not in (None, len(types))):
        raise EnvError(f"rooms={rooms} with types {list(types)}: expected at most {ROOMS[1]} types, and one per room")
    rng = np.random.default_rng([seed, SPLITS.index(split), 7])
    count = len(types) or rooms or int(rng.choice(range(1, 7), p=(0.1, 0.2, 0.2, 0.25, 0.15, 0.1)))
    mix = tuple(types) or planning.MIXES[count][rng.integers(len(planning.MIXES[count]))]
    drawn = (planning.draw(rng, databases, types=mix, split=split) for _ in range(TRIES))
    plan = next((p for p in drawn if p is not None), None)
    if plan is None:
        raise EnvError(f"no plan with rooms {list(mix)} was found for seed {seed}; take another seed or fewer rooms")
    spaces = {number: furnish(rng, room, databases, split) for number, room in plan.rooms.items()}
    objects: List[Dict[str, Any]] = []
    for number, space in spaces.items():
        for item in space.items:
            fill(rng, item, databases, split)
        objects += _objects(number, space, hang(rng, space, databases, split))
    return {
        "id": f"thor_mini_{split}_{seed}",
        "rooms": [_room(rng, room, databases) for room in plan.rooms.values()],
        "walls": _walls(rng, plan, databases),
        "doors": _holes(plan, "door"),
        "windows": _holes(plan, "window"),
        "objects": objects,
        "proceduralParameters": _parameters(rng, plan, databases),
        "metadata": _metadata(rng, spaces, f"{count}-room"),
    }


def _point(x: float, y: float, z: float) -> Dict[str, float]:
    return {"x": float(x), "y": float(y), "z": float(z)}


def _room(rng: np.random.Generator, room: PlanRoom, databases: Databases) -> Dict[str, Any]:
    wet = room.room_type in ("Kitchen", "Bathroom") and rng.random() < 0.75
    carpet = room.room_type == "Bedroom" and rng.random() < 0.3
    category, words = ("Wall", ("tile", "marble")) if wet else ("Fabric", ("carpet",)) if carpet else ("Wood", ("",))
    names = [n for n in databases.materials[category] if any(w in n.lower() for w in words)]
    return {
        "id": f"room|{room.number}",
        "roomType": room.room_type,
        "floorPolygon": [_point(x, 0, z) for x, z in room.polygon],
        "floorMaterial": {"name": names[rng.integers(len(names))]},
        "ceilings": [],
        "children": [],
        "layer": f"Procedural{room.number % 4}",
    }


def _wall_name(s: Segment, room: str) -> str:
    (x0, z0), (x1, z1) = sorted((s.start, s.end))
    return f"wall|{room}|{x0:.2f}|{z0:.2f}|{x1:.2f}|{z1:.2f}"


def _walls(rng: np.random.Generator, plan: Plan, databases: Databases) -> List[Dict[str, Any]]:
    tiles = [n for n in databases.materials["Wall"] if "tile" in n.lower()]
    walls: List[Dict[str, Any]] = []
    outer = "BrownDrywall"
    for room in plan.rooms.values():
        if room.room_type == "Bathroom" and rng.random() < 0.6:
            material: Dict[str, Any] = {"name": tiles[rng.integers(len(tiles))]}
        else:
            r, g, b = databases.wall_colours[rng.integers(len(databases.wall_colours))]
            material = {"name": "PureWhite", "color": {"r": r / 255, "g": g / 255, "b": b / 255}}
        for s in room.segments:
            walls.append(_wall(s, str(room.number), f"room|{room.number}", material, plan.ceiling, flipped=False))
            if s.other == OUTSIDE:
                walls.append(_wall(s, "exterior", "exterior", {"name": outer}, plan.ceiling, flipped=True))
    return walls


def _wall(
    s: Segment, name: str, room_id: str, material: Dict[str, Any], height: float, *, flipped: bool
) -> Dict[str, Any]:
    ends = (s.end, s.start) if flipped else (s.start, s.end)
    row = {
        "id": _wall_name(s, name),
        "roomId": room_id,
        "polygon": [_point(x, y, z) for y in (0.0, height) for x, z in ends],
        "material": material,
        "layer": f"Procedural{s.room % 4}",
    }
    if s.empty:
        row["empty"] = True
    return row


def _holes(plan: Plan, kind: str) -> List[Dict[str, Any]]:
    rows = []
    for room in plan.rooms.values():
        for s in room.segments:
            hole = s.hole
            if hole is None or not hole.name.startswith(kind):
                continue
            inner = s.other != OUTSIDE
            row = {
                "id": hole.name,
                "assetId": hole.asset.asset_id,
                "room0": f"room|{s.room}",
                "room1": f"room|{s.other if inner else s.room}",
                "wall0": _wall_name(s, str(s.room)),
                "wall1": _wall_name(opposite(plan, s), str(s.other)) if inner else _wall_name(s, "exterior"),
                "holePolygon": [_point(hole.start, hole.bottom, 0), _point(hole.end, hole.top, 0)],
                "assetPosition": _point((hole.start + hole.end) / 2, (hole.bottom + hole.top) / 2, 0),
            }
            if kind == "door" and hole.asset.object_type == "Doorway":
                row["openable"], row["openness"] = hole.openable, 1 if hole.openable else 0
            rows.append(row)
    return rows


def _objects(number: int, space: Space, hung: Dict[str, List[Item]]) -> List[Dict[str, Any]]:
    """Rows of all objects of a room; what stands on something is named after the room and counted through."""
    layer, rows, surface = f"Procedural{number % 4}", [], 0
    everything = [*space.items, *(i for items in hung.values() for i in items)]
    for index, item in enumerate(everything):
        row = _object(item, f"{item.asset.object_type}|{number}|{index}", layer)
        children = []
        for child in item.children:
            children.append(_object(child, f"{child.asset.object_type}|surface|{number}|{surface}", layer))
            surface += 1
        if children:
            row["children"] = children
        rows.append(row)
    return rows


def _object(item: Item, name: str, layer: str) -> Dict[str, Any]:
    return {
        "id": name,
        "assetId": item.asset.asset_id,
        "position": _point(*item.position),
        "rotation": _point(0, item.yaw, 0),
        "kinematic": not item.asset.pickupable,
        "layer": layer,
        "material": None,
    }


def _parameters(rng: np.random.Generator, plan: Plan, databases: Databases) -> Dict[str, Any]:
    lights: List[Dict[str, Any]] = [
        {"id": "DirectionalLight", "type": "directional", "intensity": 1, "indirectMultiplier": 1.0,
         "position": _point(0.84, 0.1855, -1.09), "rotation": _point(66, 75, 0), "rgb": {"r": 1.0, "g": 1.0, "b": 1.0}}
    ]  # fmt: skip
    for room in plan.rooms.values():
        x, z = room.polygon.mean(axis=0)
        lights.append({"id": f"light_{room.number}", "type": "point", "intensity": 0.45, "range": 15,
                       "position": _point(x, plan.ceiling - 0.2, z), "rgb": {"r": 1.0, "g": 0.855, "b": 0.722},
                       "layer": f"Procedural{room.number % 4}"})  # fmt: skip
    return {
        "ceilingMaterial": {"name": "PureWhite"},
        "floorColliderThickness": 1.0,
        "receptacleHeight": 0.7,
        "skyboxId": sorted(databases.skies)[rng.integers(len(databases.skies))],
        "lights": lights,
        "reflections": [],
    }


def _metadata(rng: np.random.Generator, spaces: Dict[int, Space], spec: str) -> Dict[str, Any]:
    spots = [spot for space in spaces.values() for spot in space.standing()]
    x, z = spots[rng.integers(len(spots))]
    agent = {
        "position": _point(x, 0.95, z),
        "rotation": _point(0, int(rng.integers(12)) * 30, 0),
        "horizon": 30,
        "standing": True,
    }
    return {
        "agent": agent,
        "agentPoses": {name: dict(agent) for name in POSES},
        "roomSpecId": spec,
        "schema": "1.0.0",
        "warnings": {},
    }
