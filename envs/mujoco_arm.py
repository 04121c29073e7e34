"""One robot arm of a robosuite-style environment: stepping, resetting and rendering without waste.

Serves robosuite 1.4 and 1.5 and LIBERO (which is built on 1.4). Works on the environment object from outside:
nothing in the installed package is changed and no file is written there.
"""

from __future__ import annotations

import atexit
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
from envs.models import visuals_for
from envs.osc import CORES, Core
from envs.types import EnvError

GL_PACKAGES = "libosmesa6 libegl1 libegl-mesa0 libgl1-mesa-dri libgl1"
_GL_MODULES = {"osmesa": "mujoco.osmesa", "egl": "mujoco.egl"}  # everything else is a window system: mujoco.glfw
_XYZW = np.array([1, 2, 3, 0])
_contexts: Dict[str, Any] = {}  # the process's one OpenGL context, once it is open


def choose_gl() -> str:
    """Return the OpenGL back end in use; software rendering (osmesa) unless MUJOCO_GL says otherwise."""
    return os.environ.setdefault("MUJOCO_GL", "osmesa").lower().strip()


def _gl_missing(backend: str, cause: BaseException) -> EnvError:
    fix = f"expected its system libraries: apt-get install -y --no-install-recommends {GL_PACKAGES}"
    if backend not in _GL_MODULES:
        fix = f"expected 'osmesa' or 'egl'; others need a display (DISPLAY is '{os.environ.get('DISPLAY', '')}')"
        fix += ": set MUJOCO_GL=osmesa"
    return EnvError(
        f"offscreen rendering with MUJOCO_GL={backend} is not possible ({type(cause).__name__}: {cause}); {fix}"
    )


def _gl_module(backend: str) -> Any:
    try:
        return importlib.import_module(_GL_MODULES.get(backend, "mujoco.glfw"))
    except Exception as e:  # PyOpenGL raises ImportError, AttributeError or OSError, depending on what is missing
        raise _gl_missing(backend, e) from e


def _gl_context() -> Any:
    """Open, once per process, the offscreen context that all renderers of this process share."""
    backend = choose_gl()
    if "gl" not in _contexts:
        module = _gl_module(backend)
        try:
            _contexts["gl"] = module.GLContext(640, 480)
        except Exception as e:
            raise _gl_missing(backend, e) from e
        atexit.register(_contexts["gl"].free)
    return _contexts["gl"]


def import_robosuite() -> Any:
    """Import robosuite without its log file in /tmp and its start-up warnings; EnvError if that is not possible."""
    if "robosuite" in sys.modules:
        return sys.modules["robosuite"]
    backend = choose_gl()
    _gl_module(backend)  # robosuite imports it too, but fails with a message that helps nobody
    logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
    file_handler = logging.FileHandler
    logging.FileHandler = lambda *args, **kwargs: logging.NullHandler()  # type: ignore[misc,assignment]
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
        logging.FileHandler = file_handler  # type: ignore[misc]
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


def _nothing() -> None:
    """Stands in for `sim.forward` while a single forward pass per substep is enough."""


def _only(value: Any) -> Any:
    """Return the one arm's entry: robosuite 1.5 keeps a dict by arm where 1.4 has the plain value."""
    return next(iter(value.values())) if isinstance(value, Mapping) else value


