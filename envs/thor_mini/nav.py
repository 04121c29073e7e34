"""Where the robot can be and the shortest way there, on a grid of the floor inflated by the robot's radius.

Distances are found by a wave that spreads over the grid in rings, each ring one step of numpy, and are kept for every
goal asked for, so that a robot that asks again on its way gets its answer by walking downhill. Corners are then pulled
tight, so lengths are those of any-angle paths. Needs numpy alone; Python 3.8 syntax.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Dict, List, Optional, Tuple

import numpy as np

from envs.thor_mini.scene import Room
from envs.thor_mini.solids import Boxes, segment_distance

CELL = 0.05  # metres
RADII = {0: 0.5, 1: 0.4, 2: 0.3, 3: 0.2}  # metres of navMeshId, unless the house says otherwise
MARGIN = CELL / math.sqrt(2.0)  # from the middle of a cell to its corners: all of a free cell is free
REACH = max(RADII.values()) + 2 * MARGIN  # metres; farther distances to obstacles are not told apart
SNAP = 1.0  # metres; a point this near to the mesh is moved onto it
KEPT = 32  # distance fields
UNREACHED = np.float32(np.inf)
DIAGONAL = math.sqrt(2.0)
MOVES = np.array([[0, 1], [1, 0], [0, -1], [-1, 0], [1, 1], [1, -1], [-1, 1], [-1, -1]])
COSTS = np.array([1.0, 1.0, 1.0, 1.0, DIAGONAL, DIAGONAL, DIAGONAL, DIAGONAL], dtype=np.float32)


class Mesh:
    """The floor as a grid [rows along z, columns along x] of the room there is for a robot anywhere in a cell."""

    def __init__(self, rooms: List[Room], boxes: Boxes, blocking: np.ndarray, segments: np.ndarray) -> None:
        """`blocking` lists the bodies that stand in the way; those that are moved later are not looked at again."""
        corners = np.concatenate([r.polygon for r in rooms]) if rooms else np.zeros((1, 2))
        self.origin = corners.min(0) + CELL / 2
        size = np.maximum(np.ceil((corners.max(0) - corners.min(0)) / CELL).astype(int), 1)
        self.shape = (int(size[1]), int(size[0]))
        self.clearance = np.full(self.shape, REACH, dtype=np.float32)
        for box in blocking:
            reach = REACH + float(np.hypot(*boxes.half[box, [0, 2]]))
            self._lower(boxes.positions[box, [0, 2]], reach, box, boxes, None)
        for segment in segments:
            middle, half = (segment[:2] + segment[2:]) / 2, np.hypot(*(segment[2:] - segment[:2])) / 2
            self._lower(middle, REACH + float(half), None, boxes, segment[None])
        self.clearance -= np.float32(MARGIN)
        self.rooms = self._rooms(rooms)
        self.clearance[self.rooms < 0] = 0.0
        self._labels: Dict[float, np.ndarray] = {}
        self._fields: OrderedDict[Tuple[float, int, int], np.ndarray] = OrderedDict()

    def cell(self, x: float, z: float) -> Tuple[int, int]:
        """Row and column of the cell that holds a point, clipped to the grid."""
        column = int(np.clip(round((x - self.origin[0]) / CELL), 0, self.shape[1] - 1))
        row = int(np.clip(round((z - self.origin[1]) / CELL), 0, self.shape[0] - 1))
        return row, column

    def point(self, row: int, column: int) -> Tuple[float, float]:
        """x and z of the middle of a cell."""
        return float(self.origin[0] + column * CELL), float(self.origin[1] + row * CELL)

    def labels(self, radius: float) -> np.ndarray:
        """Int32 grid of connected regions for a robot of this radius, from 1; 0 is not free."""
        if radius not in self._labels:
            free = self.clearance >= radius
            labels = np.zeros(self.shape, dtype=np.int32)
            count = 0
            while True:
                rows, columns = np.nonzero(free & (labels == 0))
                if not len(rows):
                    break
                count += 1
                labels[np.isfinite(_spread(free, int(rows[0]), int(columns[0])))] = count
            self._labels[radius] = labels
        return self._labels[radius]

    def nearest(self, x: float, z: float, chosen: np.ndarray, *, within: float = SNAP) -> Optional[Tuple[int, int]]:
        """The cell among those chosen (bool grid) that is nearest to a point; None if it is farther."""
        rows, columns = np.nonzero(chosen)
        if not len(rows):
            return None
        far = (self.origin[0] + columns * CELL - x) ** 2 + (self.origin[1] + rows * CELL - z) ** 2
        best = int(far.argmin())
        return (int(rows[best]), int(columns[best])) if far[best] <= within**2 else None

    def path(
        self, start: Tuple[float, float], goal: Tuple[float, float], radius: float, *, within: float = SNAP
    ) -> Optional[np.ndarray]:
        """Corners [V, 2] of the shortest way for a robot of this radius, or None if there is none.

        It ends at the place nearest to the goal that can be reached, in the goal's room, at most `within` metres off.
        """
        labels = self.labels(radius)
        first = self.nearest(*start, labels > 0)
        if first is None:
            return None
        last = self.nearest(
            *goal, (labels == labels[first]) & (self.rooms == self.rooms[self.cell(*goal)]), within=within
        )
        if last is None:
            return None
        field = self._field(radius, last)
        cells = [first]
        while cells[-1] != last:
            around = np.array(cells[-1]) + MOVES
            costs = [field[r, c] + k for (r, c), k in zip(np.clip(around, 0, np.array(self.shape) - 1), COSTS)]
            best = int(np.argmin(costs))
            cells.append((int(around[best, 0]), int(around[best, 1])))
        return self._pull([start, *(self.point(*c) for c in cells[1:-1]), self.point(*last)], radius)

    def reachable(self, x: float, z: float, step: float, radius: float) -> np.ndarray:
        """Places [P, 2] the robot can reach on a lattice of `step` metres that contains its own, in reading order."""
        labels = self.labels(radius)
        first = self.nearest(x, z, labels > 0)
        if first is None:
            return np.zeros((0, 2))
        lowest, highest = self.origin, self.origin + (np.array(self.shape[::-1]) - 1) * CELL
        xs = x + step * np.arange(math.ceil((lowest[0] - x) / step), math.floor((highest[0] - x) / step) + 1)
        zs = z + step * np.arange(math.ceil((lowest[1] - z) / step), math.floor((highest[1] - z) / step) + 1)
        columns = np.clip(np.rint((xs - self.origin[0]) / CELL).astype(int), 0, self.shape[1] - 1)
        rows = np.clip(np.rint((zs - self.origin[1]) / CELL).astype(int), 0, self.shape[0] - 1)
        free = labels[rows[:, None], columns[None]] == labels[first]
        return np.stack(np.broadcast_arrays(xs[None], zs[:, None]), axis=-1)[free]

    # --- inside -------------------------------------------------------------------------------------------------------

    def _lower(
        self, middle: np.ndarray, reach: float, box: Optional[int], boxes: Boxes, segment: Optional[np.ndarray]
    ) -> None:
        """Take one obstacle into account, looking only at the cells it may concern."""
        low = np.floor((middle - reach - self.origin) / CELL).astype(int)
        high = np.ceil((middle + reach - self.origin) / CELL).astype(int) + 1
        columns = np.arange(max(low[0], 0), min(high[0], self.shape[1]))
        rows = np.arange(max(low[1], 0), min(high[1], self.shape[0]))
        if not len(rows) or not len(columns):
            return
        x, z = np.meshgrid(self.origin[0] + columns * CELL, self.origin[1] + rows * CELL)
        points = np.stack([x.ravel(), z.ravel()], axis=-1)
        far = segment_distance(points, segment) if segment is not None else boxes.plan_distance(points, np.array([box]))
        window = self.clearance[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        np.minimum(window, far.reshape(window.shape), out=window)

    def _rooms(self, rooms: List[Room]) -> np.ndarray:
        """Which room each cell lies in; -1 is outside."""
        x = self.origin[0] + np.arange(self.shape[1]) * CELL
        z = self.origin[1] + np.arange(self.shape[0]) * CELL
        points = np.stack(np.meshgrid(x, z), axis=-1).reshape(-1, 2)
        number = np.full(len(points), -1, dtype=np.int16)
        for i, room in enumerate(rooms):
            number[in_polygon(points, room.polygon)] = i
        return number.reshape(self.shape)

    def _field(self, radius: float, goal: Tuple[int, int]) -> np.ndarray:
        """Grid steps to the goal from everywhere, from the few that are kept or anew."""
        key = (radius, *goal)
        if key not in self._fields:
            self._fields[key] = _spread(self.clearance >= radius, *goal)
            while len(self._fields) > KEPT:
                self._fields.popitem(last=False)
        self._fields.move_to_end(key)
        return self._fields[key]

    def _pull(self, points: List[Tuple[float, float]], radius: float) -> np.ndarray:
        """Keep only the corners that a taut string would touch."""
        kept, at = [0], 0
        while at < len(points) - 1:
            low, high = at + 1, len(points) - 1
            if self._straight(points[at], points[high], radius):
                low = high
            while low < high:  # the farthest point in sight, by halving: sight is lost once along a path, or nearly so
                middle = (low + high + 1) // 2
                if self._straight(points[at], points[middle], radius):
                    low = middle
                else:
                    high = middle - 1
            kept.append(low)
            at = low
        return np.array([points[i] for i in kept])

    def _straight(self, start: Tuple[float, float], end: Tuple[float, float], radius: float) -> bool:
        """Whether the robot can go straight; the cell it is pulled from counts as free."""
        count = max(int(math.hypot(end[0] - start[0], end[1] - start[1]) / (CELL / 2)), 1)
        share = np.linspace(0.0, 1.0, count + 1)[1:]
        columns = np.rint((start[0] + share * (end[0] - start[0]) - self.origin[0]) / CELL).astype(int)
        rows = np.rint((start[1] + share * (end[1] - start[1]) - self.origin[1]) / CELL).astype(int)
        columns, rows = np.clip(columns, 0, self.shape[1] - 1), np.clip(rows, 0, self.shape[0] - 1)
        return bool((self.clearance[rows, columns] >= radius).all())


def in_polygon(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Which of the points [P, 2] lie inside a polygon [V, 2]: bool [P]."""
    inside = np.zeros(len(points), dtype=bool)
    x, z = points[:, 0], points[:, 1]
    for (x0, z0), (x1, z1) in zip(polygon, np.roll(polygon, -1, axis=0)):
        if z0 != z1:
            inside ^= ((z0 > z) != (z1 > z)) & (x < (x1 - x0) * (z - z0) / (z1 - z0) + x0)
    return inside


