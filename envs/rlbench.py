"""RLBench: a Panda over a table in CoppeliaSim, behind the package's own Environment and TaskEnvironment.

Needs CoppeliaSim 4.1, PyRep and RLBench in the interpreter of the configuration (docs/rlbench.md). One simulator a
process; processes launch one after another. Pictures are as the package has them, RGB with row 0 on top. `reset` seeds
NumPy's global generator, from which RLBench draws. An action that cannot be done (no path, no inverse kinematics,
outside of the workspace) ends the episode, or is skipped.
"""

from __future__ import annotations

import importlib
import inspect
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from envs.cache import cache_root, locked
from envs.mujoco_arm import seeded
from envs.perturb import read_factors, recorded
from envs.rlbench_files import find_demos
from envs.rlbench_modes import WORKSPACE, make_mode
from envs.rlbench_package import (
    RENDERERS,
    demo_of,
    import_rlbench,
    observation_config,
    poses_of,
    refusals,
    task_class,
)
from envs.rlbench_vary import Variations
from envs.types import BadState, EnvConfig, EnvError, EnvSpec, Observation, ResetNeeded, Step, check_action

CAMERAS = ("wrist", "front", "right_shoulder", "left_shoulder", "overhead")
PROPRIO: Dict[str, Dict[str, str]] = {  # field of RLBench's observation -> our entries and their units
    "gripper_open": {"gripper_open": "1"},
    "joint_positions": {f"joint_{i}": "rad" for i in range(7)},
    "joint_velocities": {f"joint_vel_{i}": "rad/s" for i in range(7)},
    "joint_forces": {f"joint_force_{i}": "N m" for i in range(7)},
    "gripper_pose": {**{f"eef_{a}": "m" for a in "xyz"}, **{f"eef_q{a}": "1" for a in "xyzw"}},
    "gripper_joint_positions": {"finger_0": "m", "finger_1": "m"},
    "gripper_touch_forces": {f"touch_{i}": "N" for i in range(6)},
}
SHAPED = ("reach_target", "take_lid_off_saucepan")  # the tasks with a reward other than success
PLACEMENTS = 5  # draws of a start, each of which RLBench itself tries 40 times
INVALID = ("end", "skip")


