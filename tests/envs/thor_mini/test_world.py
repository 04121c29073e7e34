"""What the robot can do in a house built by hand: moves, collisions, arm, hand, falling, repetition."""

import math
from dataclasses import replace

import numpy as np
import pytest

from envs.thor_mini.arm import THICKNESS, Arm, Base, outlines
from envs.thor_mini.dispatch import perform
from envs.thor_mini.reply import Painter, full_reply
from envs.thor_mini.solids import segment_distance
from envs.thor_mini.world import ARM_MARGIN, World
from tests.thor_parts import PARTS, body, make_world, two_rooms

TABLE, APPLE = "DiningTable|1|0", "Apple|surface|1|1"


def do(world, name, **arguments):
    """Perform an action; returns (whether it succeeded, its error, what it answered)."""
    outcome, _ = perform(world, {"action": name, "sequenceId": 1, **arguments})
    return not outcome.error, outcome.error, outcome.value


def stand(world, x, z, yaw):
    good, error, _ = do(world, "Teleport", position={"x": x, "y": 0.9, "z": z}, rotation={"x": 0, "y": yaw, "z": 0})
    assert good, error


def with_bodies(*bodies):
    scene = two_rooms()
    return World(PARTS, 112, 64, replace(scene, bodies=[*scene.bodies, *bodies]))


def drive(world, action, count, **arguments):
    """Repeat a move until it fails; returns how many worked and the error."""
    for i in range(count):
        good, error, _ = do(world, action, **arguments)
        if not good:
            return i, error
    return count, ""


@pytest.mark.parametrize(
    ("place", "yaw", "moves", "culprit"),
    [
        ((2.0, 2.0), 0.0, 9, "wall|1|1"),  # from 2.0 to 3.8, a radius away from the wall at z = 4
        ((2.0, 2.0), 180.0, 2, TABLE),  # its edge is at z = 1.3
        ((1.0, 2.0), 270.0, 4, "wall|1|0"),
        ((3.5, 1.0), 90.0, 1, "wall|1|2"),  # beside the doorway
        ((3.5, 2.5), 90.0, 21, "wall|2|2"),  # through it, to the far wall at x = 8
    ],
)
def test_the_base_drives_until_something_is_in_the_way(place, yaw, moves, culprit):
    world = make_world()
    stand(world, *place, yaw)
    done, error = drive(world, "MoveAheadQuick", 40, moveMagnitude=0.2)
    assert done == moves
    assert "collided" in error
    assert culprit in error or culprit.replace("1|2", "2|0") in error  # either face of the wall between the rooms
    turn = math.radians(yaw)
    assert world.base.x == pytest.approx(place[0] + 0.2 * moves * math.sin(turn), abs=1e-9)
    assert world.base.z == pytest.approx(place[1] + 0.2 * moves * math.cos(turn), abs=1e-9)


def test_backward_and_turns():
    world = make_world()
    assert do(world, "MoveBackQuick", moveMagnitude=0.2)[0]
    assert (world.base.x, world.base.z) == (2.0, pytest.approx(1.8))
    assert do(world, "RotateRightQuick", degrees=30)[0]
    assert world.base.yaw == pytest.approx(30.0)
    assert do(world, "RotateLeftQuick", degrees=36)[0]
    assert world.base.yaw == pytest.approx(354.0)
    assert do(world, "MoveAhead", moveMagnitude=1.0)[0]
    assert world.base.x < 2.0  # a little to the left of +z


def test_a_closed_door_is_a_wall():
    scene = two_rooms()
    for wall in scene.walls:
        for opening in wall.openings:
            opening.is_open = False
    world = World(PARTS, 112, 64, scene)
    stand(world, 3.5, 2.5, 90.0)
    done, error = drive(world, "MoveAheadQuick", 10, moveMagnitude=0.2)
    assert done == 1
    assert "collided" in error


def test_a_rug_is_driven_over_and_a_lamp_under():
    world = with_bodies(
        body("Rug|1|9", (2.0, 0.01, 2.6), (1.0, 0.02, 0.5)), body("Lamp|1|9", (2.0, 1.9, 2.6), (0.4, 0.4, 0.4))
    )
    assert drive(world, "MoveAheadQuick", 5, moveMagnitude=0.2) == (5, "")


