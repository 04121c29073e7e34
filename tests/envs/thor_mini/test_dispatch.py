"""Actions by name: all that are needed exist, and wrong ones get the code on which the Controller raises."""

import pytest

from envs.thor_mini.dispatch import CHANGES, PARAMETERS, QUERIES, perform
from tests.envs.thor_mini.test_world import APPLE, TABLE, do, stand
from tests.thor_parts import HOUSE, make_world

NEEDED = (
    "Reset",
    "Initialize",
    "CreateHouse",
    "ChangeResolution",
    "ChangeQuality",
    "GetScenesInBuild",
    "MoveAheadQuick",
    "MoveBackQuick",
    "RotateRightQuick",
    "RotateLeftQuick",
    "MoveAgent",
    "RotateAgent",
    "MoveArm",
    "RotateWristRelative",
    "PickupObject",
    "ReleaseObject",
    "AdvancePhysicsStep",
    "RotateCameraMount",
    "ChangeFOV",
    "SetGripperOpenness",
    "ToggleMagnetVisibility",
    "SetObjectFilter",
    "ResetObjectFilter",
    "RandomizeMaterials",
    "ResetMaterials",
    "Teleport",
    "GetVisibleObjects",
    "GetObjectMetadata",
    "GetMinimalObjectMetadata",
    "GetReachablePositions",
    "GetShortestPath",
    "GetShortestPathToPoint",
    "PointOnObjectsCollidersClosestToPoint",
    "ProportionOfObjectVisible",
    "GetApproxObjectMask",
    "CheckWhatObjectsOn",
    "GetSpawnCoordinatesAboveReceptacle",
    "Pass",
    "GetMapViewCameraProperties",
    "AddThirdPartyCamera",
    "UpdateThirdPartyCamera",
    "VisualizeWaypoints",
    "VisualizePath",
    "HideVisualizedPath",
    "DisableSecondaryCamera",
    "DeleteLRUFromProceduralCache",
    "AssetsInDatabase",
)


def test_every_action_that_the_stretch_wrapper_sends_is_there():
    assert set(NEEDED) <= set(PARAMETERS)
    assert not set(CHANGES) & set(QUERIES)


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        ({"action": "MoveAheadQick"}, "InvalidAction", "did you mean MoveAheadQuick"),
        ({"action": None}, "InvalidAction", "None"),
        ({"action": "MoveArm"}, "MissingArguments", "missing position"),
        ({"action": "MoveAheadQuick", "magnitude": 0.2}, "InvalidArgument", "it takes moveMagnitude"),
        ({"action": "MoveAheadQuick", "moveMagnitude": "far"}, "InvalidArgument", "MoveAheadQuick"),
        ({"action": "MoveArm", "position": {"x": 0}}, "InvalidArgument", "'y'"),
        ({"action": "GetObjectMetadata", "objectIds": ["Nothing|1"]}, "InvalidArgument", "no object 'Nothing|1'"),
        ({"action": "Reset", "sceneName": "FloorPlan7"}, "InvalidArgument", "FloorPlan1_physics"),
        ({"action": "Initialize", "agentMode": "locobot"}, "InvalidArgument", "agentMode='stretch'"),
        ({"action": "Initialize", "agentMode": "stretch", "agentCount": 2}, "InvalidArgument", "one agent"),
        ({"action": "ChangeFOV", "fieldOfView": 59, "camera": "Third"}, "InvalidArgument", "SecondaryCamera"),
        ({"action": "ChangeResolution", "x": 0, "y": 5}, "InvalidArgument", "at least 1 x 1"),
        ({"action": "GetReachablePositions", "gridSize": 0}, "InvalidArgument", "above 0"),
        ({"action": "CreateHouse", "house": {"metadata": {"schema": "9"}}}, "InvalidArgument", "expected 1.0.0"),
    ],
)
def test_wrong_requests_say_what_is_wrong(message, code, words):
    outcome, _ = perform(make_world(), message)
    assert outcome.code == code
    assert words in outcome.error


def test_arguments_of_a_real_builds_physics_are_accepted():
    assert do(make_world(), "MoveAgent", ahead=0.2, right=0, returnToStart=False, speed=1, fixedDeltaTime=0.02)[0]


def test_a_new_house_keeps_the_settings_and_forgets_the_rest():
    world = make_world()
    assert do(world, "Initialize", agentMode="stretch", fieldOfView=70, renderInstanceSegmentation=True)[0]
    assert do(world, "SetObjectFilter", objectIds=[])[0]
    stand(world, 1.0, 3.0, 90.0)
    good, error, answer = do(world, "CreateHouse", house=HOUSE)
    assert good, error
    assert answer is None  # a truthy answer would be taken for that of Initialize
    assert world.settings.ids
    assert world.mounts["navigation"].fov == world.mounts["manipulation"].fov == 70
    assert world.filter is None
    assert (world.base.x, world.base.z, world.base.yaw) == (2.0, 2.0, 0.0)
    assert do(world, "Reset", sceneName="Procedural")[0]
    assert not world.scene.bodies
    assert not world.settings.ids


def test_metadata_of_objects():
    world = make_world()
    stand(world, 1.8, 2.6, 180.0)
    found = {o["objectId"]: o for o in do(world, "GetObjectMetadata", objectIds=[APPLE, TABLE])[2]}
    apple, table = found[APPLE], found[TABLE]
    assert (apple["objectType"], apple["assetId"], apple["parentReceptacles"]) == ("Apple", "Apple_1", [TABLE])
    assert apple["position"] == {"x": 1.8, "y": 0.74, "z": 1.15}
    assert apple["visible"] is True  # 1.41 m, visibilityDistance 1.5
    assert apple["distance"] == pytest.approx(1.41, abs=0.001)
    assert apple["pickupable"]
    assert table["parentReceptacles"] == ["room|1"]
    assert not table["pickupable"]
    assert table["receptacleObjectIds"] == [APPLE, "Mug|surface|1|2"]
    box = table["axisAlignedBoundingBox"]
    assert box["size"] == pytest.approx({"x": 1.0, "y": 0.7, "z": 0.6})
    assert len(box["cornerPoints"]) == len(table["objectOrientedBoundingBox"]["cornerPoints"]) == 8
    small = do(world, "GetMinimalObjectMetadata")[2]
    assert [o["objectId"] for o in small] == list(world.index)
    assert "visible" not in small[0]


def test_points_on_objects():
    world = make_world()
    [point] = do(world, "PointOnObjectsCollidersClosestToPoint", objectId=TABLE, point={"x": 2.0, "y": 0.5, "z": 3.0})[
        2
    ]
    assert point == pytest.approx({"x": 2.0, "y": 0.5, "z": 1.3})
    spots = do(world, "GetSpawnCoordinatesAboveReceptacle", objectId=TABLE, anywhere=True)[2]
    assert 15 <= len(spots) < 25  # apple and mug stand on some of the 25
    assert all(spot["y"] == pytest.approx(0.7) and 1.5 < spot["x"] < 2.5 for spot in spots)
    assert "not a receptacle" in do(world, "GetSpawnCoordinatesAboveReceptacle", objectId=APPLE)[1]
    assert do(world, "CheckWhatObjectsOn", objectId="room|2")[2] == ["Bed|2|3", "Book|2|4"]
    assert do(world, "AssetsInDatabase", assetIds=["a", "b"])[2] == {"a": True, "b": True}
