"""One robot arm of a robosuite-style environment: stepping, resetting and rendering without waste.

Serves robosuite 1.4 and 1.5 and LIBERO (which is built on 1.4). Works on the environment object from outside:
nothing in the installed package is changed and no file is written there.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import random
import sys
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Sequence, Tuple

import numpy as np

from envs.contacts import ContactTest
from envs.draw import open_renderer
from envs.models import visuals_for
from envs.osc import CORES, Core
from envs.perturb import Factor
from envs.perturb_mujoco import Perturbed
from envs.render import camera_id, choose_gl, gl_module
from envs.settle import Snapshot
from envs.types import EnvError

_XYZW = np.array([1, 2, 3, 0])
BODIES = 256  # rows of `Arm.surfaces`, whatever the scene


def import_robosuite() -> Any:
    """Import robosuite without its log file in /tmp and its start-up warnings; EnvError if that is not possible."""
    if "robosuite" in sys.modules:
        return sys.modules["robosuite"]
    backend = choose_gl()
    gl_module(backend)  # robosuite imports it too, but fails with a message that helps nobody
    logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
    file_handler = logging.FileHandler
    logging.FileHandler = lambda *args, **kwargs: logging.NullHandler()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return importlib.import_module("robosuite")
    except ImportError as e:
        raise EnvError(
            f"robosuite cannot be imported by {sys.executable} ({e}); expected robosuite 1.4.0 or 1.5.x with "
            "mujoco, numba, scipy, opencv-python-headless and termcolor; install the packages listed in "
            "envs/requirements, or name the right interpreter in the configuration (python: ...)"
        ) from e
    finally:
        logging.FileHandler = file_handler
        os.environ["MUJOCO_GL"] = backend  # robosuite 1.4 replaces what it does not prefer


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators that simulators draw from, and put the caller's state back afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _nothing(**_: Any) -> None:
    """Stands in for what need not be done: `sim.forward` while a single forward pass per substep is enough."""


def _only(value: Any) -> Any:
    """Return the one arm's entry: robosuite 1.5 keeps a dict by arm where 1.4 has the plain value."""
    return next(iter(value.values())) if isinstance(value, Mapping) else value


