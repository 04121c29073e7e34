"""What can be seen. Needs numpy alone; Python 3.8 syntax.

Two tests: an object is *visible* in a camera if the picture of object numbers shows enough of it and its box is near
enough to the robot as seen from above; how much of an object is unobstructed is found with rays to points of its faces.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, List

import numpy as np

from envs.thor_mini.scene import Camera
from envs.thor_mini.solids import heading, segment_crossed

if TYPE_CHECKING:
    from envs.thor_mini.world import World

SHARE = 4 / (224 * 396)  # of the picture that must show an object; at least one pixel
GRID = 4  # points along each edge of a face, for rays
BACK_OFF = 1e-3  # of a ray, so that the face itself does not hide its points


def planar_distance(world: World, chosen: np.ndarray) -> np.ndarray:
    """Metres from the middle of the robot to the chosen boxes, seen from above; 0 inside."""
    place = np.array([[world.base.x, world.base.z]])
    return np.maximum(world.boxes.plan_distance(place, chosen)[0], 0.0)


def visible(world: World, camera: int, distance: float) -> List[int]:
    """Indices of the bodies visible in one of the world's cameras within a distance, ascending."""
    count = len(world.scene.bodies)
    if not count:
        return []
    ids = world.frame(camera).ids
    pixels = np.bincount(ids.ravel() + 1, minlength=count + 1)[1:]
    shown = np.flatnonzero(pixels >= max(1.0, SHARE * ids.size))
    return [int(i) for i, far in zip(shown, planar_distance(world, shown)) if far <= distance]


def surface_points(world: World, index: int) -> np.ndarray:
    """Points spread over the six faces of a body: [6 * GRID**2, 3]."""
    along = (np.arange(GRID) + 0.5) / GRID * 2 - 1
    u, v = (a.ravel() for a in np.meshgrid(along, along))
    faces = []
    for axis in range(3):
        for side in (-1.0, 1.0):
            local = np.empty((GRID * GRID, 3))
            local[:, axis], local[:, (axis + 1) % 3], local[:, (axis + 2) % 3] = side, u, v
            faces.append(local)
    return world.boxes.world(index, np.concatenate(faces) * world.boxes.half[index])


def project(world: World, camera: Camera, points: np.ndarray) -> np.ndarray:
    """Where points [P, 3] fall in the picture: [P, 3] of right, up (-1 to 1 inside) and metres ahead."""
    sin, cos = heading(camera.yaw)
    delta = points - camera.position
    right = delta[:, 0] * cos - delta[:, 2] * sin
    level = delta[:, 0] * sin + delta[:, 2] * cos
    pitch = math.radians(camera.pitch)
    ahead = level * math.cos(pitch) - delta[:, 1] * math.sin(pitch)
    up = level * math.sin(pitch) + delta[:, 1] * math.cos(pitch)
    reach = np.maximum(ahead, 1e-6) * math.tan(math.radians(camera.fov) / 2)
    return np.stack([right / (reach * world.width / world.height), up / reach, ahead], axis=-1)


def unhidden(world: World, camera: Camera, index: int) -> np.ndarray:
    """Which of a body's surface points the camera sees: in its picture, nothing in between but, at most, its own
    nearer faces: bool [6 * GRID**2]."""
    points = surface_points(world, index)
    placed = project(world, camera, points)
    seen = (np.abs(placed[:, :2]) <= 1.0).all(-1) & (placed[:, 2] > 0.0)
    loose = np.flatnonzero(world.pickupable)
    for boxes, others in ((world.pieces, np.flatnonzero(world.owners != index)), (world.boxes, loose[loose != index])):
        if len(others):
            seen &= (boxes.entered(camera.position, points, others) > 1.0 - BACK_OFF).all(-1)
    if len(world.segments):
        crossed = segment_crossed(camera.position[[0, 2]], points[:, [0, 2]], world.segments)
        seen &= (crossed > 1.0 - BACK_OFF).all(-1)
    return seen
