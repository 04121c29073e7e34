"""Lite assets: what is made from meshes and textures, how it is kept, what it looks like, and that nothing moves."""

import io
import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from benchmarks.equality import psnr
from envs import lite
from envs.decimate import MAX_SIDE, Mesh, lite_mesh, lite_texture, read_mesh, write_mesh
from envs.lite import LiteAssets, build, find_jobs, missing
from envs.types import EnvError

ROOT = Path(__file__).resolve().parents[2]
LIBERO = ROOT / ".venvs" / "libero" / "bin" / "python"
SOFT_DB = 30  # of `soft` to `lite`: edges of triangles and far textures differ, by a pixel
FLOOR_DB = 25.0  # PSNR of lite pictures against exact ones; 27 to 33 dB are measured (docs/rendering.md)

needs_simplifier = pytest.mark.skipif(
    find_spec("fast_simplification") is None, reason="LITE ASSETS ARE NOT TESTED: `pip install -r requirements.txt`"
)
needs_robosuite = pytest.mark.skipif(find_spec("robosuite") is None, reason="robosuite is NOT installed here")
pytestmark = [pytest.mark.sim, needs_simplifier]


def ball(n: int = 40) -> Mesh:
    """A sphere whose texture is one rectangle: the seam is the meridian where the rectangle closes."""
    u, v = np.meshgrid(np.linspace(0, 1, n + 1), np.linspace(0, 1, n + 1), indexing="ij")
    polar, around = math.pi * v, 2 * math.pi * u
    places = np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)], -1)
    at = np.arange((n + 1) ** 2).reshape(n + 1, n + 1)
    a, b, c, d = at[:-1, :-1], at[1:, :-1], at[:-1, 1:], at[1:, 1:]
    faces = np.concatenate([np.stack([a, c, b], -1).reshape(-1, 3), np.stack([b, c, d], -1).reshape(-1, 3)])
    places, uv = places.reshape(-1, 3), np.stack([u, v], -1).reshape(-1, 2)
    sides = places[faces[:, 1:]] - places[faces[:, :1]]
    whole = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1)
    faces = faces[whole > 1e-9]
    return Mesh(0.1 * places + [0.5, 0.0, 0.2], faces, places[faces], uv[faces])


def picture(width: int, height: int, *, mode: str = "RGB", chunks: dict[bytes, bytes] | None = None) -> bytes:
    info = PngImagePlugin.PngInfo()
    for name, content in (chunks or {}).items():
        info.add(name, content)
    shades = np.linspace(0, 255, width * height).reshape(height, width).astype(np.uint8)
    image = Image.fromarray(np.stack([shades] * len(mode), -1) if len(mode) > 1 else shades, mode)
    sink = io.BytesIO()
    image.save(sink, "PNG", pnginfo=info)
    return sink.getvalue()


# --- one file ---------------------------------------------------------------------------------------------------------


def test_a_mesh_survives_writing_and_reading(tmp_path):
    mesh = ball(12)
    (tmp_path / "ball.msh").write_bytes(write_mesh(mesh))
    again = read_mesh(tmp_path / "ball.msh")
    assert mesh.uv is not None
    assert again.uv is not None
    np.testing.assert_allclose(again.places[again.faces], mesh.places[mesh.faces], atol=1e-7)
    np.testing.assert_allclose(again.normals, mesh.normals, atol=1e-6)
    np.testing.assert_allclose(again.uv, mesh.uv, atol=1e-6)


@pytest.mark.parametrize("textured", [True, False])
def test_a_coarse_ball_is_still_a_ball(tmp_path, textured):
    (tmp_path / "ball.msh").write_bytes(write_mesh(ball(80)))
    content, (before, after) = lite_mesh(tmp_path / "ball.msh", textured=textured)
    assert content is not None
    assert after <= 0.15 * before
    (tmp_path / "coarse.msh").write_bytes(content)
    coarse = read_mesh(tmp_path / "coarse.msh")
    assert len(coarse.faces) == after
    out = (coarse.places[coarse.faces] - [0.5, 0.0, 0.2]) / 0.1
    assert np.abs(np.linalg.norm(out, axis=-1) - 1).max() < 0.05
    assert (np.einsum("fci,fci->fc", coarse.normals, out) > 0.95).all()
    if textured:  # every corner keeps its place in the picture, at the seam too
        assert coarse.uv is not None
        polar = np.arccos(np.clip(out[..., 2] / np.linalg.norm(out, axis=-1), -1, 1)) / math.pi
        around = (np.arctan2(out[..., 1], out[..., 0]) / (2 * math.pi)) % 1
        assert np.abs(coarse.uv[..., 1] - polar).max() < 0.03
        inner = np.abs(polar - 0.5) < 0.4
        turn = np.abs(coarse.uv[..., 0] - around)
        assert np.minimum(turn, 1 - turn)[inner].max() < 0.03
        assert np.ptp(coarse.uv[..., 0], axis=1)[inner.all(axis=1)].max() < 0.4  # no face runs across the picture


