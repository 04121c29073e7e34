"""Draw a floor plan: rooms on a grid, the walls between them, doors that join all of them, windows to the outside."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from envs.thor_mini.data import Asset, Databases

Point = Tuple[float, float]
Rect = Tuple[int, int, int, int]  # x0, z0, x1, z1 in cells
OUTSIDE = 0
FIRST = 2  # number of the first room, as in ProcTHOR's houses
AREAS = {"LivingRoom": 19.0, "Kitchen": 14.0, "Bedroom": 14.0, "Bathroom": 8.0}  # typical, m^2
LEAST = {"LivingRoom": 2.9, "Kitchen": 2.5, "Bedroom": 2.7, "Bathroom": 2.1}  # of a room's shorter side, metres
MIXES = {
    1: (("LivingRoom",), ("Kitchen",), ("Bedroom",)),
    2: (("Kitchen", "LivingRoom"), ("Bedroom", "Bathroom"), ("Bedroom", "LivingRoom"), ("Kitchen", "Bedroom")),
    3: (
        ("Kitchen", "LivingRoom", "Bedroom"),
        ("Kitchen", "Bedroom", "Bathroom"),
        ("LivingRoom", "Bedroom", "Bathroom"),
    ),
    4: (("Kitchen", "LivingRoom", "Bedroom", "Bathroom"),),
    5: (
        ("Kitchen", "LivingRoom", "Bedroom", "Bedroom", "Bathroom"),
        ("Kitchen", "LivingRoom", "LivingRoom", "Bedroom", "Bathroom"),
    ),
    6: (
        ("Kitchen", "LivingRoom", "Bedroom", "Bedroom", "Bathroom", "Bathroom"),
        ("Kitchen", "LivingRoom", "LivingRoom", "Bedroom", "Bedroom", "Bathroom"),
    ),
}
# How little one likes a door between two kinds of rooms.
_RELUCTANCE = {
    frozenset(("Kitchen", "LivingRoom")): 0.0,
    frozenset(("LivingRoom", "Bedroom")): 1.0,
    frozenset(("Bedroom", "Bathroom")): 1.2,
    frozenset(("LivingRoom", "Bathroom")): 2.0,
    frozenset(("Kitchen", "Bedroom")): 2.0,
    frozenset(("LivingRoom",)): 0.5,
}


@dataclass
class Hole:
    """A door or a window in a wall; offsets count from the start of the segment that owns it."""

    name: str
    asset: Asset
    start: float
    end: float
    bottom: float
    top: float
    openable: bool = False


@dataclass
class Segment:
    """A stretch of a room's outline with one neighbour behind it; the room lies to the right."""

    room: int
    other: int  # number of the room behind, or OUTSIDE
    start: Point
    end: Point
    hole: Optional[Hole] = None  # on one of the two faces only
    behind: Optional[Hole] = None  # the same hole, owned by the other face
    empty: bool = False

    @property
    def length(self) -> float:
        """Metres."""
        return math.hypot(self.end[0] - self.start[0], self.end[1] - self.start[1])

    def taken(self) -> Optional[Tuple[float, float, float, float]]:
        """start, end, bottom, top of its hole, along this face."""
        if self.hole is not None:
            return self.hole.start, self.hole.end, self.hole.bottom, self.hole.top
        if self.behind is not None:
            return self.length - self.behind.end, self.length - self.behind.start, self.behind.bottom, self.behind.top
        return None


@dataclass
class PlanRoom:
    """One room of the plan."""

    number: int
    room_type: str
    segments: List[Segment] = field(default_factory=list)

    @property
    def polygon(self) -> np.ndarray:
        """[V, 2], clockwise seen from above."""
        return np.array([s.start for s in self.segments])


@dataclass
class Plan:
    """Rooms by number, and the height of their walls."""

    rooms: Dict[int, PlanRoom]
    ceiling: float


def draw(rng: np.random.Generator, databases: Databases, *, types: Sequence[str], split: str) -> Optional[Plan]:
    """A plan for rooms of these types, or None if this try did not work out."""
    cell = float(rng.uniform(0.46, 0.56))
    labels = _labels(rng, types, cell)
    if labels is None:
        return None
    rooms = {FIRST + i: PlanRoom(FIRST + i, kind) for i, kind in enumerate(types)}
    for room in rooms.values():
        room.segments = outline(labels, room.number, cell)
        if not room.segments:
            return None
    plan = Plan(rooms, float(rng.uniform(2.5, 2.9)))
    if not _join(rng, plan, databases, split) or not _way_out(rng, plan, databases, split):
        return None
    _windows(rng, plan, databases, split)
    return plan


# --- rooms --------------------------------------------------------------------------------------------------------