class Arm:
    """Drives the single robot of `env`, a robosuite-style environment made with `use_camera_obs=False`,
    `has_offscreen_renderer=False`, `hard_reset=False` and `ignore_done=True`.

    `single_forward` replaces the stock two forward passes and a step per substep by one pass cut in two, which gives
    the same numbers to the bit (except sensors that need accelerations, such as forces, which lag one substep).
    """

    def __init__(
        self,
        env: Any,
        *,
        cameras: Mapping[str, Tuple[int, int]],
        quality: str = "exact",
        single_forward: bool = True,
        core: str = "stock",
        perturb: Sequence[Factor] = (),
    ):
        visuals_for(quality, cameras)  # an unknown quality is refused here
        if core not in CORES:
            raise EnvError(f"core '{core}' is unknown; expected one of {', '.join(CORES)}")
        import mujoco

        self.env: Any = env
        self._mujoco = mujoco
        self._core_name = core
        kinds = mujoco.mjtWarning
        self._alarms = [int(kind) for kind in (kinds.mjWARN_BADQPOS, kinds.mjWARN_BADQVEL, kinds.mjWARN_BADQACC)]
        self._cameras = dict(cameras)
        self._quality = quality
        self._single_forward = single_forward
        # A reset looks for contacts and runs the constraint solver four times on a scene in which nothing lies where it
        # should (a thousand contacts). From MuJoCo 3.8 on that leaves no trace in what follows (before, it warmed the
        # solver up).
        self._light_reset = single_forward and _version(mujoco) >= (3, 8)
        bits = mujoco.mjtDisableBit
        self._skipped = int(bits.mjDSBL_CONTACT) | int(bits.mjDSBL_CONSTRAINT) | int(bits.mjDSBL_SENSOR)
        self._renderer: Any = None  # with `render` and `close`
        self._factors = tuple(perturb) if cameras else ()  # nobody looks: nothing to do
        self._bind()
        for name in self._cameras:
            camera_id(self.model, name)  # a wrong name is refused here, not at the first image

    def _bind(self) -> None:
        """Look up what belongs to the present model; a hard reset makes a new one."""
        env, robot = self.env, self.env.robots[0]
        self._close_renderer()
        self.model, self.data = env.sim.model._model, env.sim.data._data
        self._boxes: Dict[Tuple[str, ...], Tuple[np.ndarray, ...]] = {}
        self._perturbed = Perturbed(self.model, self._factors) if self._factors else None
        self.substeps = int(env.control_timestep / env.model_timestep)
        # Samplers place some things relative to fixtures, before these are moved: hard resets have them where they were
        # compiled.
        self._poses = getattr(env.sim, "compiled_poses", None) or (
            self.model.body_pos.copy(),
            self.model.body_quat.copy(),
        )
        self._core = Core(env) if self._core_name == "fast" else None
        if self._core is not None:
            env.check_contact = ContactTest(self.model, self.data, env.sim.model._geom_name2id)
        self.eef_site = int(_only(robot.eef_site_id))
        self._hand_body = env.sim.model.body_name2id(_only(robot.robot_model.eef_name))
        self._joint_pos = np.asarray(robot._ref_joint_pos_indexes)
        self._joint_vel = np.asarray(robot._ref_joint_vel_indexes)
        self.gripper_addresses = np.asarray(_only(robot._ref_gripper_joint_pos_indexes) or [], dtype=np.int64)

    def reset(self, seed: int) -> None:
        """Start an episode; the same seed gives the same state to the bit, whatever happened before."""
        env = self.env
        gripper = _only(env.robots[0].gripper)
        if getattr(gripper, "current_action", None) is not None:
            # Stock soft resets forget this one: the last episode's finger command would leak into the next.
            gripper.current_action = np.zeros_like(gripper.current_action)
        if isinstance(getattr(env, "rng", None), np.random.Generator):  # robosuite 1.5; its samplers share the object
            env.rng.bit_generator.state = np.random.default_rng(seed % 2**32).bit_generator.state
        self.model.body_pos[:], self.model.body_quat[:] = self._poses
        with seeded(seed), self._light():
            env.reset()
        if env.sim.model._model is not self.model:
            self._bind()
        if self._light_reset:
            self._mujoco.mj_step1(self.model, self.data)
        self.check()

    @contextlib.contextmanager
    def _light(self) -> Iterator[None]:
        """While open, a reset computes where things are and the robot's inertia, and nothing else."""
        if not self._light_reset:
            yield
            return
        env, options = self.env, self.model.opt
        flags = options.disableflags
        env.sim.forward = self._place  # instance attributes hide the methods
        env.model.generate_id_mappings = _nothing  # the model is the same, and so are its numbers
        options.disableflags = flags | self._skipped
        try:
            yield
        finally:
            options.disableflags = flags
            env.sim.__dict__.pop("forward", None)
            env.model.__dict__.pop("generate_id_mappings", None)

    def _place(self) -> None:
        self._mujoco.mj_step1(self.env.sim.model._model, self.env.sim.data._data)

    def step(
        self, action: np.ndarray, *, observe: Optional[Callable[[], None]] = None, observe_after: int = 0
    ) -> float:
        """Advance one control step and return the benchmark's reward.

        `observe` is called after substep `observe_after` (1 is the first, 0 the last), for benchmarks whose stock
        observations are sampled before the last substep.
        """
        env = self.env
        env.timestep += 1
        if self._core is None:
            self._stock_substeps(action, observe, observe_after)
            self.check()
        elif not self._core.step(action, observe, observe_after or self.substeps):
            self.check()
            raise EnvError("the simulation became unstable; reset the environment")
        env.cur_time += env.control_timestep
        return float(env._post_action(action)[0])

    def _stock_substeps(self, action: np.ndarray, observe: Optional[Callable[[], None]], observe_after: int) -> None:
        env, mujoco, model, data = self.env, self._mujoco, self.model, self.data
        halves = ("mj_step1", "mj_step2") if self._single_forward else ("mj_forward", "mj_step")
        first, second = (getattr(mujoco, name) for name in halves)
        if self._single_forward:
            env.sim.forward = _nothing  # the controllers call it; an instance attribute hides the method
        try:
            for i in range(self.substeps):
                first(model, data)
                env._pre_action(action, i == 0)
                second(model, data)
                if observe is not None and i + 1 == (observe_after or self.substeps):
                    observe()
        except (np.linalg.LinAlgError, FloatingPointError) as e:
            raise EnvError(f"the simulation became unstable ({e}); reset the environment") from e
        finally:
            env.sim.__dict__.pop("forward", None)

    def check(self) -> None:
        """Raise EnvError if the state is not finite, or if MuJoCo has met one that was not."""
        if any(self.data.warning[kind].number for kind in self._alarms):  # it silently starts the scene over
            raise EnvError("the simulation became unstable and MuJoCo restarted it; reset the environment")
        if not (np.isfinite(self.data.qpos).all() and np.isfinite(self.data.qvel).all()):
            raise EnvError("the simulator's state is not finite; reset the environment")

    def render(self) -> Dict[str, np.ndarray]:
        """Images of all cameras, at the moment the last `step` or `reset` left."""
        if not self._cameras:
            return {}
        if self._renderer is None:
            self._renderer = open_renderer(self.model, self.data, self._cameras, self._quality)
        more = {"solids": self._perturbed.solids} if self._perturbed else {}
        return self._renderer.render(self.data, **more)

    def perturb(self, seed: int) -> None:
        """Begin an episode, whose first state is there, with what its seed draws for the eyes (envs/perturb.py)."""
        if self._perturbed is not None:
            self._perturbed.apply(self.data, seed)
            if self._renderer is not None:
                self._renderer.refresh(self._perturbed.textures)

    def robot_state(self) -> Dict[str, np.ndarray]:
        """Pose of the hand (quaternion xyzw), fingers, joints, as the stock observations have them.

        `finger_axis` is the direction in which the fingers open (for a Panda: the grip site's x axis).
        """
        qpos, qvel = self.data.qpos, self.data.qvel
        return {
            "eef_pos": self.data.site_xpos[self.eef_site].copy(),
            "eef_quat": xyzw(self.data.xquat[self._hand_body]),
            "gripper_qpos": qpos[self.gripper_addresses],
            "joint_pos": qpos[self._joint_pos],
            "joint_vel": qvel[self._joint_vel],
            "finger_axis": self.data.site_xmat[self.eef_site].reshape(3, 3)[:, 0].copy(),
        }

    def poses(self) -> Dict[str, np.ndarray]:
        """Where joints, gripper and cameras are: what is needed to draw on pictures.

        joint_poses [J, 7] (x y z, quaternion xyzw), gripper_pose [4, 4] of the grip site, gripper_open [1]: 1 if the
        fingers are within a tenth of fully open, else 0, as RLBench says it (held things are wide as well);
        camera/<name> [4, 4] to the world, x right, y down, looking along z; intrinsics/<name> [3, 3] in pixels.
        """
        model, data = self.model, self.data
        joints = [int(np.flatnonzero(model.jnt_qposadr == address)[0]) for address in self._joint_pos]
        turns = data.xquat[model.jnt_bodyid[joints]][:, _XYZW]
        site = self.eef_site
        out = {
            "joint_poses": np.concatenate([data.xanchor[joints], turns], axis=1),
            "gripper_pose": _pose(data.site_xpos[site], data.site_xmat[site].reshape(3, 3)),
            "gripper_open": np.array([float(self.opening() > 0.9)]),
        }
        for name, (y, x) in self._cameras.items():
            camera = camera_id(model, name)
            focal = 0.5 * y / np.tan(np.deg2rad(model.cam_fovy[camera]) / 2)
            turn = data.cam_xmat[camera].reshape(3, 3) * (1.0, -1.0, -1.0)  # MuJoCo's cameras look along -z, y up
            out["camera/" + name] = _pose(data.cam_xpos[camera], turn)
            out["intrinsics/" + name] = np.array([[focal, 0.0, x / 2], [0.0, focal, y / 2], [0.0, 0.0, 1.0]])
        return out

    def surfaces(self, camera: str) -> Dict[str, np.ndarray]:
        """What is needed to follow points of a camera's picture: scene/depth and scene/bodies [Y, X] (see
        `CameraRenderer.surfaces`), scene/places [BODIES, 12] position and rotation matrix, scene/camera [13] likewise
        and its vertical field of view in degrees."""
        if self.model.nbody > BODIES or camera not in self._cameras:
            raise EnvError(f"surfaces: {self.model.nbody} bodies, camera '{camera}'; expected at most {BODIES} bodies "
                           f"and one of the cameras {sorted(self._cameras)}")  # fmt: skip
        self.render()
        assert self._renderer is not None
        depth, bodies = self._renderer.surfaces(self.data, camera)
        eye, places = camera_id(self.model, camera), np.zeros((BODIES, 12))
        places[: self.model.nbody] = np.concatenate([self.data.xpos, self.data.xmat], axis=1)
        seen_from = [self.data.cam_xpos[eye], self.data.cam_xmat[eye], self.model.cam_fovy[eye : eye + 1]]
        return {"scene/depth": depth, "scene/bodies": bodies, "scene/places": places,
                "scene/camera": np.concatenate(seen_from)}  # fmt: skip

    def opening(self) -> float:
        """Mean of the fingers' shares of their way."""
        fingers = [int(np.flatnonzero(self.model.jnt_qposadr == address)[0]) for address in self.gripper_addresses]
        if not fingers:
            return 0.0
        ways = np.abs(self.model.jnt_range[fingers]).max(axis=1)
        return float(np.mean(np.abs(self.data.qpos[self.gripper_addresses]) / np.maximum(ways, 1e-9)))

    def body_pose(self, name: str) -> Tuple[np.ndarray, np.ndarray]:
        """Position [3] and quaternion xyzw [4] of a body."""
        body = self.env.sim.model.body_name2id(name)
        return self.data.xpos[body].copy(), xyzw(self.data.xquat[body])

    def bounds(self, geoms: Sequence[str]) -> Tuple[np.ndarray, np.ndarray]:
        """Low and high corner of the world-axis box around the named geoms."""
        key = tuple(geoms)
        if key not in self._boxes:
            ids = np.array([self.env.sim.model.geom_name2id(name) for name in key])
            box = self.model.geom_aabb[ids]  # centre and half sizes, in the geom's own axes
            self._boxes[key] = ids, box[:, :3, None].copy(), box[:, 3:, None].copy()
        ids, middle, size = self._boxes[key]
        if len(key) == 1:  # the same, without the way through arrays of arrays
            turn = self.data.geom_xmat[ids[0]].reshape(3, 3)
            centre, half = self.data.geom_xpos[ids[0]] + turn @ middle[0, :, 0], np.abs(turn) @ size[0, :, 0]
            return centre - half, centre + half
        turn = self.data.geom_xmat[ids].reshape(-1, 3, 3)
        centre = self.data.geom_xpos[ids] + (turn @ middle)[:, :, 0]
        half = (np.abs(turn) @ size)[:, :, 0]
        return (centre - half).min(axis=0), (centre + half).max(axis=0)

    def state(self) -> np.ndarray:
        """Time, positions and velocities as one vector, in the layout of robosuite's flattened states."""
        return np.concatenate([[self.data.time], self.data.qpos, self.data.qvel])

    def set_state(self, state: np.ndarray) -> None:
        """Load a vector that `state` gave, or a benchmark's stored initial state."""
        size = 1 + self.model.nq + self.model.nv
        if np.shape(state) != (size,):
            raise EnvError(f"a state of shape {np.shape(state)} does not fit this scene; expected ({size},)")
        self.data.time = float(state[0])
        self.data.qpos[:] = state[1 : 1 + self.model.nq]
        self.data.qvel[:] = state[1 + self.model.nq :]
        (self._mujoco.mj_step1 if self._light_reset else self._mujoco.mj_forward)(self.model, self.data)
        self.check()

    def start(self) -> Optional[bytes]:
        """Just after a reset: all that what follows depends on, but actions. None if `core: stock` steps."""
        if self._core is None:
            return None
        moved = self._integration(), self.model.body_pos, self.model.body_quat
        return b"".join(part.tobytes() for part in moved) + self._core.start()

    def snapshot(self) -> Snapshot:
        """Between two control steps of `core: fast`: what `resume` needs."""
        assert self._core is not None
        return Snapshot(
            self._integration(), self.data.sensordata.copy(), self._core.memory(), self.env.timestep, self.env.cur_time
        )

    def resume(self, snapshot: Snapshot) -> None:
        """Go on, after a reset, from where `snapshot` was taken; poses and contacts come with the next step."""
        assert self._core is not None
        kind = self._mujoco.mjtState.mjSTATE_INTEGRATION
        self._mujoco.mj_setState(self.model, self.data, snapshot.integration, kind)
        self.data.sensordata[:] = snapshot.sensors
        self._core.recall(snapshot.memory, snapshot.timestep)
        self.env.timestep, self.env.cur_time = snapshot.timestep, snapshot.cur_time

    def _integration(self) -> np.ndarray:
        """All of MuJoCo's state from which it goes on to the same bits."""
        kind = self._mujoco.mjtState.mjSTATE_INTEGRATION
        found = np.empty(self._mujoco.mj_stateSize(self.model, kind))
        self._mujoco.mj_getState(self.model, self.data, found, kind)
        return found

    def _close_renderer(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def close(self) -> None:
        """Free the renderer and the simulation; calling it again does nothing."""
        self._close_renderer()
        env, self.env = self.env, None
        if env is not None:
            env.close()


def _pose(position: np.ndarray, turn: np.ndarray) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = turn, position
    return out


def _version(mujoco: Any) -> Tuple[int, ...]:
    return tuple(int(part) for part in mujoco.__version__.split(".")[:2])


def xyzw(quaternion: np.ndarray) -> np.ndarray:
    """Reorder MuJoCo's w, x, y, z to x, y, z, w."""
    return np.asarray(quaternion)[_XYZW]
