"""Compiled scenes on disk: the compiler's model to the bit, found by content, never trusted blindly."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from envs.cache import sha256_of, write_whole
from envs.compile import compile_scene, differences
from envs.models import load_scene, scene_key, visuals_for
from envs.types import EnvError

pytest.importorskip("mujoco", reason="MuJoCo is NOT installed in this interpreter")
pytestmark = pytest.mark.sim

TETRAHEDRON = "v 0 0 0\nv .1 0 0\nv 0 .1 0\nv 0 0 .1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"
SCENE = """
<mujoco>
  <compiler inertiagrouprange="{groups}"/>
  <asset>
    <mesh name="rock" file="{mesh}"/>
    <texture name="sky" type="skybox" builtin="gradient" width="64" height="64" rgb1="1 1 1" rgb2="0 0 1"/>
  </asset>
  <worldbody>
    <body pos="0 0 1">
      <freejoint/>
      <geom type="mesh" mesh="rock" group="0"/>
      <geom type="mesh" mesh="rock" group="1" contype="0" conaffinity="0"/>
      <geom type="box" size=".1 .1 .02" group="0"/>
    </body>
    <geom type="plane" size="2 2 .1"/>
  </worldbody>
</mujoco>
"""


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """A rock that is both seen and felt, falling on a plane; an empty cache."""
    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rock.obj").write_text(TETRAHEDRON)
    return SCENE.format(mesh=tmp_path / "rock.obj", groups="0 0")


def models(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "models").glob("*.mjb"))


def content(model) -> bytes:
    import mujoco

    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer.tobytes()


def fall(model) -> np.ndarray:
    import mujoco

    data = mujoco.MjData(model)
    states = []
    for _ in range(400):
        mujoco.mj_step(model, data)
        states.append(np.concatenate([data.qpos, data.qvel]))
    return np.array(states)


def test_loading_gives_the_compilers_model_to_the_bit(scene, tmp_path):
    import mujoco

    compiled = content(mujoco.MjModel.from_xml_string(scene))
    assert content(load_scene(scene, sim="toy", visuals="exact")) == compiled
    (path,) = models(tmp_path)
    born = path.stat().st_ino
    assert content(load_scene(scene, sim="toy", visuals="exact")) == compiled
    assert path.stat().st_ino == born


def test_stand_ins_change_nothing_that_moves(scene):
    exact, bare = (load_scene(scene, sim="toy", visuals=v) for v in ("exact", "none"))
    assert differences(exact, bare) == []
    assert bare.nmesh == exact.nmesh + 1  # the rock that is seen has become a mesh of its own
    assert bare.ntexdata < exact.ntexdata
    assert np.array_equal(fall(exact), fall(bare))


def test_a_change_in_what_moves_is_found(scene):
    import mujoco

    exact, other = mujoco.MjModel.from_xml_string(scene), mujoco.MjModel.from_xml_string(scene)
    other.geom_friction[0, 0] += 1e-9
    other.mesh_vert[0, 0] += 1e-6
    assert differences(exact, other) == ["geom_friction", "the collision meshes"]


def test_visual_meshes_that_have_weight_are_not_replaced(scene, tmp_path):
    heavy = SCENE.format(mesh=tmp_path / "rock.obj", groups="0 5")
    with pytest.raises(EnvError, match="would not move as the exact one does.*body_"):
        compile_scene(heavy, sim="toy", visuals="none")
    with pytest.raises(EnvError, match="would not move"):  # the helper process says the same
        load_scene(heavy, sim="toy", visuals="none")
    assert models(tmp_path) == []


@pytest.mark.parametrize("fault", ["flipped", "cut", "gone", "record"])
def test_a_damaged_model_is_made_again_and_said(scene, tmp_path, caplog, fault):
    good = content(load_scene(scene, sim="toy", visuals="exact"))
    (path,) = models(tmp_path)
    data = bytearray(path.read_bytes())
    if fault == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif fault == "cut":
        path.write_bytes(data[:-100])
    elif fault == "gone":
        path.unlink()
    else:
        path.with_suffix(".json").write_text("{")
    with caplog.at_level(logging.WARNING, "envs.models"):
        assert content(load_scene(scene, sim="toy", visuals="exact")) == good
    assert fault == "gone" or "it is made again" in caplog.text
    assert sha256_of(path) == json.loads(path.with_suffix(".json").read_text())["sha256"]


def test_a_model_of_another_mujoco_is_made_again(scene, tmp_path, caplog, monkeypatch):
    """Its name would differ; even under this name, with its checksum right, MuJoCo has the last word."""
    load_scene(scene, sim="toy", visuals="exact")
    (path,) = models(tmp_path)
    data = bytearray(path.read_bytes())
    data[:16] = b"\0" * 16
    path.write_bytes(data)
    write_whole(path.with_suffix(".json"), json.dumps({"sha256": sha256_of(path), "bytes": len(data)}).encode())
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves its log in the working directory
    with caplog.at_level(logging.WARNING, "envs.models"):
        load_scene(scene, sim="toy", visuals="exact")
    assert "refused by MuJoCo" in caplog.text


def test_the_key_is_the_content(scene, tmp_path):
    key = scene_key(scene, "exact")
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "stone.obj"
    moved.write_text(TETRAHEDRON)
    assert scene_key(scene.replace(str(tmp_path / "rock.obj"), str(moved)), "exact") == key
    assert scene_key(scene, "none") != key
    assert scene_key(scene.replace("0 0 1", "0 0 2"), "exact") != key
    (tmp_path / "rock.obj").write_text(TETRAHEDRON.replace(".1", ".2"))
    assert scene_key(scene, "exact") != key


def test_scenes_that_cannot_be_keyed_are_refused(scene, tmp_path):
    with pytest.raises(EnvError, match=r"'rock\.obj'; expected a path from the root"):
        scene_key(scene.replace(str(tmp_path / "rock.obj"), "rock.obj"), "exact")
    with pytest.raises(EnvError, match=r"<include> element is not supported"):
        scene_key(scene.replace("<asset>", '<include file="/a.xml"/><asset>'), "exact")
    (tmp_path / "rock.obj").unlink()
    with pytest.raises(EnvError, match=r"needs the file .*rock\.obj, which cannot be read"):
        load_scene(scene, sim="toy", visuals="exact")


def test_a_scene_that_does_not_compile_says_why(scene, tmp_path):
    with pytest.raises(EnvError, match="capsul"):
        load_scene(scene.replace('type="box"', 'type="capsul"'), sim="toy", visuals="exact")
    assert models(tmp_path) == []
    assert [p for p in (tmp_path / "cache" / "models").iterdir() if not p.name.endswith(".lock")] == []


def test_the_cache_stays_under_its_limit(scene, tmp_path, monkeypatch):
    load_scene(scene, sim="toy", visuals="exact")
    size = models(tmp_path)[0].stat().st_size
    monkeypatch.setenv("TEMPER_MODELS_GB", str(2.5 * size / 1e9))
    scenes = [scene.replace("0 0 1", f"0 0 {height}") for height in (2, 3)]
    first = models(tmp_path)[0]
    os.utime(first.with_suffix(".json"), (0, 0))
    load_scene(scenes[0], sim="toy", visuals="exact")
    load_scene(scene, sim="toy", visuals="exact")  # used again: now the other one is the older
    os.utime(next(p for p in models(tmp_path) if p != first).with_suffix(".json"), (1, 1))
    load_scene(scenes[1], sim="toy", visuals="exact")
    assert len(models(tmp_path)) == 2
    assert first in models(tmp_path)


def test_what_an_interrupted_process_left_is_counted_and_deleted_when_it_is_old(scene, tmp_path, monkeypatch):
    load_scene(scene, sim="toy", visuals="exact")
    folder, (kept,) = tmp_path / "cache" / "models", models(tmp_path)
    size = kept.stat().st_size
    left = {
        "partial": folder / ".0a.mjb.x1y2z3", "record in the making": folder / ".0a.json.x1y2z3",
        "no record": folder / "0b.mjb", "no model": folder / "0c.json", "lock": folder / ".0d.mjb.lock",
    }  # fmt: skip
    for path in left.values():
        path.write_bytes(b"x" * size)
    monkeypatch.setenv("TEMPER_MODELS_GB", str(5.5 * size / 1e9))  # room for one of the two models beside the others
    os.utime(kept.with_suffix(".json"), (0, 0))
    load_scene(scene.replace("0 0 1", "0 0 2"), sim="toy", visuals="exact")
    assert not kept.exists()
    assert all(path.exists() for path in left.values())  # somebody may be writing them just now
    for path in left.values():
        os.utime(path, (0, 0))
    load_scene(scene, sim="toy", visuals="exact")
    assert [name for name, path in left.items() if path.exists()] == ["lock"]
    assert len(models(tmp_path)) == 2


@pytest.mark.parametrize("limit", ["four", "0", "-1", "nan"])
def test_a_limit_that_means_nothing_is_refused(scene, tmp_path, monkeypatch, limit):
    monkeypatch.setenv("TEMPER_MODELS_GB", limit)
    with pytest.raises(EnvError, match=f"TEMPER_MODELS_GB is '{limit}'; expected a number of gigabytes above 0"):
        load_scene(scene, sim="toy", visuals="exact")
    assert models(tmp_path) == []


def test_without_a_place_to_write_it_still_compiles(scene, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "envs.models"):
        assert load_scene(scene, sim="toy", visuals="exact").nbody == 2
    assert "cannot be kept" in caplog.text


def test_without_cameras_nothing_needs_to_be_seen():
    cameras = {"front": (8, 8)}
    assert [visuals_for(q, cameras) for q in ("exact", "fast", "lite", "soft")] == ["exact", "exact", "lite", "lite"]
    assert [visuals_for(q, {}) for q in ("exact", "fast", "lite", "soft")] == ["none"] * 4
    with pytest.raises(EnvError, match="render quality 'best' is unknown; expected one of exact, fast, lite"):
        visuals_for("best", {})
