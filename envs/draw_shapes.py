"""Triangles of MuJoCo's shapes, cut as finely as MuJoCo's own renderer cuts them, so that light falls on equal corners.

A `Soup` holds F triangles by their corners: positions, normals and unit positions [F, 3, 3]. A unit position is where
the corner is before the shape's sizes are applied: textures of everything but meshes are laid over those.
Facts of the shapes: github.com/google-deepmind/mujoco, src/render/render_context.c.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Optional, Tuple

import numpy as np

SMOOTH = 0.8  # cosine; a mesh's normal further than this from its face's gives way to the face's
GRID = 200  # lines of a plane at most


class Soup(NamedTuple):
    """Triangles by their corners, [F, 3, 3] each; `texture` [F, 3, 2] where a mesh says itself how it is covered."""

    position: np.ndarray
    normal: np.ndarray
    unit: np.ndarray
    texture: Optional[np.ndarray] = None


def face_normals(position: np.ndarray) -> np.ndarray:
    """Outward unit normals [F, 3] of triangles [F, 3, 3]; zero where a triangle has no area."""
    cross = np.cross(position[:, 1] - position[:, 0], position[:, 2] - position[:, 0])
    length = np.linalg.norm(cross, axis=1, keepdims=True)
    return np.divide(cross, length, out=np.zeros_like(cross), where=length > 1e-20)


def mesh(model: Any, index: int) -> Soup:
    """A mesh of the model, in its geom's axes."""

    def rows(kind: str, width: int) -> np.ndarray:
        first, count = int(model.mesh_faceadr[index]), int(model.mesh_facenum[index])
        faces = {"vert": model.mesh_face, "normal": model.mesh_facenormal, "texcoord": model.mesh_facetexcoord}[kind]
        address = int(getattr(model, f"mesh_{kind}adr")[index])
        return getattr(model, f"mesh_{kind}").reshape(-1, width)[faces[first : first + count] + address]

    position, normal = rows("vert", 3), rows("normal", 3)
    if model.mesh_texcoordadr[index] >= 0:
        return Soup(position, normal, position, rows("texcoord", 2))
    flat = face_normals(position)[:, None].repeat(3, 1)
    return Soup(position, np.where((normal * flat).sum(-1, keepdims=True) < SMOOTH, flat, normal), position)


def _quads(grid: np.ndarray) -> np.ndarray:
    """Triangles [F, 3, ...] of a grid of points [R, C, ...]."""
    a, b, c, d = grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]
    both = np.stack([np.stack([a, b, c], 2), np.stack([a, c, d], 2)], 2)
    return both.reshape(-1, 3, *grid.shape[2:])


def plane(x: np.ndarray, y: np.ndarray) -> Soup:
    """A grid of lines at x and y, facing up."""
    grid = np.stack([*np.meshgrid(x, y, indexing="ij"), np.zeros((len(x), len(y)))], -1)
    position = _quads(grid)
    return Soup(position, np.broadcast_to([0.0, 0.0, 1.0], position.shape), position)


