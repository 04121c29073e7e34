"""Take the block and lift it."""

import numpy as np
from fake_world import TABLE, current

from rlbench.tasks.reach_target import DOWN


class PickAndLift:
    name = "pick_and_lift"

    def variation_count(self) -> int:
        return 1

    def init_episode(self, index: int) -> list[str]:
        current().place("target", np.array([0.2, 0.5, TABLE + 0.03]))
        return ["pick up the block and lift it"]

    def place(self) -> bool:
        x, y = np.random.uniform((0.1, -0.2), (0.3, 0.2))
        current().place("lid", np.array([x, y, TABLE + 0.03]))
        return True

    def success(self) -> tuple[bool, bool]:
        done = bool(current().where("lid")[2] > TABLE + 0.15)
        return done, done

    def reward(self) -> float | None:
        return None

    def get_low_dim_state(self) -> np.ndarray:
        return np.concatenate([current().where("lid"), current().where("target")])

    def waypoints(self) -> list[tuple[np.ndarray, float]]:
        at = current().where("lid")
        steps = ((0.1, 1.0), (0.0, 0.0), (0.16, 0.0))
        return [(np.concatenate([at + np.array([0, 0, z]), DOWN]), opened) for z, opened in steps]
