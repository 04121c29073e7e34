"""Put furniture into a room so that it overlaps nothing and an agent can still walk to all of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from envs.thor_mini import shapes
from envs.thor_mini.data import Asset, Databases
from envs.thor_mini.plan import OUTSIDE, PlanRoom, Segment

STEP = 0.1  # metres between the points that are tried for walking
RADIUS = 0.28  # of the agent, with a little air
REACH = 0.75  # metres that a piece of furniture may be from where an agent can stand
GAP = 0.02  # metres between objects
# What each kind of room has, in the order of placing: (type, probability, place). Extras follow from the annotations.
ESSENTIALS = {
    "Kitchen": (
        ("CounterTop", 1, "edge"),
        ("Fridge", 1, "edge"),
        ("CounterTop", 0.6, "edge"),
        ("DiningTable", 0.7, "middle"),
        ("GarbageCan", 0.6, "edge"),
    ),
    "LivingRoom": (
        ("Sofa", 1, "edge"),
        ("TVStand", 0.9, "edge"),
        ("CoffeeTable", 0.8, "front"),
        ("DiningTable", 0.35, "middle"),
        ("ArmChair", 0.6, "edge"),
        ("FloorLamp", 0.6, "edge"),
    ),
    "Bedroom": (("Bed", 1, "edge"), ("SideTable", 0.8, "edge"), ("Dresser", 0.8, "edge"), ("Desk", 0.7, "edge")),
    "Bathroom": (
        ("Toilet", 1, "edge"),
        ("Sink", 1, "edge"),
        ("GarbageCan", 0.5, "edge"),
        ("WashingMachine", 0.3, "edge"),
    ),
}


@dataclass
class Item:
    """An object in a house that is being made."""

    asset: Asset
    position: Tuple[float, float, float]  # of the box's centre
    yaw: int  # degrees, a multiple of 90
    children: List[Item] = field(default_factory=list)

    def extent(self) -> Tuple[float, float]:
        """Half widths along the world's x and z."""
        w, _, d = self.asset.size
        return (w / 2, d / 2) if self.yaw % 180 == 0 else (d / 2, w / 2)

    def rect(self) -> Tuple[float, float, float, float]:
        """x0, z0, x1, z1 of its footprint."""
        (x, _, z), (a, b) = self.position, self.extent()
        return x - a, z - b, x + a, z + b


