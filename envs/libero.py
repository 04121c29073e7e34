"""LIBERO: five suites, 130 language-instructed tasks of a Panda arm, on robosuite 1.4.

What a policy sees here, and how it differs from LIBERO's own files: images are RGB with row 0 on top, which is the
vertical flip of the images that LIBERO renders and stores (readers of its HDF5 files must flip them: `image[::-1]`);
left and right are as stored. The gripper action is -1 to open, +1 to close. The instruction is the benchmark's, from
the task name; the one inside the BDDL file is worded differently. Observations are those of the stock environment,
with `core: stock` to the bit, including that it samples them 1 of 25 substeps before the end of a control step.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional, Sequence

import numpy as np

from envs.cache import cache_root
from envs.kept import Kept
from envs.libero_assets import (
    find_assets,
    language,
    package_folder,
    suite_tasks,
    without_srgb,
)
from envs.libero_scene import Scene
from envs.libero_states import suite_states
from envs.models import compiled_scenes, visuals_for
from envs.mujoco_arm import Arm, import_robosuite, seeded
from envs.perturb import read_factors, recorded
from envs.settle import Settling
from envs.types import EnvError, EnvSpec, Observation, ResetNeeded, Step, check_action

# Steps after which published evaluations stop an episode.
MAX_STEPS = {"libero_spatial": 240, "libero_object": 280, "libero_goal": 320, "libero_10": 520, "libero_90": 400}
ACTIONS = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
PROPRIO = {
    **{f"eef_{axis}": "m" for axis in "xyz"},
    **{f"eef_q{axis}": "1" for axis in "xyzw"},
    "finger_0": "m",
    "finger_1": "m",
}
WAIT = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])  # stay, hand open: the benchmark's settling action
MEMORY_MB = {False: 450.0, True: 800.0}  # whether there are cameras -> size of the process
PLACEMENT_TRIES = 20  # robosuite's placement sampler gives up now and then


class Libero:
    """One suite. Tasks are compiled on first use; those last used stay in memory, as many as fit."""

    def __init__(
        self,
        *,
        name: str = "libero_object",
        cameras: Optional[Mapping[str, Sequence[int]]] = None,
        render_quality: str = "exact",
        max_steps: Optional[int] = None,
        settle_steps: int = 10,
        init: str = "bundled",
        strip_srgb: bool = True,
        memory_mb: Optional[float] = None,
        core: str = "stock",
        poses: bool = False,
        surfaces: str = "",
        perturb: Any = "",
    ) -> None:
        """`cameras` maps a camera to (Y, X). docs/rendering.md explains `render_quality`: exact, fast, lite, soft.

        `init: bundled` starts from the benchmark's stored state number `seed % 50`; positions of fixtures (cabinet,
        stove), which those states lack, come from the seed. `init: sampled` draws everything from the seed.
        `strip_srgb` removes a colour tag from four textures, so that images do not depend on MuJoCo's version.
        `memory_mb`: tasks that were played stay in memory while the process is smaller than this; by default 800 with
        cameras and 450 without. The task in use may need more.
        `core: fast` steps in compiled code (see envs/osc.py), `stock` with robosuite's own controllers.
        `poses`, `surfaces` (of a camera): more privileged state, see `Arm`. `perturb`: see envs/perturb.py.
        """
        cameras = {"agentview": (128, 128), "robot0_eye_in_hand": (128, 128)} if cameras is None else cameras
        if init not in ("bundled", "sampled"):
            raise EnvError(f"init '{init}' is unknown; expected 'bundled' or 'sampled'")
        tasks = suite_tasks(name)
        self._suite, self._quality, self._init, self._core = name, render_quality, init, core
        self._told = {"poses": poses, "surfaces": surfaces}
        self._factors = read_factors(perturb, render_quality)
        self._settle = Settling(steps=int(settle_steps), action=WAIT)
        self._cameras = {camera: (int(size[0]), int(size[1])) for camera, size in cameras.items()}
        self._assets = without_srgb(find_assets()) if strip_srgb else find_assets()
        self._states = suite_states(name)
        self._state_size = max(states.shape[1] for states in self._states.values())
        limit = float(memory_mb if memory_mb is not None else MEMORY_MB[bool(cameras)])
        self._scenes = _kept(limit)
        self._scene: Optional[Scene] = None
        self._closed, self._running, self._steps = False, False, 0
        first = self._load(tasks[0])
        first.arm.reset(0)
        first.begin()
        privileged = self._privileged(first, success=None)
        self.spec = EnvSpec(
            env_id=f"libero/{name}",
            cameras=self._cameras,
            proprio=dict(PROPRIO),
            actions=ACTIONS,
            low=(-1.0,) * 7,
            high=(1.0,) * 7,
            control_hz=20.0,
            max_steps=int(max_steps or MAX_STEPS[name]),
            tasks=tasks,
            action_convention="osc_pose_delta",
            privileged={key: tuple(value.shape) for key, value in privileged.items()},
            perturbation=recorded(self._factors),
        )

    def reset(self, task: str, seed: int) -> Observation:
        """Start an episode; `task` is a task's name or its number in the suite."""
        self._check_open()
        task = self._resolve(task)
        self._running = False
        scene = self._scene = self._load(task)
        _place(scene.arm, int(seed))
        if self._init == "bundled":
            states = self._states[task]
            scene.arm.set_state(states[int(seed) % len(states)])
            scene.post_process()  # for example a stove that is on looks so
        scene.arm.perturb(int(seed))
        scene.begin()
        self._settle(scene.arm, task, observe=scene.look, observe_after=self._observe_after(scene))
        scene.start()
        self._running, self._steps = True, 0
        return self._observe(scene, success=None, render=True)

    def step(self, action: np.ndarray, render: bool = True) -> Step:
        """Advance one control step (1/20 s)."""
        self._check_open()
        if not self._running or self._scene is None:
            raise ResetNeeded(f"{self.spec.env_id}: there is no running episode; call reset first")
        scene, action = self._scene, check_action(self.spec, action)
        self._running = False  # stays so if the simulation fails
        reward = scene.arm.step(action, observe=scene.look, observe_after=self._observe_after(scene))
        self._steps += 1
        success = reward > 0.0  # LIBERO pays 1 exactly when the goal holds, and calls that `done`
        truncated = self._steps >= self.spec.max_steps and not success
        self._running = not (success or truncated)
        obs = self._observe(scene, success=success, render=render)
        return Step(obs, float(reward), success, truncated, success)

    def render(self) -> Dict[str, np.ndarray]:
        """Camera images of the moment that the last observation shows."""
        self._check_open()
        if self._scene is None:
            raise ResetNeeded(f"{self.spec.env_id}: there is nothing to render before the first reset")
        return self._scene.render()

    def close(self) -> None:
        """Free the simulators; calling it again does nothing."""
        self._closed, self._running, self._scene = True, False, None
        self._scenes.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise EnvError(f"{self.spec.env_id}: the environment is closed; make a new one")

    def _observe_after(self, scene: Scene) -> int:
        """The substep at which the stock environment samples: loading a stored state shifts its clock by one."""
        return scene.arm.substeps - 1 if self._init == "bundled" else 0

    def _resolve(self, task: str) -> str:
        tasks = self.spec.tasks
        if task in tasks:
            return task
        if task.isdigit() and int(task) < len(tasks):
            return tasks[int(task)]
        near = difflib.get_close_matches(task, tasks, 1, 0.0)[0]
        raise EnvError(
            f"{self.spec.env_id}: unknown task '{task}'; expected a number below {len(tasks)} or a name, "
            f"for example '{near}'"
        )

    def _load(self, task: str) -> Scene:
        """The compiled scene of a task."""
        scene = self._scenes.get(task)
        if scene is None:
            self._scene = None  # else the one that makes room could not be freed
            import_libero(self._assets)
            self._scenes.make_room()
            with compiled_scenes("libero", visuals_for(self._quality, self._cameras)):
                env = _make(self._assets, package_folder() / "bddl_files" / self._suite / f"{task}.bddl")
            arm = Arm(env, cameras=self._cameras, quality=self._quality, core=self._core, perturb=self._factors)
            scene = Scene(env, arm, language(task), **self._told)
            self._scenes.add(task, scene)
        return scene

    def _observe(self, scene: Scene, *, success: Optional[bool], render: bool) -> Observation:
        privileged = self._privileged(scene, success=success)
        proprio = np.concatenate([privileged[key] for key in ("eef_pos", "eef_quat", "gripper_qpos")])
        images = scene.render() if render else {}
        return Observation(images, proprio.astype(np.float32), scene.instruction, privileged)

    def _privileged(self, scene: Scene, *, success: Optional[bool]) -> Dict[str, np.ndarray]:
        out = dict(scene.robot)
        out.update(scene.read(success=success))
        state = scene.arm.state()
        out["state"] = np.zeros(self._state_size)  # tasks differ in its length: the suite's longest, zeros at the end
        out["state"][: len(state)] = state
        out["state_size"] = np.array([float(len(state))])
        return out


