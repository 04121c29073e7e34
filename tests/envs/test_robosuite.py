"""The robosuite adapter: numbers and pixels of stock robosuite, the environment laws, two versions side by side."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from benchmarks.untouched import camera_settings, robosuite_task
from envs.check import check_env
from envs.mujoco_arm import Arm, seeded
from envs.robosuite import MODEL_SEED, Robosuite
from envs.types import EnvConfig, EnvError, ResetNeeded

pytestmark = [
    pytest.mark.sim,
    pytest.mark.skipif(find_spec("robosuite") is None, reason="robosuite is NOT installed in this interpreter"),
]
ROOT = Path(__file__).resolve().parents[2]
PYTHON_15 = ROOT / ".venvs" / "robosuite15" / "bin" / "python"
needs_15 = pytest.mark.skipif(
    not PYTHON_15.exists(), reason=f"robosuite 1.5 NOT tested: no {PYTHON_15}; run `launch.py install robosuite15`"
)


@pytest.fixture(scope="module")
def lift():
    env = Robosuite()
    yield env
    env.close()


def random_actions(n, seed=0):
    return np.random.default_rng(seed).uniform(-1.0, 1.0, (n, 7))


def play(env, actions, task="Lift"):
    """States and proprioception along `actions`, from seed 5."""
    first = env.reset(task, 5)
    seen = [np.concatenate([first.privileged["state"], first.proprio])]
    for action in actions:
        obs = env.step(action, render=False).obs
        seen.append(np.concatenate([obs.privileged["state"], obs.proprio]))
    return np.array(seen)


def test_keeps_the_environment_laws():
    laws = check_env(Robosuite(max_steps=12))
    assert {"seeded reset", "step before reset", "action bounds", "end of episode", "close twice"} <= set(laws)


def test_spec_and_observation(lift):
    spec, obs = lift.spec, lift.reset("Lift", 0)
    assert (spec.env_id, spec.tasks, spec.max_steps, spec.control_hz) == ("robosuite/Lift", ("Lift",), 80, 20.0)
    assert spec.actions == ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
    assert (spec.low, spec.high, spec.action_convention) == ((-1.0,) * 7, (1.0,) * 7, "osc_pose_delta")
    assert list(spec.proprio.values()) == ["m"] * 3 + ["1"] * 4 + ["m"] * 2
    assert obs.proprio.shape == (9,)
    assert obs.proprio.dtype == np.float32
    assert np.linalg.norm(obs.proprio[3:7]) == pytest.approx(1.0, abs=1e-5)
    assert list(obs.images) == ["agentview", "robot0_eye_in_hand"]
    for image in obs.images.values():
        assert image.shape == (84, 84, 3)
        assert image.dtype == np.uint8
        assert image.std() > 10  # not black, not one colour
    assert {name: value.shape for name, value in obs.privileged.items()} == spec.privileged
    size = obs.privileged["cube_high"] - obs.privileged["cube_low"]
    assert 0.04 <= size[2] <= 0.044 + 1e-6  # an upright cube of 40 to 44 mm, turned about the vertical
    assert (size[:2] <= size[2] * 2**0.5 + 1e-6).all()


def test_same_seed_same_state_to_the_bit(lift):
    actions = random_actions(20)
    before = play(lift, actions)
    lift.reset("Lift", 99)
    lift.step(np.ones(7), render=False)  # leaves the fingers with a command of their own
    assert np.array_equal(play(lift, actions), before)
    assert not np.array_equal(lift.reset("Lift", 6).privileged["state"], before[0][: lift.spec.privileged["state"][0]])


def test_soft_reset_equals_a_fresh_scene(lift):
    actions = random_actions(20)
    play(lift, random_actions(30, seed=1))
    fresh = Robosuite(cameras={})
    assert np.array_equal(play(lift, actions), play(fresh, actions))
    fresh.close()


def test_soft_reset_equals_stock_hard_reset():
    env = robosuite_task()
    arm = Arm(env, cameras={})
    for action in random_actions(10, seed=2):
        arm.step(action)
    arm.reset(5)
    soft = arm.state()
    hard = robosuite_task()
    hard.hard_reset = True
    load = hard._load_model

    def load_then_seed():  # stock draws the cube's size on each hard reset; keep ours, then place things by the seed
        with seeded(MODEL_SEED):
            load()
        np.random.seed(5)

    hard._load_model = load_then_seed
    with seeded(0):
        hard.reset()
    assert np.array_equal(hard.sim.get_state().flatten(), soft)
    for action in random_actions(10):
        hard.step(action)
        arm.step(action)
        assert np.array_equal(hard.sim.get_state().flatten(), arm.state())


def test_one_forward_pass_equals_stock_stepping():
    actions = random_actions(50)
    env, ours = robosuite_task(), Robosuite(cameras={})
    with seeded(5):
        env.reset()
    seen = play(ours, actions)
    size = ours.spec.privileged["state"][0]
    for action, row in zip(actions, seen[1:], strict=True):
        obs = env.step(action)[0]
        assert np.array_equal(env.sim.get_state().flatten(), row[:size])
        expected = np.concatenate([obs[f"robot0_{k}"] for k in ("eef_pos", "eef_quat", "gripper_qpos")])
        assert np.array_equal(expected.astype(np.float32), row[size:].astype(np.float32))
    ours.close()


def test_exact_pixels_are_stock_pixels_and_fast_ones_resemble_them(lift):
    cameras = ["agentview", "robot0_eye_in_hand"]
    env = robosuite_task(**camera_settings(dict.fromkeys(cameras, (84, 84))))
    fast = Robosuite(render_quality="fast")
    with seeded(5):
        env.reset()
    lift.reset("Lift", 5)
    fast.reset("Lift", 5)
    for action in random_actions(3):
        env.sim._render_context_offscreen.gl_ctx.make_current()  # stock assumes that there is no other
        obs = env.step(action)[0]
        mine, quick = lift.step(action).obs.images, fast.step(action).obs.images
        for camera in cameras:
            assert np.array_equal(mine[camera], obs[f"{camera}_image"][::-1])  # stock rows start at the bottom
            difference = np.abs(mine[camera].astype(int) - quick[camera].astype(int))
            assert 0 < difference.mean() < 12
    fast.close()
    env.sim._render_context_offscreen.gl_ctx.make_current()  # else it frees the framebuffers of the context that is
    env.close()


def test_images_are_the_right_way_up(lift):
    arm = lift._arm
    model, data, sim = arm.model, arm.data, arm.env.sim
    cube, camera = sim.model.get_joint_qpos_addr(arm.env.cube.joints[0])[0], sim.model.camera_name2id("agentview")
    for place in ([0.15, 0.1, 0.83], [0.1, -0.15, 0.83], [-0.02, 0.2, 0.9]):
        lift.reset("Lift", 1)
        state = arm.state()
        state[1 + cube : 4 + cube] = place
        arm.set_state(state)
        x, y, z = data.cam_xmat[camera].reshape(3, 3).T @ (np.array(place) - data.cam_xpos[camera])
        scale = 42 / (np.tan(np.radians(model.cam_fovy[camera]) / 2) * -z)
        expected = np.array([42 - y * scale, 42 + x * scale])
        red, green, blue = np.moveaxis(lift.render()["agentview"].astype(int), -1, 0)
        rows, columns = np.nonzero((red > 60) & (red > 2 * green) & (red > 2 * blue))
        assert len(rows) > 10
        assert np.abs(np.array([rows.mean(), columns.mean()]) - expected).max() < 2.0
        assert np.abs(expected - 41.5).max() > 5.0  # else this would not notice a flipped image


def test_rendering_does_not_move_the_simulation(lift):
    obs = lift.reset("Lift", 4)
    again = lift.render()
    assert all(np.array_equal(obs.images[name], again[name]) for name in again)
    step = lift.step(np.zeros(7), render=False)
    assert step.obs.images == {}
    assert np.array_equal(step.obs.privileged["state"], lift._arm.state())


def test_progress_is_a_potential_that_grows_with_the_cube(lift):
    obs = lift.reset("Lift", 0)
    state = obs.privileged["state"].copy()
    arm, values = lift._arm, []
    cube = 1 + arm.env.sim.model.get_joint_qpos_addr(arm.env.cube.joints[0])[0]
    for height in (0.0, 0.01, 0.018):
        state[cube + 2] = 0.821 + height
        arm.set_state(state)
        values.append(float(lift._privileged(success=False)["progress"][0]))
    assert 0.0 <= values[0] < values[1] < values[2] < 1.0
    assert lift._privileged(success=True)["progress"] == 1.0


def test_dense_reward_is_robosuites_own():
    env = Robosuite(cameras={}, reward_shaping=True)
    env.reset("Lift", 0)
    assert 0.0 < env.step(np.zeros(7), render=False).reward < 1.0
    env.close()


@pytest.mark.parametrize("name", ["PickPlaceCan", "NutAssemblySquare", "Stack", "Door", "Wipe"])
def test_other_tasks_repeat_themselves(name):
    env = Robosuite(name=name, cameras={})
    assert env.spec.tasks == (name,)
    actions = 0.3 * random_actions(10)[:, : env.spec.action_dim]
    assert np.array_equal(play(env, actions, name), play(env, actions, name))
    assert ("goal_pos" in env.spec.privileged) == (name not in ("Door", "Wipe"))
    env.close()


def test_joint_controller_has_its_own_convention():
    env = Robosuite(cameras={}, controller="JOINT_POSITION")
    assert env.spec.action_convention == "joint_delta"
    assert env.spec.action_dim == 8
    before = env.reset("Lift", 0).privileged["joint_pos"]
    action = np.zeros(8)
    action[0] = 1.0
    for _ in range(5):
        after = env.step(action, render=False).obs.privileged["joint_pos"]
    assert after[0] - before[0] > 0.02
    env.close()


def test_refusals(lift):
    with pytest.raises(EnvError, match="no single-arm task 'Lfit'.*Lift"):
        Robosuite(name="Lfit")
    with pytest.raises(EnvError, match="single-arm"):
        Robosuite(name="TwoArmLift")
    with pytest.raises(EnvError, match="controller 'IK'"):
        Robosuite(controller="IK")
    with pytest.raises(EnvError, match="no camera 'wrist'.*agentview"):
        Robosuite(cameras={"wrist": (84, 84)})
    with pytest.raises(EnvError, match="render quality 'best'"):
        Robosuite(render_quality="best")
    lift.reset("Lift", 0)
    with pytest.raises(EnvError, match="'dz' = 1.5 is outside"):
        lift.step(np.array([0, 0, 1.5, 0, 0, 0, 0]))
    with pytest.raises(EnvError, match="'gripper' is not finite"):
        lift.step(np.array([0, 0, 0, 0, 0, 0, np.nan]))


def test_unstable_simulation_is_an_error_and_ends_the_episode(lift, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves its log in the working directory
    lift.reset("Lift", 0)
    lift._arm.data.qpos[0] = np.nan
    with pytest.raises(EnvError, match="unstable|not finite"):
        lift.step(np.zeros(7), render=False)
    with pytest.raises(ResetNeeded):
        lift.step(np.zeros(7), render=False)
    assert np.isfinite(lift.reset("Lift", 0).privileged["state"]).all()


def test_missing_graphics_library_names_the_packages():
    code = (
        "import sys; sys.modules['mujoco.osmesa'] = None\n"
        "from envs.types import EnvError\n"
        "from envs.robosuite import Robosuite\n"
        "try: Robosuite()\n"
        "except EnvError as e: print(e)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env={"MUJOCO_GL": "osmesa"}, check=True
    )
    assert "apt-get install" in done.stdout
    assert "libosmesa6" in done.stdout
    assert done.stderr == ""


@needs_15
@pytest.mark.slow
def test_robosuite_15_in_its_own_interpreter():
    code = (
        "import mujoco, robosuite\n"
        "from envs.check import check_env\n"
        "from envs.experts import make_expert\n"
        "from envs.robosuite import Robosuite\n"
        "assert robosuite.__version__.startswith('1.5'), robosuite.__version__\n"
        "check_env(Robosuite(max_steps=12))\n"
        "env = Robosuite(cameras={}); expert = make_expert('robosuite/Lift', 'Lift')\n"
        "obs = env.reset('Lift', 0); expert.reset(obs); done = False\n"
        "while not done:\n"
        "    step = env.step(expert.act(obs), render=False); obs = step.obs; done = step.terminated or step.truncated\n"
        "print('success', step.success, mujoco.__version__)\n"
    )
    done = subprocess.run(
        [str(PYTHON_15), "-c", code], cwd=ROOT, capture_output=True, text=True, env={"MUJOCO_GL": "osmesa"}, check=False
    )
    assert done.stdout.startswith("success True"), done.stdout + done.stderr
    import mujoco

    assert done.stdout.split()[-1] != mujoco.__version__  # the pins really conflict


@needs_15
@pytest.mark.slow
def test_two_versions_in_one_vector():
    from envs.vector import SimVector

    sim = {"_target_": "envs.robosuite.Robosuite", "cameras": {"agentview": [32, 32]}, "max_steps": 20}
    vector = SimVector([EnvConfig(sim=sim, python=sys.executable), EnvConfig(sim=sim, python=str(PYTHON_15))])
    try:
        starts = {}
        for i in (0, 1):
            vector.send_reset(i, "Lift", 3)
        while len(starts) < 2:
            for i in vector.wait():
                starts[i] = vector.take(i).obs.proprio.copy()
        assert np.abs(starts[0] - starts[1]).max() > 1e-3  # they draw initial states differently
        for i in (0, 1):
            vector.send_step(i, np.zeros((4, 7), np.float32))
        answered = set()
        while len(answered) < 2:
            for i in vector.wait():
                arrival = vector.take(i)
                assert (arrival.kind, arrival.executed) == ("step", 4)
                answered.add(i)
    finally:
        vector.close()
