"""Reach the sphere of a colour."""

import numpy as np
from fake_world import TABLE, current

COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
DOWN = np.array([1.0, 0.0, 0.0, 0.0])  # x, y, z, w: fingers towards the table


class ReachTarget:
    name = "reach_target"

    def variation_count(self) -> int:
        return len(COLOURS)

    def init_episode(self, index: int) -> list[str]:
        name, rgb = list(COLOURS.items())[index]
        world = current()
        world.model.geom_rgba[world.model.geom("target").id, :3] = rgb
        world.place("lid", np.array([0.2, 0.5, TABLE + 0.03]))
        return [f"reach the {name} target", f"touch the {name} ball with the panda gripper"]

    def place(self) -> bool:
        """One draw; whether the task fits there."""
        x, y = np.random.uniform((-0.1, -0.3), (0.4, 0.3))
        current().place("target", np.array([x, y, TABLE + 0.15]))
        return x > 0.05

    def success(self) -> tuple[bool, bool]:
        done = bool(np.linalg.norm(current().tip[:3, 3] - current().where("target")) < 0.03)
        return done, done

    def reward(self) -> float | None:
        return -float(np.linalg.norm(current().tip[:3, 3] - current().where("target")))

    def get_low_dim_state(self) -> np.ndarray:
        return current().where("target")

    def waypoints(self) -> list[tuple[np.ndarray, float]]:
        """Poses of the tip, and whether the hand is open there."""
        return [(np.concatenate([current().where("target"), DOWN]), 1.0)]
