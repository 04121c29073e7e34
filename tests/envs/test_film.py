"""A replay shows what happened, with more cameras; one that went otherwise is refused."""

from dataclasses import replace

import numpy as np
import pytest

from envs.film import Film, Take
from envs.toy import Toy
from envs.types import EnvError
from tests.toy_parts import toy

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (10, 2))


def played(**cameras: tuple[int, int]) -> tuple[Take, dict[str, list[np.ndarray]], Toy]:
    """An episode of ten steps, and what these cameras saw of it."""
    env = Toy(size=[16, 16], max_steps=10, cameras={"top": (16, 16), **cameras})
    seen = [env.reset("red", 7)]
    steps = [env.step(a) for a in ACTIONS]
    seen += [s.obs for s in steps]
    assert steps[-1].truncated
    images = {camera: [o.images[camera] for o in seen] for camera in env.spec.cameras}
    return Take("red", 7, ACTIONS, success=False, reward=0.0), images, env


@pytest.mark.parametrize("max_chunk", [1, 4, 16])
def test_every_frame_of_every_camera(max_chunk: int) -> None:
    take, images, env = played(hand=(40, 48))
    config = replace(toy(), video={"hand": (40, 48)})
    with Film(config, Toy(size=[16, 16]).spec, max_chunk=max_chunk) as film:
        assert list(film.cameras.items()) == [("hand", (40, 48)), ("top", (16, 16))]
        for _ in range(2):
            frames = film.play(take)
            for camera in env.spec.cameras:
                np.testing.assert_array_equal(frames[camera], images[camera])


def test_a_camera_of_the_policy_may_be_shown_larger() -> None:
    take, images, _ = played()
    with Film(replace(toy(), video={"top": (64, 64)}), Toy(size=[16, 16]).spec) as film:
        (frames,) = film.play(take).values()
    assert frames.shape == (11, 64, 64, 3)
    assert np.abs(frames[:, ::4, ::4].astype(float) - np.stack(images["top"])).mean() < 20


def test_a_replay_that_goes_otherwise_is_refused() -> None:
    take, _, _ = played()
    with Film(toy(), Toy(size=[16, 16]).spec) as film:
        for wrong in ({"success": True}, {"reward": 1.0}, {"actions": ACTIONS[:9]}, {"actions": ACTIONS.repeat(2, 0)}):
            with pytest.raises(EnvError, match="expected a simulator that repeats itself"):
                film.play(replace(take, **wrong))
        assert film.play(take)["top"].shape[0] == 11


def test_a_simulator_that_dies_is_an_error_and_comes_back() -> None:
    take, _, _ = played()
    with Film(toy(crash_at=3, fault_seed=8), Toy(size=[16, 16]).spec) as film:
        with pytest.raises(EnvError, match="the replay failed \\(crashed"):
            film.play(replace(take, seed=8))
        assert film.play(take)["top"].shape[0] == 11
