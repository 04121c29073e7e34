"""A compiled stepping core for robosuite 1.4's Panda: all substeps of a control step in one call.

`osc.c`, next to this file, is compiled once with the machine's C compiler against the headers and the library of the
installed MuJoCo and kept in the user's cache. It runs mj_step1, the controller, the gripper and mj_step2 for OSC_POSE
(deltas, fixed impedance), JOINT_POSITION, JOINT_VELOCITY and JOINT_TORQUE, and gives the numbers of robosuite's own
Python controllers up to rounding (docs/speed.md says how far that is over whole episodes). What a controller, the
robot's buffers and the gripper remember is written back after each control step, so that whoever reads them finds what
robosuite would have left.

Anything else is refused with an error that names it; `core: stock` takes robosuite's own controllers. Left out: fatal
errors of MuJoCo (no memory for its stack) end the process here, while Python's bindings turn them into exceptions;
gains and limits are read when an episode starts, so changing them inside one has no effect.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, Callable, Dict, Optional

import numpy as np

from envs import native
from envs.types import EnvError

CORES = ("fast", "stock")
MUJOCO_TESTED = ((3, 8, 1), (3, 9, 0))  # first and last release; 3.10 changed fields and functions used here
ROBOTS = ("Panda", "MountedPanda", "OnTheGroundPanda")  # the last two are LIBERO's: the same arm on another mount
GRIPPER = "PandaGripper"
KINDS = ("OSC_POSE", "JOINT_POSITION", "JOINT_VELOCITY", "JOINT_TORQUE")  # as in osc.c
SOURCE = Path(__file__).with_name("osc.c")
JOINTS = 7

SETUP = np.dtype(
    [(name, "u8") for name in ("model", "data")]
    + [(name, "i4") for name in ("kind", "substeps", "site", "uncoupled", "limited", "inputs")]
    + [(name, "i4", JOINTS) for name in ("qpos", "dof", "motors")]
    + [("fingers", "i4", 2), ("force", "i4"), ("torque", "i4")]
    + [(name, "f8", JOINTS) for name in ("input_min", "input_max", "input_mid", "scale", "output_mid")]
    + [(name, "f8", JOINTS) for name in ("limit_low", "limit_high", "kp", "kd", "ki")]
    + [("control_hz", "f8"), ("finger_speed", "f8")],
    align=True,
)
STATE = np.dtype(
    [(name, "i4") for name in ("new_update", "saturated", "ptr", "size", "velocities_ptr")]
    + [("action", "f8", JOINTS + 1), ("initial_joint", "f8", JOINTS), ("current_action", "f8", 2)]
    + [("ee_pos", "f8", 3), ("ee_ori_mat", "f8", (3, 3)), ("ee_pos_vel", "f8", 3), ("ee_ori_vel", "f8", 3)]
    + [("joint_pos", "f8", JOINTS), ("joint_vel", "f8", JOINTS)]
    + [("J_full", "f8", (6, JOINTS)), ("mass_matrix", "f8", (JOINTS, JOINTS))]
    + [("goal_pos", "f8", 3), ("goal_ori", "f8", (3, 3)), ("goal", "f8", JOINTS)]
    + [(name, "f8", JOINTS) for name in ("torques", "clipped", "last_err", "summed_err")]
    + [("errors", "f8", (5, JOINTS)), ("recent_qpos", "f8", JOINTS), ("recent_torques", "f8", JOINTS)]
    + [("recent_ee_forcetorques", "f8", 6), ("recent_ee_pose", "f8", 7), ("recent_ee_vel", "f8", 6)]
    + [("recent_ee_acc", "f8", 6), ("velocities", "f8", (10, 6))],
    align=True,
)
# What Controller.update leaves on every controller, and what each kind keeps besides.
UPDATED = ("ee_pos", "ee_ori_mat", "ee_pos_vel", "ee_ori_vel", "joint_pos", "joint_vel", "J_full", "mass_matrix")
RECENT = ("recent_qpos", "recent_torques", "recent_ee_forcetorques", "recent_ee_pose", "recent_ee_vel", "recent_ee_acc")
GOALS = {
    "OSC_POSE": (("goal_pos", "goal_pos"), ("goal_ori", "goal_ori")),
    "JOINT_POSITION": (("goal_qpos", "goal"),),
    "JOINT_VELOCITY": (
        ("goal_vel", "goal"),
        ("current_vel", "goal"),
        ("last_err", "last_err"),
        ("summed_err", "summed_err"),
    ),
    "JOINT_TORQUE": (("goal_torque", "goal"), ("current_torque", "goal")),
}


# --- the library --------------------------------------------------------------------------------------------------


def _refuse(what: str, expected: str) -> EnvError:
    return EnvError(f"core: fast cannot drive {what}; expected {expected}. `core: stock` takes robosuite's own")


def _mujoco_version(mujoco: Any) -> None:
    """Raise EnvError for a MuJoCo whose structures this was not tested with."""
    parts = tuple(int(part) for part in mujoco.__version__.split(".")[:3] if part.isdigit())
    if not MUJOCO_TESTED[0] <= parts <= MUJOCO_TESTED[1]:
        first, last = (".".join(str(n) for n in version) for version in MUJOCO_TESTED)
        raise _refuse(f"MuJoCo {mujoco.__version__}", f"{first} to {last}")


def _compiled(mujoco: Any) -> Path:
    """The shared library for the installed MuJoCo, in the user's cache."""
    home = Path(mujoco.__file__).parent
    libraries = sorted(home.glob("libmujoco.so*"))
    if not libraries or not (home / "include" / "mujoco" / "mujoco.h").exists():
        raise _refuse(f"the MuJoCo in {home}", "a wheel with its headers (include/mujoco) and libmujoco.so")
    library = libraries[0]
    return native.compiled(
        SOURCE,
        name=f"osc-{mujoco.__version__}",
        who="core: fast",
        flags=("-O2", f"-I{home / 'include'}", str(library), f"-Wl,-rpath,{library.parent}"),
        otherwise=" `core: stock` does without",
    )


