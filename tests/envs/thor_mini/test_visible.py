"""Which objects a camera sees, how much of them, and where: distances and occlusion known from the house."""

from dataclasses import replace

import numpy as np
import pytest

from envs.thor_mini.colours import colour_of, named_colours
from envs.thor_mini.visible import project
from envs.thor_mini.world import World
from tests.envs.thor_mini.test_world import APPLE, TABLE, do, stand
from tests.thor_parts import PARTS, body, make_world, two_rooms


def seen(world, distance, camera=None):
    arguments = {} if camera is None else {"thirdPartyCameraIndex": camera}
    good, error, ids = do(world, "GetVisibleObjects", maxDistance=distance, **arguments)
    assert good, error
    return ids


@pytest.mark.parametrize(("z", "within"), [(3.15, True), (3.22, False)])
def test_an_object_is_visible_within_two_metres_of_the_robot(z, within):
    world = make_world()
    stand(world, 1.8, z, 180.0)  # the apple's near side is at z = 1.19
    assert (APPLE in seen(world, 2.0)) == within
    assert APPLE in seen(world, 3.0)
    assert TABLE in seen(world, 2.0)


def test_what_is_behind_the_robot_or_a_wall_is_not_visible():
    world = make_world()
    stand(world, 1.8, 3.0, 0.0)
    assert seen(world, 10.0) == []
    stand(world, 3.7, 1.0, 90.0)  # the bed is straight ahead, behind the wall
    assert seen(world, 10.0) == []
    stand(world, 3.7, 2.5, 110.0)  # now through the doorway
    assert "Bed|2|3" in seen(world, 10.0)


def test_what_is_behind_furniture_is_not_visible():
    scene = two_rooms()
    fridge = body("Fridge|1|8", (1.8, 0.9, 2.0), (0.9, 1.8, 0.3))
    for bodies, expected in (([], True), ([fridge], False)):
        world = World(PARTS, 112, 64, replace(scene, bodies=[*scene.bodies, *bodies]))
        stand(world, 1.8, 3.2, 180.0)
        assert (APPLE in seen(world, 5.0)) == expected


def test_the_manipulation_camera_looks_to_the_right():
    world = make_world()
    stand(world, 1.0, 2.2, 45.0)  # its right is towards the table
    assert TABLE in seen(world, 3.0, camera=0)
    assert seen(world, 3.0) == []
    good, error, _ = do(world, "GetVisibleObjects", maxDistance=2, thirdPartyCameraIndex=4)
    assert not good
    assert "no third-party camera 4; the last is 0" in error


def test_a_camera_mount_and_its_lens_change_what_is_seen():
    world = make_world()
    stand(world, 1.8, 2.6, 180.0)
    assert APPLE in seen(world, 2.0)
    assert do(world, "RotateCameraMount", degrees=-30, secondary=False)[0]
    assert APPLE not in seen(world, 2.0)
    assert do(world, "RotateCameraMount", degrees=27, secondary=False)[0]
    wide = (world.frame(0).ids == world.index[APPLE]).sum()
    assert do(world, "ChangeFOV", fieldOfView=30, camera="FirstPersonCharacter")[0]
    narrow = (world.frame(0).ids == world.index[APPLE]).sum()
    assert narrow > 3 * wide
    assert world.mounts["manipulation"].fov == 59.0
    assert not do(world, "RotateCameraMount", degrees=120)[0]


def test_the_unobstructed_part_of_an_object():
    world = make_world()
    stand(world, 1.8, 2.6, 180.0)
    share = do(world, "ProportionOfObjectVisible", objectId=APPLE)[2]
    assert share > 0.9
    stand(world, 1.8, 2.6, 0.0)
    assert do(world, "ProportionOfObjectVisible", objectId=APPLE)[2] == 0.0
    stand(world, 3.7, 1.0, 90.0)
    assert do(world, "ProportionOfObjectVisible", objectId="Bed|2|3")[2] == 0.0  # behind the wall
    scene = two_rooms()
    half = body("Box|1|8", (1.76, 0.95, 1.3), (0.08, 0.5, 0.05))  # hides the apple's half at lower x
    world = World(PARTS, 112, 64, replace(scene, bodies=[*scene.bodies, half]))
    stand(world, 1.8, 2.6, 180.0)
    assert 0.2 < do(world, "ProportionOfObjectVisible", objectId=APPLE)[2] < 0.8


def test_rays_agree_with_the_picture_on_where_things_are():
    world = make_world(width=160, height=96)
    stand(world, 1.9, 2.7, 170.0)
    for camera in (0, 1):
        ids = world.frame(camera).ids
        for i in np.unique(ids[ids >= 0]):
            rows, columns = np.nonzero(ids == i)
            corners = project(world, world.cameras()[camera].camera, world.boxes.corners(int(i)))
            x, y = (corners[:, 0] + 1) / 2 * 160, (1 - corners[:, 1]) / 2 * 96
            assert x.min() - 1 <= columns.min()
            assert columns.max() <= x.max() + 1
            assert y.min() - 1 <= rows.min()
            assert rows.max() <= y.max() + 1


def test_a_coarse_mask_shows_where_an_object_is():
    world = make_world()
    stand(world, 1.8, 2.6, 180.0)
    mask = np.array(do(world, "GetApproxObjectMask", objectId=APPLE, divisions=8)[2])
    rows, columns = np.nonzero(world.frame(0).ids == world.index[APPLE])
    assert mask.shape == (8, 8)
    assert mask.sum() >= 1
    assert mask[int(rows.mean() * 8 / 64), int(columns.mean() * 8 / 112)] == 1
    assert mask[0].sum() == 0


def test_the_view_from_above_has_every_room_and_object_in_its_place():
    world = make_world(width=160, height=96)
    good, _, view = do(world, "GetMapViewCameraProperties")
    assert good
    assert do(world, "AddThirdPartyCamera", **view)[0]
    frame = world.frame(2)
    side = 2 * view["orthographicSize"] / 96
    for name, i in world.index.items():
        rows, columns = np.nonzero(frame.ids == i)
        x = (columns.mean() + 0.5 - 80) * side + 4.0
        z = 2.0 - (rows.mean() + 0.5 - 48) * side
        place = world.boxes.positions[i]
        tolerance = 0.2 if "Table" in name else 0.07  # others stand on the table
        assert np.hypot(x - place[0], z - place[2]) < tolerance, name
    assert do(world, "UpdateThirdPartyCamera", thirdPartyCameraId=1, position={"x": 100.0, "y": 3.0, "z": 0.0})[0]
    assert (world.frame(2).ids == -1).all()
    assert not do(world, "UpdateThirdPartyCamera", thirdPartyCameraId=0, fieldOfView=50)[0]  # that one is the robot's


def test_colours_are_all_different():
    colours = {tuple(colour_of(i)) for i in range(200_000)}
    assert len(colours) == 200_000
    assert (0, 0, 0) not in colours
    names = [row["name"] for row in named_colours(two_rooms().bodies)]
    assert names[:2] == [TABLE, APPLE]
    assert set(names[5:]) == {"DiningTable", "Apple", "Mug", "Bed", "Book"}
