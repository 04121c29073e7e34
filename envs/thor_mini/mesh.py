"""Turn a `Scene` into the convex faces that raster.c draws, in groups that move as one."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from envs.thor_mini import shapes
from envs.thor_mini.furnish import contains
from envs.thor_mini.house import area, length
from envs.thor_mini.materials import METRES, PATTERNS, code, look, type_colours
from envs.thor_mini.parts import PALETTE
from envs.thor_mini.scene import Body, Colour, Opening, Room, Scene, Wall

GROUP = np.dtype([("start", "i4"), ("count", "i4"), ("id", "i4"), ("occluder", "i4"), ("radius", "f8")], align=True)
FACE = np.dtype(
    [
        *((name, "i4") for name in ("start", "count", "pattern", "both")),
        *(("normal", "f8", 3), ("offset", "f8"), ("u", "f8", 3), ("v", "f8", 3), ("u0", "f8"), ("v0", "f8")),
        *(("colour", "u1", 4), ("back", "u1", 4)),
    ],
    align=True,
)
INSET = 0.001  # metres between the two faces of a wall, each on its own side
SKIRTING = 0.09  # metres
PLAIN = PATTERNS.index("plain")
OUTER: Colour = (150, 122, 98)  # of walls seen from outside
FRAME: Colour = (236, 232, 224)


class Mesh:
    """Faces and groups that grow; `arrays` packs them. Corners of a group are relative to its place."""

    def __init__(self) -> None:
        self.places: List[Tuple[float, float, float]] = []
        self._groups: List[Tuple[int, int, int, int]] = []  # first face, first corner, body, occluder
        self._corners: List[np.ndarray] = []  # [F, K, 3] each
        self._looks: List[Tuple[float, ...]] = []  # what the faces of one of these share
        self._num_faces = self._num_corners = 0
        self._open = (0, 0)

    def add(
        self,
        corners: np.ndarray,
        colour: Colour,
        pattern: int,
        *,
        scale: float = 0.0,
        shift: float = 0.0,
        back: Colour = (0, 0, 0),
        both: bool = False,
    ) -> None:
        """Faces [F, K, 3] of one material, corners clockwise as seen from the front (the axes are left-handed).

        `scale`: metres per repetition of the pattern (its own if 0); `back`: the colour of their backs, if `both`.
        """
        shown = -1 if pattern == PLAIN else pattern
        self._corners.append(corners)
        self._looks.append((shown, both, 1 / (scale or METRES[pattern]), shift, *colour, *back))
        self._num_faces += corners.shape[0]
        self._num_corners += corners.shape[0] * corners.shape[1]

    def close(self, place: Sequence[float], index: int = -1, *, occluder: bool = False) -> None:
        """End a group: the faces added since the last one, at least one."""
        self._groups.append((self._open[0], self._open[1], index, int(occluder)))
        self._open = (self._num_faces, self._num_corners)
        self.places.append((float(place[0]), float(place[1]), float(place[2])))

    def arrays(self) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """GROUP [G], FACE [F] and corners float64 [C, 3]."""
        corners = np.concatenate([c.reshape(-1, 3) for c in self._corners])
        table, groups = np.array(self._groups), np.zeros(len(self._groups), GROUP)
        groups["start"], groups["id"], groups["occluder"] = table[:, 0], table[:, 2], table[:, 3]
        groups["count"] = np.diff(table[:, 0], append=self._num_faces)
        groups["radius"] = np.maximum.reduceat(np.linalg.norm(corners, axis=1), table[:, 1])
        return groups, self._faces(), corners

    def _faces(self) -> np.ndarray:
        """All at once: house after house is built, and thousands of small arrays would take most of the time."""
        counts = [c.shape[0] for c in self._corners]
        faces, looks = np.zeros(self._num_faces, FACE), np.repeat(np.array(self._looks), counts, axis=0)
        size = np.repeat([c.shape[1] for c in self._corners], counts)
        first = np.concatenate([c[:, :3] for c in self._corners])
        normal = np.cross(first[:, 1] - first[:, 0], first[:, 2] - first[:, 1])
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
        faces["start"], faces["count"] = np.cumsum(size) - size, size
        faces["pattern"], faces["both"] = looks[:, 0], looks[:, 1]
        faces["normal"], faces["offset"] = normal, np.einsum("fk,fk->f", normal, first[:, 0])
        flat = np.abs(normal[:, 1:2]) > 0.75
        across = np.stack([normal[:, 2], np.zeros(len(normal)), -normal[:, 0]], axis=1)
        faces["u"] = looks[:, 2:3] * np.where(flat, (1, 0, 0), across)
        faces["v"] = looks[:, 2:3] * np.where(flat, (0, 0, 1), (0, 1, 0))
        faces["u0"], faces["v0"] = looks[:, 3], looks[:, 3] * 0.37
        faces["colour"][:, :3], faces["back"][:, :3] = looks[:, 4:7], looks[:, 7:]
        return faces


# --- shapes of one unit -------------------------------------------------------------------------------------------


def _faces(points: np.ndarray, polygons: Sequence[Sequence[int]]) -> np.ndarray:
    """[F, K, 3], each turned so that its normal looks away from the middle of the unit cube."""
    faces = points[np.array(polygons)]
    normal = np.cross(faces[:, 1] - faces[:, 0], faces[:, 2] - faces[:, 1])
    inward = np.einsum("fk,fk->f", normal, faces.mean(axis=1) - 0.5) < 0
    faces[inward] = faces[inward, ::-1]
    return faces


def _cube() -> np.ndarray:
    points = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    return _faces(points, [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5)])


def _prism(top: float) -> Tuple[np.ndarray, np.ndarray]:
    """Sides [8, 4, 3] and ends [2, 8, 3]; the wider end fills the square."""
    angle = np.pi / 4 * (np.arange(8) + 0.5)
    ring = np.stack([np.sin(angle), np.cos(angle)], axis=1) / (2 * np.cos(np.pi / 8))
    low, high = (1.0, top) if top <= 1 else (1 / top, 1.0)
    rings = [
        np.stack([0.5 + s * ring[:, 0], np.full(8, y), 0.5 + s * ring[:, 1]], axis=1)
        for s, y in ((low, 0.0), (high, 1.0))
    ]
    points = np.concatenate(rings)
    sides = _faces(points, [(i, (i + 1) % 8, 8 + (i + 1) % 8, 8 + i) for i in range(8)])
    return sides, _faces(points, [tuple(range(8)), tuple(range(8, 16))])


def _ball() -> Tuple[np.ndarray, np.ndarray]:
    """Quads and triangles of a ball that fills the cube: 8 around, 5 high."""
    height, around = np.pi * np.arange(1, 5) / 5, np.pi / 4 * np.arange(8)
    points = [[0.5, 0.0, 0.5], [0.5, 1.0, 0.5]]
    points += [[0.5 + 0.5 * math.sin(h) * math.sin(a), 0.5 - 0.5 * math.cos(h), 0.5 + 0.5 * math.sin(h) * math.cos(a)]
               for h in height for a in around]  # fmt: skip

    def at(row: int, i: int) -> int:
        return 2 + 8 * row + i % 8

    quads = [(at(r, i), at(r, i + 1), at(r + 1, i + 1), at(r + 1, i)) for r in range(3) for i in range(8)]
    caps = [(0, at(0, i), at(0, i + 1)) for i in range(8)] + [(1, at(3, i), at(3, i + 1)) for i in range(8)]
    return _faces(np.array(points), quads), _faces(np.array(points), caps)


CUBE, BALL = _cube(), _ball()


@lru_cache(maxsize=64)
def unit(kind: str, top: float) -> List[np.ndarray]:
    """Faces of a part in the unit cube, lists of equal corner counts."""
    if kind == "box":
        return [CUBE]
    if kind == "ball":
        return list(BALL)
    faces = list(_prism(top))
    if kind == "disc":  # along z: a turn about x keeps what is front
        return [np.stack([f[..., 0], 1 - f[..., 2], f[..., 1]], axis=-1) for f in faces]
    return faces


# --- objects ------------------------------------------------------------------------------------------------------


def add_body(mesh: Mesh, body: Body, index: int) -> None:
    """One object, as the parts that shapes.py has for its type."""
    size = np.asarray(body.size, float)
    colours = (
        list(body.colours)
        if len(body.colours) >= 3
        else [*body.colours, *type_colours(body.object_type, body.asset_id)]
    )
    palette = [*colours[:3], *PALETTE]
    shift = (code(body.asset_id) % 97) / 97
    for part in shapes.parts(body.object_type, (float(size[0]), float(size[1]), float(size[2]))):
        low = np.array([part.x0, part.y0, part.z0])
        extent = np.array([part.x1, part.y1, part.z1]) - low
        pattern = PATTERNS.index(part.pattern)
        scale = 0.6 * float(size.max()) if part.pattern == "print" else 0.0
        for faces in unit(part.kind, part.top):
            mesh.add((low + faces * extent - 0.5) * size, palette[part.colour], pattern, scale=scale, shift=shift)
    mesh.close((0, 0, 0), index)


# --- rooms --------------------------------------------------------------------------------------------------------


def add_rooms(mesh: Mesh, scene: Scene) -> None:
    """Floors, ceilings, walls with their holes, and the frames in these."""
    polygons = {room.room_id: room for room in scene.rooms}
    for room in scene.rooms:
        _floor(mesh, room, scene)
    for wall in scene.walls:
        _wall(mesh, wall, polygons.get(wall.room_id))
    framed: Dict[str, bool] = {}
    for wall in scene.walls:
        for opening in wall.openings:
            if opening.kind != "empty" and opening.opening_id not in framed:
                framed[opening.opening_id] = True
                _frame(mesh, wall, opening)


def _floor(mesh: Mesh, room: Room, scene: Scene) -> None:
    polygon = room.polygon if area(room.polygon) > 0 else room.polygon[::-1]
    middle = (polygon.min(axis=0) + polygon.max(axis=0)) / 2
    triangles = triangulate(polygon) - middle
    pattern = look(room.material).pattern if room.material else PATTERNS.index("planks")
    pattern = PATTERNS.index("planks") if pattern == PATTERNS.index("wood") else pattern
    for y, turned, colour, pat in (
        (0.0, False, room.colour, pattern),
        (scene.ceiling, True, scene.ceiling_colour, PATTERNS.index("plaster")),
    ):
        corners = np.stack([triangles[..., 0], np.zeros(triangles.shape[:2]), triangles[..., 1]], axis=-1)
        corners = corners[:, ::-1] if turned else corners
        mesh.add(np.ascontiguousarray(corners), colour, pat, shift=(code(room.room_id) % 89) / 89)
        mesh.close((middle[0], y, middle[1]), occluder=True)


def triangulate(polygon: np.ndarray) -> np.ndarray:
    """Triangles [T, 3, 2] of a simple polygon [V, 2] given clockwise from above, by cutting off ears."""
    rest = [np.asarray(p, float) for p in polygon]
    triangles = []
    while len(rest) > 3:
        for i in range(len(rest)):
            a, b, c = rest[i - 1], rest[i], rest[(i + 1) % len(rest)]
            turn = (b[0] - a[0]) * (c[1] - b[1]) - (b[1] - a[1]) * (c[0] - b[0])
            others = [p for p in rest if p is not a and p is not b and p is not c]
            if turn < -1e-12 and not any(_in_triangle(p, a, b, c) for p in others):
                triangles.append((a, b, c))
                del rest[i]
                break
        else:  # only corners on straight lines are left, or the outline crosses itself
            straight = [i for i in range(len(rest)) if abs(_turn(rest, i)) <= 1e-12]
            if not straight:
                break
            del rest[straight[0]]
    if len(rest) == 3:
        triangles.append((rest[0], rest[1], rest[2]))
    return np.array(triangles)


def _turn(rest: List[np.ndarray], i: int) -> float:
    a, b, c = rest[i - 1], rest[i], rest[(i + 1) % len(rest)]
    return float((b[0] - a[0]) * (c[1] - b[1]) - (b[1] - a[1]) * (c[0] - b[0]))


def _in_triangle(p: np.ndarray, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> bool:
    sides = [(q[0] - o[0]) * (p[1] - o[1]) - (q[1] - o[1]) * (p[0] - o[0]) for o, q in ((a, b), (b, c), (c, a))]
    return max(sides) <= 1e-12


def _axes(wall: Wall, room: Optional[Room]) -> Tuple[np.ndarray, np.ndarray]:
    """Unit vectors [x, z] along a wall and into its room."""
    along = (np.array(wall.end) - wall.start) / length(wall)
    inward = np.array([along[1], -along[0]])
    if room is not None:
        probe = (np.array(wall.start) + wall.end) / 2 + 0.05 * inward
        if not bool(contains(room.polygon, probe[0], probe[1])):
            inward = -inward
    return along, inward


def pieces(wall: Wall) -> List[Tuple[float, float, float, float]]:
    """What is left of a wall beside, above and below its holes: start, end, bottom, top of rectangles."""
    whole = length(wall)
    holes = [(max(0.0, o.start), min(whole, o.end), max(0.0, o.bottom), min(wall.height, o.top)) for o in wall.openings]
    cuts = sorted({0.0, whole, *(x for h in holes for x in h[:2])})
    found = []
    for a, b in zip(cuts, cuts[1:]):
        if b - a < 1e-6:
            continue
        y = 0.0
        for _, _, low, high in sorted((h for h in holes if h[0] < (a + b) / 2 < h[1]), key=lambda h: h[2]):
            if low > y + 1e-6:
                found.append((a, b, y, low))
            y = max(y, high)
        if wall.height > y + 1e-6:
            found.append((a, b, y, wall.height))
    return found


def _wall(mesh: Mesh, wall: Wall, room: Optional[Room]) -> None:
    along, inward = _axes(wall, room)
    middle = (np.array(wall.start) + wall.end) / 2
    half, up = length(wall) / 2, wall.height / 2
    pattern = look(wall.material).pattern if wall.material else PLAIN
    pattern = PATTERNS.index("plaster") if pattern == PLAIN else pattern
    turned = along[0] * inward[1] - along[1] * inward[0] > 0  # the room lies to the left
    rows = []
    for start, end, bottom, top in pieces(wall):
        a = start - half - (INSET if start <= 0 else 0)
        b = end - half + (INSET if end >= 2 * half else 0)
        rows.append((a, b, bottom - up, top - up, INSET, wall.colour, pattern))
        if bottom <= 0 and top > 2 * SKIRTING:
            rows.append((a, b, -up, SKIRTING - up, 0.012, FRAME, PLAIN))
    for a, b, low, high, off, colour, pat in rows:
        flat = [(a, low), (a, high), (b, high), (b, low)]
        corners = np.array([[*(t * along + off * inward), y] for t, y in flat])[:, [0, 2, 1]]
        corners = corners[::-1] if turned else corners
        mesh.add(np.ascontiguousarray(corners)[None], colour, pat, back=OUTER, both=off == INSET)
    if rows:
        mesh.close((middle[0], up, middle[1]), occluder=True)


def _frame(mesh: Mesh, wall: Wall, opening: Opening) -> None:
    """Jambs and lintel of a door; all four sides and a bar or two of a window."""
    along = (np.array(wall.end) - wall.start) / length(wall)
    width, height = opening.end - opening.start, opening.top - opening.bottom
    thick, deep = 0.05, 0.14
    bars = [(0, thick, 0, height), (width - thick, width, 0, height), (thick, width - thick, height - thick, height)]
    if opening.kind == "window":
        bars += [(0, width, 0, thick), (width / 2 - 0.02, width / 2 + 0.02, thick, height - thick)]
        if "Hung" in opening.asset_id or height > 1.4:
            bars.append((thick, width - thick, height / 2 - 0.02, height / 2 + 0.02))
    colour = FRAME if opening.kind == "window" else look(opening.asset_id + "|wood").colour
    for x0, x1, y0, y1 in bars:
        low, extent = np.array([x0 - width / 2, y0 - height / 2, -deep / 2]), np.array([x1 - x0, y1 - y0, deep])
        local = low + CUBE * extent
        corners = np.stack([local[..., 0] * along[0] - local[..., 2] * along[1], local[..., 1],
                            local[..., 0] * along[1] + local[..., 2] * along[0]], axis=-1)  # fmt: skip
        mesh.add(corners, colour, PLAIN)
    x, z = np.array(wall.start) + along * (opening.start + opening.end) / 2
    mesh.close((x, (opening.bottom + opening.top) / 2, z))
