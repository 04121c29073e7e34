"""The official `calvin_env` package in the place of our own table: `backend: official`.

Its environment is made from a dataset's recorded configuration (`DATASET/.hydra/merged_config.yaml`), as its own
evaluation does, so cameras and scene are those of that dataset. Task rules, starts, chains, observations and action
conventions stay ours. Its `step` draws all cameras each time; they are taken away meanwhile, and drawn when asked.
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from envs.calvin.robot import gripper_command
from envs.calvin.scenes import SCENES
from envs.calvin.world import Info
from envs.types import EnvError

CONFIG = Path(".hydra") / "merged_config.yaml"
EGL = "official_egl"  # EnvSpec.renderer where the package draws with the GPU; its software renderer is ours, too


class OfficialWorld:
    """Answers what the adapter asks of `envs.calvin.world.World`."""

    def __init__(self, scene: str, dataset: str) -> None:
        """`dataset` is one split's folder. Raises EnvError if the package or the configuration is missing."""
        config = Path(dataset) / CONFIG
        if not dataset or not config.is_file():
            raise EnvError(
                f"backend: official needs a dataset's configuration, and there is no {config}; set "
                "`env.sim.dataset` to the folder of one split, for example calvin_debug_dataset/validation"
            )
        found = set(re.findall(r"calvin_scene_([A-D])\b", config.read_text(encoding="utf-8")))
        if found != {scene}:
            raise EnvError(f"{config} is of scene {', '.join(sorted(found)) or '(none)'}, and env.sim.name is {scene}")
        self.scene = SCENES[scene]
        self._env: Any = _official_env(dataset)
        self._drawn = {f"rgb_{camera.name}": camera for camera in self._env.cameras}
        self._env.cameras = []
        self.robot = OfficialRobot(self._env)
        self.renderer = EGL if getattr(self._env, "use_egl", False) else ""

    def load(self, seed: int) -> None:
        """Nothing: the package does not load its world anew, so episodes repeat nearly, not to the bit."""

    def reset(self, robot_obs: np.ndarray, scene_obs: np.ndarray) -> None:
        """Put robot and scene to these states [15] and [24]."""
        self.robot.command = None
        self._env.reset(robot_obs=robot_obs, scene_obs=scene_obs)

    def step(self) -> None:
        """One control step with the robot's present command."""
        if self.robot.command is None:
            raise EnvError("the official environment moves by an action only; there is none yet")
        self._env.step(self.robot.command)

    def info(self) -> Info:
        """As `World.info`: the package's own, with contacts as sorted (body, link) pairs."""
        found = self._env.get_info()
        robot, scene = dict(found["robot_info"]), dict(found["scene_info"])
        robot["contacts"] = _pairs(robot["contacts"])
        for kind in ("fixed_objects", "movable_objects"):
            scene[kind] = {k: {**v, "contacts": _pairs(v["contacts"])} for k, v in scene[kind].items()}
        return {"robot_info": robot, "scene_info": scene}

    def scene_obs(self) -> np.ndarray:
        """[24], as `World.scene_obs`."""
        return np.asarray(self._env.scene.get_obs(), dtype=np.float64)

    def cameras(self, sizes: Mapping[str, Tuple[int, int]]) -> OfficialCameras:
        """The cameras asked for. Raises EnvError if the dataset's configuration has them in another size."""
        for name, size in sizes.items():
            camera = self._drawn.get(name)
            has = None if camera is None else (int(camera.height), int(camera.width))
            if has != size:
                raise EnvError(
                    f"camera {name} is {has or 'missing'} in the dataset's configuration, and env.sim.cameras asks for "
                    f"{size} (Y, X); the official package draws what its configuration says, so change the setting"
                )
        return OfficialCameras({name: self._drawn[name] for name in sizes})

    def close(self) -> None:
        """Free the simulator. The package closes once more when it is collected, which must find nothing to close."""
        if self._env is not None:
            self._env.close()
            self._env.ownsPhysicsClient = False
            self._env = None


class OfficialRobot:
    """Keeps the next action and reads the package's robot."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self.command: Optional[Any] = None

    def relative(self, action: np.ndarray) -> None:
        """[7]; a copy, because the package scales relative actions in place."""
        gripper_command(action[6])
        self.command = np.array(action, dtype=np.float64)

    def absolute(self, position: Sequence[float], orientation: Sequence[float], gripper: float) -> None:
        """A pose in world coordinates."""
        self.command = (np.array(position), np.array(orientation), gripper_command(gripper))

    def joints(self, angles: Sequence[float], gripper: float, *, relative: bool = False) -> None:
        """Not every version of the package can."""
        raise EnvError("backend: official takes relative and absolute actions; joint actions need backend: native")

    def obs(self) -> np.ndarray:
        """[15], as `Robot.obs`."""
        return np.asarray(self._env.robot.get_observation()[0], dtype=np.float64)

    def tcp(self) -> Tuple[np.ndarray, np.ndarray]:
        """Position and quaternion (xyzw)."""
        obs = self.obs()
        return obs[:3], _quaternion(obs[3:6])

    @property
    def target_position(self) -> np.ndarray:
        """Of relative actions."""
        return np.asarray(self._env.robot.target_pos, dtype=np.float64)

    @property
    def target_euler(self) -> np.ndarray:
        """Of relative actions."""
        return np.asarray(self._env.robot.target_orn, dtype=np.float64)


class OfficialCameras:
    """Draws as `envs.calvin.cameras.Cameras` does."""

    def __init__(self, cameras: Mapping[str, Any]) -> None:
        self._cameras = dict(cameras)

    def see(self, point: np.ndarray) -> bool:
        """The package's own cameras are taken to see everything."""
        return True

    def render(self) -> Dict[str, np.ndarray]:
        """uint8 [Y, X, 3] each."""
        return {k: np.ascontiguousarray(camera.render()[0], dtype=np.uint8) for k, camera in self._cameras.items()}


def _official_env(dataset: str) -> Any:
    try:
        from calvin_env.envs.play_table_env import get_env
    except ImportError as e:
        raise EnvError(
            f"calvin_env cannot be imported by {sys.executable} ({e}); install it there, name its interpreter in "
            "`env.python`, or take backend: native, which does not need it"
        ) from e
    return get_env(dataset, show_gui=False)


def _pairs(contacts: Sequence[Sequence[Any]]) -> List[Tuple[int, int]]:
    """(body, link) of the other side, of PyBullet's contact points."""
    return sorted({(int(point[2]), int(point[4])) for point in contacts})


def _quaternion(euler: np.ndarray) -> np.ndarray:
    """xyzw of rotations about the fixed axes x, then y, then z."""
    (sx, cx), (sy, cy), (sz, cz) = ((math.sin(angle / 2), math.cos(angle / 2)) for angle in euler)
    return np.array(
        [
            sx * cy * cz - cx * sy * sz,
            cx * sy * cz + sx * cy * sz,
            cx * cy * sz - sx * sy * cz,
            cx * cy * cz + sx * sy * sz,
        ]
    )