def load_library() -> Any:
    """The compiled functions of osc.c, for the installed MuJoCo; EnvError if they cannot be had."""
    import mujoco

    _mujoco_version(mujoco)
    path = _compiled(mujoco)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as e:
        raise EnvError(f"core: fast cannot load {path} ({e}); delete it to have it compiled again") from e
    library.osc_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    library.osc_solve.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    sizes = (ctypes.c_int32 * 2)()
    library.osc_sizes(sizes)
    assert tuple(sizes) == (SETUP.itemsize, STATE.itemsize), f"osc.py and osc.c differ: {tuple(sizes)}"
    return library


# --- what can be driven -------------------------------------------------------------------------------------------


def check_supported(env: Any) -> None:
    """Raise EnvError, naming the culprit, unless the core drives this robosuite environment's robot."""
    import robosuite

    version = str(getattr(robosuite, "__version__", "of unknown version"))
    if not version.startswith("1.4."):
        raise _refuse(f"robosuite {version}", "robosuite 1.4")
    if len(env.robots) != 1:
        raise _refuse(f"{len(env.robots)} robots", "one")
    robot = env.robots[0]
    model, gripper, controller = type(robot.robot_model).__name__, type(robot.gripper).__name__, robot.controller
    if model not in ROBOTS:
        raise _refuse(f"the robot {model}", "Panda")
    if gripper != GRIPPER:
        raise _refuse(f"the gripper {gripper}", GRIPPER)
    if controller.name not in KINDS:
        raise _refuse(f"the controller {controller.name}", f"one of {', '.join(KINDS)}")
    if getattr(controller, "impedance_mode", "fixed") != "fixed":
        raise _refuse(f"the impedance mode {controller.impedance_mode}", "fixed")
    if controller.name == "OSC_POSE" and not controller.use_delta:
        raise _refuse("OSC_POSE with absolute goals", "control_delta: true")
    if controller.name == "OSC_POSE" and np.array(controller.orientation_limits).any():
        raise _refuse("OSC_POSE with orientation limits", "none")
    for name in ("interpolator", "interpolator_pos", "interpolator_ori"):
        if getattr(controller, name, None) is not None:
            raise _refuse(f"a controller with an {name}", "no interpolation")
    _check_chain(env, robot)


