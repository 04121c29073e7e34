"""What the gripper's part of an action means."""

import numpy as np
from fake_world import current


class Discrete:
    def action_shape(self, scene) -> tuple:
        return (1,)

    def action(self, scene, action) -> None:
        world, wanted = current(), float(action[0] > 0.5)
        if wanted == float(world.opening > 0.9):
            return
        world.held = wanted == 0.0 and bool(np.linalg.norm(world.tip[:3, 3] - world.where("lid")) < 0.04)
        for _ in range(3):
            world.opening += np.clip(wanted - world.opening, -0.5, 0.5)
            world.step()


class GripperJointPosition:
    def action_shape(self, scene) -> tuple:
        return (1,)

    def action(self, scene, action) -> None:
        current().opening = float(action[0]) / 0.04
        current().step()
