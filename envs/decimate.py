"""Make a visual mesh or a texture coarser: about a tenth of the faces, at most 256 pixels a side.

Meshes are read by MuJoCo itself, so its rules for every format hold, and written in its binary format. Vertices are
welded first: many files store each triangle by itself, and a simplifier sees only holes there. Vertices at a texture's
seams stay apart and stay where they are; the others take the texture coordinates of a vertex that was merged into them.
Normals are those of the original corner that is nearest in place and direction, which keeps creases sharp and the two
sides of thin walls apart.

Source of the simplification: Garland and Heckbert, Surface simplification using quadric error metrics, SIGGRAPH 1997,
in the package fast-simplification.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Tuple

import numpy as np

from envs.types import EnvError

VERSION = 1  # of what is made from the same file; a change makes all lite assets and models anew
RATIOS = (0.1, 0.2, 0.4)  # share of the faces that stay: the first that keeps the shape
MIN_FACES = 500  # meshes are not reduced below this
MAX_SIDE = 256  # pixels
MESHES = (".obj", ".stl", ".msh")
TEXTURES = (".png",)
AGGRESSION = 5.0  # of the simplifier: slower and better the lower
FEW = 0.45  # share of the faces above which the original is kept
LOST, ADDED, FARTHEST = 0.035, 0.03, 0.09  # gaps between surfaces for 99 % of the points, and for all; in diagonals
DIRECTION = 0.1  # what a turn of the normal by one radian counts in the search for the nearest corner, in diagonals

_LOADER = (
    "<mujoco><asset><mesh name='m' file='mesh{}' inertia='shell'/></asset><worldbody>"
    "<geom type='mesh' mesh='m' contype='0' conaffinity='0'/></worldbody></mujoco>"
)


@dataclass
class Mesh:
    """A triangle mesh by corners: F faces, V places."""

    places: np.ndarray  # [V, 3] m
    faces: np.ndarray  # [F, 3] indices of places
    normals: np.ndarray  # [F, 3, 3] of the corners
    uv: Optional[np.ndarray]  # [F, 3, 2] of the corners


def lite_mesh(source: Path, *, textured: bool) -> Tuple[Optional[bytes], Tuple[int, int]]:
    """The coarse mesh in MuJoCo's binary format (None: the file is good as it is), and the faces before and after.

    Seams of a texture are kept as they are; where no texture is used they need not be.
    """
    mesh = read_mesh(source)
    before = len(mesh.faces)
    if not textured:
        mesh.uv = None
    for ratio in RATIOS if before > MIN_FACES else ():
        target = max(MIN_FACES, int(before * ratio))
        for borders in (True, False):
            coarse = decimate(mesh, target, preserve_border=borders) if borders or mesh.uv is None else None
            if coarse is not None and len(coarse.faces) <= FEW * before and _alike(mesh, coarse):
                return write_mesh(coarse), (before, len(coarse.faces))
    return None, (before, before)


def read_mesh(source: Path) -> Mesh:
    """Read a mesh file as MuJoCo does."""
    import mujoco

    name = source.suffix.lower()
    try:
        model = mujoco.MjModel.from_xml_string(_LOADER.format(name), {f"mesh{name}": source.read_bytes()})
    except ValueError as e:
        raise EnvError(f"{source} is no mesh that MuJoCo can read: {' '.join(str(e).split())}") from e
    turn = np.zeros(9)
    mujoco.mju_quat2Mat(turn, model.mesh_quat[0])  # MuJoCo moves meshes into their principal axes: undo that
    turn = turn.reshape(3, 3)
    places = model.mesh_vert.astype(np.float64) @ turn.T + model.mesh_pos[0]
    normals = model.mesh_normal.astype(np.float64)[model.mesh_facenormal] @ turn.T
    uv = model.mesh_texcoord.astype(np.float64)[model.mesh_facetexcoord] if model.nmeshtexcoord else None
    return Mesh(places, model.mesh_face.astype(np.int64), normals, uv)


def write_mesh(mesh: Mesh) -> bytes:
    """MuJoCo's binary format: four counts, then vertices, normals, texture coordinates, faces."""
    corners = np.concatenate([mesh.places[mesh.faces], mesh.normals], axis=-1).reshape(-1, 6)
    if mesh.uv is not None:
        corners = np.concatenate([corners, mesh.uv.reshape(-1, 2)], axis=-1)
    unique, index = np.unique(corners.astype("<f4"), axis=0, return_inverse=True)
    counts = [len(unique), len(unique), len(unique) if mesh.uv is not None else 0, len(mesh.faces)]
    parts = [np.array(counts, "<i4"), unique[:, :3], unique[:, 3:6], unique[:, 6:], index.reshape(-1).astype("<i4")]
    return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)


