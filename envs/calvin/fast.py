"""CALVIN's cameras by a rasteriser of our own: the same meshes, textures and lighting as PyBullet's, nearly its pixels.

`raster.c`, next to this file, is compiled once with the machine's C compiler and kept in the user's cache. Every mesh
is read once per process. Some pixels at the edges of small faces differ from PyBullet's (docs/calvin.md has figures),
so an environment has one renderer from beginning to end, and `EnvSpec.renderer` says which.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from envs import native
from envs.calvin.meshes import Mesh, box, cylinder, read_obj, read_png, read_stl
from envs.calvin.world import World
from envs.types import EnvError

SOURCE = Path(__file__).with_name("raster.c")
FLAGS = ("-O3",)
LIGHT = np.array([-50.0, 30.0, 100.0])  # PyBullet's, where z is up
BACKGROUND = (255.0, 255.0, 255.0)
MESH = np.dtype(
    [(name, "u8") for name in ("points", "normals", "texture_points", "corners", "texture")]
    + [(name, "i4") for name in ("num_points", "num_triangles", "height", "width")]
    + [("centre", "f8", 3), ("radius", "f8")],
    align=True,
)
BODY = np.dtype([("turn", "f8", (3, 3)), ("place", "f8", 3), ("colour", "f4", 3), ("mesh", "i4")], align=True)
VIEW = np.dtype(
    [("turn", "f8", (3, 3)), ("place", "f8", 3), ("focal_x", "f8"), ("focal_y", "f8"), ("near", "f8"), ("far", "f8")]
    + [(name, "i4") for name in ("height", "width", "num_bodies", "unused")]
    + [("light", "f4", 3), ("background", "f4", 3)]
    + [(name, "u8") for name in ("bodies", "meshes", "seen", "inverse", "owner", "rgb", "depth")],
    align=True,
)


@lru_cache(maxsize=1)
def load_library() -> Any:
    """The compiled functions of raster.c; EnvError if they cannot be had."""
    otherwise = " `renderer: exact` needs none."
    path = native.compiled(SOURCE, name="calvin", who="CALVIN's fast renderer", flags=FLAGS, otherwise=otherwise)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as e:
        raise EnvError(f"CALVIN's fast renderer cannot load {path} ({e}); delete it to have it compiled again") from e
    library.raster_draw.argtypes = [ctypes.c_void_p]
    library.raster_draw.restype = None
    library.png_rows.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]
    sizes = (ctypes.c_int32 * 3)()
    library.raster_sizes(sizes)
    expected = (MESH.itemsize, BODY.itemsize, VIEW.itemsize)
    assert tuple(sizes) == expected, f"fast.py and raster.c differ: {expected} and {tuple(sizes)}"
    return library


class Rasteriser:
    """Draws one world. The meshes are those of the bodies that it had when this was made."""

    def __init__(self, world: World) -> None:
        self._world, self._library = world, load_library()
        shapes = _shapes(world)
        self._links = [(uid, link) for uid, link, *_ in shapes]
        self._frames = {uid: Frames(world, uid) for uid, _ in self._links}
        self._bodies, self._meshes = np.zeros(len(shapes), BODY), np.zeros(len(shapes), MESH)
        self._kept: List[Any] = []  # what the addresses in `_meshes` point to
        for i, (_, _, mesh, texture) in enumerate(shapes):
            self._keep(self._meshes[i], mesh, texture)
        self._bodies["mesh"] = np.arange(len(shapes))
        self._seen = np.empty((int(self._meshes["num_points"].max()), 6))
        self._views: Dict[Tuple[int, int], _View] = {}

    def _keep(self, row: np.ndarray, mesh: Mesh, texture: Optional[np.ndarray]) -> None:
        for name in ("points", "normals", "texture_points", "corners"):
            row[name] = getattr(mesh, name).ctypes.data
        row["num_points"], row["num_triangles"] = len(mesh.points), len(mesh.corners)
        if texture is not None:
            row["texture"] = texture.ctypes.data
            row["height"], row["width"] = texture.shape[:2]
        row["centre"] = (mesh.points.min(0) + mesh.points.max(0)) / 2
        row["radius"] = np.linalg.norm(mesh.points - row["centre"], axis=1).max()
        self._kept += [mesh, texture]

    def _place(self) -> None:
        """Take the poses and colours of all bodies from the world."""
        b, client = self._world.bullet, self._world.client
        frames = {uid: body.now() for uid, body in self._frames.items()}
        found = np.array([frames[uid][link] for uid, link in self._links])
        self._bodies["turn"], self._bodies["place"] = found[:, :3, :3], found[:, :3, 3]
        colours = [shape[7][:3] for uid in self._frames for shape in b.getVisualShapeData(uid, physicsClientId=client)]
        self._bodies["colour"] = colours  # lights change theirs

    def draw(
        self, size: Tuple[int, int], view: List[float], projection: List[float], near: float, far: float
    ) -> Tuple[np.ndarray, np.ndarray]:
        """Colours uint8 [Y, X, 3] and depths float32 [Y, X] in metres, `far` where there is nothing.

        `view` and `projection` are OpenGL's matrices by columns, as PyBullet makes them."""
        self._place()
        if size not in self._views:
            self._views[size] = _View(size)
        (height, width), kept = size, self._views[size]
        v, matrix = kept.fields, np.reshape(view, (4, 4)).T
        v["turn"], v["place"], v["near"], v["far"] = matrix[:3, :3], matrix[:3, 3], near, far
        v["focal_x"], v["focal_y"] = 0.5 * width * projection[0], 0.5 * height * projection[5]
        v["height"], v["width"], v["num_bodies"] = height, width, len(self._bodies)
        v["light"], v["background"] = LIGHT / np.linalg.norm(LIGHT), BACKGROUND
        colour, depth = np.empty((height, width, 3), np.uint8), np.empty(size, np.float32)
        buffers = {"bodies": self._bodies, "meshes": self._meshes, "seen": self._seen, "inverse": kept.inverse,
                   "owner": kept.owner, "rgb": colour, "depth": depth}  # fmt: skip
        for name, buffer in buffers.items():
            v[name] = buffer.ctypes.data
        self._library.raster_draw(v.ctypes.data)
        return colour, depth


