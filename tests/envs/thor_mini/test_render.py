"""Pictures against geometry that is worked out here, pixel by pixel, with rays."""

import shutil

import numpy as np
import pytest

from envs.thor_mini import data, generate, house, render, shapes
from envs.thor_mini.materials import textures, type_colours
from envs.thor_mini.mesh import INSET, Mesh, add_body, triangulate
from envs.thor_mini.render import FAR, Renderer, directions
from envs.thor_mini.scene import Body, Camera, Opening, Room, Scene, Wall
from envs.types import EnvError

W, H = 160, 96
TARGETS = ("AlarmClock", "Apple", "BasketBall", "Bed", "Bowl", "Chair", "GarbageCan", "HousePlant", "Laptop", "Mug",
           "Sofa", "SprayBottle", "Television", "Toilet", "Vase")  # fmt: skip


def crate(name, position, size, yaw=0.0):
    """A body whose shape fills its box."""
    return Body(name, "Towel", name, np.array(position, float), np.array(size, float), yaw)


def room(number, x0, x1, z0, z1):
    corners = [(x0, z0), (x0, z1), (x1, z1), (x1, z0)]
    walls = [
        Wall(f"wall|{number}|{i}", f"room|{number}", corners[i], corners[(i + 1) % 4], 2.5, colour=(200, 120, 60))
        for i in range(4)
    ]
    return Room(f"room|{number}", "Bedroom", np.array(corners, float)), walls


def scene(bodies=(), door=None, window=None):
    """A room, x 0 to 4 and z 0 to 6, and one beyond its wall at z = 6, with a door at x 1.5 to 2.5 if there is one."""
    first, walls = room(1, 0, 4, 0, 6)
    second, more = room(2, 0, 4, 6, 10)
    if door is not None:
        walls[1].openings.append(Opening("door|1|2", "door", 1.5, 2.5, 0, 2.1, door))
        more[3].openings.append(Opening("door|1|2", "door", 1.5, 2.5, 0, 2.1, door))
        if not door:
            bodies = [*bodies, crate("door|1|2", (2, 1.05, 6), (1, 2.1, 0.06))]
    if window is not None:
        walls[0].openings.append(Opening("window|1|0", "window", *window))
    return Scene("test", [first, second], [*walls, *more], list(bodies), 2.5)


def show(scene, camera, hidden=None, size=(W, H)):
    renderer = Renderer(scene, *size)
    positions = np.array([b.position for b in scene.bodies]).reshape(-1, 3)
    return renderer.draw(camera, positions, np.array([b.yaw for b in scene.bodies]), hidden)


def camera(x, y, z, yaw=0.0, pitch=0.0, fov=60.0):
    return Camera(np.array([x, y, z], float), yaw, pitch, fov)


def rays(camera):
    """Directions [H, W, 3] through the middles of pixels, one long along the viewing direction."""
    right, up, forward = directions(camera.yaw, camera.pitch)
    focal = H / 2 / np.tan(np.radians(camera.fov) / 2)
    x, y = np.meshgrid((np.arange(W) + 0.5 - W / 2) / focal, (H / 2 - np.arange(H) - 0.5) / focal)
    return x[..., None] * right + y[..., None] * up + forward


def box_depth(body, camera, grow=0.0):
    """Depth [H, W] of a box, inf where it is not hit."""
    angle = np.radians(body.yaw)
    turn = np.array([[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]])
    origin, way = turn @ (camera.position - body.position), rays(camera) @ turn.T
    half = body.size / 2 + grow
    with np.errstate(divide="ignore"):
        a, b = (-half - origin) / way, (half - origin) / way
    near, far = np.minimum(a, b).max(axis=-1), np.maximum(a, b).min(axis=-1)
    return np.where((near < far) & (near > 0), near, np.inf)


