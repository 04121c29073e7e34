"""A stand-in for the official package: its calls and data layouts, over our own table."""

import re
from pathlib import Path

import numpy as np

from envs.calvin.cameras import Cameras
from envs.calvin.data import find_data
from envs.calvin.world import World


class Camera:
    def __init__(self, env, name, size):
        self.name, self.height, self.width = name, *size
        self._env, self._key = env, f"rgb_{name}"
        self._cameras = Cameras(env.world, {self._key: size})

    def render(self):
        self._env.drawn += 1
        return self._cameras.picture(self._key)


class Part:
    """`robot` and `scene`: what a caller may read of them."""

    def __init__(self, world):
        self.world = world

    def get_observation(self):
        return self.world.robot.obs(), {}

    def get_obs(self):
        return self.world.scene_obs()

    @property
    def target_pos(self):
        return self.world.robot.target_position

    @property
    def target_orn(self):
        return self.world.robot.target_euler


class PlayTableSimEnv:
    def __init__(self, scene):
        self.world = World(scene, find_data())
        self.robot = self.scene = Part(self.world)
        self.drawn, self.ownsPhysicsClient, self.use_egl = 0, True, False
        self.cameras = [Camera(self, "static", (20, 24)), Camera(self, "gripper", (16, 16))]

    def reset(self, robot_obs=None, scene_obs=None):
        self.world.reset(robot_obs, scene_obs)
        return self.get_obs()

    def step(self, action):
        if len(action) == 7:
            assert isinstance(action, np.ndarray)
            self.world.robot.relative(action)
            action *= 0.02  # the package scales in place
        else:
            position, orientation, gripper = action
            assert isinstance(gripper, int)
            self.world.robot.absolute(position.tolist(), orientation.tolist(), gripper)
        self.world.step()
        return self.get_obs(), 0, False, self.get_info()

    def get_obs(self):
        return {"rgb_obs": {f"rgb_{camera.name}": camera.render()[0] for camera in self.cameras}}

    def get_info(self):
        """With PyBullet's own contact points, as tuples of 14."""
        info, b = self.world.info(), self.world.bullet
        scene = info["scene_info"]
        for thing in (info["robot_info"], scene["fixed_objects"]["table"], *scene["movable_objects"].values()):
            thing["contacts"] = b.getContactPoints(bodyA=thing["uid"], physicsClientId=self.world.client)
        return info

    def close(self):
        assert self.ownsPhysicsClient
        self.world.close()


def get_env(dataset_path, obs_space=None, show_gui=True, **kwargs):
    assert not show_gui
    text = (Path(dataset_path) / ".hydra" / "merged_config.yaml").read_text()
    return PlayTableSimEnv(re.search("calvin_scene_([A-D])", text).group(1))
