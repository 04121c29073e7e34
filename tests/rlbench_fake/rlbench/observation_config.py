"""What is to be observed."""

from pyrep.const import RenderMode

from rlbench.backend.observation import CAMERAS, FIELDS


class CameraConfig:
    def __init__(self, rgb=True, depth=True, point_cloud=True, mask=True, image_size=(128, 128),
                 render_mode=RenderMode.OPENGL3) -> None:  # fmt: skip
        self.rgb, self.depth, self.point_cloud, self.mask = rgb, depth, point_cloud, mask
        self.image_size, self.render_mode = image_size, render_mode

    def set_all(self, value: bool) -> None:
        self.rgb = self.depth = self.point_cloud = self.mask = value


class ObservationConfig:
    def __init__(self) -> None:
        for camera in CAMERAS:
            setattr(self, camera + "_camera", CameraConfig())
        self.set_all(True)

    def set_all(self, value: bool) -> None:
        for camera in CAMERAS:
            getattr(self, camera + "_camera").set_all(value)
        for name in FIELDS[:-1]:
            setattr(self, name, value)