def test_a_wall_has_its_distance_and_rows_run_downwards():
    frame = show(scene(), camera(2, 1.25, 1.0))
    assert frame.rgb.shape == (H, W, 3)
    assert (frame.depth.dtype, frame.ids.dtype) == (np.float32, np.int32)
    middle = slice(W // 2 - 30, W // 2 + 30)  # beside it are the side walls
    assert frame.depth[H // 2, middle] == pytest.approx(np.full(60, 5 - INSET), abs=2e-5)
    rise = rays(camera(2, 1.25, 1.0))[:, middle, 1]
    floor, ceiling = 1.25 / -rise[-1], 1.25 / rise[0]
    assert (floor < 4.9).all() and (ceiling < 4.9).all()  # noqa: PT018
    assert frame.depth[-1, middle] == pytest.approx(floor, abs=2e-5)
    assert frame.depth[0, middle] == pytest.approx(ceiling, abs=2e-5)
    down = show(scene(), camera(2, 1.4, 3, yaw=123, pitch=90))
    assert down.depth == pytest.approx(np.full((H, W), 1.4), abs=1e-5)
    assert (frame.ids == -1).all()


def test_up_is_up_and_right_is_right():
    high, aside = crate("high", (2, 2.0, 4), (0.3, 0.3, 0.3)), crate("aside", (3, 1.25, 4), (0.3, 0.3, 0.3))
    frame = show(scene([high, aside]), camera(2, 1.25, 1))
    rows, columns = np.nonzero(frame.ids == 0)
    assert len(rows) > 20 and rows.max() < H / 2 - 5 and abs(columns.mean() - W / 2 + 0.5) < 1  # noqa: PT018
    rows, columns = np.nonzero(frame.ids == 1)
    assert len(rows) > 20 and columns.min() > W / 2 + 5 and abs(rows.mean() - H / 2 + 0.5) < 1  # noqa: PT018
    turned = show(scene([high, aside]), camera(0.5, 1.25, 4, yaw=90))  # along x: the far box is straight ahead
    assert turned.ids[H // 2, W // 2] == 1


@pytest.mark.parametrize("seed", range(12))
def test_ids_and_depth_are_those_of_rays(seed):
    rng = np.random.default_rng(seed)
    bodies = [
        crate(f"crate{i}", rng.uniform((0.5, 0.5, 2), (3.5, 2.0, 5.5)), rng.uniform(0.2, 0.9, 3), rng.uniform(0, 360))
        for i in range(5)
    ]
    view = camera(
        *rng.uniform((1, 1, 0.3), (3, 1.8, 1.2)), rng.uniform(-30, 30), rng.uniform(-10, 35), rng.uniform(45, 80)
    )
    frame = show(scene(bodies), view)
    depths = np.stack([box_depth(b, view) for b in bodies])
    room = Body("room", "", "", np.array([2, 1.25, 3.0]), np.array([4, 2.5, 6.0]))
    inner = np.abs(room.size / 2)
    with np.errstate(divide="ignore"):
        exits = np.maximum(
            (-inner - view.position + room.position) / rays(view), (inner - view.position + room.position) / rays(view)
        )
    wall = exits.min(axis=-1)
    nearest = np.where(depths.min(axis=0) < wall, depths.argmin(axis=0), -1)
    sure = np.ones((H, W), bool)  # pixels whose neighbours agree: on an edge, rounding decides
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        sure &= np.roll(nearest, step, axis) == nearest
    assert (nearest >= 0).sum() > 150
    assert (frame.ids == nearest)[sure].all()
    assert (frame.ids == nearest).mean() > 0.99
    expected = np.minimum(depths.min(axis=0), wall)
    assert np.abs(frame.depth - expected)[sure & (nearest >= 0)].max() < 1e-3
    assert np.abs(frame.depth - expected)[sure & (nearest < 0)].max() < 0.15  # a skirting board is 12 mm thick


def test_what_is_nearer_hides_what_is_behind():
    near, far = crate("near", (2, 1.2, 3), (0.5, 0.5, 0.5)), crate("far", (2, 1.2, 5), (0.5, 0.5, 0.5))
    view = camera(2, 1.2, 1)
    assert set(np.unique(show(scene([far, near]), view).ids)) == {-1, 1}
    assert set(np.unique(show(scene([far, near]), view, hidden=np.array([False, True])).ids)) == {-1, 0}
    wide = crate("wide", (2, 1.2, 5), (1.5, 0.5, 0.5))
    frame = show(scene([wide, near]), view)
    assert frame.ids[H // 2, W // 2] == 1
    assert set(np.unique(frame.ids)) == {-1, 0, 1}
    assert show(scene([wide, near]), camera(2, 1.2, 1, yaw=180)).ids.max() == -1


def test_an_open_door_lets_one_see_through_and_a_closed_one_does_not():
    beyond = crate("beyond", (2, 0.6, 8), (0.6, 0.6, 0.6))
    view = camera(2, 1.0, 2)
    through = show(scene([beyond], door=True), view)
    assert (through.ids == 0).sum() > 50
    assert through.depth[21, W // 2] == pytest.approx(4 - INSET, abs=1e-4)  # over the door, the wall
    assert (show(scene([beyond]), view).ids == -1).all()
    closed = show(scene([beyond], door=False), view)
    assert not (closed.ids == 0).any()
    assert closed.ids[H // 2, W // 2] == 1
    assert closed.depth[H // 2, W // 2] == pytest.approx(4 - 0.03, abs=1e-4)


def test_windows_show_the_sky():
    view = camera(3, 1.4, 3, yaw=270, pitch=-8)
    shut = show(scene(), view)
    assert shut.depth.max() < FAR
    frame = show(scene(window=(2.2, 3.8, 0.8, 2.2)), view)
    sky = frame.depth == FAR
    assert 0.05 < sky.mean() < 0.6
    assert (frame.ids[sky] == -1).all()
    top = frame.rgb[np.nonzero(sky)[0].min() + 1][sky[np.nonzero(sky)[0].min() + 1]].mean(axis=0)
    assert top[2] > top[0] + 15  # blue
    assert frame.rgb[sky].std(axis=0).max() > 2
    same = ~sky & (shut.depth == frame.depth)
    assert (shut.rgb[same] == frame.rgb[same]).mean() > 0.99


def test_the_same_input_is_the_same_picture():
    made = house.load(generate.house(3, data.databases()), data.databases())
    positions, yaws = np.array([b.position for b in made.bodies]), np.array([b.yaw for b in made.bodies])
    view = camera(made.start[0], 1.4, made.start[1], made.start[2], 27)
    one, other = Renderer(made, W, H), Renderer(made, W, H)
    first = one.draw(view, positions, yaws)
    one.draw(camera(made.start[0], 1.4, made.start[1], 77, 10), positions, yaws)
    for again in (one.draw(view, positions, yaws), other.draw(view, positions, yaws)):
        for name in ("rgb", "depth", "ids"):
            assert getattr(first, name).tobytes() == getattr(again, name).tobytes()
    kept = first.rgb.copy()
    assert one.draw(camera(0, 1.4, 0, 10), positions, yaws, out=first) is first
    assert (first.rgb != kept).any()


def test_bodies_are_drawn_where_they_are_now():
    body = crate("box", (2, 1.25, 4), (0.4, 0.4, 0.4))
    renderer = Renderer(scene([body]), W, H)
    view = camera(2, 1.25, 1)
    ahead = renderer.draw(view, body.position[None], np.zeros(1)).ids
    moved = renderer.draw(view, np.array([[2.8, 1.25, 4]]), np.zeros(1)).ids
    assert np.nonzero(moved == 0)[1].mean() > np.nonzero(ahead == 0)[1].mean() + 20
    turned = renderer.draw(view, body.position[None], np.array([45.0])).ids
    assert (turned == 0).sum() > 1.2 * (ahead == 0).sum()


@pytest.mark.parametrize("seed", range(4))
def test_closed_rooms_have_no_cracks(seed):
    made = house.load(generate.house(seed, data.databases()), data.databases())
    for wall in made.walls:
        wall.openings = [o for o in wall.openings if o.kind != "window" and (o.is_open or o.kind == "empty")]
    renderer = Renderer(made, 396, 224)
    positions, yaws = np.array([b.position for b in made.bodies]), np.array([b.yaw for b in made.bodies])
    rng = np.random.default_rng(seed)
    for _ in range(25):
        view = camera(made.start[0], rng.uniform(0.5, 2.0), made.start[1], rng.uniform(0, 360), rng.uniform(-40, 60))
        frame = renderer.draw(view, positions, yaws)
        assert frame.depth.max() < 30, "the sky shows through"
        assert np.isfinite(frame.depth).all()
        assert frame.depth.min() > 0


def test_shapes_stay_in_their_boxes_and_fill_them():
    databases = data.databases()
    for asset in databases.assets.values():
        body = Body("x", asset.object_type, asset.asset_id, np.zeros(3), np.array(asset.size))
        mesh = Mesh()
        add_body(mesh, body, 0)
        _, faces, corners = mesh.arrays()
        excess = np.abs(corners).max(axis=0) - body.size / 2
        assert excess.max() < 0.011 * max(1, body.size.max()), f"{asset.asset_id} leaves its box by {excess}"
        reach = np.ptp(corners, axis=0) / body.size
        assert reach.min() > 0.6, f"{asset.asset_id} is too small: {reach}"
        assert np.linalg.norm(faces["normal"], axis=1) == pytest.approx(np.ones(len(faces)))
        top = shapes.surface(asset.object_type, asset.size)
        assert top is None or 0 < top.height <= asset.size[1] + 1e-9


def test_no_two_faces_of_an_object_fight_for_the_same_pixels():
    for asset in data.databases().assets.values():
        boxes = [p for p in shapes.parts(asset.object_type, asset.size) if p.kind == "box"]
        for i, p in enumerate(boxes):
            for q in (q for q in boxes[:i] if (q.colour, q.pattern) != (p.colour, p.pattern)):
                one, other = np.array(p[1:7]).reshape(3, 2), np.array(q[1:7]).reshape(3, 2)
                shared = np.minimum(one[:, 1], other[:, 1]) - np.maximum(one[:, 0], other[:, 0])
                for axis in range(3):
                    in_plane = np.abs(one[axis] - other[axis]) < 1e-6
                    in_plane[0] &= axis != 1  # nobody sees undersides
                    assert not (in_plane.any() and np.delete(shared, axis).min() > 1e-3), f"{asset.asset_id}: {p}, {q}"


def test_targets_can_be_told_apart_by_their_colour():
    databases = data.databases()
    colours = {
        kind: np.array(
            [type_colours(kind, a.asset_id)[0] for a in databases.assets.values() if a.object_type == kind], float
        )
        for kind in TARGETS
    }
    for kind, mine in colours.items():
        for other, theirs in colours.items():
            if kind < other:
                apart = np.abs(mine[:, None] - theirs[None]).max(axis=-1)
                assert np.median(apart) > 24, f"{kind} looks like {other}"


def test_floors_of_any_outline_are_covered():
    outline = np.array([(0, 0), (0, 4), (1, 4), (1, 2), (2, 2), (2, 4), (3, 4), (3, 1.5), (3, 0)], float)  # a U
    triangles = triangulate(outline)
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    areas = -((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2
    assert (areas > 0).all()
    assert areas.sum() == pytest.approx(4 + 4 + 2)


def test_textures_keep_the_mean_colour():
    rows = textures(5)
    assert (rows == textures(5)).all()
    assert (rows != textures(6)).any()
    assert rows[:, -1].astype(float) == pytest.approx(np.full(len(rows), 160), abs=25)


def test_what_cannot_be_drawn_is_refused():
    body = crate("box", (2, 1.25, 4), (0.4, 0.4, 0.4))
    with pytest.raises(EnvError, match="0 x 96 pixels; expected 1 to 4096"):
        Renderer(scene([body]), 0, 96)
    renderer = Renderer(scene([body]), W, H)
    with pytest.raises(EnvError, match="2 positions for 1 bodies"):
        renderer.draw(camera(2, 1, 1), np.zeros((2, 3)), np.zeros(2))
    with pytest.raises(EnvError, match="field of view of 180"):
        renderer.draw(camera(2, 1, 1, fov=180), body.position[None], np.zeros(1))


def test_a_missing_compiler_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    render.load_library.cache_clear()
    with pytest.raises(EnvError, match="renderer needs a C compiler once.*CC=no-such-compiler.*gcc libc6-dev"):
        render.load_library()
    monkeypatch.delenv("CC")
    if shutil.which("cc") or shutil.which("gcc"):
        render.load_library()
        assert [p.name[:7] for p in (tmp_path / "core").iterdir()] == ["raster-"]
    render.load_library.cache_clear()
