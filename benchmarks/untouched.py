"""The packages' own environments, made without our code: what speed and equality are measured against.

Runs in a simulator's interpreter. `Reference` plays one of them and gives what it observes the names our adapters use.
"""

import contextlib
import importlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

ROBOT = ("eef_pos", "eef_quat", "gripper_qpos", "joint_pos", "joint_vel")  # of what the package itself observes
PROPRIO = ROBOT[:3]


def robosuite_task(
    name: str = "Lift", *, controller: str = "OSC_POSE", config: Mapping[str, Any] | None = None, **settings: Any
) -> Any:
    """A robosuite 1.4 task; `config` changes settings of its controller. Sizes that robosuite draws are ours."""
    from envs.mujoco_arm import import_robosuite, seeded
    from envs.robosuite import MODEL_SEED

    robosuite = import_robosuite()
    controllers = {**robosuite.load_controller_config(default_controller=controller), **(config or {})}
    plain = {"robots": "Panda", "control_freq": 20, "use_camera_obs": False, "has_offscreen_renderer": False}
    with seeded(MODEL_SEED):
        return robosuite.make(
            name, controller_configs=controllers, ignore_done=True, **{**plain, "hard_reset": False, **settings}
        )


def libero_task(suite: str, task: str, **settings: Any) -> Any:
    """A LIBERO task in the package's own wrapper (`.env` is robosuite's environment); textures without sRGB tags."""
    from envs.libero import import_libero
    from envs.libero_assets import find_assets, package_folder, without_srgb
    from envs.mujoco_arm import seeded

    import_libero(without_srgb(find_assets()))
    wrapper = importlib.import_module("libero.libero.envs.env_wrapper")
    plain = {"use_camera_obs": False, "has_offscreen_renderer": False, "ignore_done": True}
    with seeded(0), contextlib.redirect_stdout(io.StringIO()):
        bddl = package_folder() / "bddl_files" / suite / f"{task}.bddl"
        return wrapper.ControlEnv(bddl_file_name=str(bddl), **{**plain, **settings})


def camera_settings(cameras: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Arguments with which a package observes `cameras`, each (Y, X); {} if there are none."""
    if not cameras:
        return {}
    sizes = list(cameras.values())
    return {
        "use_camera_obs": True,
        "has_offscreen_renderer": True,
        "camera_names": list(cameras),
        "camera_heights": [y for y, _ in sizes],
        "camera_widths": [x for _, x in sizes],
    }


class Reference:
    """One task of an untouched package, LIBERO's with its own hard resets.

    Observations are dicts: `proprio`, `state`, the robot's part and the objects' poses as the package observes them,
    `image/<camera>` with row 0 on top, and what our adapters derive from a simulation, derived from this one.
    """

    def __init__(self, env_id: str, task: str, *, cameras: Mapping[str, tuple[int, int]] | None = None) -> None:
        self._simulator, _, self._name = env_id.partition("/")
        self._task, self._cameras = task, dict(cameras or {})
        settings = camera_settings(self._cameras)
        if self._simulator == "libero":
            from envs.libero_states import suite_states

            self._wrapper = libero_task(self._name, task, **settings)
            self._states = suite_states(self._name)[task]
            self._env = self._wrapper.env
        else:
            self._env = robosuite_task(self._name, **settings)
        self._scene: Any = None
        self._arm: Any = None

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        """Begin the episode that our adapter begins with this seed."""
        from envs.libero import PLACEMENT_TRIES, WAIT
        from envs.mujoco_arm import seeded

        errors = importlib.import_module("robosuite.utils.errors")
        self._make_current()
        obs: Any = None
        for attempt in range(PLACEMENT_TRIES):
            with contextlib.suppress(errors.RandomizationError), seeded(seed + attempt * 1_000_003):
                obs = self._env.reset()
                break
        if self._simulator == "libero":
            obs = self._wrapper.set_init_state(self._states[seed % len(self._states)])
            self._read_scene()
            for _ in range(10):
                obs = self._wrapper.step(WAIT)[0]
            self._scene.start()
            return self._named(obs, success=None)
        self._env.robots[0].gripper.current_action = np.zeros(1)  # the package lets this leak into the next episode
        self._read_scene()
        return self._named(obs, success=False)

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], bool]:
        """One control step: the observation, and whether the task is solved."""
        self._make_current()
        obs = self._env.step(action)[0]
        success = bool(self._env._check_success())
        return self._named(obs, success=success), success

    def close(self) -> None:
        """Free the simulator and its pictures."""
        self._make_current()  # else it frees what belongs to another context
        self._env.close()

    def _make_current(self) -> None:
        context = self._env.sim._render_context_offscreen
        if context is not None:
            context.gl_ctx.make_current()  # the package assumes that there is no other

    def _read_scene(self) -> None:
        """Our readers; they look at the simulation and leave it alone. A hard reset has made a new one."""
        from envs import libero_scene, robosuite
        from envs.mujoco_arm import Arm

        self._arm = Arm(self._env, cameras={})
        if self._simulator == "libero":
            self._scene = libero_scene.Scene(self._env, self._arm, "")
            self._scene.begin()
        else:
            self._scene = robosuite._Scene(self._env, self._arm)

    def _named(self, obs: Mapping[str, Any], *, success: bool | None) -> dict[str, np.ndarray]:
        out = {name: np.asarray(obs[f"robot0_{name}"]) for name in ROBOT if f"robot0_{name}" in obs}
        if self._simulator == "libero":
            self._scene.robot = out
            out = {**out, **self._scene.read(success=success)}
        else:
            out = {**self._arm.robot_state(), **out}  # robosuite's own observations have cosines of the joints
            out.update(self._scene.read(out["eef_pos"], success=success))
            out.update({name: np.asarray(obs[name]) for name in out if name in obs})
        out["state"] = self._env.sim.get_state().flatten()
        out["proprio"] = np.concatenate([out[name] for name in PROPRIO]).astype(np.float32)
        out.update({f"image/{camera}": obs[f"{camera}_image"][::-1] for camera in self._cameras})
        return out
