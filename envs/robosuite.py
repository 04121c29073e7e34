"""robosuite's single-arm tasks (versions 1.4 and 1.5, whichever the interpreter has)."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence

import numpy as np

from envs.joint_targets import JointTargets, settings
from envs.models import compiled_scenes, visuals_for
from envs.mujoco_arm import Arm, import_robosuite, seeded
from envs.perturb import read_factors, recorded
from envs.types import EnvError, EnvSpec, Observation, ResetNeeded, Step, check_action

MODEL_SEED = 0  # robosuite draws some sizes (Lift's cube) when it builds the scene; this fixes them once and for all
MAX_STEPS = {
    "Lift": 80,
    "Stack": 200,
    "Door": 200,
    "PickPlaceCan": 300,
    "PickPlaceMilk": 300,
    "PickPlaceBread": 300,
    "PickPlaceCereal": 300,
    "PickPlaceSingle": 300,
    "PickPlace": 1000,
    "NutAssembly": 800,
}
INSTRUCTIONS = {
    "Lift": "lift the red cube",
    "Stack": "stack the red cube on the green cube",
    "Door": "open the door",
    "PickPlaceCan": "put the can into its bin",
    "PickPlaceMilk": "put the milk into its bin",
    "PickPlaceBread": "put the bread into its bin",
    "PickPlaceCereal": "put the cereal into its bin",
    "NutAssemblySquare": "put the square nut on its peg",
    "NutAssemblyRound": "put the round nut on its peg",
    "Wipe": "wipe the table clean",
}
CONTROLLERS = {
    "OSC_POSE": ("osc_pose_delta", ("dx", "dy", "dz", "droll", "dpitch", "dyaw")),
    "JOINT_POSITION": ("joint_delta", tuple(f"djoint{i}" for i in range(1, 8))),
    "JOINT_TARGET": ("joint_position", tuple(f"joint_{i}" for i in range(7))),  # ours: absolute positions, rad
}
_JOINTS = {f"joint_{i}": "rad" for i in range(7)}
NEEDS_FORCES = ("Wipe",)  # its reward reads force sensors, which the single forward pass delivers a substep late


class Robosuite:
    """One robosuite task. Its only task name is its own name; the seed decides the initial state."""

    def __init__(
        self,
        *,
        name: str = "Lift",
        cameras: Optional[Mapping[str, Sequence[int]]] = None,
        controller: str = "OSC_POSE",
        control_hz: float = 20,
        max_steps: Optional[int] = None,
        render_quality: str = "exact",
        robots: str = "Panda",
        reward_shaping: bool = False,
        core: str = "stock",
        poses: bool = False,
        surfaces: str = "",
        perturb: Any = "",
    ) -> None:
        """`cameras` maps a camera to (Y, X); `reward_shaping` takes robosuite's dense reward, else 1 at success.

        `core: fast` steps in compiled code (see envs/osc.py): robosuite 1.4 with a Panda only, anything else is
        refused. `core: stock` takes robosuite's own controllers. `controller: JOINT_TARGET` takes absolute joint
        positions; its proprioception is gripper_open and the joints', as GENIMA's controller has it.
        docs/rendering.md explains `render_quality`: exact, fast, lite, soft. `poses`, `surfaces` (of a camera): more
        privileged state, see `Arm`. `perturb` changes what is seen (envs/perturb.py).
        """
        chosen = {"agentview": (84, 84), "robot0_eye_in_hand": (84, 84)} if cameras is None else cameras
        sizes = {camera: (int(size[0]), int(size[1])) for camera, size in chosen.items()}
        factors = read_factors(perturb, render_quality)
        _check(name, controller, core)
        self._shaped, self._poses, self._surfaces = reward_shaping, poses, surfaces
        self._running, self._steps = False, 0
        import_robosuite()
        with compiled_scenes("robosuite", visuals_for(render_quality, sizes)):
            env = _make(name, controller=controller, control_hz=control_hz, robots=robots, shaped=reward_shaping)
        exact = name not in NEEDS_FORCES
        self._arm: Optional[Arm] = Arm(
            env, cameras=sizes, quality=render_quality, single_forward=exact, core=core, perturb=factors
        )
        self._instruction = INSTRUCTIONS.get(name, f"do the task {name}")
        convention, actions = CONTROLLERS[controller]
        fingers = env.action_dim - len(actions)
        self._arm.reset(0)
        self._scene = _Scene(env, self._arm)
        self._targets = JointTargets(self._arm) if controller == "JOINT_TARGET" else None
        low, high = env.action_spec if self._targets is None else self._targets.bounds(*env.action_spec)
        privileged = self._privileged(success=False)
        self.spec = EnvSpec(
            env_id=f"robosuite/{name}",
            cameras=sizes,
            proprio=_proprio_units(self._arm) if self._targets is None else {"gripper_open": "1", **_JOINTS},
            actions=actions + (("gripper",) if fingers == 1 else tuple(f"gripper_{i}" for i in range(fingers))),
            low=tuple(float(v) for v in low),
            high=tuple(float(v) for v in high),
            control_hz=float(control_hz),
            max_steps=int(max_steps or MAX_STEPS.get(name, 400)),
            tasks=(name,),
            action_convention=convention,
            privileged={key: tuple(value.shape) for key, value in privileged.items()},
            perturbation=recorded(factors),
        )

    def reset(self, task: str, seed: int) -> Observation:
        """Start an episode from the initial state that `seed` stands for."""
        arm = self._open_arm()
        if task not in self.spec.tasks:
            raise EnvError(f"{self.spec.env_id}: unknown task '{task}'; expected '{self.spec.tasks[0]}'")
        self._running = False
        arm.reset(int(seed))
        arm.perturb(int(seed))
        self._scene.begin()
        self._running, self._steps = True, 0
        return self._observe(success=False, render=True)

    def step(self, action: np.ndarray, render: bool = True) -> Step:
        """Advance one control step."""
        arm = self._open_arm()
        if not self._running:
            raise ResetNeeded(f"{self.spec.env_id}: there is no running episode; call reset first")
        action = check_action(self.spec, action)
        self._running = False  # stays so if the simulation fails
        reward = arm.step(action if self._targets is None else self._targets.command(action))
        self._steps += 1
        success = bool(arm.env._check_success())
        truncated = self._steps >= self.spec.max_steps and not success
        self._running = not (success or truncated)
        return Step(
            obs=self._observe(success=success, render=render),
            reward=reward if self._shaped else float(success),
            terminated=success,
            truncated=truncated,
            success=success,
        )

    def render(self) -> Dict[str, np.ndarray]:
        """Camera images of the present state."""
        return self._open_arm().render()

    def close(self) -> None:
        """Free the simulator; calling it again does nothing."""
        arm, self._arm = self._arm, None
        if arm is not None:
            arm.close()

    def _open_arm(self) -> Arm:
        if self._arm is None:
            raise EnvError(f"{self.spec.env_id}: the environment is closed; make a new one")
        return self._arm

    def _observe(self, *, success: bool, render: bool) -> Observation:
        arm = self._open_arm()
        privileged = self._privileged(success=success)
        if self._targets is None:
            proprio = np.concatenate([privileged[key] for key in ("eef_pos", "eef_quat", "gripper_qpos")])
        else:
            proprio = np.concatenate([[arm.opening()], self._targets.positions()])
        images = arm.render() if render else {}
        return Observation(images, proprio.astype(np.float32), self._instruction, privileged)

    def _privileged(self, *, success: bool) -> Dict[str, np.ndarray]:
        arm = self._open_arm()
        out = arm.robot_state()
        out.update(self._scene.read(out["eef_pos"], success=success))
        out["state"] = arm.state()
        out.update(self._targets.told() if self._targets is not None else {})
        out.update(arm.poses() if self._poses else {})
        return {**out, **(arm.surfaces(self._surfaces) if self._surfaces else {})}


class _Scene:
    """Reads the objects of a task, its goal, and how far it has come."""

    def __init__(self, env: Any, arm: Arm) -> None:
        self._env, self._arm = env, arm
        self._objects = _task_objects(env)
        self._geoms = {model.name: tuple(model.contact_geoms) for model in self._objects}
        self.begin()

    def begin(self) -> None:
        """Remember where things are at the start of an episode."""
        wanted = getattr(self._env, "obj_to_use", None)  # tasks with several objects of which one is in play
        self._first = next((m for m in self._objects if m.name == wanted), next(iter(self._objects), None))
        self._origin = self._target_pos()
        goal = self._goal()
        self._lift_goal: Optional[np.ndarray] = None
        if goal is None and hasattr(self._env, "cube_body_id"):  # Lift: the cube starts in the air and drops first
            table = float(self._env.model.mujoco_arena.table_offset[2])
            low, _ = self._arm.bounds(self._geoms[self._objects[0].name])
            self._origin[2] -= low[2] - table
            self._lift_goal = np.array([self._origin[0], self._origin[1], table + 0.04])
        self._distance = 1.0 if goal is None else max(float(np.linalg.norm((goal - self._origin)[:2])), 1e-6)

    def read(self, eef_pos: np.ndarray, *, success: bool) -> Dict[str, np.ndarray]:
        """Privileged entries: pose and box of every object, the goal and the progress."""
        out: Dict[str, np.ndarray] = {}
        for model in self._objects:
            out[f"{model.name}_pos"], out[f"{model.name}_quat"] = self._arm.body_pose(model.root_body)
            out[f"{model.name}_low"], out[f"{model.name}_high"] = self._arm.bounds(self._geoms[model.name])
        goal = self._goal() if self._lift_goal is None else self._lift_goal
        if goal is not None:
            out["goal_pos"] = goal
        out["progress"] = np.array([1.0 if success else self._progress(eef_pos)])
        return out

    def _goal(self) -> Optional[np.ndarray]:
        env = self._env
        if hasattr(env, "target_bin_placements"):
            return np.array(env.target_bin_placements[getattr(env, "object_id", 0)])
        if hasattr(env, "peg1_body_id"):
            return env.sim.data.body_xpos[
                env.peg2_body_id if getattr(env, "nut_id", 0) == 1 else env.peg1_body_id
            ].copy()
        if hasattr(env, "cubeB_body_id"):
            return env.sim.data.body_xpos[env.cubeB_body_id] + np.array([0.0, 0.0, 0.04])
        return None

    def _target_pos(self) -> np.ndarray:
        """What the hand has to reach first."""
        if hasattr(self._env, "_handle_xpos"):
            return np.array(self._env._handle_xpos)
        return np.zeros(3) if self._first is None else self._arm.body_pose(self._first.root_body)[0]

    def _progress(self, eef_pos: np.ndarray) -> float:
        """A potential in [0, 1]: reaching, lifting, carrying; below 1 until the task is done."""
        target = self._target_pos()
        reach = 1.0 - float(np.tanh(5.0 * np.linalg.norm(target - eef_pos)))
        if self._lift_goal is not None:
            height = (target[2] - self._origin[2]) / max(self._lift_goal[2] - self._origin[2], 1e-6)
            return 0.5 * reach + 0.5 * _part(height)
        if hasattr(self._env, "hinge_qpos_addr"):
            angle = float(self._env.sim.data.qpos[self._env.hinge_qpos_addr]) / 0.3
            return 0.5 * reach + 0.5 * _part(angle)
        goal = self._goal()
        if goal is None:
            return 0.5 * reach if self._objects else 0.0
        away = float(np.linalg.norm((goal - target)[:2]))
        lifted = _part((target[2] - self._origin[2]) / 0.1)
        if away < 0.08:
            lifted = 1.0  # over the goal it has to come down again
        return 0.2 * reach + 0.3 * lifted + 0.5 * _part(1.0 - away / self._distance)


def _check(name: str, controller: str, core: str) -> None:
    if controller not in CONTROLLERS:
        raise EnvError(f"controller '{controller}' is not supported; expected one of {', '.join(CONTROLLERS)}")
    if core == "fast" and name in NEEDS_FORCES:
        raise EnvError(f"core: fast reads no forces after each substep, the task {name} does; take `core: stock`")


def _part(value: float) -> float:
    return min(max(float(value), 0.0), 1.0)


def _make(name: str, *, controller: str, control_hz: float, robots: str, shaped: bool) -> Any:
    """Build the environment of the installed robosuite version, without cameras of its own."""
    robosuite = import_robosuite()
    single = sorted(n for n in robosuite.ALL_ENVIRONMENTS if not n.startswith("TwoArm"))
    if name not in single:
        raise EnvError(f"robosuite has no single-arm task '{name}'; expected one of {', '.join(single)}")
    if robots not in robosuite.ALL_ROBOTS:
        raise EnvError(f"robosuite has no robot '{robots}'; expected one of {', '.join(sorted(robosuite.ALL_ROBOTS))}")
    kwargs: Dict[str, Any] = {}
    targets = controller == "JOINT_TARGET"
    if hasattr(robosuite, "load_controller_config"):  # 1.4
        config = robosuite.load_controller_config(default_controller="JOINT_POSITION" if targets else controller)
        kwargs["controller_configs"] = settings(config) if targets else config
    else:
        from robosuite.controllers.composite.composite_controller_factory import (
            refactor_composite_controller_config,
        )

        part = robosuite.load_part_controller_config(default_controller="JOINT_POSITION" if targets else controller)
        part = settings(part) if targets else part
        kwargs["controller_configs"] = refactor_composite_controller_config(part, robots, ["right"])
        kwargs.update(renderer="mujoco", seed=MODEL_SEED)
    with seeded(MODEL_SEED):
        return robosuite.make(
            name,
            robots=robots,
            use_camera_obs=False,
            has_renderer=False,
            has_offscreen_renderer=False,
            hard_reset=False,
            ignore_done=True,
            control_freq=control_hz,
            reward_shaping=shaped,
            **kwargs,
        )


def _task_objects(env: Any) -> List[Any]:
    """The things the task is about: no display copies, and none that this variant keeps out of the scene."""
    objects = [m for m in env.model.mujoco_objects if "visual" not in m.name.lower() and len(m.contact_geoms)]
    if getattr(env, "single_object_mode", 0) == 2:
        return [m for m in objects if m.name == env.obj_to_use]
    return objects


def _proprio_units(arm: Arm) -> Dict[str, str]:
    units = {f"eef_{axis}": "m" for axis in "xyz"}
    units.update({f"eef_q{axis}": "1" for axis in "xyzw"})
    for i, address in enumerate(arm.gripper_addresses):
        joint = int(np.flatnonzero(arm.model.jnt_qposadr == address)[0])
        units[f"finger_{i}"] = "m" if arm.model.jnt_type[joint] == 2 else "rad"  # 2: sliding, 3: hinge
    return units