def test_small_meshes_stay_as_they_are(tmp_path):
    (tmp_path / "ball.msh").write_bytes(write_mesh(ball(10)))
    assert lite_mesh(tmp_path / "ball.msh", textured=True)[0] is None


def test_a_broken_mesh_is_named(tmp_path):
    (tmp_path / "ball.msh").write_bytes(b"no mesh")
    with pytest.raises(EnvError, match=r"ball\.msh is no mesh"):
        lite_mesh(tmp_path / "ball.msh", textured=True)


@pytest.mark.parametrize(("size", "expected"), [((512, 512), (256, 256)), ((300, 100), (256, 85)), ((255, 20), None)])
def test_textures_are_capped(tmp_path, size, expected):
    (tmp_path / "a.png").write_bytes(picture(*size))
    content, (before, after) = lite_texture(tmp_path / "a.png")
    assert before == max(size)
    assert after == min(MAX_SIDE, before)
    assert (content is None) == (expected is None)
    if content is not None:
        assert Image.open(io.BytesIO(content)).size == expected


def test_a_texture_declares_the_colours_that_its_original_declares(tmp_path):
    """MuJoCo darkens what has an sRGB chunk. The letters in a comment are no such chunk, and LIBERO has such a file."""
    for chunks, declared in (({b"sRGB": b"\0"}, True), ({b"tEXt": b"a\0made with sRGB in mind"}, False), ({}, False)):
        (tmp_path / "a.png").write_bytes(picture(400, 400, chunks=chunks))
        content, _ = lite_texture(tmp_path / "a.png")
        assert content is not None
        assert (b"sRGB" in content) == declared


def test_colour_under_alpha_stays(tmp_path):
    pixels = np.zeros((512, 512, 4), np.uint8)
    pixels[..., 0] = 200  # red, wholly transparent; MuJoCo drops the alpha
    sink = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(sink, "PNG")
    (tmp_path / "a.png").write_bytes(sink.getvalue())
    content, _ = lite_texture(tmp_path / "a.png")
    assert content is not None
    assert np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))[..., 0].min() == 200


# --- the collection ---------------------------------------------------------------------------------------------------


@pytest.fixture
def assets(tmp_path, monkeypatch):
    """A simulator with a textured ball, a bare one, one that no scene names, and two pictures."""
    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "assets"
    (folder / "meshes").mkdir(parents=True)
    for name, n in (("cup", 60), ("link", 70), ("unused", 50)):
        (folder / "meshes" / f"{name}.msh").write_bytes(write_mesh(ball(n)))
    (folder / "wood.png").write_bytes(picture(400, 400))
    (folder / "small.png").write_bytes(picture(20, 20))
    (folder / "cup.xml").write_text('<m><texture file="wood.png"/><mesh file="meshes/cup.msh"/></m>')
    (folder / "robot.xml").write_text('<m><mesh file="meshes/link.msh"/></m>')
    monkeypatch.setattr(lite, "_robosuite_folders", lambda root: [folder])
    return folder


def test_jobs_are_what_scenes_name(assets):
    jobs = {job.source.name: job.textured for job in find_jobs("robosuite", ROOT)}
    assert jobs == {"cup.msh": True, "link.msh": False, "wood.png": True, "small.png": False}


