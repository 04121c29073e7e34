"""Our own rasteriser draws what MuJoCo's OpenGL draws, for all kinds of shapes, lights and textures; or says so."""

import re
import subprocess

import numpy as np
import pytest

from envs import draw, native
from envs.render import CameraRenderer
from envs.types import EnvError

mujoco = pytest.importorskip("mujoco", reason="MuJoCo is NOT installed in this interpreter")
pytestmark = pytest.mark.sim

CAMERAS = {f"c{i}": (64, 80) for i in range(4)}
KINDS = ("box", "sphere", "capsule", "cylinder", "ellipsoid", "mesh")
MESH = """v 0 0 0
v .8 0 0
v 0 .8 0
v 0 0 .8
vt 0 0
vt 2 0
vt 0 2
f 1/1 3/2 2/3
f 1/1 2/2 4/3
f 1/1 4/2 3/3
f 2/1 3/2 4/3
"""
ASSETS = """<texture name="squares" type="2d" builtin="checker" rgb1=".9 .2 .1" rgb2=".1 .6 .9" width="64" height="64"/>
<texture name="cube" type="cube" builtin="gradient" rgb1=".9 .8 .1" rgb2=".1 .2 .9" width="32" height="32"/>
<texture name="sky" type="skybox" builtin="gradient" rgb1=".4 .6 .8" rgb2=".1 .1 .2" width="64" height="384"/>
<material name="plain" rgba=".8 .5 .3 1" specular="0.8" shininess="0.3" emission="0.1"/>
<material name="uniform" texture="squares" texrepeat="3 2" texuniform="true"/>
<material name="stretched" texture="squares" texrepeat="3 2"/>
<material name="around" texture="cube" texuniform="true"/>
<material name="glass" rgba=".2 .9 .4 .4"/>
<mesh name="tetra" file="tetra.obj"/>"""
LIGHTS = """<light pos="0 0 5" dir=".1 .2 -1" castshadow="false"/>
<light pos="3 -2 4" dir="-.5 .3 -1" directional="true" diffuse=".3 .2 .1" castshadow="false"/>
<light pos="-3 2 3" dir=".5 -.3 -1" cutoff="60" exponent="3" attenuation="1 .1 .02" diffuse=".5 .5 .5"/>"""


def scene(*, seed: int = 0, materials: tuple[str, ...], extra: str = "", camera: str = 'fovy="60"', sky: bool = True):
    """Thirty shapes of all kinds on a floor, and four cameras that look at them."""
    rng, parts = np.random.default_rng(seed), []
    for i in range(30):
        place, turn, size = rng.uniform(-2, 2, 3), rng.standard_normal(4), rng.uniform(0.2, 0.5, 3)
        kind = KINDS[i % len(KINDS)]
        shape = 'mesh="tetra"' if kind == "mesh" else f'size="{size[0]:.3f} {size[1]:.3f} {size[2]:.3f}"'
        where = " ".join(f"{v:.3f}" for v in place), " ".join(f"{v:.3f}" for v in turn)
        material = materials[i % len(materials)]
        if kind == "mesh" and material == "around":  # OpenGL takes whatever it drew last, as the mesh has no directions
            material = "plain"
        parts.append(
            f'<geom type="{kind}" group="1" pos="{where[0]}" quat="{where[1]}" {shape} material="{material}"/>'
        )
    for i in range(4):
        turn, distance = np.pi / 2 * i + 0.3, 4.5 - i
        axis = f"{-np.sin(turn):.3f} {np.cos(turn):.3f} 0 {-0.5 * np.cos(turn):.3f} {-0.5 * np.sin(turn):.3f} 0.85"
        where = f"{distance * np.cos(turn):.3f} {distance * np.sin(turn):.3f} {0.59 * distance:.3f}"
        parts.append(f'<camera name="c{i}" pos="{where}" xyaxes="{axis}" {camera}/>')
    assets = ASSETS if sky else re.sub(r'<texture name="sky".*?/>', "", ASSETS)
    return mujoco.MjModel.from_xml_string(
        f"<mujoco><asset>{assets}</asset><worldbody>{LIGHTS}{''.join(parts)}{extra}"
        '<geom type="plane" size="4 3 .5" pos="0 0 -2.5" group="1" material="uniform"/></worldbody></mujoco>',
        {"tetra.obj": MESH.encode()},
    )