class CameraRenderer:
    """Renders named cameras of one MuJoCo model. Images are RGB with row 0 on top."""

    def __init__(self, model: Any, *, cameras: Mapping[str, Tuple[int, int]], quality: str = "exact"):
        import mujoco

        self._mujoco = mujoco
        self._ids = {name: _camera_id(model, name) for name in cameras}
        self._sizes = {name: (int(size[0]), int(size[1])) for name, size in cameras.items()}
        self._gl = _gl_context()
        self._gl.make_current()
        self._model = model
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._option = mujoco.MjvOption()
        self._option.geomgroup[0] = 0  # collision shapes
        self._option.geomgroup[1] = 1  # what is meant to be seen
        self._perturb = mujoco.MjvPerturb()
        model.vis.global_.offheight = max([model.vis.global_.offheight] + [y for y, _ in self._sizes.values()])
        model.vis.global_.offwidth = max([model.vis.global_.offwidth] + [x for _, x in self._sizes.values()])
        stored = model.vis.quality.offsamples, model.vis.quality.shadowsize
        if quality != "exact":
            model.vis.quality.offsamples = 0
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
            model.vis.quality.shadowsize = 0  # the map would take 64 MB and never be looked at
        try:
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        except mujoco.FatalError as e:  # a window system without a display is noticed only here
            raise _gl_missing(choose_gl(), e) from e
        model.vis.quality.offsamples, model.vis.quality.shadowsize = stored
        self._buffers = {name: np.empty((y, x, 3), np.uint8) for name, (y, x) in self._sizes.items()}

    def render(self, data: Any) -> Dict[str, np.ndarray]:
        """Images of all cameras at the poses that `data` holds now; new arrays each time."""
        mujoco = self._mujoco
        self._gl.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)  # another renderer may have its own
        images = {}
        for name, (y, x) in self._sizes.items():
            self._camera.fixedcamid = self._ids[name]
            mujoco.mjv_updateScene(
                self._model, data, self._option, self._perturb, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
            )
            view = mujoco.MjrRect(0, 0, x, y)
            mujoco.mjr_render(view, self._scene, self._context)
            mujoco.mjr_readPixels(self._buffers[name], None, view, self._context)
            images[name] = np.ascontiguousarray(self._buffers[name][::-1])  # OpenGL's row 0 is the bottom one
        return images

    def close(self) -> None:
        """Free the textures and buffers; the process's OpenGL context stays open."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
            self._context = None


def _camera_id(model: Any, name: str) -> int:
    import mujoco

    found = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
    if found < 0:
        known = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_CAMERA, i) for i in range(model.ncam)]
        raise EnvError(f"there is no camera '{name}'; this scene has {', '.join(str(n) for n in known)}")
    return found


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
        # A reset runs the constraint solver three times on a scene that has not settled, for accelerations that nobody
        # reads. From MuJoCo 3.8 on that leaves no trace in what follows (before, it warmed the solver up).
        self._light_reset = single_forward and _version(mujoco) >= (3, 8)
        self._renderer: Optional[CameraRenderer] = None
        self._bind()
        for name in self._cameras:
            _camera_id(self.model, name)  # a wrong name is refused here, not at the first image

    def _bind(self) -> None:
        """Look up what belongs to the present model; a hard reset makes a new one."""
        env, robot = self.env, self.env.robots[0]
        self._close_renderer()
        self.model, self.data = env.sim.model._model, env.sim.data._data
        self._boxes: Dict[Tuple[str, ...], Tuple[np.ndarray, ...]] = {}
        self.substeps = int(env.control_timestep / env.model_timestep)
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
        if self._light_reset:
            env.sim.forward = self._place  # an instance attribute hides the method
        try:
            with seeded(seed):
                env.reset()
        finally:
            env.sim.__dict__.pop("forward", None)
        if env.sim.model._model is not self.model:
            self._bind()
        self.check()

    def _place(self) -> None:
        """Stands in for `sim.forward` during a reset: all of it but the accelerations and constraint forces."""
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
        first, second = (mujoco.mj_step1, mujoco.mj_step2) if self._single_forward else _stock_halves(mujoco)
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
            self._renderer = CameraRenderer(self.model, cameras=self._cameras, quality=self._quality)
        return self._renderer.render(self.data)

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
        self.env.sim.forward()
        self.check()

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


def _stock_halves(mujoco: Any) -> Tuple[Callable[..., None], Callable[..., None]]:
    return mujoco.mj_forward, mujoco.mj_step


def _version(mujoco: Any) -> Tuple[int, ...]:
    return tuple(int(part) for part in mujoco.__version__.split(".")[:2])


def xyzw(quaternion: np.ndarray) -> np.ndarray:
    """Reorder MuJoCo's w, x, y, z to x, y, z, w."""
    return np.asarray(quaternion)[_XYZW]