class Frames:
    """Where the links of a body are now, from its joint angles.

    PyBullet draws the present state but tells link poses of one physics step before, unless it is asked to renew them,
    and then later readings would differ from what they are without pictures."""

    def __init__(self, world: World, uid: int) -> None:
        """Asks for the renewal once: the world must be loaded anew before an episode, as every reset does."""
        b, self._uid, self._world = world.bullet, uid, world
        found = b.getDynamicsInfo(uid, -1, physicsClientId=world.client)
        self._centre = np.linalg.inv(_matrix(b, found[3], found[4]))  # PyBullet tells where a base's centre of mass is
        count = b.getNumJoints(uid, physicsClientId=world.client)
        self._joints = [b.getJointInfo(uid, i, physicsClientId=world.client) for i in range(count)]
        self._numbers, self._offsets = list(range(count)), [np.eye(4)] * count
        told = {-1: self._base()}
        for i, moved in enumerate(self._moved()):
            state = b.getLinkState(uid, i, computeForwardKinematics=1, physicsClientId=world.client)
            told[i] = _matrix(b, state[4], state[5])
            self._offsets[i] = np.linalg.inv(told[self._joints[i][16]]) @ told[i] @ np.linalg.inv(moved)

    def now(self) -> Dict[int, np.ndarray]:
        """Link -> [4, 4]; -1 is the base."""
        frames = {-1: self._base()}
        for i, moved in enumerate(self._moved()):
            frames[i] = frames[self._joints[i][16]] @ self._offsets[i] @ moved
        return frames

    def _base(self) -> np.ndarray:
        b = self._world.bullet
        return (
            _matrix(b, *b.getBasePositionAndOrientation(self._uid, physicsClientId=self._world.client)) @ self._centre
        )

    def _moved(self) -> List[np.ndarray]:
        """What each joint's present angle, or length, does."""
        b = self._world.bullet
        states = b.getJointStates(self._uid, self._numbers, physicsClientId=self._world.client) if self._numbers else []
        out = []
        for joint, state in zip(self._joints, states):
            place, turn = (0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)
            if joint[2] == b.JOINT_REVOLUTE:
                turn = b.getQuaternionFromAxisAngle(joint[13], state[0])
            elif joint[2] == b.JOINT_PRISMATIC:
                place = tuple(state[0] * side for side in joint[13])
            out.append(_matrix(b, place, turn))
        return out


def _matrix(b: Any, place: Sequence[float], turn: Sequence[float]) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = np.reshape(b.getMatrixFromQuaternion(turn), (3, 3)), place
    return out


class _View:
    """What is kept from picture to picture of one size."""

    def __init__(self, size: Tuple[int, int]) -> None:
        self.fields = np.zeros((), VIEW)
        self.inverse, self.owner = np.empty(size, np.float32), np.empty((*size, 2), np.int32)


# --- what there is to draw --------------------------------------------------------------------------------------------


def _shapes(world: World) -> List[Tuple[int, int, Mesh, Optional[np.ndarray]]]:
    """Body, link, mesh in the link's frame, and texture of everything that can be seen."""
    b, client, found = world.bullet, world.client, []
    for i in range(b.getNumBodies(physicsClientId=client)):
        uid = b.getBodyUniqueId(i, physicsClientId=client)
        for shape in b.getVisualShapeData(uid, physicsClientId=client):
            link, kind, size, name, place, turn = shape[1:7]
            matrix = np.reshape(b.getMatrixFromQuaternion(turn), (3, 3))
            mesh, texture = _shape(b, kind, size, name.decode())
            found.append((uid, link, mesh.moved(size if name else (1.0,) * 3, matrix, np.array(place)), texture))
    return found


def _shape(b: Any, kind: int, size: Tuple[float, ...], name: str) -> Tuple[Mesh, Optional[np.ndarray]]:
    if kind == b.GEOM_BOX:
        return box(size), None
    if kind == b.GEOM_CYLINDER:
        return cylinder(size[0], size[1]), None
    if kind == b.GEOM_MESH and name:
        return _mesh(Path(name))
    raise EnvError(f"CALVIN's fast renderer cannot draw PyBullet's geometry {kind}; take `renderer: exact`")


@lru_cache(maxsize=None)
def _mesh(path: Path) -> Tuple[Mesh, Optional[np.ndarray]]:
    if path.suffix.lower() == ".stl":
        return read_stl(path), None
    texture = _texture_of(path)
    return read_obj(path), None if texture is None else _picture(texture)


@lru_cache(maxsize=None)
def _picture(path: Path) -> np.ndarray:
    return read_png(path, load_library())


def _texture_of(path: Path) -> Optional[Path]:
    """The picture that an OBJ file's material names, if it is there."""
    for material in _values(path, "mtllib"):
        for picture in _values(path.with_name(material), "map_Kd"):
            if (path.parent / picture).is_file():
                return (path.parent / picture).resolve()
    return None


def _values(path: Path, key: str) -> List[str]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="replace") as lines:
        words = [line.split(None, 1) for line in lines]
    return [found[1].strip() for found in words if len(found) == 2 and found[0] == key]
