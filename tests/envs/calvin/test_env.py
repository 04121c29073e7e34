"""The adapter: environment laws in every mode, bad input, chains as episodes, and a child's death."""

import re

import numpy as np
import pytest

from envs.calvin.chains import official_chain
from envs.calvin.instructions import INSTRUCTIONS
from envs.check import check_vector
from envs.types import EnvConfig, EnvError
from envs.vector import SimVector
from tests.calvin_parts import INTERPRETER, need_calvin, run
from tests.golden_files import golden, golden_json

pytestmark = [pytest.mark.sim, pytest.mark.usefixtures("calvin")]
SMALL = {"rgb_static": [32, 32], "rgb_gripper": [16, 16]}
STAY = np.array([[0.0] * 6 + [1.0]])


@pytest.fixture(scope="module")
def calvin():
    need_calvin()


def config(**sim):
    sim = {"_target_": "envs.calvin.env.Calvin", "cameras": SMALL, **sim}
    return EnvConfig(sim=sim, python=INTERPRETER, step_deadline_s=300.0, open_deadline_s=300.0)


@pytest.fixture
def vector():
    made = []

    def make(**sim):
        made.append(SimVector([config(**sim)], max_chunk=64))
        return made[-1]

    yield make
    for one in made:
        one.close()


def ask(vector, request, *args, **kwargs):
    getattr(vector, request)(0, *args, **kwargs)
    vector.wait()
    return vector.take(0)


@pytest.mark.parametrize(
    "settings",
    ["", "name='A'", "protocol='chains'", "name='B', actions='absolute'", "name='C', actions='joint_relative'",
     "actions='joint_absolute'"],
)  # fmt: skip
def test_keeps_the_environment_laws(settings):
    code = (
        "import json\nfrom envs.calvin.env import Calvin\nfrom envs.check import check_env\n"
        f"print(json.dumps(check_env(Calvin(max_steps=4, cameras={SMALL}, {settings}))))"
    )
    laws = run("-c", code)
    assert {"seeded reset", "step before reset", "action bounds", "rendering", "end of episode"} <= set(laws)


def test_a_killed_child_loses_one_episode():
    laws = check_vector(SimVector([config(max_steps=8)] * 2, max_chunk=4))
    assert laws == ["final observation", "kill -9 loses one episode", "close twice"]


def test_spec_and_observation(vector):
    v = vector(cameras={"rgb_static": [200, 200], "rgb_gripper": [84, 84]})
    spec = v.env_spec
    assert (spec.env_id, spec.max_steps, spec.control_hz, len(spec.tasks)) == ("calvin/D", 360, 30.0, 31)
    assert spec.actions == ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
    assert spec.action_convention == "calvin_relative"
    obs = ask(v, "send_reset", "open_drawer", 3).obs
    assert obs.instruction == INSTRUCTIONS["open_drawer"]
    assert {name: image.shape for name, image in obs.images.items()} == {
        "rgb_static": (200, 200, 3),
        "rgb_gripper": (84, 84, 3),
    }
    assert np.array_equal(obs.proprio, obs.privileged["robot_obs"].astype(np.float32))
    assert obs.privileged["scene_obs"][1] == 0.0
    assert 0.0 <= float(obs.privileged["progress"]) < 1.0


def test_a_recorded_chain_is_five_rewards(vector):
    """Chain 279 of the benchmark, solved by recorded actions: each task at its recorded step, with its sentence."""
    subtasks = golden_json("calvin/oracle.json")["trajectories"]["traj_D_chain279.npz"]["chain"]["subtasks"]
    with np.load(golden("calvin/traj_D_chain279.npz"), allow_pickle=False) as data:
        assert {str(data["op_names"][i]) for i in data["op"][1:]} == {"rel"}
        actions = data["arg"][1:, :7]
        last = data["robot_obs"][-1]
    assert [subtask["task"] for subtask in subtasks] == official_chain(279)[1]
    v = vector(protocol="chains", actions="relative")
    bound = np.abs(actions[:, :6]).max()
    assert bound <= 1.0, "the recording moves further than one unit a step"
    arrival, done, ends = ask(v, "send_reset", "chain", 279), 0, []
    assert arrival.obs.instruction == INSTRUCTIONS[subtasks[0]["task"]]
    while not (arrival.terminated or arrival.truncated):
        arrival = ask(v, "send_step", actions[done : done + 64])
        done += arrival.executed
        if arrival.rewards.sum():
            ends.append(done)
            assert arrival.rewards[-1] == arrival.rewards.sum() == 1.0
            assert arrival.renewed != arrival.terminated
        if arrival.renewed:
            assert arrival.obs.instruction == INSTRUCTIONS[subtasks[len(ends)]["task"]]
    assert ends == [subtask["success_row"] for subtask in subtasks]
    assert arrival.success
    assert np.abs(arrival.obs.privileged["robot_obs"] - last)[:14].max() < 1e-3  # blocks were loaded elsewhere


def test_a_chain_ends_with_the_first_task_that_is_late(vector):
    v = vector(protocol="chains", max_steps=5)
    ask(v, "send_reset", "chain", 0)
    arrival = ask(v, "send_step", np.repeat(STAY, 20, axis=0))
    assert (arrival.executed, arrival.terminated, arrival.success) == (5, True, False)
    assert arrival.rewards.sum() == 0