def plane_lines(half: float, spacing: float, repeat: float, far: float) -> np.ndarray:
    """Where the lines of a plane are in one direction; `half` 0 stands for a plane without end."""
    if half <= 0:
        step = 2 / repeat if repeat > 0 else 2.1 * far / (GRID - 2)
        width = (2.1 * far + 2 * step) / GRID
        return width * (np.arange(GRID + 1) - GRID // 2)
    spacing = max(spacing, half / (GRID - 2))
    count = int(half / max(spacing, 1e-15))
    count -= count % 2
    pad = half - count * spacing
    inner = -half + pad + 2 * spacing * np.arange(count + 1)
    return np.concatenate([[-half], inner, [inner[-1] + pad]])


def box(size: np.ndarray, quads: int) -> Soup:
    """A box with half sizes `size`, each side cut into quads x quads."""
    line = np.linspace(-1, 1, quads + 1)
    sides, normals = [], []
    for axis in range(3):
        for sign in (1.0, -1.0):
            u, v = np.meshgrid(line, line, indexing="ij")
            grid = np.stack([np.full_like(u, sign), u, v] if sign > 0 else [np.full_like(u, sign), v, u], -1)
            sides.append(_quads(np.roll(grid, axis, axis=-1)))
            normals.append(np.broadcast_to(sign * np.eye(3)[axis], sides[-1].shape))
    unit = np.concatenate(sides)
    return Soup(unit * size, np.concatenate(normals), unit)


def _around(slices: int, radius: np.ndarray, height: np.ndarray) -> np.ndarray:
    """A surface of revolution [S, slices + 1, 3] through (radius, height) [S], from bottom to top."""
    turn = 2 * np.pi * np.arange(slices + 1) / slices
    ring = np.stack([np.cos(turn), np.sin(turn), np.zeros_like(turn)], -1)
    return radius[:, None, None] * ring + height[:, None, None] * np.array([0.0, 0.0, 1.0])


def _outward(surface: np.ndarray) -> np.ndarray:
    return _quads(surface.transpose(1, 0, 2))


def ball(size: np.ndarray, slices: int, stacks: int, low: float = -np.pi / 2, high: float = np.pi / 2) -> Soup:
    """An ellipsoid with half axes `size`, or the part of it between two latitudes."""
    latitude = np.linspace(low, high, max(2, round(stacks * (high - low) / np.pi) + 1))
    unit = _outward(_around(slices, np.cos(latitude), np.sin(latitude)))
    normal = unit / size
    return Soup(unit * size, normal / np.linalg.norm(normal, axis=-1, keepdims=True), unit)


def cylinder(size: np.ndarray, slices: int, stacks: int, closed: bool = True) -> Soup:
    """Radius size[0] (and size[1]), half height size[2]."""
    height = np.linspace(-1, 1, stacks + 1)
    side = _outward(_around(slices, np.ones_like(height), height))
    parts, normals = [side], [side * (1.0, 1.0, 0.0)]
    if closed:
        radius = np.linspace(0, 1, stacks // 2 + 1)
        for sign in (-1.0, 1.0):
            disk = _around(slices, radius, np.full_like(radius, sign))
            parts.append(_quads(disk if sign > 0 else disk.transpose(1, 0, 2)))
            normals.append(np.broadcast_to([0.0, 0.0, sign], parts[-1].shape))
    unit = np.concatenate(parts)
    return Soup(unit * size, np.concatenate(normals), unit)


def capsule(size: np.ndarray, slices: int, stacks: int) -> Soup:
    """A cylinder with half height size[2] and half balls on its ends."""
    radius = 0.5 * (size[0] + size[1])
    parts = [cylinder(size, slices, stacks, closed=False)]
    for sign, latitudes in ((-1.0, (-np.pi / 2, 0.0)), (1.0, (0.0, np.pi / 2))):
        end, up = ball(np.array([size[0], size[1], radius]), slices, stacks, *latitudes), np.array([0.0, 0.0, sign])
        parts.append(Soup(end.position + up * size[2], end.normal, end.unit + up))
    return Soup(*(np.concatenate([getattr(p, k) for p in parts]) for k in ("position", "normal", "unit")))


def merged(soup: Soup, coordinates: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Equal corners made one: corners [C, 9] (position, normal, texture), faces int32 [F, 3] and planes [F, 4].

    `coordinates` [F, 3, 3] are those of the texture. Triangles without area are left out.
    """
    flat = face_normals(soup.position.astype(np.float64))
    there = (flat != 0).any(axis=1)
    rows = np.concatenate([soup.position, soup.normal, coordinates], -1)[there].reshape(-1, 9).astype(np.float32)
    keys = np.ascontiguousarray(rows + 0.0).view(np.uint32).astype(np.uint64)  # adding 0 leaves one kind of zero
    odd = np.random.default_rng(0).integers(1, 2**63, 9, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    _, first, back = np.unique((keys * odd).sum(axis=1, dtype=np.uint64), return_index=True, return_inverse=True)
    if not (rows[first][back] == rows).all():  # two corners with one key
        _, first, back = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    offset = (flat[there] * soup.position[there, 0]).sum(axis=1, keepdims=True)
    planes = np.concatenate([flat[there], offset], 1).astype(np.float32)
    return rows[first], back.reshape(-1, 3).astype(np.int32), planes