def _kept(limit: float) -> Kept[Scene]:
    if not limit > 0:
        raise EnvError(f"memory_mb is {limit:g}; expected megabytes above 0, or null for the default")
    return Kept(memory_mb=limit, close=_close)


def _close(scene: Scene) -> None:
    scene.arm.close()


def _place(arm: Arm, seed: int) -> None:
    """Reset with a placement drawn from the seed; a draw that finds no room is repeated with a derived seed."""
    from robosuite.utils.errors import RandomizationError

    for attempt in range(PLACEMENT_TRIES):
        with contextlib.suppress(RandomizationError):
            arm.reset(seed + attempt * 1_000_003)
            return
    raise EnvError(f"no free placement of the objects found in {PLACEMENT_TRIES} draws for seed {seed}; take another")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep the packages' notes off standard output."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def import_libero(assets: Path) -> Any:
    """Import `libero.libero.envs` so that it neither asks questions nor downloads, and uses these assets.

    At its first import LIBERO writes `~/.libero/config.yaml` after asking for paths on standard input. It gets a
    private configuration in our cache instead. `libero.libero.benchmark` is never imported: it needs torch.
    """
    import_robosuite()
    if "libero.libero" not in sys.modules:
        os.environ["LIBERO_CONFIG_PATH"] = str(_config_folder(package_folder(), assets))
    try:
        with _quietly():
            envs = importlib.import_module("libero.libero.envs")
    except ImportError as e:
        raise EnvError(
            f"LIBERO cannot be imported by {sys.executable} ({e}); run `python launch.py install libero`, which "
            "installs what envs/requirements/libero.txt lists"
        ) from e
    sys.modules["libero.libero"]._assets_path_cache = str(assets)  # type: ignore[attr-defined]  # where it looks first
    return envs


