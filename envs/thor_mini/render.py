"""First-person pictures of a house: colours, depth and which object each pixel shows.

`raster.c`, next to this file, is compiled once with the machine's C compiler and kept in the user's cache.
"""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from pathlib import Path
from typing import Any, Optional, Tuple

import numpy as np

from envs import native
from envs.thor_mini.arm_look import add_arm
from envs.thor_mini.materials import textures
from envs.thor_mini.mesh import FACE, GROUP, Mesh, add_body, add_rooms
from envs.thor_mini.scene import Camera, Frame, Scene
from envs.types import EnvError

SOURCE = Path(__file__).with_name("raster.c")
FLAGS = ("-O3",)
FAR = 100.0  # metres; the depth of what is outside
VARIANTS = 16  # sets of textures that houses share; each takes 10 ms to make and 0.2 MB to keep
GROUND = (132, 144, 112)
SCENE = np.dtype(
    [(name, "u8") for name in ("groups", "faces", "corners", "textures", "poses", "hidden")]
    + [("num_groups", "i4"), ("num_faces", "i4"), ("sky", "u1", 4), ("ground", "u1", 4)],
    align=True,
)
VIEW = np.dtype(
    [(name, "f8", 3) for name in ("position", "right", "up", "forward")]
    + [("focal", "f8"), ("width", "i4"), ("height", "i4")]
    + [(name, "u8") for name in ("inverse", "owner", "drawn", "order", "rgb", "depth", "ids")],
    align=True,
)


@lru_cache(maxsize=1)
def load_library() -> Any:
    """The compiled functions of raster.c; EnvError if they cannot be had."""
    path = native.compiled(SOURCE, name="raster", who="thor_mini's renderer", flags=FLAGS)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as e:
        raise EnvError(f"thor_mini's renderer cannot load {path} ({e}); delete it to have it compiled again") from e
    library.raster_draw.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    sizes = (ctypes.c_int32 * 6)()
    library.raster_sizes(sizes)
    expected = (SCENE.itemsize, GROUP.itemsize, FACE.itemsize, VIEW.itemsize)
    assert tuple(sizes)[:4] == expected, f"render.py and raster.c differ: {tuple(sizes)} and {expected}"
    return library


def directions(yaw: float, pitch: float) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right, up and forward of a camera in the world; degrees, yaw clockwise from above, pitch down."""
    y, p = math.radians(yaw), math.radians(pitch)
    right = np.array([math.cos(y), 0.0, -math.sin(y)])
    up = np.array([math.sin(y) * math.sin(p), math.cos(p), math.cos(y) * math.sin(p)])
    forward = np.array([math.sin(y) * math.cos(p), -math.sin(p), math.cos(y) * math.cos(p)])
    return right, up, forward


class Renderer:
    """Draws one scene at one size. Not to be shared between threads."""

    def __init__(self, scene: Scene, width: int, height: int) -> None:
        """Meshes and textures are made here, once."""
        if not (1 <= width <= 4096 and 1 <= height <= 4096):
            raise EnvError(f"a picture of {width} x {height} pixels; expected 1 to 4096 each way")
        self.width, self.height = width, height
        self._library = load_library()
        mesh = Mesh()
        add_rooms(mesh, scene)
        fixed = len(mesh.places)
        for index, body in enumerate(scene.bodies):
            add_body(mesh, body, index)
        self._bodies = slice(fixed, len(mesh.places))
        add_arm(mesh)
        self._arm = slice(self._bodies.stop, len(mesh.places))
        self._groups, self._faces, self._corners = mesh.arrays()
        self._textures = _textures(scene.seed % VARIANTS)
        count = len(self._groups)
        self._poses = np.zeros((count, 4))  # x, y, z, yaw in radians
        self._poses[:, :3] = mesh.places
        self._hidden = np.zeros(count, np.uint8)
        sizes = (ctypes.c_int32 * 6)()
        self._library.raster_sizes(sizes)
        self._buffers = {
            "inverse": np.empty((height, width), np.float32),
            "owner": np.empty((height, width), np.int32),
            "drawn": np.empty(sizes[4] * len(self._faces), np.uint8),
            "order": np.empty(sizes[5] * count, np.uint8),
        }
        self._scene, self._view = np.zeros((), SCENE), np.zeros((), VIEW)
        self._fill_in(scene)

    def _fill_in(self, scene: Scene) -> None:
        s, v = self._scene, self._view
        for name in ("groups", "faces", "corners", "textures", "poses", "hidden"):
            s[name] = getattr(self, "_" + name).ctypes.data
        s["num_groups"], s["num_faces"] = len(self._groups), len(self._faces)
        s["sky"], s["ground"] = (*scene.sky_colour, 0), (*GROUND, 0)
        for name, buffer in self._buffers.items():
            v[name] = buffer.ctypes.data
        v["width"], v["height"] = self.width, self.height

    def draw(
        self,
        camera: Camera,
        positions: np.ndarray,
        yaws: np.ndarray,
        hidden: Optional[np.ndarray] = None,
        out: Optional[Frame] = None,
        arm: Optional[Tuple[np.ndarray, np.ndarray]] = None,
    ) -> Frame:
        """The picture with bodies at `positions` [B, 3] and `yaws` [B] (degrees), without those `hidden` [B].

        `out`: a frame of an earlier call whose arrays are drawn over. `arm`: where its parts are (arm_look.arm_poses);
        None: it is not shown.
        """
        bodies = self._bodies
        if len(positions) != bodies.stop - bodies.start:
            raise EnvError(f"{len(positions)} positions for {bodies.stop - bodies.start} bodies")
        self._poses[bodies, :3] = positions
        self._poses[bodies, 3] = np.radians(yaws)
        self._hidden[bodies] = 0 if hidden is None else hidden
        self._hidden[self._arm] = arm is None
        if arm is not None:
            self._poses[self._arm, :3], self._poses[self._arm, 3] = arm[0], np.radians(arm[1])
        if not 0 < camera.fov < 180:
            raise EnvError(f"a field of view of {camera.fov} degrees; expected more than 0 and less than 180")
        v, shape = self._view, (self.height, self.width)
        v["position"] = camera.position
        v["right"], v["up"], v["forward"] = directions(camera.yaw, camera.pitch)
        v["focal"] = 0.5 * self.height / math.tan(math.radians(camera.fov) / 2)
        if out is None:
            out = Frame(np.empty((*shape, 3), np.uint8), np.empty(shape, np.float32), np.empty(shape, np.int32))
        v["rgb"], v["depth"], v["ids"] = out.rgb.ctypes.data, out.depth.ctypes.data, out.ids.ctypes.data
        self._library.raster_draw(self._scene.ctypes.data, self._view.ctypes.data)
        return out


@lru_cache(maxsize=VARIANTS)
def _textures(seed: int) -> np.ndarray:
    return textures(seed)