def decimate(mesh: Mesh, target: int, *, preserve_border: bool) -> Optional[Mesh]:
    """Reduce to about `target` faces; None if nothing usable is left."""
    import fast_simplification

    size = _diagonal(mesh.places)  # the simplifier's thresholds are lengths: work on a mesh of size 1
    places, faces, kept = _weld(mesh.places[mesh.faces] / size, mesh.uv)
    if len(faces) <= target:
        return None
    found: Any = fast_simplification.simplify(
        places, faces.astype(np.int32), target_count=target, agg=AGGRESSION, preserve_border=preserve_border,
        return_collapses=True,
    )  # fmt: skip
    coarse, coarse_faces, collapses = np.asarray(found[0], np.float64), np.asarray(found[1], np.int64), found[2]
    uv = None
    if mesh.uv is not None:
        heirs = _heirs(collapses, faces, len(places))
        assert heirs.max() == len(coarse) - 1, "fast-simplification numbers its vertices differently from 0.2.0"
        uv = _inherited(heirs[faces], places[faces], mesh.uv[kept], coarse)[coarse_faces]
    whole = _areas(coarse, coarse_faces) > 1e-9
    if whole.sum() < 4:
        return None
    coarse_faces = coarse_faces[whole]
    normals = _normals(coarse[coarse_faces], places[faces], mesh.normals[kept])
    return Mesh(coarse * size, coarse_faces, normals, None if uv is None else uv[whole])