def test_the_quick_moves_ignore_the_arm_and_the_others_do_not():
    quick, slow = make_world(), make_world()
    for world in (quick, slow):
        stand(world, 0.6, 3.3, 0.0)
        assert do(world, "MoveArm", position={"x": 0, "y": 0.3, "z": 0.5})[0]
    assert do(quick, "RotateLeftQuick", degrees=90)[0]  # the hand ends in the wall at z = 4, 0.86 m from the robot
    good, error, _ = do(slow, "RotateAgent", degrees=-90)
    assert not good
    assert "collided with wall|1|1" in error
    assert slow.base.yaw == 0.0
    good, _, _ = do(slow, "RotateAgent", degrees=-90, returnToStart=False)
    assert not good
    assert slow.base.yaw in [360.0 - 5 * i for i in range(1, 18)]  # as far as it got


def test_what_was_reached_before_a_collision_is_kept_only_on_request():
    world = make_world()
    stand(world, 2.0, 3.5, 0.0)
    assert not do(world, "MoveAgent", ahead=0.4, returnToStart=True)[0]
    assert world.base.z == 3.5
    assert not do(world, "MoveAgent", ahead=0.4, returnToStart=False)[0]
    assert world.base.z == pytest.approx(3.8)


@pytest.mark.parametrize(
    ("x", "z", "words"), [(2.0, 1.0, TABLE), (4.0, 1.0, "wall"), (9.0, 2.0, "outside"), (0.1, 2.0, "wall")]
)
def test_teleport_refuses_places_that_are_taken(x, z, words):
    world = make_world()
    good, error, _ = do(world, "Teleport", position={"x": x, "y": 0.9, "z": z})
    assert not good
    assert words in error
    assert (world.base.x, world.base.z) == (2.0, 2.0)


# --- arm --------------------------------------------------------------------------------------------------------------


def arm_metadata(world):
    return full_reply(world, None, "", perform(world, {"action": "Pass"})[0], 0).metadata["agents"][0]["arm"]


@pytest.mark.parametrize(
    ("asked", "lift", "extension"), [((0.5, 0.2), 0.5, 0.2), ((2.0, 2.0), 1.1, 0.52), ((-1.0, -1.0), 0.0, 0.0)]
)
def test_the_arm_goes_where_it_is_told_within_its_limits(asked, lift, extension):
    world = make_world()
    stand(world, 1.0, 2.5, 0.0)
    assert do(world, "MoveArm", position={"x": 0, "y": asked[0], "z": asked[1]}, returnToStart=True, speed=1)[0]
    joints = arm_metadata(world)["joints"]
    assert joints[0]["rootRelativePosition"]["y"] - 0.16297650 == pytest.approx(lift)
    assert joints[-1]["rootRelativePosition"]["z"] == pytest.approx(extension)
    assert joints[-1]["name"] == "stretch_robot_wrist_2_jnt"
    assert joints[-2]["name"] == "stretch_robot_wrist_1_jnt"


def test_the_arm_points_to_the_right_of_the_robot():
    world = make_world()
    stand(world, 1.0, 3.0, 0.0)
    before = arm_metadata(world)["handSphereCenter"]
    assert before["x"] > 1.3
    assert abs(before["z"] - 3.0) < 0.1
    assert do(world, "MoveArm", position={"x": 0, "y": 0.1, "z": 0.3})[0]
    after = arm_metadata(world)["handSphereCenter"]
    assert after["x"] - before["x"] == pytest.approx(0.3)
    assert do(world, "RotateWristRelative", yaw=-90)[0]  # anticlockwise: the hand now points forward
    turned = arm_metadata(world)["handSphereCenter"]
    assert turned["z"] - after["z"] == pytest.approx(0.2)
    assert turned["x"] - after["x"] == pytest.approx(-0.2)


@pytest.mark.parametrize(("step", "end", "shown"), [(-10, -260.0, 100.0), (10, 75.0, 75.0), (-200, -260.0, 100.0)])
def test_the_wrist_stops_at_the_ends_of_its_arc(step, end, shown):
    world = make_world()
    stand(world, 2.0, 2.5, 0.0)
    for _ in range(40):
        assert do(world, "RotateWristRelative", yaw=step)[0]
    assert world.arm.wrist == end
    turn = arm_metadata(world)["joints"][-1]["rootRelativeRotation"]
    assert turn["w"] * turn["y"] == pytest.approx(shown)  # the same direction, within half a turn


