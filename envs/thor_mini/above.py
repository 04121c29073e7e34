"""The house seen straight from above, without perspective and without a ceiling: floors, walls, bodies, the robot.

Needs numpy alone; Python 3.8 syntax.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Tuple

import numpy as np

from envs.thor_mini.nav import in_polygon
from envs.thor_mini.scene import Camera, Frame
from envs.thor_mini.solids import segment_distance

if TYPE_CHECKING:
    from envs.thor_mini.world import World

OUTSIDE, WALL, ROBOT = (30, 30, 30), (250, 250, 250), (230, 40, 40)
WALL_WIDTH = 0.08  # metres
ROBOT_RADIUS = 0.2  # metres


def draw_from_above(world: World, camera: Camera, across: float) -> Frame:
    """A picture `across` metres high, centred below the camera; its upper edge is where the camera's yaw points."""
    points, pixel = _points(world, camera, across)
    shape = (world.height, world.width)
    rgb = np.empty((len(points), 3), dtype=np.uint8)
    rgb[:] = OUTSIDE
    height = np.zeros(len(points), dtype=np.float32)
    ids = np.full(len(points), -1, dtype=np.int32)
    for room in world.scene.rooms:
        rgb[in_polygon(points, room.polygon)] = room.colour
    for segment in world.segments:
        near = segment_distance(points, segment[None])[:, 0] <= max(WALL_WIDTH / 2, pixel / 2)
        rgb[near], height[near] = WALL, world.scene.ceiling
    for i in np.argsort(world.boxes.top(), kind="stable"):
        inside = np.flatnonzero(world.boxes.plan_distance(points, np.array([i]))[:, 0] <= 0.0)
        inside = inside[height[inside] <= world.boxes.top()[i]]
        rgb[inside], ids[inside] = world.scene.bodies[i].colours[0], i
        height[inside] = world.boxes.top()[i]
    here = np.hypot(points[:, 0] - world.base.x, points[:, 1] - world.base.z) <= max(ROBOT_RADIUS, pixel)
    rgb[here], ids[here] = ROBOT, -1
    depth = (camera.position[1] - height).astype(np.float32)
    return Frame(rgb.reshape(*shape, 3), depth.reshape(shape), ids.reshape(shape))


def _points(world: World, camera: Camera, across: float) -> Tuple[np.ndarray, float]:
    """Where the pixels lie on the floor [P, 2], row 0 on top, and the side of a pixel in metres."""
    pixel = across / world.height
    right = (np.arange(world.width) + 0.5 - world.width / 2) * pixel
    up = (world.height / 2 - np.arange(world.height) - 0.5) * pixel
    u, v = (a.ravel() for a in np.meshgrid(right, up))
    turn = np.radians(camera.yaw)
    sin, cos = np.sin(turn), np.cos(turn)
    x = camera.position[0] + u * cos + v * sin
    z = camera.position[2] - u * sin + v * cos
    return np.stack([x, z], axis=-1), pixel
