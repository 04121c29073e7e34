"""A house built by hand, and flat pictures of it, for tests of the AI2-THOR stand-in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from envs.thor_mini.scene import Body, Camera, Frame, Opening, Room, Scene, Wall
from envs.thor_mini.solids import boxes_of, heading, segment_crossed, solid_segments
from envs.thor_mini.world import Parts, World

HOUSE = {"rooms": [], "metadata": {"schema": "1.0.0"}}  # what `load` below turns into two rooms
DOOR = (2.0, 3.0)  # z of the doorway's edges


def two_rooms() -> Scene:
    """A kitchen, x 0 to 4, and a bedroom, x 4 to 8, both z 0 to 4, with a doorway at z 2 to 3 of the wall between.

    A table with an apple and a mug on it stands in the kitchen, a bed and a book on the floor in the bedroom.
    """
    opening = Opening("door|1|2", "door", 2.0, 3.0, 0.0, 2.1)
    rooms = [
        Room("room|1", "Kitchen", np.array([[0.0, 0.0], [0.0, 4.0], [4.0, 4.0], [4.0, 0.0]])),
        Room("room|2", "Bedroom", np.array([[4.0, 0.0], [4.0, 4.0], [8.0, 4.0], [8.0, 0.0]])),
    ]
    walls = []
    for number, low in ((1, 0.0), (2, 4.0)):
        high = low + 4.0
        corners = [(low, 0.0), (low, 4.0), (high, 4.0), (high, 0.0)]
        for i in range(4):
            wall = Wall(f"wall|{number}|{i}", f"room|{number}", corners[i], corners[(i + 1) % 4], 2.5)
            walls.append(wall)
    walls[2].openings.append(Opening("door|1|2", "door", 1.0, 2.0, 0.0, 2.1))  # runs from z 4 down to z 0
    walls[4].openings.append(opening)
    bodies = [
        body("DiningTable|1|0", (2.0, 0.35, 1.0), (1.0, 0.7, 0.6), receptacle=True),
        body("Apple|surface|1|1", (1.8, 0.74, 1.15), (0.08, 0.08, 0.08), pickupable=True, parent="DiningTable|1|0"),
        body("Mug|surface|1|2", (2.2, 0.75, 1.15), (0.1, 0.1, 0.1), pickupable=True, parent="DiningTable|1|0"),
        body("Bed|2|3", (7.0, 0.3, 1.0), (1.6, 0.6, 1.8), receptacle=True),
        body("Book|2|4", (5.0, 0.02, 0.6), (0.2, 0.04, 0.15), pickupable=True),
    ]
    return Scene("two_rooms", rooms, walls, bodies, 2.5, start=(2.0, 2.0, 0.0), seed=1)


def body(name: str, position: tuple, size: tuple, *, pickupable: bool = False, **more: Any) -> Body:
    """One object, with a colour of its own."""
    kind = name.split("|")[0]
    red, green, blue = (60 + sum(map(ord, kind * (i + 2))) % 190 for i in range(3))
    return Body(name, kind, f"{kind}_1", np.array(position, dtype=float), np.array(size, dtype=float), 0.0, pickupable,
                colours=((red, green, blue),), fixed=not pickupable, **more)  # fmt: skip


def load(house: dict) -> Scene:
    """The two rooms, whatever the house says."""
    if house["metadata"]["schema"] != "1.0.0":
        raise ValueError(f"house schema {house['metadata']['schema']}; expected 1.0.0")
    return two_rooms()


class Renderer:
    """One ray a pixel, one colour a thing."""

    def __init__(self, scene: Scene, width: int, height: int) -> None:
        self.scene, self.width, self.height = scene, width, height
        self.segments, _ = solid_segments(scene.walls)

    def draw(self, camera: Camera, positions: np.ndarray, yaws: np.ndarray, out: Any = None, arm: Any = None) -> Frame:
        """Boxes, walls up to the ceiling, floor; no robot."""
        boxes = boxes_of(self.scene.bodies)
        for i, (position, yaw) in enumerate(zip(positions, yaws, strict=True)):
            boxes.place(i, position, float(yaw))
        ways = self._ways(camera)
        far = 100.0
        hits = boxes.entered(camera.position, camera.position + ways * far, np.arange(len(self.scene.bodies)))
        walls = segment_crossed(camera.position[[0, 2]], (camera.position + ways * far)[:, [0, 2]], self.segments)
        floor = np.where(ways[:, 1] < 0, -camera.position[1] / np.minimum(ways[:, 1], -1e-9) / far, np.inf)
        all_hits = np.concatenate([hits, walls, floor[:, None]], axis=1)
        nearest = all_hits.argmin(1)
        count = len(self.scene.bodies)
        ids = np.where(nearest < count, nearest, -1).astype(np.int32)
        paint = np.array([b.colours[0] for b in self.scene.bodies] + [(200, 200, 190)] * len(self.segments)
                         + [(120 + self.scene.seed % 50, 90, 60)], dtype=np.uint8)  # fmt: skip
        share = np.minimum(all_hits[np.arange(len(ways)), nearest], 1.0)
        depth = (share * far * (ways @ self._axis(camera))).astype(np.float32)
        rgb = (paint[nearest] * np.clip(1.2 - depth / 12, 0.3, 1.0)[:, None]).astype(np.uint8)
        shape = (self.height, self.width)
        return Frame(rgb.reshape(*shape, 3), depth.reshape(shape), ids.reshape(shape))

    def _axis(self, camera: Camera) -> np.ndarray:
        sin, cos = heading(camera.yaw)
        pitch = math.radians(camera.pitch)
        return np.array([sin * math.cos(pitch), -math.sin(pitch), cos * math.cos(pitch)])

    def _ways(self, camera: Camera) -> np.ndarray:
        sin, cos = heading(camera.yaw)
        pitch = math.radians(camera.pitch)
        right = np.array([cos, 0.0, -sin])
        up = np.array([sin * math.sin(pitch), math.cos(pitch), cos * math.sin(pitch)])
        reach = math.tan(math.radians(camera.fov) / 2)
        x = ((np.arange(self.width) + 0.5) / self.width * 2 - 1) * reach * self.width / self.height
        y = (1 - (np.arange(self.height) + 0.5) / self.height * 2) * reach
        u, v = (a.ravel()[:, None] for a in np.meshgrid(x, y))
        ways = self._axis(camera) + u * right + v * up
        return ways / np.linalg.norm(ways, axis=1, keepdims=True)


PARTS = Parts(load, Renderer)


def make_world(*, width: int = 112, height: int = 64) -> World:
    """A world in the two rooms."""
    return World(PARTS, width, height, two_rooms())
