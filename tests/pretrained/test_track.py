"""Episodes played again for their tracks, in a made-up simulator: a board that slides before a camera."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.types import Observation
from envs.vector import Arrival
from pretrained.demos import track
from pretrained.demos.track import Told

SIDE, STEPS, SPEED = 16, 9, 0.05  # pixels, steps, metres to the right per step
FOVY, AWAY = 60.0, 1.0  # degrees; metres from the camera to the board


class Board:
    """Stands for a vector of one simulator."""

    def __init__(self, *, ends_after: int = STEPS, success: bool = True) -> None:
        self.ends_after, self.success, self.step = ends_after, success, 0

    def send_reset(self, row: int, task: str, seed: int) -> None:
        self.step = 0

    def send_step(self, row: int, actions: np.ndarray, render: str) -> None:
        assert render == "last"
        self.step += len(actions)

    def wait(self) -> list[int]:
        return [0]

    def take(self, row: int) -> Any:
        places = np.zeros((4, 12))
        places[:, 3:] = np.eye(3).ravel()
        places[1, :3] = [SPEED * self.step, 0, 0]
        # The camera looks along -z from above; the left half of the picture shows body 0, the right half the board.
        bodies = np.where(np.arange(SIDE) < SIDE // 2, 0, 1) * np.ones((SIDE, 1))
        privileged = {"scene/depth": np.full((SIDE, SIDE), AWAY), "scene/bodies": bodies, "scene/places": places,
                      "scene/camera": np.r_[0, 0, AWAY, np.eye(3).ravel(), FOVY],
                      "progress": np.array([self.step / STEPS]), "state": np.zeros(3)}  # fmt: skip
        frame = np.full((SIDE, SIDE, 3), self.step, np.uint8)
        over = self.step >= self.ends_after
        obs = Observation({"eye": frame}, np.zeros(1, np.float32), "slide", privileged)
        kind = "step" if self.step else "reset"
        return Arrival(kind, obs, np.zeros(1, np.float32), terminated=over, success=over and self.success)


TOLD = Told("slide", 3, np.zeros((STEPS, 2)), True, "slide the board")


def test_points_follow_their_bodies_to_the_last_frame() -> None:
    played = track._play(Board(), TOLD, "eye")  # type: ignore[arg-type]
    assert played.frames[:, 0, 0, 0].tolist() == list(range(STEPS + 1))
    assert played.progress is not None
    assert played.progress.tolist() == pytest.approx(np.linspace(0, 1, STEPS + 1))
    found = track._follow(played, TOLD, 16, 4)
    assert found is not None
    assert found.tracks.shape == (STEPS + 1 - 3, 16, 4, 2)
    start = found.tracks[:, :, 0]
    on_board = start[0, :, 0] > SIDE / 2 - 0.5
    assert on_board.sum() == 8
    pixels = SPEED / AWAY * SIDE / 2 / np.tan(np.radians(FOVY) / 2)
    for t in range(4):
        moved = found.tracks[:, :, t] - start
        np.testing.assert_allclose(moved[:, on_board], np.broadcast_to([t * pixels, 0], (7, 8, 2)), atol=1e-9)
        assert not moved[:, ~on_board].any()
    assert (found.success, found.instruction) == (True, "slide the board")
    assert track._follow(played, TOLD, 16, STEPS + 2) is None


def test_positions_may_lie_apart_and_the_last_moment_be_held() -> None:
    played = track._play(Board(), TOLD, "eye")  # type: ignore[arg-type]
    apart = track._follow(played, TOLD, 16, 4, 2)
    held = track._follow(played, TOLD, 16, 4, 2, True)
    assert apart is not None
    assert held is not None
    assert (len(apart.tracks), len(held.tracks)) == (STEPS + 1 - 2 * 3, STEPS + 1)
    np.testing.assert_array_equal(held.tracks[: len(apart.tracks)], apart.tracks)
    pixels = SPEED / AWAY * SIDE / 2 / np.tan(np.radians(FOVY) / 2)
    on_board = held.tracks[0, :, 0, 0] > SIDE / 2 - 0.5
    moved = (held.tracks - held.tracks[:, :, :1])[:, on_board][..., 0] / pixels
    assert moved[0, 0] == pytest.approx([0, 2, 4, 6])
    assert moved[STEPS - 3, 0] == pytest.approx([0, 2, 3, 3])  # three frames from the last one
    with pytest.raises(ValueError, match="stride = 0"):
        track.track([], Path("out"), camera="eye", stride=0)


def test_a_replay_that_goes_otherwise_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ended after 4 of 9 steps"):
        track._play(Board(ends_after=4), TOLD, "eye")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ends with success False, the episode with True"):
        track._play(Board(success=False), TOLD, "eye")  # type: ignore[arg-type]


def test_files_that_do_not_say_how_they_were_made_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no manifest demos\.json"):
        track.track([tmp_path / "demos.hdf5"], tmp_path / "out", camera="eye", quiet=True)
