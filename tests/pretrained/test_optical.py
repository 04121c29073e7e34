"""The tracker of pictures: how far a shifted picture moved, what left it, and what it refuses."""

import numpy as np
import pytest

from pretrained.demos.optical import Optical


def scenery(seed: int = 0) -> np.ndarray:
    """Smooth colours [96, 96, 3], so that there is something to follow everywhere."""
    rng = np.random.default_rng(seed)
    rough = rng.uniform(0, 1, (12, 12, 3))
    y, x = np.mgrid[0:96, 0:96] / 96 * 10
    i, j, dy, dx = y.astype(int), x.astype(int), (y % 1)[..., None], (x % 1)[..., None]
    mixed = (rough[i, j] * (1 - dy) + rough[i + 1, j] * dy) * (1 - dx)
    mixed += (rough[i, j + 1] * (1 - dy) + rough[i + 1, j + 1] * dy) * dx
    return (255 * mixed).astype(np.uint8)


def test_points_go_where_the_picture_goes() -> None:
    world = scenery()
    frames = np.stack([world[16 : 16 + 64, 16 - 3 * k : 16 - 3 * k + 64] for k in range(3)])  # to the right, by 3
    points = np.array([[10.0, 10.0], [30.0, 20.0], [40.0, 50.0], [62.0, 30.0]])
    found = Optical()(frames, points)
    expected = points[:3, None] + np.arange(3)[None, :, None] * np.array([3.0, 0.0])
    assert np.abs(found.tracks[:3] - expected).max() < 0.5
    assert found.visible[:3].all()
    np.testing.assert_array_equal(found.tracks[:, 0], points)
    assert found.visible[3].tolist() == [True, False, False]  # it left the picture


def test_what_has_nothing_to_match_is_not_visible_and_bad_input_is_named() -> None:
    frames = np.stack([scenery()[:64, :64], scenery(1)[:64, :64]])  # another place altogether
    columns, rows = np.meshgrid(np.arange(4, 60, 8), np.arange(4, 60, 8))
    found = Optical()(frames, np.stack([columns.ravel(), rows.ravel()], 1))
    assert found.visible[:, 1].mean() < 0.7
    with pytest.raises(ValueError, match="expected uint8"):
        Optical()(frames.astype(float), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="enlarge = 0"):
        Optical(enlarge=0)