def test_an_interrupted_build_goes_on(assets):
    jobs = find_jobs("robosuite", ROOT)
    assert len(missing(jobs)) == 4
    first = build(jobs)
    next(first)
    next(first)
    first.close()  # as an interrupt does
    assert len(missing(jobs)) == 2
    assert len(list(build(missing(jobs)))) == 2
    assert missing(find_jobs("robosuite", ROOT)) == []
    manifest = json.loads((lite.lite_folder() / "manifest.json").read_text())
    assert {Path(e["source"]).name: bool(e["file"]) for e in manifest.values()} == {
        "cup.msh": True, "link.msh": True, "wood.png": True, "small.png": False,
    }  # fmt: skip


def test_assets_that_are_not_built_name_the_command(assets):
    with pytest.raises(EnvError, match=r"not built yet; type: python launch\.py assets libero --lite"):
        LiteAssets("libero")
    jobs = [job for job in find_jobs("robosuite", ROOT) if job.source.name == "cup.msh"]
    assert len(list(build(jobs))) == 1
    with pytest.raises(EnvError, match=r"link\.msh has no lite copy; type: python launch\.py assets robosuite --lite"):
        LiteAssets("robosuite").replacement(assets / "meshes" / "link.msh")


def test_changed_originals_and_damaged_copies_are_noticed(assets):
    list(build(find_jobs("robosuite", ROOT)))
    cup = assets / "meshes" / "cup.msh"
    copy = LiteAssets("robosuite").replacement(cup)
    assert copy is not None
    assert LiteAssets("robosuite").replacement(assets / "small.png") is None
    copy.write_bytes(copy.read_bytes()[:-1] + b"x")
    with pytest.raises(EnvError, match=r"is missing or damaged; type: python launch\.py"):
        LiteAssets("robosuite").replacement(cup)
    (again,) = missing(find_jobs("robosuite", ROOT))
    assert again.source == cup
    list(build([again]))
    assert LiteAssets("robosuite").replacement(cup) == copy
    cup.write_bytes(write_mesh(ball(61)))
    with pytest.raises(EnvError, match=r"cup\.msh has changed since its lite copy was built"):
        LiteAssets("robosuite").replacement(cup)


def test_a_damaged_list_is_made_again(assets):
    jobs = find_jobs("robosuite", ROOT)
    list(build(jobs))
    (lite.lite_folder() / "manifest.json").write_text('{"half of it')
    with pytest.raises(EnvError, match="not built yet"):
        LiteAssets("robosuite")
    assert len(missing(jobs)) == 4


def test_the_command_builds_and_tells(assets, capsys):
    import launch

    assert launch.main(["assets", "robosuite"]) == 0
    assert "0 of 4 lite assets" in capsys.readouterr().out
    assert launch.main(["assets", "robosuite", "--lite"]) == 0
    assert "4 of 4 lite assets" in capsys.readouterr().out
    assert launch.main(["assets", "robosuit", "--lite"]) == 2
    assert launch.main(["collect", "--lite"]) == 2
    assert "render_quality=lite" in capsys.readouterr().err


# --- robosuite --------------------------------------------------------------------------------------------------------


def beside(path: Path, rows: list[list[np.ndarray]]) -> None:
    """Write pictures side by side, for the eye."""
    Image.fromarray(np.concatenate([np.concatenate(row, 1) for row in rows], 0)).save(path)


@pytest.fixture(scope="module")
def built():
    """The lite assets of the Panda and of robosuite's scenes, in the user's own cache (some 10 s the first time)."""
    wanted = ("panda", "rethink_mount", "objects", "arenas", "textures")
    jobs = [job for job in find_jobs("robosuite", ROOT) if any(part in str(job.source) for part in wanted)]
    list(build(missing(jobs)))


@needs_robosuite
def test_lift_moves_alike_and_looks_alike(built, tmp_path):
    from envs.robosuite import Robosuite

    actions = np.random.default_rng(0).uniform(-1, 1, (50, 7))
    cameras = {"agentview": (128, 128), "robot0_eye_in_hand": (128, 128)}
    kinds = {"none": ("exact", {})} | {quality: (quality, cameras) for quality in ("exact", "fast", "lite", "soft")}
    states, images, faces = {}, {}, {}
    for name, (quality, seen) in kinds.items():
        env = Robosuite(render_quality=quality, cameras=seen)
        obs = env.reset("Lift", 3)
        states[name] = [obs.privileged["state"]]
        for i, action in enumerate(actions):
            obs = env.step(action, render=i == 20).obs
            states[name].append(obs.privileged["state"])
            if i == 20:
                images[name] = list(obs.images.values())
        assert env._arm is not None
        faces[name] = env._arm.model.nmeshface
        env.close()
    for name in kinds:
        assert np.array_equal(states[name], states["exact"]), name
    assert faces["lite"] < 0.3 * faces["exact"]
    beside(tmp_path / "lift.png", [images[name] for name in ("exact", "fast", "lite", "soft")])
    for name in ("fast", "lite", "soft"):
        for exact, other in zip(images["exact"], images[name], strict=True):
            assert psnr(exact, other) > FLOOR_DB, name
    for coarse, soft in zip(images["lite"], images["soft"], strict=True):
        assert psnr(coarse, soft) > SOFT_DB


