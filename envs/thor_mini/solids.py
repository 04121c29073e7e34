"""Distances to what a robot can run into: boxes turned about the upright axis, and the solid stretches of walls.

Yaws are in degrees, clockwise seen from above: forward is (sin, cos) and right is (cos, -sin) in (x, z).
Needs numpy alone; Python 3.8 syntax.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import List, Sequence, Tuple

import numpy as np

from envs.thor_mini.scene import Body, Opening, Wall
from envs.thor_mini.shapes import parts

EPSILON = 1e-9
SILL = 0.1  # metres; a hole that begins lower can be passed


@lru_cache(maxsize=4096)
def heading(yaw: float) -> Tuple[float, float]:
    """Forward as (x, z); right is (z, -x) of it."""
    turn = math.radians(yaw)
    return math.sin(turn), math.cos(turn)


class Boxes:
    """Upright boxes, which may move. All arrays have one row a box."""

    def __init__(self, positions: np.ndarray, sizes: np.ndarray, yaws: np.ndarray) -> None:
        """Middles [B, 3], full extents [B, 3] and yaws [B]; later moves go through `place`."""
        self.positions = np.array(positions, dtype=np.float64).reshape(-1, 3)
        self.half = np.array(sizes, dtype=np.float64).reshape(-1, 3) / 2
        self.yaws = np.array(yaws, dtype=np.float64).reshape(-1)
        turn = np.radians(self.yaws)
        self.sin, self.cos = np.sin(turn), np.cos(turn)

    def place(self, index: int, position: np.ndarray, yaw: float) -> None:
        """Put one body somewhere else."""
        self.positions[index], self.yaws[index] = position, yaw
        self.sin[index], self.cos[index] = heading(yaw)

    def local(self, points: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Points [P, 3] in the frames of the chosen boxes: [P, C, 3]."""
        delta = points[:, None, :] - self.positions[None, chosen]
        sin, cos = self.sin[chosen], self.cos[chosen]
        x, z = delta[..., 0], delta[..., 2]
        return np.stack([x * cos - z * sin, delta[..., 1], x * sin + z * cos], axis=-1)

    def distance(self, points: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Metres from points [P, 3] to the surfaces of the chosen boxes: [P, C], negative inside."""
        return _signed(np.abs(self.local(points, chosen)) - self.half[chosen])

    def plan_distance(self, points: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """As `distance`, seen from above: points [P, 2] of x and z."""
        delta = points[:, None, :] - self.positions[None, chosen][..., [0, 2]]
        sin, cos = self.sin[chosen], self.cos[chosen]
        x, z = delta[..., 0], delta[..., 1]
        local = np.stack([x * cos - z * sin, x * sin + z * cos], axis=-1)
        return _signed(np.abs(local) - self.half[chosen][:, [0, 2]])

    def closest(self, index: int, point: np.ndarray) -> np.ndarray:
        """The point of one box that is nearest to a point [3]; the point itself if it is inside."""
        local = self.local(point[None], np.array([index]))[0, 0]
        return self.world(index, np.clip(local, -self.half[index], self.half[index])[None])[0]

    def world(self, index: int, local: np.ndarray) -> np.ndarray:
        """Points [P, 3] of one box's own frame in the world."""
        sin, cos = self.sin[index], self.cos[index]
        x, y, z = local.T
        return np.stack([x * cos + z * sin, y, z * cos - x * sin], axis=-1) + self.positions[index]

    def corners(self, index: int) -> np.ndarray:
        """The eight corners of one box: [8, 3]."""
        return self.world(index, CORNERS * self.half[index])

    def bottom(self) -> np.ndarray:
        """Height of the lower faces [B]."""
        return self.positions[:, 1] - self.half[:, 1]

    def top(self) -> np.ndarray:
        """Height of the upper faces [B]."""
        return self.positions[:, 1] + self.half[:, 1]

    def entered(self, start: np.ndarray, ends: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Share of the way from `start` [3] to `ends` [P, 3] at which each box is met: [P, C], inf if it is not."""
        origin = self.local(start[None], chosen)  # [1, C, 3]
        way = self.local(ends, chosen) - origin
        way = np.where(np.abs(way) < EPSILON, EPSILON, way)
        first, second = (-self.half[chosen] - origin) / way, (self.half[chosen] - origin) / way
        near, far = np.minimum(first, second).max(-1), np.maximum(first, second).min(-1)
        return np.where((near <= far) & (far > 0.0) & (near < 1.0), np.maximum(near, 0.0), np.inf)


def boxes_of(bodies: Sequence[Body]) -> Boxes:
    """One box a body."""
    count = len(bodies)
    positions = np.array([b.position for b in bodies], dtype=np.float64).reshape(count, 3)
    sizes = np.array([b.size for b in bodies], dtype=np.float64).reshape(count, 3)
    return Boxes(positions, sizes, np.array([b.yaw for b in bodies], dtype=np.float64))


def pieces_of(bodies: Sequence[Body], chosen: Sequence[int]) -> Tuple[Boxes, np.ndarray]:
    """The parts of the chosen bodies as drawn, each as its bounding box, and the bodies' numbers [Q].

    So a hand can reach under a table, into a shelf and over the seat of a sofa.
    """
    rows: List[Tuple[np.ndarray, np.ndarray, float]] = []
    owners: List[int] = []
    for i in chosen:
        body = bodies[i]
        size = np.asarray(body.size, dtype=np.float64)
        sin, cos = heading(body.yaw)
        for part in parts(body.object_type, (float(size[0]), float(size[1]), float(size[2]))):
            low, high = np.array([part.x0, part.y0, part.z0]), np.array([part.x1, part.y1, part.z1])
            x, y, z = ((low + high) / 2 - 0.5) * size
            middle = body.position + np.array([x * cos + z * sin, y, z * cos - x * sin])
            rows.append((middle, (high - low) * size, body.yaw))
            owners.append(i)
    middles, sizes, yaws = zip(*rows) if rows else ((), (), ())
    return Boxes(np.array(middles), np.array(sizes), np.array(yaws)), np.array(owners, dtype=int)


CORNERS = np.array([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])


def _signed(beyond: np.ndarray) -> np.ndarray:
    outside = np.sqrt((np.maximum(beyond, 0.0) ** 2).sum(-1))
    return outside + np.minimum(beyond.max(-1), 0.0)


# --- walls ------------------------------------------------------------------------------------------------------------


def passable(opening: Opening) -> bool:
    """Whether the robot fits through: an open door or a missing wall, down to the floor."""
    return opening.kind in ("door", "empty") and opening.is_open and opening.bottom <= SILL


def solid_segments(walls: Sequence[Wall]) -> Tuple[np.ndarray, List[str]]:
    """What is left of the walls between the openings one can pass: [S, 4] of x0, z0, x1, z1, and whose they are."""
    rows: List[Tuple[float, float, float, float]] = []
    names: List[str] = []
    for wall in walls:
        start, end = np.array(wall.start, dtype=np.float64), np.array(wall.end, dtype=np.float64)
        length = float(np.hypot(*(end - start)))
        if length < EPSILON:
            continue
        along = (end - start) / length
        at = 0.0
        holes = sorted((o.start, o.end) for o in wall.openings if passable(o))
        for low, high in [*holes, (length, length)]:
            if low - at > EPSILON:
                rows.append((*(start + along * at), *(start + along * low)))
                names.append(wall.wall_id)
            at = max(at, high)
    return np.array(rows, dtype=np.float64).reshape(-1, 4), names


def segment_distance(points: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Metres from points [P, 2] to segments [S, 4]: [P, S]."""
    start, way = segments[:, :2], segments[:, 2:] - segments[:, :2]
    length = np.maximum((way**2).sum(-1), EPSILON)
    delta = points[:, None, :] - start[None]
    share = np.clip((delta * way[None]).sum(-1) / length, 0.0, 1.0)
    return np.sqrt(((delta - share[..., None] * way[None]) ** 2).sum(-1))


def segment_crossed(start: np.ndarray, ends: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Share of the way from `start` [2] to `ends` [P, 2] at which upright segments are crossed: [P, S], inf if not."""
    way = (ends - start)[:, None, :]  # [P, 1, 2]
    wall = (segments[:, 2:] - segments[:, :2])[None]
    delta = (segments[:, :2] - start)[None]
    cross = way[..., 0] * wall[..., 1] - way[..., 1] * wall[..., 0]
    cross = np.where(np.abs(cross) < EPSILON, EPSILON, cross)
    share = (delta[..., 0] * wall[..., 1] - delta[..., 1] * wall[..., 0]) / cross
    along = (delta[..., 0] * way[..., 1] - delta[..., 1] * way[..., 0]) / cross
    return np.where((share > 0.0) & (share < 1.0) & (along >= 0.0) & (along <= 1.0), share, np.inf)
