"""The arm in pictures: where the arm's geometry says that the hand is, and in front of what is behind it."""

from dataclasses import replace

import numpy as np
import pytest

from envs.thor_mini.arm import Arm, Base, hand_centre, to_world
from envs.thor_mini.arm_look import arm_poses
from envs.thor_mini.render import Renderer, directions
from envs.thor_mini.scene import Camera
from tests.thor_parts import two_rooms

W, H = 160, 96


def look(base: Base, arm: Arm | None):
    """What the manipulation camera sees; no bodies are in the house."""
    camera = Camera(to_world(base, 0.06, 1.42, -0.06), base.yaw + 90.0, 33.0, 59.0)
    renderer = Renderer(replace(two_rooms(), bodies=[]), W, H)
    poses = None if arm is None else arm_poses(base, arm)
    return camera, renderer.draw(camera, np.zeros((0, 3)), np.zeros(0), arm=poses)


def pixel(camera: Camera, point: np.ndarray) -> tuple[float, float]:
    right, up, forward = directions(camera.yaw, camera.pitch)
    away = point - camera.position
    focal = 0.5 * H / np.tan(np.radians(camera.fov) / 2)
    return H / 2 - focal * (away @ up) / (away @ forward), W / 2 + focal * (away @ right) / (away @ forward)


@pytest.mark.parametrize("yaw", [0.0, 123.0])
@pytest.mark.parametrize("arm", [Arm(lift=1.0), Arm(lift=0.9, extension=0.4), Arm(lift=0.9, extension=0.3, wrist=-60)])
def test_the_hand_is_seen_where_it_is(yaw: float, arm: Arm) -> None:
    base = Base(2.0, 2.0, yaw)
    camera, without = look(base, None)
    _, seen = look(base, arm)
    changed = (seen.rgb != without.rgb).any(-1)
    assert 20 < changed.sum() < W * H / 4
    assert (seen.depth[changed] < without.depth[changed]).all()
    assert (seen.ids[changed] == -1).all()
    row, column = pixel(camera, hand_centre(base, arm))
    rows, columns = np.nonzero(changed)
    assert np.hypot(rows - row, columns - column).min() < 6
    orange = (seen.rgb[..., 0].astype(int) - seen.rgb[..., 2] > 60) & changed
    assert np.hypot(np.nonzero(orange)[0].mean() - row, np.nonzero(orange)[1].mean() - column) < 16


def test_the_telescope_has_no_gaps() -> None:
    base = Base(2.0, 2.0, 0.0)
    _, without = look(base, None)
    _, seen = look(base, Arm(lift=0.9, extension=0.52))
    rows = np.nonzero((seen.rgb != without.rgb).any(-1).any(1))[0]
    assert len(rows) == rows[-1] - rows[0] + 1