def test_the_arm_collides_with_the_top_of_a_table_and_passes_under_and_over_it():
    world = make_world()
    stand(world, 1.1, 1.05, 0.0)
    for height, free in ((0.2, True), (0.62, False), (0.8, True)):
        assert do(world, "MoveArm", position={"x": 0, "y": height, "z": 0.0})[0]
        good, error, _ = do(world, "MoveArm", position={"x": 0, "y": height, "z": 0.4})
        assert good == free, height
        assert free or ("collided" in error and TABLE in error)
        assert world.arm.extension == (0.4 if free else 0.0)
        assert do(world, "MoveArm", position={"x": 0, "y": height, "z": 0.0})[0]


def test_clearances_are_those_of_every_point_of_the_arm_from_everything():
    """Whatever is looked at together, or left out as far away: as each pose by itself, point by point, to the bit."""
    world, rng, near = make_world(), np.random.default_rng(0), 0
    for _ in range(40):
        base = Base(*rng.uniform((0.5, 0.5, 0), (7.5, 3.5, 360)).tolist())
        drawn = rng.uniform((0, 0, -260), (1.1, 0.52, 75), (3, 3)).tolist()
        arms = [*(Arm(*joints) for joints in drawn), Arm(0.5, 0.0), Arm(0.5, 0.06)]
        poses = [(base, arm) for arm in arms]
        points, ends = outlines(poses)
        clear, names = world._arm_clearance(poses)
        for (_, arm), rows, room, name in zip(poses, np.split(points, ends[:-1]), clear, names, strict=True):
            cos, sin = math.cos(math.radians(base.yaw)), math.sin(math.radians(base.yaw))
            hand = math.radians(base.yaw + 90 + arm.wrist)
            for row, along in zip(rows, np.arange(0.0, arm.extension, 2 * THICKNESS), strict=False):
                right = 0.16 + along
                assert row == pytest.approx([base.x + right * cos - 0.05 * sin, 0.05 + arm.lift,
                                             base.z - right * sin - 0.05 * cos])  # fmt: skip
            assert len(rows) == len(np.arange(0.0, arm.extension, 2 * THICKNESS)) + 5
            assert rows[-1] - rows[-5] == pytest.approx([0.2 * math.sin(hand), 0, 0.2 * math.cos(hand)])
            every = np.arange(len(world.owners))
            far = np.c_[world.pieces.distance(rows, every), segment_distance(rows[:, [0, 2]], world.segments)]
            least = far.min() - THICKNESS
            assert room >= least
            if least < ARM_MARGIN - 2 * THICKNESS:  # what is farther off may be left out
                near += 1
                assert room == least
                assert name == world._name(int(far.min(0).argmin()), world.owners)
    assert near > 50


# --- hand -------------------------------------------------------------------------------------------------------------


def reach_for_the_apple(world, extension=0.3):
    stand(world, 1.1, 1.2, 0.0)
    assert do(world, "MoveArm", position={"x": 0, "y": 0.74, "z": 0.0})[0]
    assert do(world, "MoveArm", position={"x": 0, "y": 0.74, "z": extension})[0]


@pytest.mark.parametrize(("extension", "within"), [(0.0, False), (0.19, False), (0.21, True), (0.3, True)])
def test_pickup_takes_what_is_within_the_sphere_and_nothing_else(extension, within):
    world = make_world()
    reach_for_the_apple(world, extension)  # the hand is 0.3 m - extension from the apple's side
    assert (APPLE in arm_metadata(world)["pickupableObjects"]) == within
    good, error, taken = do(world, "PickupObject")
    assert good == within
    assert taken == ([APPLE] if within else None)
    assert within or "hand sphere" in error
    assert arm_metadata(world)["heldObjects"] == ([APPLE] if within else [])


