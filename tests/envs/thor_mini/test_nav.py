"""Reachable places and shortest paths against what geometry says."""

import itertools
import math

import numpy as np
import pytest

from envs.thor_mini.nav import MARGIN, RADII, in_polygon
from envs.thor_mini.world import RADIUS, World, empty_scene
from tests.envs.thor_mini.test_world import do, stand
from tests.thor_parts import PARTS, make_world, two_rooms


def length(corners):
    points = np.array([[c["x"], c["z"]] for c in corners])
    return float(np.hypot(*np.diff(points, axis=0).T).sum())


def path(world, start, goal, mesh=3):
    good, error, found = do(
        world, "GetShortestPathToPoint", position={"x": start[0], "y": 0.9, "z": start[1]},
        target={"x": goal[0], "y": 0.9, "z": goal[1]}, navMeshId=mesh,
    )  # fmt: skip
    return (found["corners"], "") if good else (None, error)


def test_the_way_through_a_doorway_has_the_length_of_a_taut_string():
    world = make_world()
    corners, _ = path(world, (3.0, 1.0), (5.0, 1.0))
    away = math.sqrt(2.0)  # from either end to the door post at (4, 2), around which the string runs at a radius
    touching = math.acos(RADIUS / away)
    shortest = 2 * math.sqrt(away**2 - RADIUS**2) + RADIUS * (1.5 * math.pi - 2 * touching)
    assert shortest * 0.99 < length(corners) < shortest * 1.05
    assert (corners[0]["x"], corners[0]["z"]) == (3.0, 1.0)
    assert math.hypot(corners[-1]["x"] - 5.0, corners[-1]["z"] - 1.0) < 0.04
    through = [c for c in corners if 3.9 < c["x"] < 4.1]
    assert through
    assert all(2.2 <= c["z"] < 2.35 for c in through)


def test_in_the_open_the_way_is_straight():
    corners, _ = path(make_world(), (0.5, 3.0), (3.5, 3.5))
    assert len(corners) == 2
    assert length(corners) == pytest.approx(math.hypot(3.0, 0.5), abs=0.05)


@pytest.mark.parametrize(("mesh", "passes"), [(3, True), (2, True), (1, True), (0, False)])
def test_wide_robots_do_not_fit_through_a_door_of_one_metre(mesh, passes):
    corners, error = path(make_world(), (3.0, 2.0), (5.0, 2.0), mesh)
    assert (corners is not None) == passes
    assert passes or "could not be found" in error


def test_houses_may_bring_their_own_meshes():
    world = make_world()
    house = {"metadata": {"schema": "1.0.0", "navMeshes": [{"id": 0, "agentRadius": 0.2}, {"id": 7, "agentRadius": 3}]}}
    assert do(world, "CreateHouse", house=house)[0]
    assert path(world, (3.0, 2.0), (5.0, 2.0), 0)[0]
    assert path(world, (3.0, 2.0), (5.0, 2.0), 7)[0] is None
    assert RADII[0] == 0.5  # of other houses
    with_error = do(world, "GetShortestPathToPoint", target={"x": 1, "z": 1}, navMeshId=9)
    assert "no navMesh 9" in with_error[1]


@pytest.mark.parametrize("mesh", [1, 2, 3])
def test_a_robot_of_the_radius_can_follow_its_path(mesh):
    world = make_world()
    goals = {"Bed|2|3": (1.0, 0.4), "DiningTable|1|0": (7.0, 3.0), "Book|2|4": (0.6, 0.6)}
    for name, start in goals.items():
        good, error, found = do(
            world, "GetShortestPath", objectId=name, position={"x": start[0], "y": 0.9, "z": start[1]}, navMeshId=mesh
        )
        assert good, error
        points = np.array([[c["x"], c["z"]] for c in found["corners"]])
        shares = np.linspace(0, 1, 50)[:, None]
        way = np.concatenate([a + shares * (b - a) for a, b in itertools.pairwise(points)])
        room, names = world.base_clearance(way)
        worst = int(room.argmin())
        book = world.index["Book|2|4"]  # can be picked up, so paths ignore it
        assert room.min() + RADIUS >= RADII[mesh] - 0.01 or names[worst] == world.scene.bodies[book].object_id
        end = points[-1]
        gap = world.boxes.plan_distance(end[None], np.array([world.index[name]]))[0, 0]
        assert gap < RADII[mesh] + 0.15  # right beside the object


def test_paths_to_what_does_not_exist_or_cannot_be_reached():
    world = make_world()
    assert "no object 'Sofa|9'" in do(world, "GetShortestPath", objectId="Sofa|9")[1]
    assert "could not be found" in do(world, "GetShortestPathToPoint", target={"x": 30.0, "z": 0.0})[1]


def test_reachable_places_of_an_empty_room_are_counted_by_hand():
    world = World(PARTS, 112, 64, empty_scene(size=5.0))
    places = do(world, "GetReachablePositions", gridSize=1.0)[2]
    assert sorted((p["x"], p["z"]) for p in places) == [
        (float(x), float(z)) for x in range(-2, 3) for z in range(-2, 3)
    ]
    assert {p["y"] for p in places} == {0.9}


def test_reachable_places_are_those_with_room_for_the_robot():
    world = make_world()
    stand(world, 2.05, 2.03, 0.0)
    got = {(round(p["x"], 3), round(p["z"], 3)) for p in do(world, "GetReachablePositions", gridSize=0.15)[2]}
    xs, zs = (2.05 + 0.15 * np.arange(-20, 60), 2.03 + 0.15 * np.arange(-20, 60))
    points = np.stack(np.meshgrid(xs, zs), axis=-1).reshape(-1, 2)
    inside = np.any([in_polygon(points, room.polygon) for room in world.scene.rooms], axis=0)
    world.boxes.place(world.index["Book|2|4"], np.array([0, 9.0, 0]), 0.0)  # what can be picked up blocks no path
    room, _ = world.base_clearance(points)

    def rounded(chosen):
        return {(round(float(x), 3), round(float(z), 3)) for x, z in points[chosen]}

    assert got <= rounded(inside & (room >= 0))
    assert got >= rounded(inside & (room >= 2 * MARGIN))


def test_behind_a_closed_door_nothing_is_reachable():
    scene = two_rooms()
    for wall in scene.walls:
        for opening in wall.openings:
            opening.is_open = False
    world = World(PARTS, 112, 64, scene)
    places = do(world, "GetReachablePositions", gridSize=0.25)[2]
    assert len(places) > 50
    assert all(p["x"] < 4 for p in places)
    assert path(world, (3.0, 2.5), (5.0, 2.5))[0] is None