def _config_folder(package: Path, assets: Path) -> Path:
    """A folder with a `config.yaml` for LIBERO; written once, complete or not at all."""
    paths = {
        "benchmark_root": str(package),
        "bddl_files": str(package / "bddl_files"),
        "init_states": str(package / "init_files"),
        "datasets": str(cache_root() / "libero-datasets"),
        "assets": str(assets),
    }
    text = json.dumps(paths)  # JSON is YAML
    folder = cache_root() / "libero-config" / hashlib.sha256(text.encode()).hexdigest()[:12]
    if not (folder / "config.yaml").exists():
        folder.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=str(folder))
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(partial, str(folder / "config.yaml"))
    return folder


def _make(assets: Path, bddl: Path) -> Any:
    """Compile a task's scene, without cameras of robosuite's own."""
    envs = import_libero(assets)
    robosuite = import_robosuite()
    with _quietly(), seeded(0):
        problem = importlib.import_module("libero.libero.envs.bddl_utils").get_problem_info(str(bddl))
        return envs.TASK_MAPPING[problem["problem_name"]](
            str(bddl),
            robots=["Panda"],
            controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
            gripper_types="default",
            initialization_noise=None,
            use_camera_obs=False,
            has_renderer=False,
            has_offscreen_renderer=False,
            control_freq=20,
            horizon=1000,
            ignore_done=True,
            hard_reset=False,
        )