def test_what_is_held_follows_the_hand_until_it_is_let_go_and_time_passes():
    world = make_world()
    reach_for_the_apple(world)
    assert do(world, "PickupObject")[0]
    i = world.index[APPLE]
    before = world.boxes.positions[i].copy()
    assert do(world, "MoveArm", position={"x": 0, "y": 0.94, "z": 0.3})[0]
    assert np.allclose(world.boxes.positions[i] - before, [0, 0.2, 0])
    assert not do(world, "PickupObject")[0]  # the hand is full
    assert do(world, "ReleaseObject")[0]
    hanging = world.boxes.positions[i].copy()
    assert np.allclose(hanging - before, [0, 0.2, 0])
    assert do(world, "AdvancePhysicsStep", simSeconds=0.05)[0]
    assert 0 < hanging[1] - world.boxes.positions[i, 1] < 0.02  # half of g times t squared
    assert do(world, "AdvancePhysicsStep", simSeconds=2)[0]
    assert world.boxes.positions[i, 1] == pytest.approx(0.74)  # on the table again
    assert world.parents[i] == TABLE
    assert do(world, "CheckWhatObjectsOn", objectId=TABLE)[2] == [APPLE, "Mug|surface|1|2"]


def test_what_is_let_go_beside_the_table_lands_on_the_floor():
    world = make_world()
    reach_for_the_apple(world)
    assert do(world, "PickupObject")[0]
    assert do(world, "RotateRightQuick", degrees=180)[0]
    assert do(world, "ReleaseObject")[0]
    assert do(world, "AdvancePhysicsStep", simSeconds=2)[0]
    i = world.index[APPLE]
    assert world.boxes.positions[i, 1] == pytest.approx(0.04)
    assert world.parents[i] == "room|1"


def test_what_stood_on_a_thing_that_is_taken_falls():
    scene = two_rooms()
    lid = body("Egg|surface|1|5", (1.8, 0.81, 1.15), (0.05, 0.06, 0.05), pickupable=True, parent=APPLE)
    world = World(PARTS, 112, 64, replace(scene, bodies=[*scene.bodies, lid]))
    reach_for_the_apple(world)
    assert do(world, "PickupObject", objectIdCandidates=[APPLE])[0]
    assert do(world, "AdvancePhysicsStep", simSeconds=2)[0]
    i = world.index[lid.object_id]
    assert world.boxes.positions[i, 1] == pytest.approx(0.73)
    assert world.parents[i] == TABLE


def test_heavy_things_stay_where_they_are():
    world = make_world()
    world.scene.bodies[world.index[APPLE]].mass = 11.0
    world.settings.heaviest = 10.0
    reach_for_the_apple(world)
    good, error, _ = do(world, "PickupObject")
    assert not good
    assert "11.0 kg" in error


# --- repetition -------------------------------------------------------------------------------------------------------


def random_walk(seed):
    rng, world, painter = np.random.default_rng(seed), make_world(), Painter()
    world.settings.ids = world.settings.depth = True
    seen = []
    for i in range(60):
        lift, out = rng.uniform(0, 1.1), rng.uniform(0, 0.5)
        action = (
            {"action": "MoveAheadQuick", "moveMagnitude": 0.2},
            {"action": "RotateRightQuick", "degrees": float(rng.choice([30, -30, 6]))},
            {"action": "MoveArm", "position": {"x": 0, "y": lift, "z": out}, "returnToStart": False},
            {"action": "RotateWristRelative", "yaw": 10},
            {"action": "PickupObject"},
            {"action": "AdvancePhysicsStep", "simSeconds": 1},
            {"action": "RandomizeMaterials"},
        )[rng.integers(7)]
        outcome, _ = perform(world, action)
        reply = full_reply(world, painter, action["action"], outcome, i)
        seen.append((reply.metadata, [(kind, bytes(picture)) for kind, picture in reply.pictures]))
    return seen


def test_the_same_actions_give_the_same_metadata_and_pictures():
    first, again, other = random_walk(3), random_walk(3), random_walk(4)
    assert first == again
    assert first != other
    assert len({pictures[0][1] for _, pictures in first}) > 10


def test_materials_change_and_come_back():
    world = make_world()
    before = world.frame(0).rgb.copy()
    assert do(world, "RandomizeMaterials")[0]
    assert world.scene.seed != world.original.seed
    assert (world.frame(0).rgb != before).any()
    assert do(world, "ResetMaterials")[0]
    assert (world.frame(0).rgb == before).all()


def test_ids_that_occur_twice_are_refused():
    with pytest.raises(ValueError, match="Apple.* occurs twice"):
        with_bodies(two_rooms().bodies[1])
