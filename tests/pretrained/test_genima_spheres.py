"""Spheres on pictures: projection against MuJoCo's own cameras, stripes and colours, which frame, tiles."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pretrained.genima.spheres import (
    GRIPPER_CLOSED,
    GRIPPER_OPEN,
    RADIUS,
    SCALES,
    Camera,
    Moment,
    Sphere,
    Style,
    draw,
    labels,
    matrix,
    mujoco_camera,
    target_frame,
)
from pretrained.genima.tiles import ORDER, Backgrounds, check_order, tile, untile
from tests.golden_files import golden_json

ROOT = Path(__file__).resolve().parents[2]
OWN = ROOT / ".venvs" / "libero" / "bin" / "python"


def straight(size: tuple[int, int] = (256, 256), focal: float = 300.0, *, mirrored: bool = False) -> Camera:
    """At the origin, looking along world Z; `mirrored` as PyRep has it: negative focal lengths, turned half around."""
    pose, sign = np.eye(4), -1.0 if mirrored else 1.0
    pose[:2, :2] *= sign
    return Camera(np.array([[sign * focal, 0, size[1] / 2], [0, sign * focal, size[0] / 2], [0, 0, 1.0]]), pose, size)


def ball(x: float = 0.0, y: float = 0.0, z: float = 1.0, radius: float = 0.1) -> Sphere:
    pose = np.eye(4)
    pose[:3, 3] = x, y, z
    return Sphere(pose, radius, (10, 200, 30))


def turned(quaternion: tuple[float, ...]) -> Sphere:
    pose = matrix(np.array([0, 0, 1, *quaternion], dtype=float))
    return Sphere(pose, 0.1, (10, 200, 30))


# --- projection ---


def test_disc_is_where_the_formula_says() -> None:
    camera = straight()
    found = labels(camera, [ball(x=0.2, y=-0.1)]) > 0
    rows, columns = np.nonzero(found)
    middle = camera.project(np.array([0.2, -0.1, 1.0]))
    assert middle == pytest.approx([188.0, 98.0, 1.0])
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((188.0, 98.0), abs=0.7)  # an ellipse's centre
    across = 2 * 300 * 0.1 / np.sqrt(1 - 0.1**2)  # tangents of a sphere on the axis
    area = np.pi * (across / 2) ** 2
    assert (labels(camera, [ball()]) > 0).sum() == pytest.approx(area, rel=0.01)


def test_negative_focal_lengths_give_the_same_picture() -> None:
    spheres = [ball(x=0.2, y=-0.1), ball(x=-0.1, radius=0.2, z=1.3)]
    assert np.array_equal(labels(straight(), spheres), labels(straight(mirrored=True), spheres))


def test_boxes_cut_nothing_off() -> None:
    """Pixels whose rays pass the centre closer than the radius, and no others; also beside and around the camera."""
    rng, camera = np.random.default_rng(0), straight((40, 60), 30.0)
    x, y = (np.arange(60) + 0.5 - 30) / 30, (np.arange(40) + 0.5 - 20) / 30
    rays = np.stack([*np.meshgrid(x, y), np.ones((40, 60))], -1)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    seen = 0
    for _ in range(200):
        centre, radius = rng.uniform((-1, -1, -0.5), (1, 1, 2)), rng.uniform(0.05, 0.6)
        along = rays @ centre
        apart = np.linalg.norm(centre - along[..., None] * rays, axis=-1)
        entry = (along - np.sqrt(np.maximum(radius**2 - apart**2, 0))) * rays[..., 2]
        truth = (apart < radius) & (entry > 1e-5) & (entry < 3.0)
        doubtful = np.abs(apart - radius) < 1e-4
        found = labels(camera, [ball(*centre, radius=radius)]) > 0
        assert np.array_equal(found[~doubtful], truth[~doubtful])
        seen += truth.any()
    assert seen > 50


def test_nearer_spheres_hide_farther_ones_whatever_the_order() -> None:
    near, far = ball(z=0.8, radius=0.05), ball(z=1.2, radius=0.2)
    label = labels(straight(), [far, near])
    assert label[128, 128] in (3, 4)
    assert label[128, 165] in (1, 2)
    swapped = labels(straight(), [near, far])
    assert np.array_equal((label == 3) | (label == 4), (swapped == 1) | (swapped == 2))


def test_what_is_behind_or_beyond_is_not_drawn() -> None:
    for z in (-1.0, 3.5):
        assert not labels(straight(), [ball(z=z)]).any()
    assert not labels(straight(), [ball(z=0.0, radius=0.5)]).any()  # the camera is inside
    assert labels(straight(), [ball(z=2.9, radius=0.05)]).any()


def test_sphere_geoms_of_mujoco() -> None:
    """Against MuJoCo's own pictures: random sphere geoms, random cameras and fields of view, picture not square."""
    mujoco = pytest.importorskip("mujoco", reason="MuJoCo is NOT installed in this interpreter")
    rng, size = np.random.default_rng(1), (96, 128)
    parts, cameras = [], []
    for i in range(8):
        place = " ".join(f"{v:.4f}" for v in rng.uniform(-0.5, 0.5, 3))
        parts.append(f'<geom type="sphere" size="{rng.uniform(0.05, 0.2):.4f}" pos="{place}"/>')
        look = rng.standard_normal(3)
        spot = 1.6 * look / np.linalg.norm(look)
        cameras.append(f'<camera name="c{i}" pos="{" ".join(map(str, spot))}" mode="targetbody" target="t" '
                       f'fovy="{rng.uniform(30, 80)}"/>')  # fmt: skip
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><visual><map znear="0.001"/><quality numslices="96" numstacks="96"/></visual><worldbody>'
        f'<body name="t" pos="0.05 0 0"/>{"".join(parts + cameras)}</worldbody></mujoco>'
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = mujoco.Renderer(model, *size)
    renderer.enable_segmentation_rendering()
    spheres = []
    for g in range(model.ngeom):
        pose = np.eye(4)
        pose[:3, 3] = data.geom_xpos[g]
        spheres.append(Sphere(pose, float(model.geom_size[g, 0]), (1, 2, 3)))
    same = 0
    for c in range(8):
        renderer.update_scene(data, c)
        theirs = renderer.render()[..., 0]
        camera = mujoco_camera(data.cam_xpos[c], data.cam_xmat[c], model.cam_fovy[c], size)
        ours = (labels(camera, spheres).astype(int) - 1) // 2  # -1 where nothing is, as MuJoCo has it
        ours[labels(camera, spheres) == 0] = -1
        assert (ours >= 0).sum() > 200
        same += (ours == theirs).mean() / 8
    renderer.close()
    assert same > 0.995, same  # edges of MuJoCo's polygons