# --- LIBERO -----------------------------------------------------------------------------------------------------------

ROLLOUT = """
import json, sys
import numpy as np
from envs.libero import Libero
cameras = {"agentview": (128, 128), "robot0_eye_in_hand": (128, 128)}
actions = np.random.default_rng(0).uniform(-1, 1, (50, 7))
def rss():
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0]) / 1024
def play(quality, cameras, light=True):
    env = Libero(name="libero_object", render_quality=quality, cameras=cameras)
    env._scenes.get(env.spec.tasks[0]).arm._light_reset = light
    obs, out, images = env.reset("0", 4), [], []
    out.append(obs.privileged["state"])
    for i, action in enumerate(actions):
        obs = env.step(action, render=bool(cameras) and i == 20).obs
        out.append(obs.privileged["state"])
        images += list(obs.images.values())
    memory = rss()
    env.close()
    return np.array(out), images, memory
states, images, memory = {}, {}, {}
states["none"], _, memory["none"] = play("exact", {})
states["lite"], images["lite"], memory["lite"] = play("lite", cameras)
states["soft"], images["soft"], memory["soft"] = play("soft", cameras)
states["full reset"], _, _ = play("exact", {}, light=False)
states["exact"], images["exact"], _ = play("exact", cameras)
np.savez(sys.argv[1], **{f"{k}_{i}": image for k, pair in images.items() for i, image in enumerate(pair)})
print(json.dumps({"alike": {k: bool(np.array_equal(v, states["exact"])) for k, v in states.items()}, "memory": memory}))
"""


@pytest.fixture(scope="module")
def libero_built(built):
    """The lite assets of one LIBERO scene; skips, and says why, where LIBERO or its assets are missing."""
    if not LIBERO.exists():
        pytest.skip("LITE LIBERO IS NOT TESTED: it is not installed; run `python launch.py install libero`")
    try:
        jobs = find_jobs("libero", ROOT)
    except EnvError as e:
        pytest.skip(f"LITE LIBERO IS NOT TESTED: {e}")
    wanted = ("panda", "rethink_mount", "hope_objects", "basket", "living_room", "textures", "scenes")
    list(build(missing([job for job in jobs if any(part in str(job.source) for part in wanted)])))


def test_libero_moves_alike_looks_alike_and_is_small(libero_built, tmp_path):
    done = subprocess.run(
        [str(LIBERO), "-c", ROLLOUT, str(tmp_path / "images.npz")],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.strip().splitlines()[-1])
    assert all(seen["alike"].values()), seen["alike"]
    assert seen["memory"]["none"] < 450
    assert seen["memory"]["lite"] < 800
    with np.load(tmp_path / "images.npz") as images:
        triples = [[images[f"{quality}_{i}"] for quality in ("exact", "lite", "soft")] for i in range(2)]
    beside(tmp_path / "libero.png", [list(row) for row in zip(*triples, strict=True)])
    for exact, coarse, soft in triples:
        assert psnr(exact, coarse) > FLOOR_DB
        assert psnr(coarse, soft) > SOFT_DB


def test_pictures_without_lite_assets_are_refused_by_the_adapter(tmp_path):
    if find_spec("robosuite") is None:
        pytest.skip("robosuite is NOT installed here")
    code = (
        "from envs.robosuite import Robosuite\n"
        "from envs.types import EnvError\n"
        "try: Robosuite(render_quality='lite', cameras={'agentview': (32, 32)})\n"
        "except EnvError as e: print(e)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "TEMPER_CACHE": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "not built yet; type: python launch.py assets robosuite --lite" in done.stdout, done.stderr
