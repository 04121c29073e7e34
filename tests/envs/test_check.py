"""The contract checker passes a good adapter, and names the law that a broken one breaks."""

import dataclasses

import numpy as np
import pytest

from envs.check import check_env, check_vector
from envs.toy import Toy
from envs.types import EnvConfig
from envs.vector import SimVector

ALL = {
    "specification",
    "step before reset",
    "unknown task",
    "observation",
    "action bounds",
    "rendering",
    "seeded reset",
    "success implies terminated",
    "end of episode",
    "close twice",
}


@pytest.mark.parametrize("kwargs", [{}, {"discrete": True}, {"cameras": ["top", "hand"], "size": (16, 24)}])
def test_toy_keeps_every_law(kwargs):
    assert set(check_env(Toy(max_steps=10, **kwargs))) == ALL
    assert "end of episode" not in check_env(Toy(max_steps=100, **kwargs), steps=5)


def change_spec(env, **fields):
    env.spec = dataclasses.replace(env.spec, **fields)


def change_step(env, **fields):
    """Every step comes out with some fields changed; values may be functions of the step."""
    step = env.step

    def changed(action, render=True):
        out = step(action, render)
        return dataclasses.replace(out, **{k: v(out) if callable(v) else v for k, v in fields.items()})

    env.step = changed


def change_obs(env, **fields):
    """Every observation comes out with some fields changed."""
    observe = env._observe

    def changed(render):
        obs = observe(render)
        return dataclasses.replace(obs, **{k: v(obs) for k, v in fields.items()})

    env._observe = changed


def forget_seed(env):
    reset, rng = env.reset, np.random.default_rng(0)
    env.reset = lambda task, seed: reset(task, int(rng.integers(1000)))


def start_anywhere(env):
    env.running = True
    env.task = "red"


def accept_anything(env):
    step = env.step
    env.step = lambda action, render=True: step(np.clip(action, -1, 1), render)


def run_on(env):
    change_step(env, truncated=False)


def close_once(env):
    close = env.close

    def once():
        assert not env.closed, "closed already"
        close()

    env.close = once


def stale_render(env):
    first = env.render()
    env.render = lambda: {name: np.roll(image, 7, axis=0) for name, image in first.items()}
    change_step(env, obs=lambda s: dataclasses.replace(s.obs, images={"top": first["top"]} if s.obs.images else {}))


@pytest.mark.parametrize(
    ("breaking", "message"),
    [
        (lambda e: change_spec(e, low=(-1.0,)), "'specification': low, high"),
        (lambda e: change_spec(e, tasks=()), "'specification'.*tasks must not be empty"),
        (lambda e: change_obs(e, images=lambda o: {"top": o.images["top"][:16]}), "'top' gave uint8 \\(16, 32, 3\\)"),
        (lambda e: change_spec(e, privileged={}), "privileged state as declared"),
        (lambda e: change_obs(e, images=lambda o: {"top": o.images["top"] / 255.0}), "'images as declared': camera"),
        (lambda e: change_obs(e, images=lambda o: {"top": 0 * o.images["top"]}), "single colour"),
        (lambda e: change_obs(e, proprio=lambda o: o.proprio * np.nan), "'proprioception': not finite"),
        (lambda e: change_obs(e, proprio=lambda o: o.proprio.astype(float)), "'proprioception': float64"),
        (lambda e: change_step(e, success=True), "success implies terminated"),
        (lambda e: change_step(e, reward=float("inf")), "the reward is finite"),
        (lambda e: change_step(e, obs=lambda s: dataclasses.replace(s.obs, images=e.render())), "no images unless"),
        (forget_seed, "the same task and seed repeat"),
        (start_anywhere, "step before reset raises ResetNeeded"),
        (accept_anything, "an action too large is refused"),
        (run_on, "truncated at max_steps"),
        (close_once, "close twice is safe"),
        (stale_render, "render shows the present state"),
    ],
)
def test_each_broken_law_is_named(breaking, message):
    env = Toy(max_steps=10)
    breaking(env)
    with pytest.raises(AssertionError, match=message):
        check_env(env)


def toy_vector(n=2, **kwargs):
    return SimVector([EnvConfig(sim={"_target_": "envs.toy.Toy", "max_steps": 10, **kwargs})] * n, max_chunk=4)


@pytest.mark.parametrize("name", ["reach", "reach_discrete"])
def test_vector_keeps_its_laws(name):
    assert check_vector(toy_vector(name=name)) == ["final observation", "kill -9 loses one episode", "close twice"]


def test_vector_that_resets_at_the_end_is_named():
    vector = toy_vector()
    take = vector.take

    def with_autoreset(i):
        arrival = take(i)
        if i == 1 and (arrival.terminated or arrival.truncated):
            obs = dataclasses.replace(arrival.obs, proprio=np.zeros(2, np.float32))
            arrival = dataclasses.replace(arrival, obs=obs)
        return arrival

    vector.take = with_autoreset
    with pytest.raises(AssertionError, match="true final observation.*proprio by"):
        check_vector(vector)
    vector.close()


def test_vector_of_one_row_cannot_be_checked():
    vector = toy_vector(1)
    with pytest.raises(AssertionError, match="two rows"):
        check_vector(vector)
    vector.close()
