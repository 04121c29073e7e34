"""The Gymnasium face: check_env is clean, ids resolve, failures truncate, and importing envs stays light."""

import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
import envs.gym_env
from envs.types import EnvError, ResetNeeded


@pytest.fixture
def make():
    made = []

    def build(*args, **kwargs):
        made.append(envs.make(*args, **kwargs))
        return made[-1]

    yield build
    for env in made:
        env.close()


@pytest.mark.parametrize("env_id", ["toy/reach", "toy/reach_discrete:blue"])
def test_gymnasium_checker_has_nothing_to_say(make, env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(env_id, render_mode="rgb_array", cameras=["top", "hand"]))


def test_registered_ids_make_the_same_environment(make):
    ours = make("toy/reach")
    theirs = gymnasium.make("Temper/Toy-v0")
    for env in (ours, theirs):
        env.action_space.seed(0)
    a, b = ours.reset(seed=4)[0], theirs.reset(seed=4)[0]
    np.testing.assert_array_equal(a["images"]["top"], b["images"]["top"])
    action = ours.action_space.sample()
    np.testing.assert_array_equal(ours.step(action)[0]["proprio"], theirs.step(action)[0]["proprio"])
    theirs.close()
    assert {"Temper/RobosuiteLift-v0", "Temper/LiberoObject-v0"} <= set(gymnasium.registry)
    vector = gymnasium.make_vec("Temper/Toy-v0", 2, vectorization_mode="vector_entry_point")
    assert isinstance(vector, gymnasium.vector.VectorEnv)
    assert vector.reset(seed=4)[0]["images"]["top"].shape == (2, 32, 32, 3)
    vector.close()


def test_the_same_spec_makes_it_again(make):
    env = make("toy/reach:blue", max_steps=3)
    again = gymnasium.make(env.spec)
    assert again.unwrapped.env_spec == env.env_spec
    assert again.reset(seed=0)[0]["instruction"] == "reach the blue target"
    again.close()


def test_tasks_by_name_index_and_option(make):
    assert make("toy/reach:blue").reset(seed=0)[0]["instruction"] == "reach the blue target"
    env = make("toy/reach:1")
    assert env.reset(seed=0)[1]["task"] == "blue"
    assert env.reset(seed=0, options={"task": "red"})[1]["task"] == "red"
    assert env.reset(seed=0)[1]["task"] == "blue"
    with pytest.raises(EnvError, match="no task 'green'; expected an index below 2 or one of red, blue"):
        env.reset(seed=0, options={"task": "green"})
    with pytest.raises(EnvError, match="no task '2'"):
        envs.make("toy/reach:2")
    vector = envs.make_vector("toy/reach:1", 2, size=(16, 16))
    assert vector.reset(seed=0)[0]["instruction"] == ("reach the blue target",) * 2
    vector.close()
    with pytest.raises(EnvError, match="no task 'green'"):
        envs.make_vector("toy/reach:green", 1)


def test_wrong_ids_and_arguments_are_named():
    with pytest.raises(EnvError, match="'toy' is not an environment id; expected '<simulator>/<name>"):
        envs.make("toy")
    with pytest.raises(EnvError, match="there is no simulator 'maniskill'"):
        envs.make("maniskill/PushT")
    with pytest.raises(EnvError, match="there is no 'fly'; expected 'reach'"):
        envs.make("toy/fly")
    with pytest.raises(EnvError, match="unexpected keyword argument 'colour'"):
        envs.make("toy/reach", colour=1)
    with pytest.raises(EnvError, match="render_mode 'human'"):
        envs.make("toy/reach", render_mode="human")


def test_an_episode(make):
    env = make("toy/reach", max_steps=3)
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(2))
    first, info = env.reset(seed=7)
    assert set(info["privileged"]) == {"hand", "target", "progress", "state"}
    kept = first["proprio"].copy()
    with pytest.raises(EnvError, match="'dx' = 3 is outside"):
        env.step(np.array([3.0, 0.0]))
    ends = [env.step(np.array([0.5, 0.0]))[3] for _ in range(3)]
    assert ends == [False, False, True]
    np.testing.assert_array_equal(first["proprio"], kept)  # a copy, not the simulator's own memory
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(2))
    env.close()
    with pytest.raises(EnvError, match="was closed"):
        env.reset()


def test_reset_without_seed_goes_on_with_new_episodes(make):
    env = make("toy/reach")
    runs = []
    for _ in range(2):
        starts = [env.reset(seed=3)[0]["proprio"], env.reset()[0]["proprio"], env.reset()[0]["proprio"]]
        assert not np.allclose(starts[1], starts[2])
        runs.append(np.stack(starts))
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize(("fault", "cause"), [("crash_at", "crashed"), ("nan_at", "bad_state"), ("hang_at", "hung")])
def test_a_failing_simulator_truncates_and_comes_back(make, fault, cause):
    env = make("toy/reach", fault_seed=5, step_deadline_s=1.0, **{fault: 2})
    env.reset(seed=5)
    before = env.step(np.zeros(2))[0]
    after, reward, terminated, truncated, info = env.step(np.zeros(2))
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["failed"].startswith(cause)
    np.testing.assert_array_equal(after["proprio"], before["proprio"])
    assert env.observation_space.contains(after)
    _, info = env.reset(seed=6)
    assert not info["failed"]
    assert not env.step(np.zeros(2))[4]["failed"]


def test_a_simulator_that_never_resets_is_given_up(make):
    env = make("toy/reach", crash_at=0)
    with pytest.raises(EnvError, match="reset failed 3 times.*SIGKILL"):
        env.reset(seed=0)


def test_render_shows_what_was_observed(make):
    env = make("toy/reach", render_mode="rgb_array", cameras={"top": (32, 32), "hand": (16, 16)})
    with pytest.raises(ResetNeeded):
        env.render()
    obs, _ = env.reset(seed=0)
    picture = env.render()
    np.testing.assert_array_equal(picture[:, :32], obs["images"]["top"])
    np.testing.assert_array_equal(picture[:, -32::2][::2], obs["images"]["hand"])
    assert make("toy/reach").render() is None


def test_importing_envs_imports_neither_gymnasium_nor_a_simulator():
    modules = "sys, envs, envs.toy, envs.check, envs.experts, envs.experts.toy"
    code = f"import {modules}; print(sorted({{'gymnasium', 'mujoco'}} & set(sys.modules)))"
    root = Path(envs.gym_env.__file__).parent.parent
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert out.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'mak'"):
        envs.mak  # noqa: B018
