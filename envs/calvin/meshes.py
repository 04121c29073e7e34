"""Triangle meshes and textures from CALVIN's files: Wavefront OBJ, STL and PNG of the kinds that occur there."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from envs.types import EnvError

RIM = 32  # corners of a cylinder's end
PNG_START = b"\x89PNG\r\n\x1a\n"
CHANNELS = {2: 3, 6: 4}  # PNG colour type -> bytes of a pixel


@dataclass(frozen=True)
class Mesh:
    """Triangles in the frame of the body they belong to."""

    points: np.ndarray  # float64 [P, 3], metres
    normals: np.ndarray  # float32 [M, 3]
    texture_points: np.ndarray  # float32 [U, 2], v upwards
    corners: np.ndarray  # int32 [F, 3, 3]: of each corner the point, the texture point and the normal

    def moved(self, scale: Sequence[float], turn: np.ndarray, place: np.ndarray) -> Mesh:
        """Scaled along its own axes, then turned by [3, 3] and moved."""
        points = self.points * np.asarray(scale) @ turn.T + place
        normals = self.normals / np.asarray(scale, dtype=np.float32) @ turn.T.astype(np.float32)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        return Mesh(points, normals.astype(np.float32), self.texture_points, self.corners)


def read_obj(path: Path) -> Mesh:
    """A Wavefront OBJ file of triangles. Corners without a normal get that of their face."""
    kinds: Dict[bytes, List[bytes]] = {b"v": [], b"vt": [], b"vn": [], b"f": []}
    for line in path.read_bytes().splitlines():
        kind, _, rest = line.partition(b" ")
        if kind in kinds:
            kinds[kind].append(rest)
    points, texture_points, normals = (
        _numbers(kinds[kind], width) for kind, width in ((b"v", 3), (b"vt", 2), (b"vn", 3))
    )
    corners = _faces(kinds[b"f"], path)
    counts = np.array([len(points), max(1, len(texture_points)), max(1, len(normals))])
    if not len(corners) or (corners >= counts).any() or (corners[:, :, 0] < 0).any():
        raise EnvError(f"{path} has no faces, or one that names a corner it does not have; take the official data")
    if not len(texture_points):
        texture_points = np.zeros((1, 2))
    if not len(normals) or (corners[:, :, 2] < 0).any():
        normals = _face_normals(points, corners[:, :, 0])
        corners[:, :, 2] = np.arange(len(corners))[:, None]
    corners = np.maximum(corners, 0)
    return Mesh(
        points, normals.astype(np.float32), texture_points.astype(np.float32), np.ascontiguousarray(corners, np.int32)
    )


def read_stl(path: Path) -> Mesh:
    """A binary STL file."""
    data = path.read_bytes()
    kind = np.dtype([("normal", "<f4", 3), ("points", "<f4", (3, 3)), ("unused", "<u2")])
    count = struct.unpack_from("<I", data, 80)[0] if len(data) >= 84 else -1
    if len(data) < 84 + max(count, 1) * kind.itemsize:
        raise EnvError(f"{path} is no binary STL file, or is cut short; take the official data")
    return from_triangles(np.frombuffer(data, kind, count, 84)["points"].astype(np.float64))


def box(size: Sequence[float]) -> Mesh:
    """A box of these sides around its origin."""
    signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    sides = []
    for axis in range(3):
        for end in (1, -1):
            square = np.zeros((4, 3))
            square[:, axis], square[:, (axis + 1) % 3], square[:, (axis + 2) % 3] = end, signs[:, 0], signs[:, 1] * end
            sides += [square[[0, 1, 2]], square[[0, 2, 3]]]
    return from_triangles(np.stack(sides) * np.asarray(size) / 2)


def cylinder(length: float, radius: float) -> Mesh:
    """A cylinder along z around its origin. Its normals point away from there, as PyBullet shades it."""
    angles = np.linspace(0, 2 * np.pi, RIM, endpoint=False)
    ring = np.stack([radius * np.cos(angles), radius * np.sin(angles), np.full(RIM, length / 2)], 1)
    points = np.concatenate([ring * [1, 1, -1], ring])
    triangles = []
    for i in range(RIM):
        j = (i + 1) % RIM
        triangles += [[i, j, RIM + j], [i, RIM + j, RIM + i]]
        triangles += [[RIM, RIM + i, RIM + j], [0, j, i]] if i and j else []
    corners = np.zeros((len(triangles), 3, 3), np.int32)
    corners[:, :, 0] = corners[:, :, 2] = triangles
    normals = points / np.linalg.norm(points, axis=1, keepdims=True)
    return Mesh(points, normals.astype(np.float32), np.zeros((1, 2), np.float32), corners)


def from_triangles(triangles: np.ndarray) -> Mesh:
    """Corners [F, 3, 3], counter-clockwise from outside, with the normals of their faces."""
    count = len(triangles)
    corners = np.zeros((count, 3, 3), np.int32)
    corners[:, :, 0] = np.arange(3 * count).reshape(count, 3)
    corners[:, :, 2] = np.arange(count)[:, None]
    points = np.ascontiguousarray(triangles.reshape(-1, 3), np.float64)
    normals = _face_normals(points, corners[:, :, 0]).astype(np.float32)
    return Mesh(points, normals, np.zeros((1, 2), np.float32), corners)


def read_png(path: Path, library: Any) -> np.ndarray:
    """uint8 [Y, X, 3] of an 8-bit RGB or RGBA picture; `library` is raster.c's. Transparency is dropped."""
    data, at = path.read_bytes(), len(PNG_START)
    if not data.startswith(PNG_START):
        raise EnvError(f"{path} is no PNG picture; take the official data")
    header: Optional[Tuple[int, ...]] = None
    packed = []
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        if name == b"IHDR":
            header = struct.unpack_from(">IIBBBBB", data, at + 8)
        elif name == b"IDAT":
            packed.append(data[at + 8 : at + 8 + size])
        at += 12 + size
    if header is None or header[2:] not in ((8, kind, 0, 0, 0) for kind in CHANNELS):
        raise EnvError(f"{path}: expected an 8-bit RGB or RGBA picture that is not interlaced; take the official data")
    width, height, step = header[0], header[1], CHANNELS[header[3]]
    try:
        rows = zlib.decompress(b"".join(packed))
    except zlib.error as e:
        raise EnvError(f"{path} is damaged ({e}); take the official data") from e
    out = np.empty((height, width, step), np.uint8)
    if len(rows) != height * (1 + width * step) or library.png_rows(rows, out.ctypes.data, height, width * step, step):
        raise EnvError(f"{path} is damaged; take the official data")
    return np.ascontiguousarray(out[:, :, :3])


