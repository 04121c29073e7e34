"""The RLBench adapter over a stand-in for the package: laws, action modes, starts, failures, views, perturbations."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import launch
from envs.check import check_env, check_vector
from envs.experts import make_expert
from envs.rlbench import Rlbench
from envs.rlbench_doctor import LIBRARIES, LIBRARY, PLUGINS, ROOT, examine, lacking
from envs.rlbench_modes import JOINT_HIGH, JOINT_LOW, MODES, make_mode
from envs.types import BadState, EnvConfig, EnvError
from envs.vector import SimVector
from pretrained.genima.spheres import Camera
from pretrained.genima.stats import PANDA_HIGH, PANDA_LOW
from pretrained.importers.genima import genima_env
from tests.rlbench_parts import config, fake_rlbench, sim

pytestmark = [pytest.mark.sim, pytest.mark.usefixtures("fake_rlbench")]
__all__ = ["fake_rlbench"]


def make(**options: Any) -> Rlbench:
    return Rlbench(**{k: v for k, v in sim(**options).items() if k != "_target_"})


def quiet(env: Rlbench) -> np.ndarray:
    """An action that changes nothing: where the joints are."""
    assert env._obs is not None
    return np.append(env._obs.joint_positions, 1.0)


def play(vector: SimVector, row: int = 0, seed: int = 0) -> Any:
    vector.send_reset(row, vector.tasks[0], seed)
    while row not in vector.wait():
        pass
    return vector.take(row)


def act(vector: SimVector, action: Any, row: int = 0) -> Any:
    vector.send_step(row, np.asarray(action, dtype=np.float64)[None])
    while row not in vector.wait():
        pass
    return vector.take(row)


# --- laws ---


@pytest.mark.parametrize("mode", ["joint_position", "joint_velocity", "pose_planning"])
def test_laws_in_one_process(mode: str) -> None:
    laws = check_env(make(action_mode=mode, invalid_action="skip", max_steps=4), steps=5)
    assert {"seeded reset", "rendering", "end of episode", "action bounds", "close twice"} <= set(laws)


def test_laws_of_a_vector() -> None:
    vector = SimVector([config(max_steps=5)] * 2, max_chunk=4)
    assert check_vector(vector) == ["final observation", "kill -9 loses one episode", "close twice"]


def test_it_is_what_the_controllers_of_genima_act_in() -> None:
    env, genima = make(cameras=None), genima_env()
    try:
        for name in ("cameras", "proprio", "actions", "low", "high", "control_hz", "max_steps", "action_convention"):
            ours = {**env.spec.to_json(), "max_steps": 200}
            assert ours[name] == genima.to_json()[name], name
        assert list(env.spec.cameras) == list(genima.cameras)
        assert (*JOINT_LOW, 0.0) == PANDA_LOW
        assert (*JOINT_HIGH, 1.0) == PANDA_HIGH
    finally:
        env.close()


# --- what is seen and done ---


def test_pictures_are_taken_when_they_are_wanted() -> None:
    env = make()
    try:
        task_env = __import__("rlbench.task_environment", fromlist=["x"]).TaskEnvironment
        env.reset("reach_target", 0)
        before = task_env.renders
        env.step(quiet(env), render=False)
        assert task_env.renders == before
        assert env.step(quiet(env)).obs.images["front"].shape == (24, 32, 3)
        assert task_env.renders == before + 2
        env.render()
        assert task_env.renders == before + 4
    finally:
        env.close()


def test_poses_project_to_where_things_are() -> None:
    env = make(cameras={"front": [64, 96], "left_shoulder": [64, 96]}, poses=True, task_state=4, variations=[0])
    try:
        obs = env.reset("reach_target", 1)
        target = obs.privileged["task_state"][:3]
        assert obs.privileged["task_state"][3] == 0
        for name, (y, x) in env.spec.cameras.items():
            camera = Camera(obs.privileged["intrinsics/" + name], obs.privileged["camera/" + name], (y, x))
            column, row, depth = camera.project(target)
            assert depth > 0
            red = obs.images[name].astype(int) @ [2, -1, -1]
            rows, columns = np.nonzero(red > 0.6 * red.max())
            assert abs(columns.mean() + 0.5 - column) < 2, name
            assert abs(rows.mean() + 0.5 - row) < 2, name
            assert abs(columns.mean() + 0.5 - (x - column)) > 3 or abs(column - x / 2) < 3  # not its mirror image
        np.testing.assert_allclose(obs.privileged["gripper_pose"][:3, 3], obs.privileged["eef_pos"])
    finally:
        env.close()


@pytest.mark.parametrize("mode", [m for m in MODES if m != "joint_torque"])
def test_action_modes_move_as_their_names_say(mode: str) -> None:
    env = make(action_mode=mode, invalid_action="skip")
    try:
        first = env.reset("reach_target", 0).privileged
        pose = np.concatenate([first["eef_pos"], first["eef_quat"]])
        aside = np.array([0.0, 0.05, 0.0, 0.0, 0.0, 0.0, 0.0])
        goal = {
            "joint_position": first["joint_pos"] + 0.05,
            "joint_delta": np.full(7, 0.05),
            "joint_velocity": np.full(7, 1.0),
            "pose_planning": pose + aside,
            "pose_ik": pose + aside,
            "pose_planning_delta": np.array([0.0, 0.05, 0.0, 0.0, 0.0, 0.0, 1.0]),
            "pose_ik_delta": np.array([0.0, 0.05, 0.0, 0.0, 0.0, 0.0, 0.5]),  # of length 1 only after the adapter
        }[mode]
        now = env.step(np.append(goal, 1.0)).obs.privileged
        if mode.startswith("joint"):
            np.testing.assert_allclose(now["joint_pos"] - first["joint_pos"], 0.05, atol=1e-9)
        else:
            np.testing.assert_allclose(now["eef_pos"] - first["eef_pos"], [0, 0.05, 0], atol=3e-3)
        assert now["skipped"] == 0
    finally:
        env.close()


def test_torques_are_bounded_by_the_data_sheet() -> None:
    mode = make_mode("joint_torque", "joint")
    assert (mode.high[0], mode.high[6], mode.high[7], mode.low[0]) == (87.0, 12.0, 0.04, -87.0)


def test_a_seed_chooses_variation_and_place() -> None:
    env = make(tasks=["reach_target", "pick_and_lift"])
    try:
        seen = {}
        for seed in range(8):
            obs = env.reset("reach_target", seed)
            assert obs.notes["descriptions"][0] == obs.instruction
            seen[obs.notes["variation"]] = obs.instruction
        assert len(seen) == 3
        assert "red" in seen[0]
        assert env.reset("pick_and_lift", 0).instruction == "pick up the block and lift it"
        with pytest.raises(EnvError, match="unknown task 'pick'"):
            env.reset("pick", 0)
    finally:
        env.close()


def test_shaped_rewards_are_not_success() -> None:
    env = make(shaped_rewards=True)
    try:
        env.reset("reach_target", 0)
        step = env.step(quiet(env), render=False)
        assert step.reward < 0
        assert not step.success
    finally:
        env.close()


def test_the_planner_is_an_expert() -> None:
    """RLBench plans at reset; playing the plan from the same start does the task."""
    env = make(tasks=["pick_and_lift"], live_demos=True, max_steps=60)
    try:
        expert = make_expert("rlbench/panda", "pick_and_lift")
        for seed in (0, 1):
            obs = env.reset("pick_and_lift", seed)
            expert.reset(obs)
            while True:
                step = env.step(expert.act(obs), render=False)
                if step.terminated or step.truncated:
                    break
            assert (step.success, step.reward) == (True, 1.0)
    finally:
        env.close()
    with pytest.raises(EnvError, match="live_demos=true"):
        expert.reset(type(obs)({}, obs.proprio, "", {}))


# --- what goes wrong ---


@pytest.mark.parametrize("mode", ["pose_planning", "pose_ik"])
def test_what_cannot_be_done_ends_the_episode_or_is_skipped(mode: str) -> None:
    far = np.array([0.69, -0.49, 1.59, 0, 0, 0, 1, 1.0])
    for rule in ("end", "skip"):
        env = make(action_mode=mode, invalid_action=rule)
        try:
            env.reset("reach_target", 0)
            step = env.step(far)
            assert (step.terminated, step.success, step.reward) == (rule == "end", False, 0.0)
            assert step.obs.privileged["skipped"] == 1
            assert step.obs.images["front"].any()
            if rule == "skip":
                with pytest.raises(EnvError, match="length 0"):
                    env.step(np.array([0.3, 0, 1.0, 0, 0, 0, 0, 1.0]))
        finally:
            env.close()


def test_starts_that_do_not_fit_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLBENCH_FAKE_PLACE", "45")  # RLBench itself gives up after 40
    env = make()
    try:
        assert env.reset("reach_target", 0).instruction
        monkeypatch.setenv("RLBENCH_FAKE_PLACE", "all")
        with pytest.raises(BadState, match="no start for seed 0 in 5 draws"):
            env.reset("reach_target", 0)
    finally:
        env.close()


@pytest.mark.parametrize(("fault", "cause"), [("crash", "crashed"), ("hang", "hung")])
def test_a_broken_simulator_costs_one_episode(
    fault: str, cause: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RLBENCH_FAKE_FAULT", f"{fault}:2:{tmp_path / 'done'}")
    node = config()
    vector = SimVector([EnvConfig(sim=node.sim, python=node.python, step_deadline_s=4.0, open_deadline_s=120.0)])
    try:
        first = play(vector)
        assert first.obs is not None
        joints = np.append(first.obs.privileged["joint_pos"], 1.0)
        assert act(vector, joints).kind == "step"
        lost = act(vector, joints)
        assert lost.failure is not None
        assert lost.failure.cause == cause
        assert ("SIGSEGV" if fault == "crash" else "'step' within 4 s") in lost.failure.detail
        assert play(vector).kind == "reset"
        assert act(vector, joints).kind == "step"
        assert vector.restarts == 1
    finally:
        vector.close()


def test_simulators_launch_one_after_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLBENCH_FAKE_LAUNCHES", str(tmp_path / "launches"))
    SimVector([config(launch_gap_s=1.0)] * 2).close()
    first, second = sorted(float(line) for line in (tmp_path / "launches").read_text().split())
    assert second - first >= 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "sawyer"}, "robot 'sawyer'"),
        ({"tasks": []}, "at least one task"),
        ({"tasks": ["stack_wine"]}, "no task 'stack_wine'"),
        ({"tasks": ["../evil"]}, "is no task"),
        ({"action_mode": "pose"}, "no arm mode 'pose'"),
        ({"action_mode": "joint_torque"}, "has no JointTorque"),
        ({"gripper_mode": "soft"}, "no gripper mode 'soft'"),
        ({"collision_checking": True}, "only checked in pose modes"),
        ({"delta": 0.0}, "delta is 0.0"),
        ({"workspace": [[0, 0, 0], [1, 1, 0]]}, "two corners"),
        ({"cameras": {"side": [8, 8]}}, "cameras ['side']"),
        ({"proprio": ["joints"]}, "proprio ['joints']"),
        ({"shaped_rewards": True, "tasks": ["pick_and_lift"]}, "have shaped rewards"),
        ({"live_demos": True, "action_mode": "joint_delta"}, "live_demos gives actions"),
        ({"invalid_action": "ignore"}, "invalid_action 'ignore'"),
        ({"demos": "no/such/folder"}, "has no task 'reach_target'"),
        ({"perturb": "object_color"}, "needs targets"),
        ({"perturb": "distractor_object"}, "Colosseum's models"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(EnvError) as found:
        make(**options)
    assert words in str(found.value)


def test_without_the_package_the_error_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "rlbench_fake" not in p])
    monkeypatch.delenv(ROOT, raising=False)
    with pytest.raises(EnvError, match="COPPELIASIM_ROOT: not set") as found:
        make()
    assert "docs/rlbench.md" in str(found.value)


# --- perturbations ---


FACTORS = [
    {"variation": "object_color", "targets": ["target"]},
    {"variation": "light_color"},
    {"variation": "camera_pose"},
    {"variation": "background_texture"},
    {"variation": "table_texture"},
    {"variation": "table_color", "enabled": False},
]


def test_variations_change_pictures_and_are_taken_back() -> None:
    env = make()
    try:
        before = env.reset("reach_target", 3)
        state = before.privileged["state"]
    finally:
        env.close()
    for factor in FACTORS[:5]:
        env = make(perturb=[factor])
        try:
            assert json.loads(env.spec.perturbation)[0]["variation"] == factor["variation"]
            seen = [env.reset("reach_target", seed) for seed in (3, 4, 3)]
            assert np.abs(seen[0].images["front"].astype(int) - before.images["front"]).max() > 20, factor
            np.testing.assert_array_equal(seen[0].images["front"], seen[2].images["front"])
            np.testing.assert_array_equal(seen[0].privileged["state"], state)
            env._vary.restore()
            assert np.abs(env.render()["front"].astype(int) - before.images["front"]).mean() < 0.05  # angles round
            carriers = __import__("pyrep.objects.shape", fromlist=["x"]).Carrier.live
            assert carriers == []
        finally:
            env.close()
    env = make(perturb=[{"variation": "object_color", "targets": ["drawer"]}])
    try:
        with pytest.raises(EnvError, match="no Shape 'drawer'"):
            env.reset("reach_target", 0)
    finally:
        env.close()


# --- doctor ---


def test_doctor_knows_an_installation(tmp_path: Path) -> None:
    folder = tmp_path / "CoppeliaSim_Edu_V4_1_0_Ubuntu20_04"
    folder.mkdir()
    good = {ROOT: str(folder), LIBRARIES: f"/usr/lib{os.pathsep}{folder}", PLUGINS: str(folder)}
    assert len(lacking({})) == 3
    assert len(lacking(good)) == 1  # no library yet
    (folder / LIBRARY).touch()
    assert lacking(good) == []
    newer = tmp_path / "CoppeliaSim_Edu_V4_6_0"
    newer.mkdir()
    (newer / LIBRARY).touch()
    assert any("4.6; PyRep needs 4.1" in text for text in lacking({**good, ROOT: str(newer)}))
    assert any("lacks the folder" in text for text in lacking({**good, LIBRARIES: ""}))
    assert any("is '/elsewhere'" in text for text in lacking({**good, PLUGINS: "/elsewhere"}))
    rows = {name: (text, verdict) for name, text, verdict in examine(config(), good)}
    assert rows["rlbench: rlbench"][1] == "no"  # there, of unknown version
    assert rows["rlbench: pyrep"][1] == "no"
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    broken = EnvConfig(sim=sim(), python=str(tmp_path / "python"))
    assert examine(broken, good)[-1][2] == "BAD"
    assert "does not exist" in examine(EnvConfig(sim=sim(), python="no/python"), good)[-1][1]


def test_doctor_reports_and_checks_the_laws(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["doctor", "env=rlbench", f"env.python={sys.executable}", "env.sim.tasks=[reach_target]",
             "env.sim.max_steps=4", "env.sim.cameras={wrist: [16, 16]}", "env.sim.launch_gap_s=0.0"]  # fmt: skip
    monkeypatch.delenv(ROOT, raising=False)
    assert launch.main(words) == 1  # the variables are missing here, and the stand-in does not need them
    said = capsys.readouterr().out
    assert re.search(r"law: kill -9 loses one episode +ok", said)
    assert "COPPELIASIM_ROOT" in said
    monkeypatch.delenv("PYTHONPATH")
    assert launch.main(words) == 1
    said = capsys.readouterr().out
    assert "rlbench cannot be imported" in said


def test_the_adapter_speaks_to_nothing_but_the_package() -> None:
    """Importing the adapter needs neither RLBench nor MuJoCo."""
    names = "{m.split('.')[0] for m in sys.modules}"
    code = f"import sys; import envs.rlbench; print({{'rlbench', 'pyrep', 'mujoco'}} & {names})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=launch.ROOT,
                          env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})  # fmt: skip
    assert done.stdout.strip() == "set()"