class Space:
    """What is still free in a room. Points where an agent can stand are the bits of one integer, row after row."""

    def __init__(self, room: PlanRoom) -> None:
        self.room = room
        self.items: List[Item] = []
        self.polygon = room.polygon
        low, high = self.polygon.min(axis=0), self.polygon.max(axis=0)
        self._low = low
        self._columns = int((high[0] - low[0]) / STEP) + 2  # the last column stays empty, so that rows do not touch
        self._rows = int((high[1] - low[1]) / STEP) + 1
        x, z = np.meshgrid(low[0] + STEP * np.arange(self._columns), low[1] + STEP * np.arange(self._rows))
        inside = np.ones(x.shape, bool)
        for dx in (-RADIUS, RADIUS):
            for dz in (-RADIUS, RADIUS):
                inside &= contains(self.polygon, x + dx, z + dz)
        inside[:, -1] = False
        self.free = sum(1 << int(i) for i in np.flatnonzero(inside))
        self._all = bin(self.free).count("1")
        self.doors = [zone for s in room.segments for zone in [_door_zone(s)] if zone is not None]
        self.anchors = [self._bit(*anchor) for s in room.segments for anchor in [_anchor(s)] if anchor is not None]

    def _bit(self, x: float, z: float) -> int:
        column, row = round((x - self._low[0]) / STEP), round((z - self._low[1]) / STEP)
        return 1 << (min(max(row, 0), self._rows - 1) * self._columns + min(max(column, 0), self._columns - 2))

    def _mask(self, rect: Sequence[float], grow: float) -> int:
        """The points of a rectangle that is grown on all sides."""
        x0 = max(0, math.ceil((rect[0] - grow - self._low[0]) / STEP))
        x1 = min(self._columns - 1, math.floor((rect[2] + grow - self._low[0]) / STEP) + 1)
        z0 = max(0, math.ceil((rect[1] - grow - self._low[1]) / STEP))
        z1 = min(self._rows, math.floor((rect[3] + grow - self._low[1]) / STEP) + 1)
        if x1 <= x0 or z1 <= z0:
            return 0
        row = ((1 << (x1 - x0)) - 1) << x0
        return sum(row << (z * self._columns) for z in range(z0, z1))

    def _reached(self, free: int) -> int:
        """All points that can be walked to from the first door, or from the largest open spot."""
        start = next((a & free for a in self.anchors if a & free), 0) or (free & -free)
        seen, before = start, 0
        while seen != before:
            before = seen
            seen |= (seen << 1 | seen >> 1 | seen << self._columns | seen >> self._columns) & free
        return seen

    def standing(self) -> List[Tuple[float, float]]:
        """Points (x, z) that can be walked to."""
        reached = self._reached(self.free)
        bits = [i for i in range(reached.bit_length()) if reached >> i & 1]
        return [
            (float(self._low[0] + STEP * (i % self._columns)), float(self._low[1] + STEP * (i // self._columns)))
            for i in bits
        ]

    def fits(self, item: Item) -> bool:
        """Whether it overlaps nothing and leaves doors, windows and ways free. If so, it is taken in."""
        x0, z0, x1, z1 = rect = item.rect()
        x, z = np.meshgrid(np.linspace(x0, x1, 5), np.linspace(z0, z1, 5))
        if not contains(self.polygon, x, z).all():
            return False
        if any(_overlap(rect, other.rect(), GAP) for other in self.items) or any(
            _overlap(rect, d, 0) for d in self.doors
        ):
            return False
        free = self.free & ~self._mask(rect, RADIUS)
        reached = self._reached(free)
        if any(not anchor & reached for anchor in self.anchors) or bin(reached).count("1") < 0.3 * self._all:
            return False
        if not all(reached & self._mask(other.rect(), REACH) for other in [*self.items, item]):
            return False
        self.free = free
        self.items.append(item)
        return True


def contains(polygon: np.ndarray, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Which points lie in a polygon [V, 2]; even-odd rule."""
    inside = np.zeros(np.shape(x), bool)
    for (ax, az), (bx, bz) in zip(polygon, np.roll(polygon, -1, axis=0)):
        crosses = (az > z) != (bz > z)
        inside ^= crosses & (x < (bx - ax) * (z - az) / (bz - az if bz != az else 1.0) + ax)
    return inside


def _overlap(a: Sequence[float], b: Sequence[float], gap: float) -> bool:
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


def inward(s: Segment) -> Tuple[float, float]:
    """Unit vector from a wall into its room."""
    return (s.end[1] - s.start[1]) / s.length, -(s.end[0] - s.start[0]) / s.length


def along(s: Segment, t: float, off: float) -> Tuple[float, float]:
    """The point t metres along a wall and `off` metres into the room."""
    (nx, nz), share = inward(s), t / s.length
    x = s.start[0] + share * (s.end[0] - s.start[0]) + off * nx
    return x, s.start[1] + share * (s.end[1] - s.start[1]) + off * nz


def _passage(s: Segment) -> Optional[Tuple[float, float]]:
    """From where to where one can walk through a wall."""
    if s.empty:
        return 0.0, s.length
    hole = s.taken()
    return None if hole is None or s.other == OUTSIDE or hole[2] > 0.01 else (hole[0], hole[1])


def _door_zone(s: Segment) -> Optional[Tuple[float, float, float, float]]:
    """The floor in front of a door (also of the one to the outside), kept free."""
    hole = s.taken()
    if s.empty or hole is None or hole[2] > 0.01:
        return None
    (ax, az), (bx, bz) = along(s, hole[0], 0), along(s, hole[1], 0.8)
    return min(ax, bx), min(az, bz), max(ax, bx), max(az, bz)


def _anchor(s: Segment) -> Optional[Tuple[float, float]]:
    passage = _passage(s)
    return None if passage is None else along(s, sum(passage) / 2, 0.4)


# --- choosing places ----------------------------------------------------------------------------------------------


def furnish(rng: np.random.Generator, room: PlanRoom, databases: Databases, split: str) -> Space:
    """A room's furniture, chosen and placed."""
    space = Space(room)
    for kind, probability, place in ESSENTIALS[room.room_type]:
        if rng.random() < probability:
            _place(rng, space, kind, place, databases, split)
    size = abs(float(np.ptp(space.polygon[:, 0]) * np.ptp(space.polygon[:, 1])))
    names = [t for t, p in sorted(databases.placements.items()) if p.on_floor and p.rooms[room.room_type] > 0]
    weights = np.array([databases.placements[t].rooms[room.room_type] ** 1.5 for t in names])
    for _ in range(int(rng.integers(2, 4) + size / 4)):
        kind = names[rng.choice(len(names), p=weights / weights.sum())]
        rule = databases.placements[kind]
        if not rule.several and any(i.asset.object_type == kind for i in space.items):
            continue
        edge = rule.on_edge or rule.in_corner
        _place(
            rng,
            space,
            kind,
            "edge" if edge and not (rule.in_middle and rng.random() < 0.3) else "middle",
            databases,
            split,
        )
    return space


def _place(rng: np.random.Generator, space: Space, kind: str, place: str, databases: Databases, split: str) -> None:
    assets = databases.of_type(kind, split)
    if kind == "CounterTop":  # the straight ones: a bounding box of an L is mostly air
        assets = [a for a in assets if a.size[2] < 0.8 or a.size[0] < 0.8] or assets
    if kind == "Sink":
        assets = [a for a in assets if a.size[1] > 0.6]  # the others are basins, to be let into something
    if not assets:
        return  # this split has no model of the type
    for attempt in range(14):
        asset = assets[rng.integers(len(assets))]
        if attempt > 6:
            asset = min((assets[rng.integers(len(assets))] for _ in range(3)), key=lambda a: a.size[0] * a.size[2])
        item = _at(rng, space, asset, place)
        if item is not None and space.fits(item):
            if kind in ("DiningTable", "Desk"):
                _chairs(rng, space, item, databases, split)
            return


def _at(rng: np.random.Generator, space: Space, asset: Asset, place: str) -> Optional[Item]:
    w, h, d = asset.size
    if place == "front":
        sofas = [i for i in space.items if i.asset.object_type == "Sofa"]
        if sofas:
            sofa = sofas[0]
            distance = sofa.asset.size[2] / 2 + d / 2 + rng.uniform(0.35, 0.6)
            x, z = _ahead(sofa, distance, rng.uniform(-0.3, 0.3))
            return Item(asset, (x, h / 2 + 0.001, z), sofa.yaw)
    if place == "edge":
        walls = [s for s in space.room.segments if not s.empty and s.length > w + 2 * GAP]
        if not walls:
            return None
        s = walls[rng.integers(len(walls))]
        t = float(rng.uniform(w / 2 + GAP, s.length - w / 2 - GAP))
        if rng.random() < 0.4:  # into a corner
            t = w / 2 + GAP if rng.random() < 0.5 else s.length - w / 2 - GAP
        hole = s.taken()
        if hole is not None and h > hole[2] and t - w / 2 < hole[1] and hole[0] < t + w / 2:
            return None  # would stand in front of the window
        x, z = along(s, t, d / 2 + GAP)
        nx, nz = inward(s)
        return Item(asset, (x, h / 2 + 0.001, z), round(math.degrees(math.atan2(nx, nz))) % 360)
    low, high = space.polygon.min(axis=0) + 0.6, space.polygon.max(axis=0) - 0.6
    if (low >= high).any():
        return None
    x, z = rng.uniform(low, high)
    return Item(asset, (float(x), h / 2 + 0.001, float(z)), int(rng.integers(4)) * 90)


def _ahead(item: Item, distance: float, aside: float) -> Tuple[float, float]:
    """The point so far in front of an object, and so far to its right."""
    yaw = math.radians(item.yaw)
    x, _, z = item.position
    return x + distance * math.sin(yaw) + aside * math.cos(yaw), z + distance * math.cos(yaw) - aside * math.sin(yaw)


def _chairs(rng: np.random.Generator, space: Space, table: Item, databases: Databases, split: str) -> None:
    """One at a desk, up to six around a table, all looking at it."""
    assets = databases.of_type("Chair", split)
    asset = assets[rng.integers(len(assets))]
    w, _, d = table.asset.size
    if table.asset.object_type == "Desk":
        spots = [(0, float(rng.uniform(-0.2, 0.2)) * w)]
    else:
        along_x = [-0.28 * w, 0.28 * w] if w > 1.3 else [0.0]
        spots = [(side, a) for side in (0, 180) for a in along_x] + [(90, 0.0), (270, 0.0)]
        spots = [spots[i] for i in rng.permutation(len(spots))[: int(rng.integers(2, len(spots) + 1))]]
    for side, aside in spots:
        reach = (d if side % 180 == 0 else w) / 2 + asset.size[2] / 2 + 0.04
        facing = Item(table.asset, table.position, (table.yaw + side) % 360)
        x, z = _ahead(facing, reach, aside)
        space.fits(Item(asset, (x, asset.size[1] / 2 + 0.001, z), (facing.yaw + 180) % 360))


def fill(rng: np.random.Generator, item: Item, databases: Databases, split: str, most: int = 7) -> None:
    """Put things on a receptacle, with the database's probabilities."""
    top = shapes.surface(item.asset.object_type, item.asset.size)
    if top is None:
        return
    kind = item.asset.object_type
    if kind == "TVStand" or (kind == "Dresser" and rng.random() < 0.15):
        _stand_on(rng, item, top, databases.of_type("Television", split), central=True)
    for child, probability in sorted(databases.contents.get(kind, {}).items()):
        if len(item.children) < most and rng.random() < probability and databases.placements[child].rooms:
            rule = databases.placements[child]
            if not (rule.on_floor and child != "BasketBall") and not rule.on_wall and child not in ("Faucet", "Window"):
                _stand_on(rng, item, top, databases.of_type(child, split), central=False)


def _stand_on(rng: np.random.Generator, item: Item, top: shapes.Surface, assets: List[Asset], *, central: bool) -> None:
    """Somewhere on the surface where nothing else stands, or nowhere."""
    w, h, d = item.asset.size
    for _ in range(10 if assets else 0):
        asset = assets[rng.integers(len(assets))]
        turn = 0 if central else int(rng.integers(4)) * 90
        a, b = (asset.size[0], asset.size[2]) if turn % 180 == 0 else (asset.size[2], asset.size[0])
        low_x, high_x = top.x0 * w + a / 2, top.x1 * w - a / 2
        low_z, high_z = top.z0 * d + b / 2, top.z1 * d - b / 2
        if low_x > high_x or low_z > high_z or (top.height < h - 0.3 and asset.size[1] > 0.33):
            continue  # too wide, or too high for a compartment
        x = (low_x + high_x) / 2 if central else rng.uniform(low_x, high_x)
        z = (low_z + high_z) / 2 if central else rng.uniform(low_z, high_z)
        px, pz = _ahead(item, z - d / 2, x - w / 2)
        y = item.position[1] - h / 2 + top.height + asset.size[1] / 2 + 0.002
        child = Item(asset, (px, y, pz), (item.yaw + turn) % 360)
        if not any(_overlap(child.rect(), other.rect(), 0.01) for other in item.children):
            item.children.append(child)
            return


def hang(rng: np.random.Generator, space: Space, databases: Databases, split: str) -> Dict[str, List[Item]]:
    """Pictures on walls, where there is neither a hole nor anything high."""
    hung: List[Item] = []
    assets = databases.of_type("Painting", split)
    for s in space.room.segments:
        if s.empty or rng.random() > 0.4:
            continue
        asset = assets[rng.integers(len(assets))]
        w, h, d = asset.size
        hole = s.taken()
        if s.length < w + 0.4:
            continue
        t = float(rng.uniform(w / 2 + 0.15, s.length - w / 2 - 0.15))
        x, z = along(s, t, d / 2 + 0.005)
        nx, nz = inward(s)
        item = Item(asset, (x, float(rng.uniform(1.35, 1.6)), z), round(math.degrees(math.atan2(nx, nz))) % 360)
        bottom = item.position[1] - h / 2
        free = hole is None or t + w / 2 + 0.05 < hole[0] or hole[1] < t - w / 2 - 0.05
        tall = [c for i in space.items for c in [i, *i.children] if c.position[1] + c.asset.size[1] / 2 > bottom - 0.02]
        if free and not any(_overlap(item.rect(), c.rect(), 0.02) for c in [*tall, *hung]):
            hung.append(item)
    return {"Painting": hung}
