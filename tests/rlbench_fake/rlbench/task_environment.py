"""One task in the scene."""

import os

import numpy as np
from fake_world import current

from rlbench.backend.exceptions import TaskEnvironmentError
from rlbench.backend.observation import CAMERAS, Observation
from rlbench.demo import Demo

SENSORS = {"left_shoulder": "cam_over_shoulder_left", "right_shoulder": "cam_over_shoulder_right",
           "overhead": "cam_overhead", "wrist": "cam_wrist", "front": "cam_front"}  # fmt: skip


class TaskEnvironment:
    renders = 0  # pictures taken, of all tasks

    def __init__(self, task, action_mode, dataset_root, obs_config, shaped_rewards) -> None:
        self._task, self._action_mode, self._obs_config = task, action_mode, obs_config
        self._shaped_rewards, self._variation_number, self._reset_called = shaped_rewards, 0, False

    def get_name(self) -> str:
        return self._task.name

    def variation_count(self) -> int:
        return self._task.variation_count()

    def sample_variation(self) -> int:
        self._variation_number = int(np.random.randint(self.variation_count()))
        return self._variation_number

    def set_variation(self, v: int) -> None:
        if v >= self.variation_count():
            raise TaskEnvironmentError(f"there is no variation {v}")
        self._variation_number = v

    def reset(self, demo=None):
        world = current()
        world.home()
        texts = self._task.init_episode(self._variation_number)
        limit = demo.num_reset_attempts if demo is not None and demo.num_reset_attempts else 40
        self._attempts = 0
        while True:
            self._attempts += 1
            if self._task.place() and not self._unlucky():
                break
            if self._attempts >= limit:
                raise TaskEnvironmentError(f"could not place the task {self._task.name} in the scene")
        world.forward()
        self._reset_called = True
        return texts, self.get_observation()

    def _unlucky(self) -> bool:
        """RLBENCH_FAKE_PLACE=<n>: nothing fits in the first n draws of a process; all: ever."""
        wanted = os.environ.get("RLBENCH_FAKE_PLACE", "0")
        TaskEnvironment.draws += 1
        return wanted == "all" or TaskEnvironment.draws <= int(wanted)

    draws = 0

    def reset_to_demo(self, demo):
        demo.restore_state()
        self.set_variation(demo._observations[0].misc["variation_index"])
        return self.reset(demo)

    def step(self, action):
        if not self._reset_called:
            raise RuntimeError("call reset before step")
        current().commanded = None
        self._action_mode.action(current(), np.asarray(action))
        success, terminate = self._task.success()
        reward = float(success)
        if self._shaped_rewards:
            reward = self._task.reward()
            if reward is None:
                raise RuntimeError(f"task {self._task.name} has no shaped reward")
        return self.get_observation(), reward, terminate

    def get_demos(self, amount: int, live_demos: bool = False, **_):
        assert live_demos, "stored ones are not read here"
        return [self._live_demo() for _ in range(amount)]

    def _live_demo(self) -> Demo:
        state = np.random.get_state()
        _, first = self.reset()
        world, frames = current(), [first]
        for pose, opened in self._task.waypoints():
            goal = world.solve(pose[:3], pose[3:])
            if goal is None:
                raise RuntimeError("could not collect demos: no path to a waypoint")
            while np.abs(world.q - goal).max() > 1e-6:
                world.target = world.commanded = goal
                before = world.q.copy()
                world.commanded = before + np.clip(goal - before, -0.1, 0.1)
                world.step()
                frames.append(self.get_observation())
            if opened != float(world.opening > 0.9):
                self._action_mode.gripper_action_mode.action(world, np.array([opened]))
                world.commanded = world.q.copy()
                frames.append(self.get_observation())
        return Demo(frames, random_seed=state, num_reset_attempts=self._attempts)

    def get_observation(self) -> Observation:
        world, config = current(), self._obs_config
        tip, values = world.tip, {}
        quat = world.data.xquat[world.model.body("right_hand").id][[1, 2, 3, 0]]
        misc = {"variation_index": self._variation_number, "joint_poses": world.joint_poses()}
        if world.commanded is not None:
            misc["joint_position_action"] = np.append(world.commanded, float(world.opening > 0.9))
        for camera in CAMERAS:
            chosen = getattr(config, camera + "_camera")
            pose, intrinsics = world.camera(SENSORS[camera], chosen.image_size)
            misc.update({f"{camera}_camera_extrinsics": pose, f"{camera}_camera_intrinsics": intrinsics,
                         f"{camera}_camera_near": 0.01, f"{camera}_camera_far": 4.5})  # fmt: skip
            if chosen.rgb:
                TaskEnvironment.renders += 1
                values[camera + "_rgb"] = world.picture(SENSORS[camera], chosen.image_size)
        opening = float(world.opening > 0.9)
        fields = {
            "joint_velocities": world.velocity_now.copy(), "joint_positions": world.q.copy(),
            "joint_forces": np.zeros(7), "gripper_open": opening, "gripper_pose": np.concatenate([tip[:3, 3], quat]),
            "gripper_matrix": tip,
            "gripper_joint_positions": np.full(2, 0.04 * world.opening), "gripper_touch_forces": np.zeros(6),
            "task_low_dim_state": self._task.get_low_dim_state(),
        }  # fmt: skip
        asked = {k: v if getattr(config, k) else None for k, v in fields.items()}
        return Observation(**values, **asked, misc=misc)
