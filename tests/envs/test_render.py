"""Pictures of a scene: what lies outside of a camera's view is not drawn, and no pixel changes."""

import numpy as np
import pytest

from envs.render import CameraRenderer, Culling
from envs.types import EnvError

mujoco = pytest.importorskip("mujoco", reason="MuJoCo is NOT installed in this interpreter")
pytestmark = pytest.mark.sim

KINDS = ("box", "sphere", "capsule", "cylinder", "ellipsoid")


def scene(*, shadows: bool = False, mirror: bool = False, orthographic: bool = False):
    """Two hundred shapes in a room, cameras that look about; mesh boxes are tested with the simulators' scenes."""
    rng, parts = np.random.default_rng(0), []
    for i in range(200):
        place, turn, size = rng.uniform(-3, 3, 3), rng.standard_normal(4), rng.uniform(0.05, 0.4, 3)
        numbers = [" ".join(f"{v:.4f}" for v in row) for row in (place, turn, size, rng.uniform(0, 1, 3))]
        parts.append(
            '<geom type="{}" group="1" pos="{}" quat="{}" size="{}" rgba="{} 1"/>'.format(
                KINDS[i % len(KINDS)], *numbers
            )
        )
    for i in range(8):
        look = " ".join(f"{v:.4f}" for v in [*rng.uniform(-3, 3, 3)])
        kind = 'projection="orthographic" fovy="2"' if orthographic else f'fovy="{20 + 12 * i}"'
        turn = " ".join(f"{v:.4f}" for v in rng.standard_normal(4))
        parts.append(f'<camera name="c{i}" pos="{look}" quat="{turn}" {kind}/>')
    shiny = 0.5 if mirror else 0
    return mujoco.MjModel.from_xml_string(
        f'<mujoco><asset><material name="floor" reflectance="{shiny}" rgba=".5 .5 .5 1"/></asset><worldbody>'
        '<geom type="plane" size="4 4 .1" pos="0 0 -3" group="1" material="floor"/>'
        f'<light pos="0 0 5" castshadow="{str(shadows).lower()}"/>{"".join(parts)}</worldbody></mujoco>'
    )


def pictures(model, *, quality: str, cull: bool):
    """All pictures, and how many shapes were drawn for the last of them."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = CameraRenderer(model, cameras={f"c{i}": (48, 64) for i in range(8)}, quality=quality)
    assert renderer._cull is not None
    if not cull:
        renderer._cull = None
    try:
        return renderer.render(data), renderer._scene.ngeom
    finally:
        renderer.close()


@pytest.mark.parametrize("quality", ["fast", "exact"])
def test_what_is_outside_of_the_view_is_not_drawn_and_not_missed(quality):
    model = scene()
    groups = model.geom_group.copy()
    fewer, drawn = pictures(model, quality=quality, cull=True)
    whole, all_drawn = pictures(model, quality=quality, cull=False)
    assert drawn < 0.5 * all_drawn
    assert np.array_equal(model.geom_group, groups)
    for name, image in whole.items():
        assert np.array_equal(fewer[name], image), name
    assert sum(image.std() > 5 for image in whole.values()) >= 4  # the others look out of the room


def test_every_shape_with_a_pixel_counts_as_visible():
    model = scene()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    culling, renderer = Culling(model), mujoco.Renderer(model, 48, 64)
    renderer.enable_segmentation_rendering()
    for camera in range(8):
        renderer.update_scene(data, camera)
        seen = np.unique(renderer.render()[..., 0])
        visible = culling.visible(data, camera, 64 / 48)
        assert visible[seen[seen >= 0]].all()
        assert visible.sum() < model.ngeom
    renderer.close()


def test_other_projections_are_left_alone():
    model = scene(orthographic=True)
    fewer, drawn = pictures(model, quality="fast", cull=True)
    whole, all_drawn = pictures(model, quality="fast", cull=False)
    assert drawn == all_drawn
    assert all(np.array_equal(fewer[name], whole[name]) for name in whole)


@pytest.mark.parametrize("effect", ["shadows", "mirror"])
def test_shadows_and_mirrors_of_exact_pictures_show_all(effect):
    renderer = CameraRenderer(scene(**{effect: True}), cameras={"c0": (8, 8)}, quality="exact")
    assert renderer._cull is None
    renderer.close()


def test_an_unknown_camera_is_named():
    with pytest.raises(EnvError, match="no camera 'front'; this scene has c0, c1"):
        CameraRenderer(scene(), cameras={"front": (8, 8)})


def test_surfaces_are_where_the_bodies_are():
    """A box one metre from a camera that looks down on it and on the floor below."""
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><camera name="eye" pos="0 0 2" fovy="60"/><geom type="plane" size="2 2 .1" group="1"/>'
        '<body name="box" pos="0.1 0 0.5"><geom type="box" size=".2 .2 .5" group="1"/></body></worldbody></mujoco>'
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    for quality in ("fast", "exact"):
        renderer = CameraRenderer(model, cameras={"eye": (40, 60)}, quality=quality)
        try:
            before = renderer.render(data)["eye"]
            depth, bodies = renderer.surfaces(data, "eye")
            assert np.array_equal(renderer.render(data)["eye"], before)  # pictures are as they were
        finally:
            renderer.close()
        box = model.body("box").id
        assert bodies[20, 32] == box  # right of the middle, where x is positive
        assert bodies[2, 2] == 0
        assert np.abs(depth[bodies == box] - 1).max() < 0.01
        assert np.abs(np.median(depth[bodies == 0]) - 2) < 0.01
        assert set(np.unique(bodies)) == {0, box}
        pixels = 40 / 2 / np.tan(np.radians(30))  # per metre at one metre
        assert (bodies == box).sum() == pytest.approx((0.4 * pixels) ** 2, rel=0.1)
