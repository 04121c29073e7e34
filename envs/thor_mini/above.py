"""The house seen straight from above, without perspective and without a ceiling: floors, walls, bodies, the robot.

Needs numpy alone; Python 3.8 syntax.
"""

from __future__ import annotations

from typing import Tuple

import numpy as np

from envs.thor_mini.nav import in_polygon
from envs.thor_mini.scene import Camera, Frame, Scene
from envs.thor_mini.solids import Boxes, segment_distance

OUTSIDE, WALL, ROBOT = (30, 30, 30), (250, 250, 250), (230, 40, 40)
WALL_WIDTH = 0.08  # metres
ROBOT_RADIUS = 0.2  # metres


def draw_from_above(
    scene: Scene, segments: np.ndarray, boxes: Boxes, robot: Tuple[float, float], camera: Camera, across: float,
    shape: Tuple[int, int],
) -> Frame:  # fmt: skip
    """A picture `across` metres high, centred below the camera; its upper edge is where the camera's yaw points.

    `segments` are those of walls, `boxes` those of the scene's bodies, `robot` is x and z, m, and `shape` (Y, X)."""
    points, pixel = _points(camera, across, shape)
    rgb = np.empty((len(points), 3), dtype=np.uint8)
    rgb[:] = OUTSIDE
    height = np.zeros(len(points), dtype=np.float32)
    ids = np.full(len(points), -1, dtype=np.int32)
    for room in scene.rooms:
        rgb[in_polygon(points, room.polygon)] = room.colour
    for segment in segments:
        near = segment_distance(points, segment[None])[:, 0] <= max(WALL_WIDTH / 2, pixel / 2)
        rgb[near], height[near] = WALL, scene.ceiling
    for i in np.argsort(boxes.top(), kind="stable"):
        inside = np.flatnonzero(boxes.plan_distance(points, np.array([i]))[:, 0] <= 0.0)
        inside = inside[height[inside] <= boxes.top()[i]]
        rgb[inside], ids[inside] = scene.bodies[i].colours[0], i
        height[inside] = boxes.top()[i]
    here = np.hypot(points[:, 0] - robot[0], points[:, 1] - robot[1]) <= max(ROBOT_RADIUS, pixel)
    rgb[here], ids[here] = ROBOT, -1
    depth = (camera.position[1] - height).astype(np.float32)
    return Frame(rgb.reshape(*shape, 3), depth.reshape(shape), ids.reshape(shape))


def _points(camera: Camera, across: float, shape: Tuple[int, int]) -> Tuple[np.ndarray, float]:
    """Where the pixels lie on the floor [P, 2], row 0 on top, and the side of a pixel in metres."""
    (y, x), pixel = shape, across / shape[0]
    right = (np.arange(x) + 0.5 - x / 2) * pixel
    up = (y / 2 - np.arange(y) - 0.5) * pixel
    u, v = (a.ravel() for a in np.meshgrid(right, up))
    turn = np.radians(camera.yaw)
    sin, cos = np.sin(turn), np.cos(turn)
    places = camera.position[0] + u * cos + v * sin, camera.position[2] - u * sin + v * cos
    return np.stack(places, axis=-1), pixel
