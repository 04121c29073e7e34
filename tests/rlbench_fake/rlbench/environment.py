"""The simulator and its scene."""

import os
import time

from pyrep import PyRep

from rlbench.observation_config import ObservationConfig
from rlbench.task_environment import TaskEnvironment


class Environment:
    def __init__(self, action_mode, dataset_root="", obs_config=None, headless=False, static_positions=False,
                 robot_setup="panda", randomize_every=None, frequency=1, visual_randomization_config=None,
                 dynamics_randomization_config=None, attach_grasped_objects=True, shaped_rewards=False,
                 arm_max_velocity=1.0, arm_max_acceleration=4.0) -> None:  # fmt: skip
        self._action_mode, self._dataset_root = action_mode, dataset_root
        self._obs_config, self._shaped_rewards = obs_config or ObservationConfig(), shaped_rewards
        self._pyrep = None

    def launch(self) -> None:
        if log := os.environ.get("RLBENCH_FAKE_LAUNCHES"):
            with open(log, "a") as file:
                file.write(f"{time.time()}\n")
        self._pyrep = PyRep()
        self._pyrep.launch("task_design.ttt", headless=True)

    def shutdown(self) -> None:
        if self._pyrep is not None:
            self._pyrep.shutdown()
        self._pyrep = None

    def get_task(self, task_class) -> TaskEnvironment:
        return TaskEnvironment(
            task_class(), self._action_mode, self._dataset_root, self._obs_config, self._shaped_rewards
        )