def _numbers(lines: List[bytes], width: int) -> np.ndarray:
    found = np.array(b" ".join(lines).split(), dtype=np.float64) if lines else np.zeros(0)
    return found.reshape(len(lines), -1)[:, :width] if lines else np.zeros((0, width))


def _faces(lines: List[bytes], path: Path) -> np.ndarray:
    """int64 [F, 3, 3] from 0; -1 for what is not given."""
    words = b" ".join(lines).split()
    slashes = words[0].count(b"/") if words else 0
    if not words:
        return np.zeros((0, 3, 3), np.int64)
    if len(words) != 3 * len(lines) or any(word.count(b"/") != slashes for word in words):
        raise EnvError(f"{path}: expected triangles whose corners are all of one kind")
    if slashes == 2:
        numbers = b"/".join(words).replace(b"//", b"/0/").split(b"/")
    elif slashes == 1:
        numbers = [*b"/0/".join(words).split(b"/"), b"0"]
    else:
        numbers = [*b"/0/0/".join(words).split(b"/"), b"0", b"0"]
    return np.array(numbers, dtype=np.int64).reshape(-1, 3, 3) - 1


def _face_normals(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    a, b, c = (points[triangles[:, k]] for k in range(3))
    normals = np.cross(b - a, c - a)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)