def _labels(rng: np.random.Generator, types: Sequence[str], cell: float) -> Optional[np.ndarray]:
    """Room numbers [X, Z] on the grid; a spare corner is left outside or given to a neighbour, which makes an L."""
    wants = [(FIRST + i, AREAS[kind] * rng.uniform(0.8, 1.3), LEAST[kind]) for i, kind in enumerate(types)]
    spare = -1 if rng.random() < 0.45 else None
    if spare is not None:
        wants.append((spare, rng.uniform(4, 9), 1.6))
    total, ratio = sum(w[1] for w in wants), math.exp(rng.uniform(-0.45, 0.45))
    width, depth = round(math.sqrt(total * ratio) / cell), round(math.sqrt(total / ratio) / cell)
    labels = np.zeros((width, depth), int)
    rects: Dict[int, Rect] = {}
    if not _divide(rng, wants, (0, 0, width, depth), cell, rects):
        return None
    for number, (x0, z0, x1, z1) in rects.items():
        labels[x0:x1, z0:z1] = number
    if spare is None:
        return labels
    x0, z0, x1, z1 = rects[spare]
    in_corner = (x0 == 0 or x1 == width) and (z0 == 0 or z1 == depth)
    if in_corner and rng.random() < 0.5:
        labels[labels == spare] = OUTSIDE
        return labels
    around = [n for n in sorted(rects) if n != spare and _border(rects[n], rects[spare]) >= 3]
    if not around:
        return None
    labels[labels == spare] = int(rng.choice(around))
    return labels


def _divide(rng: np.random.Generator, wants: list, rect: Rect, cell: float, rects: Dict[int, Rect]) -> bool:
    """Cut a rectangle until each part has one owner; False if a part got too narrow."""
    x0, z0, x1, z1 = rect
    if len(wants) == 1:
        number, _, least = wants[0]
        rects[number] = rect
        return min(x1 - x0, z1 - z0) * cell >= least
    order = [wants[i] for i in rng.permutation(len(wants))]
    half = int(rng.integers(1, len(order)))
    share = sum(w[1] for w in order[:half]) / sum(w[1] for w in order)
    if (x1 - x0) >= (z1 - z0):
        cut = x0 + round((x1 - x0) * share)
        first, second = (x0, z0, cut, z1), (cut, z0, x1, z1)
    else:
        cut = z0 + round((z1 - z0) * share)
        first, second = (x0, z0, x1, cut), (x0, cut, x1, z1)
    return _divide(rng, order[:half], first, cell, rects) and _divide(rng, order[half:], second, cell, rects)


def _border(a: Rect, b: Rect) -> int:
    """Length of the border of two rectangles, in cells."""
    if a[2] == b[0] or b[2] == a[0]:
        return min(a[3], b[3]) - max(a[1], b[1])
    if a[3] == b[1] or b[3] == a[1]:
        return min(a[2], b[2]) - max(a[0], b[0])
    return 0


def outline(labels: np.ndarray, number: int, cell: float) -> List[Segment]:
    """The border of a room, clockwise from above, cut where it turns or its neighbour changes; [] if it has holes."""
    padded = np.pad(labels, 1)
    edges: Dict[Tuple[int, int], Tuple[Tuple[int, int], int]] = {}
    for i, j in np.argwhere(labels == number):
        sides = (((i, j), (i, j + 1), (i, j + 1)), ((i, j + 1), (i + 1, j + 1), (i + 1, j + 2)),
                 ((i + 1, j + 1), (i + 1, j), (i + 2, j + 1)), ((i + 1, j), (i, j), (i + 1, j)))  # fmt: skip
        for start, end, beside in sides:
            other = int(padded[beside])
            if other != number:
                if start in edges:
                    return []  # two corners touch
                edges[start] = (end, other)
    if not edges:
        return []
    runs: List[Tuple[Tuple[int, int], Tuple[int, int], int]] = []
    first = point = min(edges)
    for _ in range(len(edges)):
        end, other = edges[point]
        if runs and runs[-1][2] == other and _same_way(runs[-1], end):
            runs[-1] = (runs[-1][0], end, other)
        else:
            runs.append((point, end, other))
        point = end
        if point == first:
            break
    covered = sum(abs(a[0] - b[0]) + abs(a[1] - b[1]) for a, b, _ in runs)
    if covered != len(edges):
        return []
    return [Segment(number, other, _metres(a, cell), _metres(b, cell)) for a, b, other in runs]


def _same_way(run: Tuple[Tuple[int, int], Tuple[int, int], int], end: Tuple[int, int]) -> bool:
    (x0, z0), (x1, z1), _ = run
    return (x1 - x0) * (end[1] - z1) == (z1 - z0) * (end[0] - x1)


def _metres(point: Tuple[int, int], cell: float) -> Point:
    return round(float(point[0]) * cell, 3), round(float(point[1]) * cell, 3)