def _spread(free: np.ndarray, row: int, column: int) -> np.ndarray:
    """Steps (1, or the square root of 2 across corners) to one cell from every free cell; inf where there is no way.

    Rings of a width of one step: within a ring, the cells that got nearer are looked at again until none does.
    """
    rows, columns = free.shape
    wide = columns + 2
    padded = np.zeros((rows + 2, wide), dtype=bool)
    padded[1:-1, 1:-1] = free
    open_cells = padded.ravel()
    field = np.full(open_cells.size, UNREACHED, dtype=np.float32)
    offsets = (MOVES[:, 0] * wide + MOVES[:, 1])[:, None]
    frontier = np.array([(row + 1) * wide + column + 1])
    field[frontier] = 0.0
    reach = np.float32(0.0)
    while frontier.size:
        near = field[frontier] <= reach
        ring, later = frontier[near], frontier[~near]
        if not ring.size:
            reach = field[frontier].min() + np.float32(1.0)
            continue
        cells = (ring[None] + offsets).ravel()
        values = (field[ring][None] + COSTS[:, None]).ravel()
        better = open_cells[cells] & (values < field[cells] - 1e-4)
        cells, values = cells[better], values[better]
        np.minimum.at(field, cells, values)
        frontier = np.unique(np.concatenate([later, cells]))
    return field.reshape(rows + 2, wide)[1:-1, 1:-1]