DUMP = """
import sys, numpy as np, mujoco
if sys.argv[1] == "libero":
    from envs.libero import Libero
    env = Libero(name="libero_object", cameras={"agentview": [128, 128], "robot0_eye_in_hand": [128, 128]})
    env.reset(env.spec.tasks[0], 0)
    arm = env._scene.arm
else:
    from envs.robosuite import Robosuite
    env = Robosuite(name="Lift", cameras={"agentview": [128, 128], "robot0_eye_in_hand": [128, 128]})
    env.reset(env.spec.tasks[0], 0)
    arm = env._arm
m, d = arm.model, arm.data
out = {"xpos": d.xpos.copy(), "geom_body": m.geom_bodyid.copy()}
reach = np.linalg.norm(d.geom_xpos - d.xpos[m.geom_bodyid], axis=1) + m.geom_rbound
out["reach"], out["bounded"] = reach, m.geom_rbound > 0
r = mujoco.Renderer(m, 128, 128)
r.enable_segmentation_rendering()
for name in ("agentview", "robot0_eye_in_hand"):
    c = mujoco.mj_name2id(m, mujoco.mjtObj.mjOBJ_CAMERA, name)
    r.update_scene(d, c)
    seg = r.render()
    out[name] = np.where(seg[..., 1] == int(mujoco.mjtObj.mjOBJ_GEOM), seg[..., 0], -1)
    out[name + "_cam"] = np.concatenate([d.cam_xpos[c], d.cam_xmat[c], [m.cam_fovy[c]]])
np.savez(sys.argv[2], **out)
env.close()
"""