# --- doors and windows --------------------------------------------------------------------------------------------


def _join(rng: np.random.Generator, plan: Plan, databases: Databases, split: str) -> bool:
    """Doors along a tree of rooms, and a few more; False if a room cannot be reached."""
    borders = [s for room in plan.rooms.values() for s in room.segments if s.room < s.other and s.length > 1.15]
    cost = {id(s): _reluctance(plan, s) + rng.uniform(0, 1.5) for s in borders}
    reached = {next((n for n, r in plan.rooms.items() if r.room_type == "LivingRoom"), FIRST)}
    while len(reached) < len(plan.rooms):
        ways = [s for s in borders if (s.room in reached) != (s.other in reached)]
        if not ways:
            return False
        way = min(ways, key=lambda s: cost[id(s)])
        _door(rng, plan, way, databases, split)
        reached |= {way.room, way.other}
    joined = {frozenset((s.room, s.other)) for s in borders if s.hole is not None or s.empty}
    for s in borders:
        pair = frozenset((s.room, s.other))
        if pair not in joined and _reluctance(plan, s) < 1.1 and rng.random() < 0.35:
            _door(rng, plan, s, databases, split)
            joined.add(pair)
    return True


def _reluctance(plan: Plan, s: Segment) -> float:
    return _RELUCTANCE.get(frozenset((plan.rooms[s.room].room_type, plan.rooms[s.other].room_type)), 4.0)


def opposite(plan: Plan, s: Segment) -> Segment:
    """The other face of an inner wall."""
    return next(o for o in plan.rooms[s.other].segments if o.start == s.end and o.end == s.start)


def _door(rng: np.random.Generator, plan: Plan, s: Segment, databases: Databases, split: str) -> None:
    types = {plan.rooms[s.room].room_type, plan.rooms[s.other].room_type}
    face = opposite(plan, s)
    if types == {"Kitchen", "LivingRoom"} and s.length > 1.8 and rng.random() < 0.3:
        s.empty = face.empty = True
        return
    private = bool(types & {"Bathroom", "Bedroom"})
    kinds = ("Doorway",) if private else ("Doorway", "Doorframe")
    s.hole = face.behind = _fit(rng, s, databases, split, kinds, f"door|{s.room}|{s.other}", double=not private)
    s.hole.openable = s.hole.asset.object_type == "Doorway"


def _fit(
    rng: np.random.Generator,
    s: Segment,
    databases: Databases,
    split: str,
    kinds: Tuple[str, ...],
    name: str,
    *,
    double: bool,
) -> Hole:
    assets = [a for kind in kinds for a in databases.of_type(kind, split)]
    single = [a for a in assets if "Double" not in a.asset_id]
    wide = [a for a in assets if "Double" in a.asset_id]
    among = wide if double and wide and s.length > 2.6 and rng.random() < 0.4 else single
    asset = among[rng.integers(len(among))]
    width, height = databases.holes.get(asset.asset_id) or asset.size[:2]
    start = float(rng.uniform(0.03, s.length - width - 0.03))
    return Hole(name, asset, start, start + width, 0.0, height)


def _way_out(rng: np.random.Generator, plan: Plan, databases: Databases, split: str) -> bool:
    """A closed door to the outside."""
    for kind in ("LivingRoom", "Kitchen", "Bedroom", "Bathroom"):
        outer = [s for room in plan.rooms.values() if room.room_type == kind for s in room.segments]
        outer = [s for s in outer if s.other == OUTSIDE and s.length > 1.3]
        if outer:
            s = outer[rng.integers(len(outer))]
            s.hole = _fit(rng, s, databases, split, ("Doorway",), f"door|1|{s.room}", double=False)
            return True
    return False


def _windows(rng: np.random.Generator, plan: Plan, databases: Databases, split: str) -> None:
    assets = [
        a for a in databases.of_type("Window", split) if a.asset_id in databases.holes and "Bay" not in a.asset_id
    ]
    for room in plan.rooms.values():
        likely, count = (0.45 if room.room_type == "Bathroom" else 0.8), 0
        for s in room.segments:
            if s.other != OUTSIDE or s.hole is not None or rng.random() > likely:
                continue
            fitting = [a for a in assets if databases.holes[a.asset_id][0] < s.length - 0.3]
            if not fitting:
                continue
            asset = fitting[rng.integers(len(fitting))]
            width, height = databases.holes[asset.asset_id]
            start, middle = float(rng.uniform(0.12, s.length - width - 0.12)), 1.35
            s.hole = Hole(f"window|{room.number}|{count}", asset, start, start + width, middle - height / 2,
                          min(middle + height / 2, plan.ceiling - 0.1))  # fmt: skip
            count += 1