def _weld(corners: np.ndarray, uv: Optional[np.ndarray]) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One vertex per place (and texture coordinate): places, faces, and which of the given faces have an area."""
    key = np.round(corners.reshape(-1, 3) / 1e-6)
    if uv is not None:
        key = np.concatenate([key, np.round(uv.reshape(-1, 2) / 1e-5)], axis=-1)
    _, first, index = np.unique(key, axis=0, return_index=True, return_inverse=True)
    faces = index.reshape(-1, 3)
    kept = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    used = np.unique(faces[kept])
    return corners.reshape(-1, 3)[first[used]], np.searchsorted(used, faces[kept]), np.flatnonzero(kept)


def _heirs(collapses: np.ndarray, faces: np.ndarray, num_places: int) -> np.ndarray:
    """[V] which of the vertices that are left each original one has become; -1 if it went with all its faces."""
    into = np.arange(num_places)
    for stays, goes in np.asarray(collapses)[::-1]:
        into[goes] = into[stays]
    merged = into[faces]
    alive = (merged[:, 0] != merged[:, 1]) & (merged[:, 1] != merged[:, 2]) & (merged[:, 2] != merged[:, 0])
    left = np.full(num_places, -1)
    survivors = np.unique(merged[alive])  # in the order of the originals, as the simplifier has them
    left[survivors] = np.arange(len(survivors))
    return left[into]


def _inherited(heirs: np.ndarray, corners: np.ndarray, uv: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    """[V, 2] texture coordinates of the vertices left, each from the nearest of the corners that became it."""
    owner = heirs.reshape(-1)
    away = np.linalg.norm(corners - coarse[heirs], axis=-1)
    away += 0.1 * np.linalg.norm(corners.mean(axis=1, keepdims=True) - coarse[heirs], axis=-1)  # of equals, this side
    order = np.lexsort((away.reshape(-1), owner))
    order = order[owner[order] >= 0]
    nearest = order[np.unique(owner[order], return_index=True)[1]]  # [V] corners of the original, counted through
    return _carried(corners[nearest // 3], uv[nearest // 3], nearest % 3, coarse)


def _normals(corners: np.ndarray, old: np.ndarray, old_normals: np.ndarray) -> np.ndarray:
    """[F, 3, 3] normals of new corners, each that of the original corner nearest in place and direction."""
    from scipy.spatial import KDTree

    direction, old_direction = _directions(corners), _directions(old)
    nearest = KDTree(_features(old, old_direction)).query(_features(corners, direction))[1]
    normals = old_normals.reshape(-1, 3)[nearest].reshape(-1, 3, 3)
    # Where the original's normals agree with its faces, ours do too. (Some files are inside out.)
    outward = np.einsum("fci,fi->fc", old_normals, old_direction).reshape(-1)[nearest].reshape(-1, 3) > 0.2
    turned = outward & (np.einsum("fci,fi->fc", normals, direction) < 0.2)
    return np.where(turned[..., None], direction[:, None], normals)


def _features(corners: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """[3F, 6] place (a little inside the face, so that corners at one vertex differ) and direction of each corner."""
    inside = 0.9 * corners + 0.1 * corners.mean(axis=1, keepdims=True)
    turn = np.broadcast_to(DIRECTION * direction[:, None], inside.shape)
    return np.concatenate([inside, turn], axis=-1).reshape(-1, 6)


def _carried(triangle: np.ndarray, uv: np.ndarray, corner: np.ndarray, points: np.ndarray) -> np.ndarray:
    """[V, 2] the texture map of each triangle [V, 3, 3] at `points` [V, 3], not far from its `corner`."""
    a, b = triangle[:, 1] - triangle[:, 0], triangle[:, 2] - triangle[:, 0]
    away = points - triangle[:, 0]
    aa, ab, bb = (a * a).sum(1), (a * b).sum(1), (b * b).sum(1)
    det = np.maximum(aa * bb - ab * ab, 1e-6 * aa * bb + 1e-30)
    s = (bb * (away * a).sum(1) - ab * (away * b).sum(1)) / det
    t = (aa * (away * b).sum(1) - ab * (away * a).sum(1)) / det
    plane = uv[:, 0] + s[:, None] * (uv[:, 1] - uv[:, 0]) + t[:, None] * (uv[:, 2] - uv[:, 0])
    near, reach = uv[np.arange(len(uv)), corner], np.ptp(uv, axis=1)
    return np.clip(plane, near - reach, near + reach)


def _alike(mesh: Mesh, coarse: Mesh) -> bool:
    """Whether neither surface leaves the other, judged by points spread over them."""
    from scipy.spatial import KDTree

    rng, size = np.random.default_rng(0), _diagonal(mesh.places[mesh.faces])
    for a, b, gap in ((mesh, coarse, LOST), (coarse, mesh, ADDED)):
        gaps = KDTree(_spread(b, 20_000, rng)).query(_spread(a, 5_000, rng))[0] / size
        if np.quantile(gaps, 0.99) > gap or gaps.max() > FARTHEST:
            return False
    return True


def _spread(mesh: Mesh, count: int, rng: np.random.Generator) -> np.ndarray:
    """[count, 3] points drawn evenly over the surface."""
    area = _areas(mesh.places, mesh.faces)
    corners = mesh.places[mesh.faces[rng.choice(len(area), count, p=area / area.sum())]]
    s, t = np.sqrt(rng.random((count, 1))), rng.random((count, 1))
    return (1 - s) * corners[:, 0] + s * (1 - t) * corners[:, 1] + s * t * corners[:, 2]


def _areas(places: np.ndarray, faces: np.ndarray) -> np.ndarray:
    corners = places[faces]
    return 0.5 * np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1)


def _directions(corners: np.ndarray) -> np.ndarray:
    """[F, 3] unit normals of the faces."""
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-30)


def _diagonal(places: np.ndarray) -> float:
    return max(float(np.linalg.norm(np.ptp(places.reshape(-1, 3), axis=0))), 1e-12)


# --- textures ---------------------------------------------------------------------------------------------------------


def lite_texture(source: Path) -> Tuple[Optional[bytes], Tuple[int, int]]:
    """The smaller picture as PNG (None: the file is good as it is), and the longer side before and after."""
    from PIL import Image, PngImagePlugin

    data = source.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError) as e:  # Pillow raises SyntaxError for a broken PNG
        raise EnvError(f"{source} is no picture that can be read ({e})") from e
    before = max(image.size)
    if before <= MAX_SIDE:
        return None, (before, before)
    image = image.convert("RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB")
    size = (max(1, round(image.width * MAX_SIDE / before)), max(1, round(image.height * MAX_SIDE / before)))
    bands = [band.resize(size, Image.Resampling.BOX) for band in image.split()]  # colour under alpha counts in full
    small = Image.merge(image.mode, bands)
    chunks = PngImagePlugin.PngInfo()
    if _declares(data, b"sRGB"):  # MuJoCo reads it: what the original declares, the copy declares
        chunks.add(b"sRGB", b"\0")
    sink = io.BytesIO()
    small.save(sink, "PNG", pnginfo=chunks, icc_profile=None)
    return sink.getvalue(), (before, MAX_SIDE)


def _declares(png: bytes, chunk: bytes) -> bool:
    """Whether a PNG file has this chunk before its pixels."""
    at = 8
    while at + 8 <= len(png) and png[at + 4 : at + 8] != b"IDAT":
        if png[at + 4 : at + 8] == chunk:
            return True
        at += 12 + int.from_bytes(png[at : at + 4], "big")
    return False