class Rlbench:
    """`rlbench/panda`; its tasks are RLBench's, by the names of their files."""

    def __init__(
        self,
        *,
        name: str = "panda",
        tasks: Sequence[str] = ("reach_target",),
        cameras: Optional[Mapping[str, Sequence[int]]] = None,
        action_mode: str = "joint_position",
        gripper_mode: str = "discrete",
        collision_checking: bool = False,
        delta: float = 0.1,
        workspace: Sequence[Sequence[float]] = WORKSPACE,
        proprio: Sequence[str] = ("gripper_open", "joint_positions"),
        variations: Sequence[int] = (),
        demos: str = "",
        live_demos: bool = False,
        max_steps: int = 200,
        shaped_rewards: bool = False,
        invalid_action: str = "end",
        poses: bool = False,
        task_state: int = 0,
        renderer: str = "opengl3",
        headless: bool = True,
        arm_max_velocity: Optional[float] = None,
        arm_max_acceleration: Optional[float] = None,
        launch_gap_s: float = 2.0,
        perturb: Any = "",
    ) -> None:
        """`cameras`: camera -> (Y, X). `variations`: those that seeds choose among, () for all of a task. `demos`: root
        of a dataset, whose stored starts are restored (seed s: demonstration s modulo their number). `live_demos`:
        RLBench plans each episode first, and the notes at reset hold the actions, for `collect`. `task_state`: so many
        entries of the task's state are privileged state. `perturb`: see envs/perturb.py."""
        if name != "panda":
            raise EnvError(f"rlbench: robot '{name}' is not supported; expected 'panda'")
        _check(tasks, proprio, invalid_action=invalid_action, renderer=renderer, shaped=shaped_rewards)
        if live_demos and action_mode != "joint_position":
            raise EnvError(f"rlbench: live_demos gives actions of action_mode joint_position, not '{action_mode}'")
        self._fields, self._invalid, self._poses = tuple(proprio), invalid_action, poses
        self._variations, self._live, self._task_state = tuple(variations), live_demos, int(task_state)
        how = {"collision_checking": collision_checking, "delta": delta, "workspace": workspace}
        self.mode = make_mode(action_mode, gripper_mode, **how)
        self._sizes = _sizes(cameras)
        factors = read_factors(perturb)
        self._vary = Variations(factors, cameras=list(self._sizes))
        self._stored = {t: find_demos(Path(demos).resolve(), t, self._variations) for t in tasks} if demos else {}
        self._rlbench = import_rlbench()
        self._classes = {task: task_class(task) for task in tasks}
        self._config = observation_config(self._sizes, renderer, self._fields, bool(task_state))
        wanted = {"shaped_rewards": shaped_rewards or None, "arm_max_velocity": arm_max_velocity,
                  "arm_max_acceleration": arm_max_acceleration}  # fmt: skip
        self._env: Any = self._launch({k: v for k, v in wanted.items() if v is not None}, headless, launch_gap_s)
        self._task: Any = None
        self._obs: Any = None
        self._task_name, self._running, self._steps, self._skipped = "", False, 0, 0
        self.spec = self._specification(f"rlbench/{name}", tasks, int(max_steps), recorded(factors))

    @staticmethod
    def needs(config: EnvConfig) -> List[Tuple[str, str, str]]:
        """What `launch.py doctor` says of this machine before it starts the simulator."""
        from envs.rlbench_doctor import examine

        return examine(config)

    def reset(self, task: str, seed: int) -> Observation:
        """Start an episode. Raises EnvError on an unknown task, BadState if RLBench finds no start."""
        self._open()
        if task not in self.spec.tasks:
            raise EnvError(f"{self.spec.env_id}: unknown task '{task}'; expected one of {list(self.spec.tasks)}")
        self._running = False
        self._vary.restore()
        if task != self._task_name:
            self._task_name = ""  # stays so if loading fails
            self._task = self._env.get_task(self._classes[task])
            self._task_name = task
        self._show(False)
        with seeded(int(seed)):
            descriptions, notes = self._begin(task, int(seed))
        self._instruction = str(descriptions[0])
        self._vary.apply(self._env, int(seed))
        self._running, self._steps, self._skipped = True, 0, 0
        self._look(render=True)
        variation = int(self._task._variation_number)
        obs = self._observe(render=True)
        notes = {"variation": variation, "descriptions": [str(d) for d in descriptions], **notes}
        return Observation(obs.images, obs.proprio, obs.instruction, obs.privileged, notes)

    def step(self, action: np.ndarray, render: bool = True) -> Step:
        """Perform one action of the package's action mode."""
        self._open()
        if not self._running:
            raise ResetNeeded(f"{self.spec.env_id}: there is no running episode; call reset first")
        command = self.mode.command(check_action(self.spec, action))
        self._running = False  # stays so if the simulator fails
        self._show(render)
        reward, ended, refused = 0.0, False, False
        try:
            self._obs, reward, ended = self._task.step(command)
        except refusals():
            refused = True
            self._skipped += 1
            self._look(render=render)
        self._steps += 1
        success = not refused and self._success(float(reward))
        terminated = bool(ended) or success or (refused and self._invalid == "end")
        truncated = not terminated and self._steps >= self.spec.max_steps
        self._running = not (terminated or truncated)
        return Step(self._observe(render=render), float(reward), terminated, truncated, success)

    def render(self) -> Dict[str, np.ndarray]:
        """Camera images of the present state."""
        self._open()
        if not self._task_name:
            raise ResetNeeded(f"{self.spec.env_id}: there is nothing to render before the first reset")
        self._look(render=True)
        return self._images()

    def close(self) -> None:
        """End the simulator; calling it again does nothing."""
        env, self._env = self._env, None
        if env is not None:
            env.shutdown()

    # --- starting ---

    def _specification(self, env_id: str, tasks: Sequence[str], max_steps: int, perturbation: str) -> EnvSpec:
        return EnvSpec(
            env_id=env_id,
            cameras=dict(self._sizes),
            proprio={k: unit for field in self._fields for k, unit in PROPRIO[field].items()},
            actions=self.mode.actions,
            low=self.mode.low,
            high=self.mode.high,
            control_hz=20.0,  # one step of the scene is 50 ms; poses take as many as they need
            max_steps=max_steps,
            tasks=tuple(tasks),
            action_convention=self.mode.convention,
            privileged=self._shapes(),
            perturbation=perturbation,
        )

    def _launch(self, wanted: Mapping[str, Any], headless: bool, gap: float) -> Any:
        """Start CoppeliaSim; processes that do so at the same moment disturb one another."""
        known = inspect.signature(self._rlbench.Environment).parameters
        lacking = [k for k in wanted if k not in known]
        if lacking:
            raise EnvError(
                f"rlbench: the installed version has no {', '.join(lacking)}; install RLBench 1.2.0, or leave out"
            )
        env = self._rlbench.Environment(
            self.mode.build(), obs_config=self._config, headless=headless, **wanted
        )  # fmt: skip
        with locked(cache_root() / "rlbench-launch"):
            env.launch()
            time.sleep(gap)
        return env

    def _begin(self, task: str, seed: int) -> Tuple[Sequence[str], Dict[str, Any]]:
        """Let RLBench place the task; its descriptions, and notes about the start."""
        if self._stored:
            demo = self._stored[task][seed % len(self._stored[task])]
            descriptions, _ = self._task.reset_to_demo(demo_of(demo))
            return descriptions, {"demo": demo.name}
        errors = importlib.import_module("rlbench.backend.exceptions")
        for _ in range(PLACEMENTS):
            self._choose_variation()
            try:
                if self._live:
                    return self._planned()
                return self._task.reset()[0], {}
            except errors.TaskEnvironmentError as e:  # the generator has moved on: another start
                why = str(e)
            except RuntimeError as e:
                if not self._live:
                    raise
                why = str(e)  # no path to one of its waypoints
        raise BadState(f"rlbench: task '{task}' found no start for seed {seed} in {PLACEMENTS} draws; last: {why}")

    def _choose_variation(self) -> None:
        count = int(self._task.variation_count())
        beyond = [v for v in self._variations if not 0 <= v < count]
        if beyond:
            raise EnvError(f"rlbench: task '{self._task_name}' has {count} variations; there is no {beyond[0]}")
        chosen = self._variations or range(count)
        self._task.set_variation(int(chosen[np.random.randint(len(chosen))]))

    def _planned(self) -> Tuple[Sequence[str], Dict[str, Any]]:
        """A demonstration by RLBench's planner from a start of its own, and that start again."""
        demo = self._task.get_demos(1, live_demos=True)[0]
        actions = []
        for frame in demo._observations[1:]:
            joints = getattr(frame, "misc", {}).get("joint_position_action")
            joints = frame.joint_positions if joints is None else joints
            actions.append([*(float(v) for v in joints[:7]), float(frame.gripper_open)])
        return self._task.reset_to_demo(demo)[0], {"demo_actions": actions}

    # --- what is seen ---

    def _show(self, on: bool) -> None:
        """Whether RLBench renders: its observation after each step would, even if nobody looks."""
        for camera in self._sizes:
            getattr(self._config, camera + "_camera").rgb = on

    def _look(self, *, render: bool) -> None:
        self._show(render)
        self._obs = self._task.get_observation()

    def _success(self, reward: float) -> bool:
        """The task's own verdict; without shaping it is the reward."""
        judge = getattr(getattr(self._task, "_task", None), "success", None)
        return bool(judge()[0]) if judge is not None else reward >= 1.0

    def _images(self) -> Dict[str, np.ndarray]:
        return {camera: np.asarray(getattr(self._obs, camera + "_rgb")) for camera in self._sizes}

    def _observe(self, *, render: bool) -> Observation:
        parts = [np.ravel(_number(getattr(self._obs, field), field)) for field in self._fields]
        proprio = np.concatenate(parts).astype(np.float32)
        if len(proprio) != self.spec.proprio_dim:
            raise BadState(
                f"rlbench: {list(self._fields)} have {len(proprio)} entries, expected {self.spec.proprio_dim}"
            )
        return Observation(self._images() if render else {}, proprio, self._instruction, self._privileged())

    def _shapes(self) -> Dict[str, Tuple[int, ...]]:
        shapes: Dict[str, Tuple[int, ...]] = {
            "joint_pos": (7,), "joint_vel": (7,), "eef_pos": (3,), "eef_quat": (4,), "opening": (1,), "variation": (),
            "skipped": (), "state": (15,),
        }  # fmt: skip
        if self._task_state:
            shapes["task_state"] = (self._task_state,)
        if self._poses:
            shapes.update({"joint_poses": (7, 7), "gripper_pose": (4, 4), "gripper_open": (1,)})
            shapes.update({f"camera/{c}": (4, 4) for c in self._sizes})
            shapes.update({f"intrinsics/{c}": (3, 3) for c in self._sizes})
        return shapes

    def _privileged(self) -> Dict[str, np.ndarray]:
        obs = self._obs
        pose, opening = np.asarray(obs.gripper_pose), float(obs.gripper_open)
        values: Dict[str, Any] = {
            "joint_pos": obs.joint_positions, "joint_vel": obs.joint_velocities, "eef_pos": pose[:3],
            "eef_quat": pose[3:], "opening": [opening], "variation": self._task._variation_number,
            "skipped": self._skipped, "state": [*obs.joint_positions, *obs.joint_velocities, opening],
        }  # fmt: skip
        if self._task_state:
            state = np.ravel(obs.task_low_dim_state)
            if len(state) > self._task_state:
                raise EnvError(
                    f"rlbench: task_state is {self._task_state}, '{self._task_name}' has {len(state)}; raise it"
                )
            values["task_state"] = np.pad(state, (0, self._task_state - len(state)))
        if self._poses:
            values.update(poses_of(obs, list(self._sizes), opening))
        return {k: np.asarray(values[k], dtype=np.float64).reshape(shape) for k, shape in self.spec.privileged.items()}

    def _open(self) -> None:
        if self._env is None:
            raise EnvError(f"{self.spec.env_id}: the environment is closed; make a new one")


