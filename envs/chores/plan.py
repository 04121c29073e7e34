"""A house from above: floors by room, furniture, the target, and the way the robot went. Numpy alone; Python 3.8."""

from __future__ import annotations

from typing import Dict, List, Sequence, Tuple

import numpy as np

from envs.chores.houses import Point
from envs.chores.sample import Thing

Colour = Tuple[int, int, int]
FLOORS: Tuple[Colour, ...] = ((226, 218, 204), (204, 218, 226), (214, 226, 204), (226, 204, 216), (220, 220, 196))
OUTSIDE: Colour = (60, 60, 66)
THING: Colour = (168, 160, 150)
TARGET: Colour = (214, 60, 50)
FIRST, LAST = np.array([60.0, 90.0, 220.0]), np.array([250.0, 170.0, 30.0])  # of the way
ROBOT: Colour = (20, 20, 20)
MARGIN = 0.4  # metres
FIXTURES = ("Floor", "Wall", "Ceiling", "Doorway", "Doorframe", "Window")  # not drawn


class Plan:
    """The picture of one house at one size."""

    def __init__(
        self, size: Tuple[int, int], rooms: Dict[str, List[Point]], things: Sequence[Thing], targets: Sequence[str]
    ) -> None:
        corners = np.array([p for polygon in rooms.values() for p in polygon] or [(0.0, 0.0)])
        low, high = corners.min(0) - MARGIN, corners.max(0) + MARGIN
        self.size = size
        self.scale = min(size[1] / (high[0] - low[0]), size[0] / (high[1] - low[1]))  # pixels per metre
        self.centre = (low + high) / 2
        self.base = np.empty((*size, 3), dtype=np.uint8)
        self.base[:] = OUTSIDE
        rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
        x = (columns + 0.5 - size[1] / 2) / self.scale + self.centre[0]
        z = (size[0] / 2 - rows - 0.5) / self.scale + self.centre[1]
        for i, polygon in enumerate(rooms.values()):
            self.base[_within(x, z, polygon)] = FLOORS[i % len(FLOORS)]
        for thing in sorted(things, key=lambda t: (t.object_id in targets, t.centre[1])):
            half = np.maximum(thing.size / 2, 0.04)
            box = (abs(x - thing.centre[0]) <= half[0]) & (abs(z - thing.centre[2]) <= half[2])
            if thing.kind not in FIXTURES:
                self.base[box] = TARGET if thing.object_id in targets else THING

    def draw(self, way: Sequence[np.ndarray], yaw: float) -> np.ndarray:
        """uint8 [Y, X, 3] with the way so far, positions [3] in order, and where the robot looks."""
        image = self.base.copy()
        points = np.array([(p[0], p[2]) for p in way], dtype=np.float64)
        for i in range(len(points) - 1):
            part = i / max(1, len(points) - 2)
            steps = int(np.hypot(*(points[i + 1] - points[i])) * self.scale * 2) + 1
            line = points[i] + np.linspace(0, 1, steps + 1)[:, None] * (points[i + 1] - points[i])
            self._dots(image, line, FIRST + part * (LAST - FIRST), 1)
        ahead = np.array([np.sin(np.radians(yaw)), np.cos(np.radians(yaw))])
        self._dots(image, points[-1] + np.linspace(0, 0.45, 12)[:, None] * ahead, np.array(ROBOT), 0)
        self._dots(image, points[-1:], np.array(ROBOT), 2)
        return image

    def _dots(self, image: np.ndarray, points: np.ndarray, colour: np.ndarray, radius: int) -> None:
        columns = ((points[:, 0] - self.centre[0]) * self.scale + self.size[1] / 2).astype(int)
        rows = (self.size[0] / 2 - (points[:, 1] - self.centre[1]) * self.scale).astype(int)
        for dy in range(-radius, radius + 1):
            for dx in range(-radius, radius + 1):
                y, x = np.clip(rows + dy, 0, self.size[0] - 1), np.clip(columns + dx, 0, self.size[1] - 1)
                image[y, x] = colour


def _within(x: np.ndarray, z: np.ndarray, polygon: Sequence[Point]) -> np.ndarray:
    odd = np.zeros(x.shape, dtype=bool)
    for (x0, z0), (x1, z1) in zip(polygon, [*polygon[1:], polygon[0]]):
        if z0 != z1:
            odd ^= ((z0 > z) != (z1 > z)) & (x < x0 + (z - z0) / (z1 - z0) * (x1 - x0))
    return odd