def _check_chain(env: Any, robot: Any) -> None:
    """The arm's joints must be one chain from the base to the grip site: osc.c reads inertia and Jacobian that way."""
    model, dofs = env.sim.model._model, list(robot._ref_joint_vel_indexes)
    parents = [int(model.dof_parentid[dof]) for dof in dofs]
    body = int(model.site_bodyid[robot.eef_site_id])
    while body and not model.body_dofnum[body]:
        body = int(model.body_parentid[body])
    last = int(model.body_dofadr[body] + model.body_dofnum[body] - 1)
    if len(dofs) != JOINTS or parents != [-1, *dofs[:-1]] or last != dofs[-1]:
        raise _refuse(f"an arm with the joints {dofs} behind {parents}", "seven joints in one chain on a fixed base")


# --- the core -----------------------------------------------------------------------------------------------------


class Core:
    """Steps the robot of one robosuite environment, as long as it keeps its model."""

    def __init__(self, env: Any) -> None:
        check_supported(env)
        self._env, self._robot = env, env.robots[0]
        self._library = load_library()
        self._setup, self._bytes = np.zeros((), SETUP), np.zeros(STATE.itemsize, np.uint8)
        self._state = np.ndarray((), STATE, self._bytes)
        self._addresses = (self._setup.ctypes.data, self._state.ctypes.data)
        self._controller: Any = None
        self._inputs = {name: self._state[name] for name in ("action", "initial_joint", "current_action", "goal_ori")}
        self._attach()

    def step(self, action: np.ndarray, observe: Optional[Callable[[], None]], observe_after: int) -> bool:
        """All substeps of one control step; False if the simulation is no longer healthy.

        `observe` is called after substep `observe_after`.
        """
        if self._robot.controller is not self._controller:  # each reset makes a new one
            self._attach()
        self._load(action)
        substeps, run = self._substeps, self._library.osc_run
        if observe is None:
            status = run(*self._addresses, 0, substeps)
        else:
            status = run(*self._addresses, 0, observe_after)
            observe()
            if status == 0 and observe_after < substeps:
                status = run(*self._addresses, observe_after, substeps)
        self._store()
        return status == 0

    def start(self) -> bytes:
        """All that the first control step after a reset takes from controller and gripper."""
        c = self._robot.controller
        goals = [getattr(c, attribute) for attribute, _ in GOALS[c.name] if getattr(c, attribute) is not None]
        known = [getattr(c, name) for name in UPDATED] if not c.new_update else []
        fingers = np.broadcast_to(self._robot.gripper.current_action, (2,))  # one number before the first step
        parts = [c.initial_joint, fingers, *goals, *known]
        return b"".join(np.asarray(part, np.float64).tobytes() for part in parts)

    def memory(self) -> bytes:
        """All that controller, gripper and the robot's buffers carry from the control step just made into the next."""
        return self._bytes.tobytes()

    def recall(self, memory: bytes, steps: int) -> None:
        """After a reset, leave everything as it was when `memory` was taken, `steps` control steps into an episode."""
        if self._robot.controller is not self._controller:
            self._attach()
        self._bytes[:] = np.frombuffer(memory, np.uint8)
        self._store()
        ring = self._robot.recent_ee_vel_buffer
        ring._size = min(steps, len(ring.buf))

    def _attach(self) -> None:
        """Read what is constant during an episode, and all that the controller remembers."""
        env, robot, s = self._env, self._robot, self._setup
        check_supported(env)
        c = self._controller = robot.controller
        model, data = env.sim.model._model, env.sim.data._data
        self._substeps, self._size = int(env.control_timestep / env.model_timestep), c.control_dim + 1
        s["model"], s["data"] = model._address, data._address
        s["kind"], s["substeps"], s["site"] = KINDS.index(c.name), self._substeps, robot.eef_site_id
        s["inputs"], s["uncoupled"] = c.control_dim, getattr(c, "uncoupling", False)
        s["qpos"], s["dof"] = robot._ref_joint_pos_indexes, robot._ref_joint_vel_indexes
        s["motors"], s["fingers"] = robot._ref_joint_actuator_indexes, robot._ref_joint_gripper_actuator_indexes
        for name in ("force", "torque"):
            s[name] = model.sensor_adr[env.sim.model.sensor_name2id(robot.gripper.important_sensors[name + "_ee"])]
        s["control_hz"], s["finger_speed"] = robot.control_freq, robot.gripper.speed
        c.scale_action(np.zeros(c.control_dim))  # computes the scales at its first call
        scaling = {"input_min": c.input_min, "input_max": c.input_max, "input_mid": c.action_input_transform,
                   "scale": c.action_scale, "output_mid": c.action_output_transform}  # fmt: skip
        gains = {name: getattr(c, name) for name in ("kp", "kd", "ki") if hasattr(c, name)}
        for name, value in {**scaling, **gains}.items():
            s[name][: np.size(value)] = value
        self._read_limits()
        self._read_memory()

    def _read_limits(self) -> None:
        """The box that goals are kept in."""
        c, s, size = self._controller, self._setup, 3 if self._controller.name == "OSC_POSE" else JOINTS
        limits = next(getattr(c, n) for n in ("position_limits", "velocity_limits", "torque_limits") if hasattr(c, n))
        s["limited"] = limits is not None
        if limits is not None:
            s["limit_low"][:size], s["limit_high"][:size] = limits[0], limits[1]

    def _read_memory(self) -> None:
        """What controller and robot carry from one control step to the next."""
        c, t, robot = self._controller, self._state, self._robot
        for attribute, name in GOALS[c.name]:
            if getattr(c, attribute) is not None:  # the joint controllers have no goal before their first step
                t[name] = getattr(c, attribute)
        if c.name == "JOINT_VELOCITY":
            window = c.derr_buf
            t["saturated"], t["errors"], t["ptr"], t["size"] = c.saturated, window.buf, window.ptr, window._size
        self._recent = [(getattr(robot, name), name) for name in RECENT]
        t["recent_ee_acc"] = robot.recent_ee_acc.current
        t["velocities"], t["velocities_ptr"] = robot.recent_ee_vel_buffer.buf, robot.recent_ee_vel_buffer.ptr

    def _load(self, action: np.ndarray) -> None:
        """Before the substeps: the action, and what others may have replaced since the last control step."""
        c, t = self._controller, self._state
        if len(action) != self._size:
            raise EnvError(f"action has {len(action)} entries, expected {self._size}")
        self._inputs["action"][: self._size] = action
        self._inputs["initial_joint"][:] = c.initial_joint
        self._inputs["current_action"][:] = self._robot.gripper.current_action
        if c.name == "OSC_POSE":
            self._inputs["goal_ori"][:] = c.goal_ori
        t["new_update"] = c.new_update
        if not c.new_update:  # someone asked for an update, at a reset for example: the first substep lives on it
            for name in UPDATED:
                t[name] = getattr(c, name)

    def _store(self) -> None:
        """After the substeps: leave everything as robosuite's controllers would have, in arrays of their own."""
        c, robot = self._controller, self._robot
        t = np.ndarray((), STATE, self._bytes.copy())  # copying the fields one by one takes thirty times longer
        seen: Dict[str, Any] = {name: t[name] for name in UPDATED}
        seen["J_pos"], seen["J_ori"] = seen["J_full"][:3], seen["J_full"][3:]
        seen["torques"], seen["new_update"] = t["torques"], True
        for attribute, name in GOALS[c.name]:
            seen[attribute] = t[name]
        if c.name == "JOINT_VELOCITY":
            seen["saturated"] = bool(t["saturated"])
            c.derr_buf.buf, c.derr_buf.ptr, c.derr_buf._size = t["errors"], int(t["ptr"]), int(t["size"])
        c.__dict__.update(seen)
        robot.torques, robot.gripper.current_action = t["clipped"], t["current_action"]
        ring, actions = robot.recent_ee_vel_buffer, robot.recent_actions
        ring.buf, ring.ptr, ring._size = t["velocities"], int(t["velocities_ptr"]), min(ring._size + 1, len(ring.buf))
        actions.last, actions.current = actions.current, t["action"][: self._size]
        for buffer, name in self._recent:
            buffer.last, buffer.current = buffer.current, t[name]
