"""Absolute joint positions on robosuite's controller: goals are reached, experts give them, they can be replayed."""

from importlib.util import find_spec

import numpy as np
import pytest

from envs.experts import make_expert
from envs.joint_targets import POSTURE, goals
from envs.types import EnvError

needs_robosuite = pytest.mark.skipif(
    find_spec("robosuite") is None, reason="robosuite is NOT installed in this interpreter"
)


def test_goals_move_the_hand_and_stay_in_range():
    """Six joints that each move the hand along one axis, and a seventh that does not move it."""
    state = {"hand_jacobian": np.eye(6, 7), "joint_pos": np.zeros(7), "joint_range": np.array([[-0.1] * 7, [0.1] * 7])}
    motion = np.array([0.05, 0, -0.02, 0, 0, 0.3])
    found = goals(state, motion, np.zeros(7))
    assert found[:5] == pytest.approx(motion[:5], abs=1e-4)
    assert found[5] == 0.1  # no further than its range
    assert found[6] == 0
    bent = goals(state, np.zeros(6), np.full(7, 0.05))
    assert bent[6] == pytest.approx(POSTURE * 0.05)
    assert bent[:6] == pytest.approx(np.zeros(6), abs=1e-4)  # these would move the hand


@pytest.fixture(scope="module")
def lifts():
    from envs.robosuite import Robosuite

    made = [Robosuite(cameras={}, controller="JOINT_TARGET", core=core) for core in ("fast", "stock")]
    yield made
    for env in made:
        env.close()


@pytest.mark.sim
@needs_robosuite
def test_spec_and_proprioception(lifts):
    env = lifts[0]
    joints = tuple(f"joint_{i}" for i in range(7))
    assert (env.spec.action_convention, env.spec.actions) == ("joint_position", (*joints, "gripper"))
    assert env.spec.proprio == {"gripper_open": "1", **dict.fromkeys(joints, "rad")}
    assert env.spec.low[:7] == pytest.approx([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973], abs=1e-3)
    obs = env.reset("Lift", 0)
    assert obs.proprio[1:] == pytest.approx(obs.privileged["joint_pos"], abs=1e-6)
    assert 0.4 < obs.proprio[0] < 0.6  # the Panda begins with its fingers half open
    wrong = np.append(obs.privileged["joint_pos"], -1.0)
    wrong[3] = 0.5
    with pytest.raises(EnvError, match="joint_3"):
        env.step(wrong)


@pytest.mark.sim
@needs_robosuite
def test_a_goal_is_reached_alike_by_both_cores(lifts):
    ends = []
    for env in lifts:
        goal = np.append(env.reset("Lift", 0).privileged["joint_pos"], -1.0)
        goal[[0, 3, 5]] += (0.2, -0.2, 0.3)
        for _ in range(25):
            obs = env.step(goal, render=False).obs
        assert np.abs(obs.privileged["joint_pos"] - goal[:7]).max() < 0.01
        assert obs.proprio[0] > 0.9
        ends.append(obs.privileged["state"])
    assert np.abs(ends[0] - ends[1]).max() < 1e-6


@pytest.mark.sim
@needs_robosuite
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_expert_lifts_and_its_goals_replay(lifts, noise):
    """Without feedback, from the same start: goals are places, and places are where they were."""
    env = lifts[0]
    for seed in range(4):
        obs, given = env.reset("Lift", seed), []
        expert = make_expert("robosuite/Lift", "Lift", noise=noise, seed=seed)
        expert.reset(obs)
        step = None
        while step is None or not (step.terminated or step.truncated):
            given.append(expert.act(obs))
            step = env.step(given[-1], render=False)
            obs = step.obs
        assert step.success
        env.reset("Lift", seed)
        again = [env.step(action, render=False) for action in given]
        assert again[-1].success
        assert np.array_equal(again[-1].obs.privileged["state"], obs.privileged["state"])


@pytest.mark.sim
@needs_robosuite
def test_arms_of_other_sizes_are_refused():
    from envs.robosuite import Robosuite

    with pytest.raises(EnvError, match="the robot has 6 joints, expected 7; choose robots: Panda"):
        Robosuite(cameras={}, controller="JOINT_TARGET", robots="UR5e")