def test_a_chain_of_ones_own_is_a_task():
    """Its tasks pay 1 each and share the progress; it is a success when all are done."""
    name = "turn_on_led_then_move_slider_left"
    code = (
        "import json\nfrom envs.calvin.env import Calvin\nfrom envs.experts import make_expert\n"
        "env = Calvin(max_steps=60, cameras={'rgb_static': None}, chains=[['turn_on_led', 'move_slider_left']])\n"
        f"obs, expert, rows = env.reset({name!r}, 3), make_expert('calvin/D', {name!r}), []\n"
        "expert.reset(obs)\n"
        "while True:\n    step = env.step(expert.act(obs))\n    obs = step.obs\n"
        "    rows.append([step.reward, float(obs.privileged['progress']), obs.instruction])\n"
        "    if step.terminated or step.truncated: break\n"
        f"env.reset({name!r}, 3)\nstay, late = [0.0] * 6 + [1.0], 0\n"
        "while True:\n    last, late = env.step(stay), late + 1\n    if last.terminated or last.truncated: break\n"
        "print(json.dumps({'rows': rows, 'success': step.success, 'late': [late, last.terminated, last.truncated],"
        " 'steps': env.spec.max_steps, 'tasks': env.spec.tasks, 'cameras': env.spec.cameras}))"
    )
    found = run("-c", code)
    rewards, progress, said = zip(*found["rows"], strict=True)
    first = rewards.index(1.0)
    assert sum(rewards) == 2
    assert found["success"]
    assert said[first - 1 : first + 1] == (INSTRUCTIONS["turn_on_led"], INSTRUCTIONS["move_slider_left"])
    assert max(progress[:first]) < 0.5 <= progress[first] < progress[-2] < progress[-1] == 1.0
    assert found["late"] == [60, True, False]
    assert (found["steps"], found["tasks"][-1], found["cameras"]) == (120, name, {})  # a camera that is None is none


def test_training_chains_start_elsewhere(vector):
    v = vector(protocol="chains")
    starts = [ask(v, "send_reset", "chain", seed).obs.privileged["scene_obs"].copy() for seed in (1000, 1000, 1001)]
    assert np.array_equal(starts[0], starts[1])
    assert not np.array_equal(starts[0], starts[2])


def test_an_episode_repeats_to_the_bit_after_others(vector):
    v = vector(cameras={})
    actions = np.random.default_rng(0).uniform(-1, 1, (64, 7))

    def play(seed):
        ask(v, "send_reset", "lift_red_block_table", seed)
        return ask(v, "send_step", actions).obs.privileged["state"].copy()

    first = play(7)
    play(8)
    assert np.array_equal(play(7), first)


def test_the_gripper_opens_by_sign_or_is_refused(vector):
    v = vector(cameras={})
    ask(v, "send_reset", "open_drawer", 0)
    commands = []
    for value in (0.2, -0.7, 0.0):
        action = STAY.copy()
        action[0, 6] = value
        commands.append(float(ask(v, "send_step", action).obs.privileged["robot_obs"][14]))
    assert commands == [1.0, -1.0, -1.0]
    strict = vector(cameras={}, gripper="exact")
    ask(strict, "send_reset", "open_drawer", 0)
    with pytest.raises(EnvError, match=r"gripper command is 0; expected exactly 1 \(open\) or -1 \(close\)"):
        ask(strict, "send_step", action)
    assert ask(strict, "send_step", STAY).executed == 1


@pytest.mark.parametrize(
    ("sim", "message"),
    [
        ({"name": "E"}, "scene 'E' is unknown; expected one of A, B, C, D"),
        ({"protocol": "play"}, "protocol 'play' is unknown; expected one of single, chains"),
        ({"protocol": "chains", "name": "A"}, "chains are for scene D, not A"),
        ({"actions": "torque"}, "actions 'torque' is unknown"),
        ({"cameras": {"top": [8, 8]}}, "no camera 'top'; expected some of rgb_static, rgb_gripper"),
        ({"max_steps": 0}, "max_steps = 0; expected at least 1"),
        ({"renderer": "gl"}, "no renderer 'gl'; expected one of exact, fast, egl"),
        ({"chains": [["open_drawer"]]}, "['open_drawer'] is no chain; expected a list of at least two tasks"),
        ({"chains": [["open_drawer", "jump"]]}, "task 'jump' is unknown"),
        ({"chains": [["open_drawer", "close_drawer"]]}, "the chain open_drawer, close_drawer can be begun nowhere"),
        ({"chains": [["turn_on_led", "open_drawer"]], "protocol": "chains"}, "need protocol: single"),
    ],
)
def test_bad_settings_are_refused(vector, sim, message):
    with pytest.raises(EnvError, match=re.escape(message)):
        vector(**sim)


def test_unknown_tasks_and_missing_data_are_named(vector, monkeypatch, tmp_path):
    v = vector(cameras={})
    with pytest.raises(EnvError, match="unknown task 'open_draw'.*for example 'open_drawer'"):
        ask(v, "send_reset", "open_draw", 0)
    monkeypatch.setenv("CALVIN_DATA", str(tmp_path))
    with pytest.raises(EnvError, match="CALVIN_DATA=.*has no franka_panda.*git clone"):
        vector()


def test_an_arm_that_leaves_the_only_picture_is_no_stuck_renderer(vector):
    """To the left, where the fixed camera does not look: the picture stays, and the episode goes on."""
    v = vector(cameras={"rgb_static": [32, 32]}, renderer="fast")
    ask(v, "send_reset", "turn_on_led", 1)
    left = np.array([[-1.0] + [0.0] * 5 + [1.0]] * 8)
    seen = []
    for _ in range(9):
        a = ask(v, "send_step", left)
        assert a.kind == "step", a.failure
        seen.append((v._rows[0].child.reply["unseen"], a.obs.images["rgb_static"].tobytes(), a.obs.proprio.copy()))
    assert not seen[0][0]
    last = seen[-4:]
    assert all(unseen for unseen, _, _ in last)
    assert len({picture for _, picture, _ in last}) == 1
    assert np.abs(last[-1][2] - last[0][2])[7:14].max() > 0.05  # the arm did move
