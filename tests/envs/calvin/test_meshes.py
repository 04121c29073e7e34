"""Readers of meshes and textures: what they return for small files, and what they refuse. No simulator is needed."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from envs.calvin.fast import load_library
from envs.calvin.meshes import PNG_START, box, cylinder, from_triangles, read_obj, read_png, read_stl
from envs.types import EnvError

SQUARE = "v 0 0 0\nv 2 0 0\nv 2 2 0\n"


def outward(mesh):
    """Whether every face looks away from the origin, by the order of its corners."""
    a, b, c = (mesh.points[mesh.corners[:, k, 0]] for k in range(3))
    return (np.sum(np.cross(b - a, c - a) * (a + b + c), 1) > 0).all()


@pytest.mark.parametrize(
    ("text", "normal", "texture"),
    [
        (SQUARE + "f 1 2 3\n", [0, 0, 1], [0, 0]),
        (SQUARE + "vt 0.5 0.25\nf 1/1 2/1 3/1\n", [0, 0, 1], [0.5, 0.25]),
        (SQUARE + "vn 0 1 0\nf 1//1 2//1 3//1\n", [0, 1, 0], [0, 0]),
        (SQUARE + "vt 0.5 0.25\nvn 0 1 0\nf 1/1/1 2/1/1 3/1/1\n", [0, 1, 0], [0.5, 0.25]),
    ],
)
def test_obj_files_of_each_kind(tmp_path, text, normal, texture):
    (tmp_path / "a.obj").write_text("# comment\no part\n" + text)
    mesh = read_obj(tmp_path / "a.obj")
    assert mesh.points.tolist() == [[0, 0, 0], [2, 0, 0], [2, 2, 0]]
    assert mesh.corners[0, :, 0].tolist() == [0, 1, 2]
    assert mesh.normals[mesh.corners[0, 1, 2]].tolist() == normal
    assert mesh.texture_points[mesh.corners[0, 2, 1]].tolist() == texture


@pytest.mark.parametrize("text", [SQUARE + "f 1 2 4\n", SQUARE, SQUARE + "f 1 2 3 1\n", SQUARE + "f 1/1 2 3\n"])
def test_broken_obj_files_are_refused(tmp_path, text):
    (tmp_path / "a.obj").write_text(text)
    with pytest.raises(EnvError, match=r"a\.obj"):
        read_obj(tmp_path / "a.obj")


def test_stl_files(tmp_path):
    corners = np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 0, 1], [0, 1, 1], [1, 0, 1]]], np.float32)
    rows = b"".join(struct.pack("<12fH", *[0.0] * 3, *triangle.ravel(), 0) for triangle in corners)
    path = tmp_path / "a.STL"
    path.write_bytes(b"\0" * 80 + struct.pack("<I", 2) + rows)
    mesh = read_stl(path)
    assert np.array_equal(mesh.points.reshape(2, 3, 3), corners)
    assert mesh.normals.tolist() == [[0, 0, 1], [0, 0, -1]]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EnvError, match="cut short"):
        read_stl(path)


def test_solids_look_outwards_and_move():
    assert outward(box((1, 2, 3)))
    assert outward(cylinder(0.24, 0.13))
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    moved = from_triangles(np.array([[[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]])).moved((2, 2, 2), turn, np.array([0, 0, 5]))
    assert moved.points.tolist() == [[0, 2, 5], [-2, 0, 5], [0, 0, 7]]
    assert np.allclose(moved.normals, np.array([[-1, 1, 1]]) / np.sqrt(3))


@pytest.mark.parametrize("channels", [3, 4])
def test_png_pictures_with_every_filter(tmp_path, channels):
    """Rows filtered in all five ways by hand; PIL reads the file for comparison."""
    picture = np.random.default_rng(0).integers(0, 256, (10, 7, channels), dtype=np.uint8)
    rows, step = b"", channels
    for y, line in enumerate(picture.reshape(10, -1).astype(int)):
        above = picture[y - 1].reshape(-1).astype(int) if y else np.zeros_like(line)
        left, corner = (np.concatenate([np.zeros(step, int), row[:-step]]) for row in (line, above))
        guess = left + above - corner
        near = np.abs(guess - [left, above, corner])
        paeth = np.where((near[0] <= near[1]) & (near[0] <= near[2]), left, np.where(near[1] <= near[2], above, corner))
        added = (0 * line, left, above, (left + above) // 2, paeth)[y % 5]
        rows += bytes([y % 5]) + ((line - added) % 256).astype(np.uint8).tobytes()
    header = struct.pack(">IIBBBBB", 7, 10, 8, {3: 2, 4: 6}[channels], 0, 0, 0)

    def write(*parts):
        chunks = [
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in parts
        ]
        (tmp_path / "a.png").write_bytes(PNG_START + b"".join(chunks))

    packed = zlib.compress(rows)
    write((b"IHDR", header), (b"IDAT", packed[:9]), (b"IDAT", packed[9:]), (b"IEND", b""))
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), picture)
    assert np.array_equal(read_png(tmp_path / "a.png", load_library()), picture[:, :, :3])
    write((b"IHDR", header), (b"IDAT", packed[:-8]))
    with pytest.raises(EnvError, match="damaged"):
        read_png(tmp_path / "a.png", load_library())
    write((b"IHDR", header[:8] + b"\x08\x03\0\0\0"), (b"IDAT", packed))
    with pytest.raises(EnvError, match="8-bit RGB or RGBA"):
        read_png(tmp_path / "a.png", load_library())
