"""Scripted experts: they succeed, with noise too, and stay inside the action space."""

from importlib.util import find_spec

import numpy as np
import pytest

from envs.experts import candidates, make_expert
from envs.experts.waypoints import CLOSED, OPEN, Waypoint, WaypointScript, held, memo, pick, turn_error
from envs.types import EnvError, Observation

needs_robosuite = pytest.mark.skipif(
    find_spec("robosuite") is None, reason="robosuite is NOT installed in this interpreter"
)


def observe(**privileged):
    state = {"eef_pos": np.zeros(3), "eef_quat": np.array([1.0, 0, 0, 0]), "finger_axis": np.array([0.0, 1, 0])}
    state.update({name: np.asarray(value, dtype=float) for name, value in privileged.items()})
    return Observation(images={}, proprio=np.zeros(9, np.float32), instruction="", privileged=state)


def test_experts_are_found_by_path():
    assert candidates("robosuite/PickPlaceCan")[0] == "envs.experts.can.CanExpert"
    assert type(make_expert("robosuite/Lift", "Lift")).__name__ == "LiftExpert"
    assert type(make_expert("toy/reach", "red")).__name__ == "ToyExpert"
    with pytest.raises(EnvError, match="no scripted expert for 'robosuite/Door'.*envs.experts.door.DoorExpert"):
        make_expert("robosuite/Door", "Door")


def test_act_before_reset_is_refused():
    with pytest.raises(EnvError, match="call reset"):
        make_expert("robosuite/Lift", "Lift").act(observe())


def test_a_script_visits_its_waypoints_and_holds_the_last():
    script = WaypointScript()
    script.start([Waypoint(lambda s: np.array([0.1, 0, 0]), OPEN), Waypoint(lambda s: np.zeros(3), CLOSED)])
    assert script.act(observe())[[0, 6]] == pytest.approx([1.0, OPEN])
    assert script.act(observe(eef_pos=[0.095, 0, 0]))[[0, 6]] == pytest.approx([-1.0, CLOSED])
    for _ in range(100):
        assert script.act(observe(eef_pos=[0.001, 0, 0]))[6] == CLOSED


def test_a_failed_check_starts_again_and_patience_ends():
    script = WaypointScript()
    far = Waypoint(lambda s: np.ones(3), OPEN, patience=3)
    script.start([far, Waypoint(lambda s: np.ones(3), CLOSED, near=0.0, patience=2, check=held("can"))])
    nothing = observe(can_low=[5, 5, 5], can_high=[6, 6, 6])
    grips = [script.act(nothing)[6] for _ in range(7)]
    assert grips == [OPEN] * 3 + [CLOSED] * 2 + [OPEN] * 2


def test_the_hand_does_not_go_down_beside_the_object():
    script = WaypointScript()
    script.start(pick("can", finger=lambda s: np.array([0.0, 1.0, 0.0]))[1:])
    can = {"can_low": [-0.03, -0.03, 0.0], "can_high": [0.03, 0.03, 0.1]}
    assert script.act(observe(eef_pos=[0.06, 0, 0.1], **can))[2] > 0
    assert script.act(observe(eef_pos=[0.01, 0, 0.1], **can))[2] < 0


def test_turning_goes_the_short_way_and_down():
    down = {"eef_quat": np.array([1.0, 0, 0, 0]), "finger_axis": np.array([0.0, 1.0, 0.0])}
    assert turn_error(down, None) == pytest.approx(np.zeros(3))
    assert turn_error(down, np.array([0.1, -1.0, 0.0]))[2] == pytest.approx(np.arctan2(0.1, 1.0), abs=1e-9)
    assert turn_error(down, np.array([-0.1, 1.0, 0.0]))[2] == pytest.approx(np.arctan2(0.1, 1.0), abs=1e-9)
    tilted = {"eef_quat": np.array([np.cos(0.05), 0, 0, np.sin(0.05)]), "finger_axis": np.array([0.0, 1.0, 0.0])}
    assert turn_error(tilted, None)[0] == pytest.approx(np.sin(0.1), abs=1e-6)  # 0.1 rad short of half a turn


def test_memo_keeps_the_first_answer():
    first = memo(lambda state: state["eef_pos"])
    assert first({"eef_pos": np.ones(3)}) == pytest.approx(np.ones(3))
    assert first({"eef_pos": np.zeros(3)}) == pytest.approx(np.ones(3))


def episodes(name, *, noise, seeds):
    """Successes and step counts; every action must be legal, or the adapter raises."""
    from envs.robosuite import Robosuite

    env = Robosuite(name=name, cameras={})
    expert = make_expert(env.spec.env_id, name, noise=noise, seed=1)
    successes, lengths = 0, []
    for seed in seeds:
        obs, steps, done = env.reset(name, seed), 0, False
        expert.reset(obs)
        while not done:
            step = env.step(expert.act(obs), render=False)
            obs, steps, done = step.obs, steps + 1, step.terminated or step.truncated
        successes += step.success
        lengths.append(steps)
    env.close()
    return successes, lengths


@pytest.mark.sim
@needs_robosuite
@pytest.mark.parametrize(("noise", "longest"), [(0.0, 35), (0.3, 80)])
def test_lift_expert_succeeds(noise, longest):
    successes, lengths = episodes("Lift", noise=noise, seeds=range(20))
    assert successes >= (20 if noise == 0 else 19)
    assert max(lengths) <= longest


@pytest.mark.sim
@needs_robosuite
@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_can_expert_succeeds(noise):
    successes, _ = episodes("PickPlaceCan", noise=noise, seeds=range(10))
    assert successes >= (10 if noise == 0 else 9)


@pytest.mark.sim
@needs_robosuite
def test_noise_repeats_with_its_seed_and_spares_the_gripper():
    from envs.robosuite import Robosuite

    env = Robosuite(cameras={})
    obs = env.reset("Lift", 0)
    actions = {}
    for key, noise, seed in (("a", 0.3, 1), ("b", 0.3, 1), ("c", 0.3, 2), ("none", 0.0, 1)):
        expert = make_expert("robosuite/Lift", "Lift", noise=noise, seed=seed)
        expert.reset(obs)
        actions[key] = expert.act(obs)
    env.close()
    assert np.array_equal(actions["a"], actions["b"])
    assert not np.array_equal(actions["a"], actions["c"])
    assert not np.array_equal(actions["a"][:6], actions["none"][:6])
    assert actions["a"][6] == actions["none"][6] == OPEN