@pytest.mark.sim
@pytest.mark.parametrize("simulator", ["libero", "robosuite"])
def test_a_sphere_around_a_body_covers_its_pixels(simulator: str, tmp_path: Path) -> None:
    own = simulator == "libero" and OWN.exists()
    if not own and importlib.util.find_spec(simulator) is None:
        pytest.skip(f"{simulator} IS NOT INSTALLED; run `python launch.py install {simulator}`")
    done = subprocess.run(
        [str(OWN) if own else sys.executable, "-c", DUMP, simulator, str(tmp_path / "out.npz")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    seen = np.load(tmp_path / "out.npz")
    judged = 0
    for name in ("agentview", "robot0_eye_in_hand"):
        numbers = seen[f"{name}_cam"]
        camera = mujoco_camera(numbers[:3], numbers[3:12], float(numbers[12]), (128, 128))
        body_of_pixel = np.where(seen[name] >= 0, seen["geom_body"][seen[name]], -1)
        for body in np.unique(body_of_pixel[body_of_pixel > 0]):
            geoms = seen["geom_body"] == body
            radius, there = float(seen["reach"][geoms].max()), body_of_pixel == body
            if not seen["bounded"][geoms].all() or there.sum() < 40 or radius > 0.3:
                continue
            pose = np.eye(4)
            pose[:3, 3] = seen["xpos"][body]
            if camera.project(pose[:3, 3])[2] < radius:  # the camera is inside of the sphere
                continue
            drawn = labels(camera, [Sphere(pose, radius, (1, 1, 1))]) > 0
            mirrored = drawn[:, ::-1] if abs(camera.project(pose[:3, 3])[0] - 64) > 20 else None
            assert drawn[there].mean() > 0.995, (name, body)
            assert mirrored is None or mirrored[there].mean() < 0.995, (name, body)
            judged += 1
    assert judged >= 4


# --- looks ---


def test_stripes_follow_the_sphere() -> None:
    """24 of 256 texture columns each: nine bars and a wide black one, along the sphere's own x axis."""
    camera, upright = straight(focal=600.0), (0.0, 0.0, 0.0, 1.0)
    line = labels(camera, [turned(upright)])[128]
    changes = np.flatnonzero(np.diff(line.astype(int)))
    assert len(changes) == 9 + 2  # nine borders between ten bars, and both ends of the disc
    assert line[changes[0] + 1] == 2  # bright at the left
    assert line[changes[-1]] == 1  # black at the right
    assert (labels(camera, [turned(upright)]) == 2).sum() < (labels(camera, [turned(upright)]) == 1).sum()
    quarter = (0.0, 0.0, np.sqrt(0.5), np.sqrt(0.5))
    assert np.array_equal(labels(camera, [turned(quarter)]), labels(camera, [turned(upright)]).T)
    flipped = (1.0, 0.0, 0.0, 0.0)  # half a turn about x: the other hemisphere
    assert np.array_equal(labels(camera, [turned(flipped)]), labels(camera, [turned(upright)]))


def test_colours_and_radii() -> None:
    style = Style()
    joints = np.zeros((7, 7))
    joints[:, 6] = 1
    shown = style.spheres("front", Moment(joints, np.eye(4), 1.0))
    assert [s.colour for s in shown] == [GRIPPER_OPEN, (154, 0, 0), (43, 207, 62), (132, 104, 240)]
    assert GRIPPER_OPEN == (5, 206, 235)
    assert style.spheres("front", Moment(joints, np.eye(4), 0.1))[0].colour == GRIPPER_CLOSED == (255, 255, 0)
    assert {round(s.radius, 6) for s in shown} == {0.08}
    assert len(style.spheres("overhead", Moment(joints, np.eye(4), 1.0))) == 1
    assert RADIUS * SCALES["wrist"] == pytest.approx(0.03)


def test_drawing_on_a_picture_keeps_the_rest_and_blends() -> None:
    rng = np.random.default_rng(0)
    back = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    camera, sphere = straight(), ball(x=0.1)
    before, label = back.copy(), labels(straight(), [sphere])
    full, half = draw(camera, [sphere], back), draw(camera, [sphere], back, opacity=0.7)
    assert np.array_equal(back, before)
    assert np.array_equal(full[label == 0], back[label == 0])
    assert (full[label == 2] == (10, 200, 30)).all()
    assert not full[label == 1].any()
    expected = 0.7 * np.array([10, 200, 30]) + 0.3 * back[label == 2]
    assert np.abs(half[label == 2] - expected).max() <= 0.51
    assert (draw(camera, [])[..., 0] == 255).all()


# --- which frame ---


def test_target_frames() -> None:
    assert [target_frame(t, 50, 20) for t in (0, 10, 27, 28, 29, 47)] == [20, 30, 47, 48, 48, 48]
    assert target_frame(48, 50, 20) is None
    assert target_frame(49, 50, 20) is None
    with pytest.raises(ValueError, match="frame 50 does not exist: the demonstration has 50"):
        target_frame(50, 50, 20)


# --- tiles ---


def test_tiles_as_recorded() -> None:
    said = golden_json("genima_act/norm_meta.json")["tiling"]
    views = {}
    for camera, colour, corner in zip(
        said["camera_order_given"], said["view_colours_in_order"], said["view_corner_patch_colours"], strict=True
    ):
        views[camera] = np.full((256, 256, 3), colour, dtype=np.uint8)
        views[camera][:8, :8] = corner
    picture = tile(views)
    assert tuple(said["camera_order_given"]) == ORDER
    assert [picture[y, x].tolist() for y, x in said["probe_pixels_yx"]] == said["probe_rgb"]
    back = untile(picture)
    assert all(np.array_equal(back[c], views[c]) for c in ORDER)
    assert {c: v[100, 100].tolist() for c, v in back.items()} == said["untiled_colours_by_camera"]


def test_tiles_of_two_and_batches() -> None:
    views = {c: np.random.default_rng(i).integers(0, 256, (3, 4, 6, 3)) for i, c in enumerate("ab")}
    picture = tile(views, "ba")
    assert picture.shape == (3, 4, 12, 3)
    assert np.array_equal(untile(picture, "ba")["a"], views["a"])


def test_mistakes_with_tiles() -> None:
    views = {c: np.zeros((8, 8, 3), np.uint8) for c in ORDER}
    with pytest.raises(ValueError, match=r"cameras \['front'\] of the tile are missing; there are"):
        tile({c: v for c, v in views.items() if c != "front"})
    with pytest.raises(ValueError, match="of one size"):
        tile({**views, "front": np.zeros((8, 9, 3), np.uint8)})
    with pytest.raises(ValueError, match="a tile has"):
        tile(views, ORDER[:3])
    with pytest.raises(ValueError, match=r"16 by 16, expected \(512, 512\)"):
        untile(np.zeros((16, 16, 3)), size=(256, 256))
    with pytest.raises(ValueError, match=r"the data has the tile order \['front', 'wrist'.*, expected \['wrist'"):
        check_order(["front", "wrist", "left_shoulder", "right_shoulder"], ORDER, "the data")


def test_mistakes_with_cameras_and_poses() -> None:
    with pytest.raises(ValueError, match="expected a rotation"):
        Camera(np.eye(3), 2 * np.eye(4), (8, 8))
    with pytest.raises(ValueError, match="focal lengths are 0"):
        Camera(np.diag([0.0, 0, 1]), np.eye(4), (8, 8))
    with pytest.raises(ValueError, match="too old to draw targets from"):
        Moment(np.zeros(7), np.eye(4), 1.0)
    with pytest.raises(ValueError, match="length 0"):
        matrix(np.zeros(7))
    with pytest.raises(ValueError, match=r"the picture is uint8 \(8, 8, 3\), the camera's is uint8 \(256, 256, 3\)"):
        draw(straight(), [], np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="camera 'side' has no sphere scale"):
        Style().spheres("side", Moment(np.zeros((7, 7)), np.eye(4), 1.0))


def test_backgrounds(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((5, 9, 3), 7, np.uint8)).save(tmp_path / "a.png")
    rng = np.random.default_rng(0)
    assert (Backgrounds(tmp_path, size=(4, 6)).pick(rng) == np.full((4, 6, 3), 7)).all()
    made = Backgrounds(size=(32, 48))
    one, two = made.pick(rng), made.pick(rng)
    assert one.shape == (32, 48, 3)
    assert one.dtype == np.uint8
    assert np.abs(one.astype(int) - two).mean() > 5
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no picture"):
        Backgrounds(tmp_path / "empty", size=(4, 6))