def both(model):
    """Pictures [4, Y, X, 3] of MuJoCo's renderer and of ours."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    theirs = CameraRenderer(model, cameras=CAMERAS, quality="fast")
    try:
        wanted = np.stack(list(theirs.render(data).values()))
    finally:
        theirs.close()
    return wanted, np.stack(list(draw.SoftRenderer(model, data, cameras=CAMERAS).render(data).values()))


def unlike(wanted: np.ndarray, ours: np.ndarray) -> float:
    """Share of pixels that differ by more than 12 of 255 in a colour."""
    return float((np.abs(wanted.astype(int) - ours).max(-1) > 12).mean())


@pytest.mark.parametrize("material", ["plain", "uniform", "stretched", "around", "glass"])
def test_it_draws_what_mujoco_draws(material):
    wanted, ours = both(scene(materials=(material,)))
    assert wanted.std() > 20
    assert unlike(wanted, ours) < 0.015
    assert 10 * np.log10(255**2 / np.mean((wanted.astype(float) - ours) ** 2)) > 28


def test_a_world_without_sky_is_black_behind():
    wanted, ours = both(scene(materials=("plain", "glass"), sky=False))
    assert ((wanted == 0).all(-1) == (ours == 0).all(-1)).mean() > 0.995
    assert unlike(wanted, ours) < 0.015


def test_shapes_around_the_camera_are_cut_not_lost():
    walls = '<geom type="box" group="1" size="9 9 .1" pos="0 0 -4" material="uniform"/>'
    walls += '<geom type="box" group="1" size=".1 9 9" pos="-6 0 0" material="plain"/>'
    wanted, ours = both(scene(materials=("stretched",), extra=walls))
    assert unlike(wanted, ours) < 0.015


def test_new_colours_and_hidden_sites_are_seen():
    model = scene(materials=("plain",), extra='<site type="sphere" size="2" rgba="1 0 0 -1"/>')
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    ours = draw.SoftRenderer(model, data, cameras=CAMERAS)
    before = np.stack(list(ours.render(data).values()))
    model.mat_rgba[0] = 0.1, 0.2, 0.9, 1
    model.light_active[0] = 0
    after = np.stack(list(ours.render(data).values()))
    assert (before != after).mean() > 0.3
    wanted, again = both(model)
    assert np.array_equal(after, again)
    assert unlike(wanted, after) < 0.015
    model.site_rgba[0] = 1, 0, 0, 1
    assert unlike(*both(model)) < 0.015


def test_new_sizes_and_coverings_are_seen():
    model = scene(materials=("stretched",))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    ours = draw.SoftRenderer(model, data, cameras=CAMERAS)
    before = np.stack(list(ours.render(data).values()))
    for change in (model.geom_size, model.mat_texrepeat):
        change[:] *= 1.5
        after, (wanted, again) = np.stack(list(ours.render(data).values())), both(model)
        assert (before != after).mean() > 0.1
        assert np.array_equal(after, again)
        assert unlike(wanted, after) < 0.015
        before = after


def test_it_says_what_is_seen_where():
    model = scene(materials=("plain",))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    theirs = CameraRenderer(model, cameras=CAMERAS, quality="fast")
    try:
        depth, bodies = theirs.surfaces(data, "c1")
    finally:
        theirs.close()
    own_depth, own_bodies = soft(model).surfaces(data, "c1")
    assert (bodies == own_bodies).mean() > 0.99
    assert (np.abs(depth - own_depth)[bodies >= 0] < 0.02).mean() > 0.98


def test_what_it_cannot_draw_is_refused():
    model = scene(materials=("plain",), camera='projection="orthographic" fovy="2"')
    with pytest.raises(EnvError, match="cannot draw camera 'c0', which has a lens of its own; use lite"):
        soft(model)
    field = '<geom type="hfield" hfield="hills" group="1"/>'
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><asset><hfield name="hills" nrow="4" ncol="4" size="1 1 1 1"/></asset><worldbody>'
        f'<camera name="c0"/><camera name="c1"/><camera name="c2"/><camera name="c3"/>{field}</worldbody></mujoco>'
    )
    with pytest.raises(EnvError, match="cannot draw a mjGEOM_HFIELD; use lite"):
        soft(model)


def soft(model):
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return draw.SoftRenderer(model, data, cameras=CAMERAS)


def test_without_a_compiler_the_error_names_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(EnvError, match=r"render_quality: soft needs a C compiler once.*Or choose lite"):
        draw.load_library.__wrapped__()


def test_it_compiles_without_warnings(tmp_path):
    command = [*native.compiler("the test"), "-std=c99", "-Wall", "-Wextra", "-c", str(draw.SOURCE)]
    done = subprocess.run([*command, "-o", str(tmp_path / "x.o")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
