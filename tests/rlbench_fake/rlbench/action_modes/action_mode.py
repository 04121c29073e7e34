"""Arm and gripper together."""


class MoveArmThenGripper:
    def __init__(self, arm_action_mode, gripper_action_mode) -> None:
        self.arm_action_mode, self.gripper_action_mode = arm_action_mode, gripper_action_mode

    def action(self, scene, action) -> None:
        size = self.arm_action_mode.action_shape(scene)[0] if hasattr(self.arm_action_mode, "action_shape") else 7
        self.arm_action_mode.action(scene, action[:size])
        self.gripper_action_mode.action(scene, action[size:])
