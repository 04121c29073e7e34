"""The toy simulator: what is seen, what is rewarded, how it misbehaves on command."""

import time

import numpy as np
import pytest

from envs.experts import make_expert
from envs.toy import TASKS, Toy
from envs.types import EnvError, ResetNeeded


def play(env, seed, policy):
    obs = env.reset(TASKS[seed % 2], seed)
    while True:
        step = env.step(policy(obs))
        obs = step.obs
        if step.terminated or step.truncated:
            return step


def success_rate(env, episodes, noise=0.0):
    wins = 0
    for seed in range(episodes):
        expert = make_expert(env.spec.env_id, TASKS[seed % 2], noise=noise, seed=seed)
        wins += play(env, seed, expert.act).success
    return wins / episodes


@pytest.mark.parametrize("discrete", [False, True])
def test_expert_always_succeeds_and_chance_rarely(discrete):
    env = Toy(discrete=discrete)
    assert success_rate(env, 200) == 1.0
    assert success_rate(env, 100, noise=0.3) > 0.9
    rng = np.random.default_rng(0)
    low, high = np.array(env.spec.low), np.array(env.spec.high)

    def chance(obs):
        return rng.integers(5, size=1) if discrete else rng.uniform(low, high)

    assert np.mean([play(env, seed, chance).success for seed in range(200)]) < 0.15


def test_going_to_the_wrong_colour_fails():
    env = Toy()
    for seed in range(20):
        env.reset("blue", seed)
        wrong = env.discs["red"].copy()
        for _ in range(env.spec.max_steps):
            step = env.step(np.clip((wrong - env.hand) / 0.15, -1, 1))
            if step.terminated or step.truncated:
                break
        assert step.truncated
        assert not step.terminated


def test_the_instruction_alone_tells_the_target():
    env = Toy()
    red, blue = env.reset("red", 3), env.reset("blue", 3)
    np.testing.assert_array_equal(red.images["top"], blue.images["top"])
    np.testing.assert_array_equal(red.proprio, blue.proprio)
    assert (red.instruction, blue.instruction) == ("reach the red target", "reach the blue target")
    assert not np.allclose(red.privileged["target"], blue.privileged["target"])


def test_picture_shows_discs_where_they_are():
    env = Toy(size=(32, 48))
    env.reset("red", 0)
    env.hand, env.discs["red"], env.discs["blue"] = np.array([0.0, 0.0]), np.array([-0.5, 0.75]), np.array([0.5, -0.75])
    image = env.render()["top"].astype(int)
    redness = (image[..., 0] - image[..., 2] > 100).nonzero()
    blueness = (image[..., 2] - image[..., 0] > 100).nonzero()
    # y points up and row 0 is on top: red is at the upper left
    np.testing.assert_allclose([redness[0].mean(), redness[1].mean()], [32 / 8 - 0.5, 48 / 4 - 0.5], atol=0.6)
    np.testing.assert_allclose([blueness[0].mean(), blueness[1].mean()], [32 * 7 / 8 - 0.5, 48 * 3 / 4 - 0.5], atol=0.6)


def test_hand_camera_follows_the_hand():
    env = Toy(cameras=["top", "hand"])
    obs = env.reset("red", 0)
    assert list(obs.images) == list(env.spec.cameras) == ["top", "hand"]
    assert (obs.images["hand"][15:17, 15:17] == 240).all()
    assert Toy(cameras={"hand": (16, 24)}).reset("red", 0).images["hand"].shape == (16, 24, 3)


def test_progress_rises_to_near_one():
    env = Toy()
    obs = env.reset("red", 5)
    assert obs.privileged["progress"] == 0.0
    expert = make_expert("toy/reach", "red")
    seen = [0.0]
    while env.running:
        obs = env.step(expert.act(obs)).obs
        seen.append(float(obs.privileged["progress"]))
    assert (np.diff(seen) >= -1e-9).all()
    assert seen[-1] > 0.95


def test_refusals():
    with pytest.raises(EnvError, match="expected 'reach'"):
        Toy(name="run")
    with pytest.raises(EnvError, match="cameras"):
        Toy(cameras=["side"])
    env = Toy(max_steps=2)
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(2))
    with pytest.raises(EnvError, match="no task 'green'"):
        env.reset("green", 0)
    env.reset("red", 0)
    with pytest.raises(EnvError, match="'dy' = 1.5 is outside"):
        env.step(np.array([0.0, 1.5]))
    env.step(np.zeros(2))
    assert env.step(np.zeros(2)).truncated
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(2))
    env.close()
    env.close()
    with pytest.raises(EnvError, match="after close"):
        env.reset("red", 0)


def test_faults_on_command():
    env = Toy(nan_at=1, black_at=2, fault_seed=7)
    assert np.isfinite(env.reset("red", 7).proprio).all()
    step = env.step(np.zeros(2))
    assert np.isnan(step.obs.proprio).all()
    assert step.obs.images["top"].any()
    assert not env.step(np.zeros(2)).obs.images["top"].any()
    env.reset("red", 8)
    assert all(np.isfinite(env.step(np.zeros(2)).obs.proprio).all() for _ in range(3))


def test_speed():
    env = Toy(max_steps=10**9)
    env.reset("red", 0)
    best = min(_time(env) for _ in range(5))  # the best of five: the machine may be busy
    assert best < 0.2e-3
    slow = Toy(step_ms=5.0)
    slow.reset("red", 0)
    start = time.perf_counter()
    slow.step(np.zeros(2))
    assert time.perf_counter() - start >= 5e-3


def _time(env, steps=200):
    start = time.perf_counter()
    for _ in range(steps):
        env.step(np.zeros(2))
    return (time.perf_counter() - start) / steps


def test_stills_are_shown_in_turn_and_change_nothing_else() -> None:
    plain, still = Toy(), Toy(stills=3)
    first = [toy.reset("red", 5) for toy in (plain, still)]
    np.testing.assert_array_equal(first[0].proprio, first[1].proprio)
    seen = []
    for _ in range(6):
        a, b = (toy.step(np.array([0.3, -0.2])) for toy in (plain, still))
        np.testing.assert_array_equal(a.obs.privileged["state"], b.obs.privileged["state"])
        seen.append(b.obs.images["top"])
    np.testing.assert_array_equal(seen[:3], seen[3:])
    assert len({image.tobytes() for image in seen}) == 3
