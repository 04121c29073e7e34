"""What was observed at one moment; fields that were not asked for are None."""

CAMERAS = ("left_shoulder", "right_shoulder", "overhead", "wrist", "front")
FIELDS = ("joint_velocities", "joint_positions", "joint_forces", "gripper_open", "gripper_pose", "gripper_matrix",
          "gripper_joint_positions", "gripper_touch_forces", "task_low_dim_state", "misc")  # fmt: skip


class Observation:
    def __init__(self, **values) -> None:
        for camera in CAMERAS:
            for kind in ("rgb", "depth", "mask", "point_cloud"):
                setattr(self, f"{camera}_{kind}", values.pop(f"{camera}_{kind}", None))
        for name in FIELDS:
            setattr(self, name, values.pop(name))
        assert not values, values
