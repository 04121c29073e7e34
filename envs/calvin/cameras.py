"""The two cameras, drawn by PyBullet's software renderer, by our own (envs/calvin/fast.py), or on a GPU (egl.py).

Their pixels differ a little, so an environment has one of them from beginning to end, and `EnvSpec.renderer` says
which.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Tuple

import numpy as np

from envs.calvin.egl import load_egl
from envs.calvin.fast import Rasteriser
from envs.calvin.scenes import CAMERA_LINK, LENSES, STATIC_EYE, STATIC_TARGET, STATIC_UP
from envs.calvin.world import World
from envs.types import EnvError

Picture = Tuple[np.ndarray, np.ndarray]  # uint8 [Y, X, 3], RGB, row 0 on top; float32 [Y, X], metres
RENDERERS = ("exact", "fast", "egl")


class Cameras:
    """Named cameras of given sizes, looking at one world."""

    def __init__(self, world: World, sizes: Mapping[str, Tuple[int, int]], *, renderer: str = "exact") -> None:
        """`sizes` maps `rgb_static` (fixed, 10 degrees wide) and `rgb_gripper` (at the wrist, 75) to (Y, X).

        `renderer: exact | fast | egl` is PyBullet's software renderer, ours, or PyBullet's OpenGL."""
        unknown = [name for name in sizes if name not in LENSES]
        if unknown:
            raise EnvError(f"CALVIN has no camera '{unknown[0]}'; expected some of {', '.join(LENSES)}")
        if any(min(size) < 1 for size in sizes.values()):
            raise EnvError(f"camera sizes are {dict(sizes)}; expected (Y, X) of at least 1")
        if renderer not in RENDERERS:
            raise EnvError(f"CALVIN has no renderer '{renderer}'; expected one of {', '.join(RENDERERS)}")
        self._world, self.sizes = world, dict(sizes)
        self._fast = Rasteriser(world) if renderer == "fast" else None
        self._drawn_by = world.bullet.ER_TINY_RENDERER
        if renderer == "egl":
            load_egl(world.bullet, world.client)
            self._drawn_by = world.bullet.ER_BULLET_HARDWARE_OPENGL
            world.load(0)  # the plugin draws only what is loaded after it

    def render(self) -> Dict[str, np.ndarray]:
        """Colour images of the present state."""
        return {name: self.picture(name)[0] for name in self.sizes}

    def picture(self, name: str) -> Picture:
        """Colour and depth of one camera."""
        b, (y, x), lens = self._world.bullet, self.sizes[name], LENSES[name]
        if self._fast is not None:
            return self._fast.draw((y, x), self.view(name), self.projection(name), lens.near, lens.far)
        _, _, colour, buffer, _ = b.getCameraImage(
            x, y, self.view(name), self.projection(name), renderer=self._drawn_by,
            flags=b.ER_NO_SEGMENTATION_MASK, physicsClientId=self._world.client,
        )  # fmt: skip
        image = np.ascontiguousarray(np.reshape(colour, (y, x, 4))[:, :, :3], dtype=np.uint8)
        near, far = lens.near, lens.far
        depth = far * near / (far - (far - near) * np.reshape(buffer, (y, x)))
        return image, depth.astype(np.float32)

    def see(self, point: np.ndarray) -> bool:
        """Whether some camera looks at a point [3] of the world, hidden or not; the one at the wrist always does."""
        if any(name != "rgb_static" for name in self.sizes):
            return True
        for name in self.sizes:
            lens, axes = (np.reshape(m, (4, 4)).T for m in (self.projection(name), self.view(name)))
            x, y, _, depth = lens @ axes @ np.append(point, 1.0)
            if depth > 0 and max(abs(x), abs(y)) <= depth:
                return True
        return False

    def view(self, name: str) -> List[float]:
        """World to camera, 16 numbers by columns."""
        b: Any = self._world.bullet
        if name == "rgb_static":
            return b.computeViewMatrix(STATIC_EYE, STATIC_TARGET, STATIC_UP)
        eye, orientation = self._world.robot.link(CAMERA_LINK)
        axes = np.reshape(b.getMatrixFromQuaternion(orientation), (3, 3))
        return b.computeViewMatrix(eye, np.asarray(eye) + axes[:, 1], -axes[:, 2])

    def projection(self, name: str) -> List[float]:
        """Camera to clip space, 16 numbers by columns."""
        (y, x), lens = self.sizes[name], LENSES[name]
        return self._world.bullet.computeProjectionMatrixFOV(lens.fov_deg, x / y, lens.near, lens.far)