def _check(tasks: Sequence[str], proprio: Sequence[str], *, invalid_action: str, renderer: str, shaped: bool) -> None:
    """Raise EnvError for settings that no version of RLBench could serve."""
    if not tasks or invalid_action not in INVALID or renderer not in RENDERERS:
        raise EnvError(
            f"rlbench: tasks {list(tasks)}, invalid_action '{invalid_action}', renderer '{renderer}'; expected "
            f"at least one task, one of {', '.join(INVALID)}, and one of {', '.join(RENDERERS)}"
        )
    if shaped and not set(tasks) <= set(SHAPED):
        raise EnvError(f"rlbench: only {' and '.join(SHAPED)} have shaped rewards, not all of {list(tasks)}")
    unknown = [field for field in proprio if field not in PROPRIO]
    if unknown or not proprio:
        raise EnvError(f"rlbench: proprio {list(proprio)}; expected some of {', '.join(PROPRIO)}")


def _sizes(cameras: Optional[Mapping[str, Sequence[int]]]) -> Dict[str, Tuple[int, int]]:
    chosen: Mapping[str, Sequence[int]] = {c: (256, 256) for c in CAMERAS[:4]} if cameras is None else cameras
    unknown = [c for c in chosen if c not in CAMERAS]
    if unknown or not chosen:
        raise EnvError(f"rlbench: cameras {list(chosen)}; expected some of {', '.join(CAMERAS)}")
    return {c: (int(size[0]), int(size[1])) for c, size in chosen.items()}


def _number(value: Any, field: str) -> np.ndarray:
    if value is None:
        raise EnvError(f"rlbench: this version does not observe '{field}'; leave it out of proprio")
    return np.asarray(value, dtype=np.float64)
