"""House files: what is read, and what is refused, with a house written by hand in the form of ProcTHOR's."""

import copy
import json
import re

import numpy as np
import pytest

from envs.thor_mini import data, house
from envs.thor_mini.house import length, load
from envs.types import EnvError


@pytest.fixture(scope="module")
def databases():
    return data.databases()


def point(x, y, z):
    return {"x": x, "y": y, "z": z}


def wall(name, room, a, b, *, upside_down=False, **more):
    low, high = [point(x, 0, z) for x, z in (a, b)], [point(x, 2.6, z) for x, z in (a, b)]
    polygon = [*high, *low] if upside_down else [*low, *high]
    return {"id": name, "roomId": room, "polygon": polygon, "material": {"name": "DrywallGreen"}, **more}


def box_room(number, x0, x1):
    corners = [(x0, 0), (x0, 4), (x1, 4), (x1, 0)]
    walls = [wall(f"wall|{number}|{i}", f"room|{number}", corners[i], corners[(i + 1) % 4]) for i in range(4)]
    floor = {"id": f"room|{number}", "roomType": "Kitchen", "floorMaterial": {"name": "DarkWoodPlanks"},
             "floorPolygon": [point(x, 0, z) for x, z in corners], "ceilings": [], "children": []}  # fmt: skip
    return floor, walls


def thing(name, asset, position, yaw=0, **more):
    return {
        "id": name,
        "assetId": asset,
        "position": point(*position),
        "rotation": point(0, yaw, 0),
        "kinematic": False,
        **more,
    }


def file():
    """Two kitchens side by side, x 0 to 3 and 3 to 8; a door between them, one to the outside, a window."""
    first, walls = box_room(2, 0, 3)
    second, more = box_room(3, 3, 8)
    outer = wall("wall|exterior|a", "exterior", (0, 4), (0, 0), upside_down=True)
    hole = {"holePolygon": [point(0.5, 0, 0), point(1.5, 2.1, 0)], "assetPosition": point(1, 1, 0)}
    doors = [
        {"id": "door|2|3", "assetId": "Doorway_1", "room0": "room|2", "room1": "room|3", "wall0": "wall|2|2",
         "wall1": "wall|3|0", "openable": True, "openness": 1, **hole},
        {"id": "door|1|3", "assetId": "Doorway_2", "room0": "room|3", "room1": "room|3", "wall0": "wall|3|1",
         "wall1": "wall|exterior|a", "openable": False, "openness": 0, **hole},
    ]  # fmt: skip
    windows = [{"id": "window|2|0", "assetId": "Window_Fixed_36x48", "room0": "room|2", "room1": "room|2",
                "wall0": "wall|2|0", "wall1": "wall|exterior|a", "assetPosition": point(2, 1.3, 0),
                "holePolygon": [point(1.5, 0.7, 0), point(2.4, 1.9, 0)]}]  # fmt: skip
    apple = thing("Apple|surface|2|0", "Apple_1", (1.1, 0.8, 2), 90, color={"r": 1, "g": 0.5, "b": 0})
    table = thing("DiningTable|2|0", "Dining_Table_201_1", (1.2, 0.4, 2), 270.0001, children=[apple], material=None)
    return {
        "rooms": [first, second],
        "walls": [*walls, *more, outer],
        "doors": doors,
        "windows": windows,
        "objects": [table],
        "proceduralParameters": {"ceilingMaterial": {"name": "PureWhite"}, "skyboxId": "SkyOakland", "lights": []},
        "metadata": {
            "schema": "1.0.0",
            "agent": {"position": point(1, 0.95, 0.6), "rotation": point(0, 450, 0), "horizon": 30, "standing": True},
        },
    }


def test_rooms_walls_and_start(databases):
    scene = load(json.loads(json.dumps(file())), databases)
    assert [r.room_id for r in scene.rooms] == ["room|2", "room|3"]
    assert scene.rooms[1].polygon == pytest.approx(np.array([(3, 0), (3, 4), (8, 4), (8, 0)]))
    assert scene.rooms[0].material == "DarkWoodPlanks"
    assert len(scene.walls) == 8  # those of the outside are not walls of a room
    assert {w.room_id for w in scene.walls} == {"room|2", "room|3"}
    assert (scene.ceiling, scene.start) == (2.6, (1, 0.6, 90))
    green = scene.walls[0].colour
    assert green[1] > green[0] and green[1] > green[2]  # noqa: PT018
    assert house.area(scene.rooms[0].polygon) == pytest.approx(12)


def test_an_opening_is_at_the_same_place_in_both_faces(databases):
    scene = load(file(), databases)
    faces = [(w, o) for w in scene.walls for o in w.openings if o.opening_id == "door|2|3"]
    assert {w.wall_id for w, _ in faces} == {"wall|2|2", "wall|3|0"}
    for w, o in faces:
        z = [w.start[1] + t / length(w) * (w.end[1] - w.start[1]) for t in (o.start, o.end)]
        assert sorted(z) == pytest.approx([2.5, 3.5])  # wall|2|2 runs from z 4 down to 0
        assert (o.kind, o.bottom, o.top, o.is_open, o.asset_id) == ("door", 0, 2.1, True, "Doorway_1")
    window = [o for w in scene.walls for o in w.openings if o.kind == "window"]
    assert [(o.start, o.end, o.bottom, o.top) for o in window] == [(1.5, 2.4, 0.7, 1.9)]


def test_a_closed_door_is_a_body(databases):
    scene = load(file(), databases)
    (door,) = [b for b in scene.bodies if b.object_type == "Doorway"]
    assert door.object_id == "door|1|3"
    assert door.position == pytest.approx([4.0, 1.05, 4.0])
    assert door.size == pytest.approx([1.0, 2.1, house.DOOR_DEPTH])
    assert door.yaw % 180 == pytest.approx(0)
    assert door.fixed
    shut = file()
    shut["doors"][0].update(openness=0)
    assert not next(o for w in load(shut, databases).walls for o in w.openings if o.opening_id == "door|2|3").is_open
    (side,) = [b for b in load(shut, databases).bodies if b.object_id == "door|2|3"]
    assert side.position == pytest.approx([3.0, 1.05, 3.0])
    assert side.yaw % 180 == pytest.approx(90)
    frame = file()
    frame["doors"][0] = {**frame["doors"][0], "assetId": "Doorframe_1", "openable": False}
    assert next(o for w in load(frame, databases).walls for o in w.openings if o.opening_id == "door|2|3").is_open


def test_an_empty_wall_is_one_opening(databases):
    made = file()
    made["walls"][2]["empty"] = True
    made["doors"] = made["doors"][1:]
    scene = load(made, databases)
    opening = next(w for w in scene.walls if w.wall_id == "wall|2|2").openings[0]
    assert (opening.kind, opening.start, opening.end, opening.bottom, opening.top) == ("empty", 0, 4, 0, 2.6)


def test_objects_and_what_stands_on_them(databases):
    scene = load(file(), databases)
    table, apple = (next(b for b in scene.bodies if b.object_type == kind) for kind in ("DiningTable", "Apple"))
    assert table.size == pytest.approx(databases.assets["Dining_Table_201_1"].size)
    assert (table.yaw, table.parent) == (pytest.approx(270, abs=0.01), None)
    assert (table.fixed, table.receptacle, table.pickupable) == (True, True, False)
    assert (apple.parent, apple.pickupable, apple.fixed) == ("DiningTable|2|0", True, False)
    assert apple.position == pytest.approx([1.1, 0.8, 2])
    assert apple.colours[0] == (255, 128, 0)  # the file's own colour
    assert 0.05 < apple.mass < 1 < table.mass
    again = load(file(), databases)
    assert [b.colours for b in again.bodies] == [b.colours for b in scene.bodies]


def test_a_tilted_object_keeps_its_extents(databases):
    made = file()
    made["objects"] = [{**thing("Book|2|0", "Book_1", (1, 0.2, 1)), "rotation": point(90, 30, 0)}]
    (book,) = [b for b in load(made, databases).bodies if b.object_type == "Book"]
    x, y, z = databases.assets["Book_1"].size
    assert book.size == pytest.approx([x, z, y], abs=1e-6)
    assert book.yaw == 30


def test_assets_that_the_databases_do_not_know(databases):
    made = file()
    made["objects"].append(thing("Guitar|2|1", "9f8e7d", (2, 0.5, 3), size=point(0.4, 1.0, 0.2)))
    made["objects"].append(thing("Sled|2|2", "1a2b3c", (2, 0.5, 3), axisAlignedBoundingBox={"size": point(1, 1, 2)}))
    bodies = {b.object_type: b for b in load(made, databases).bodies}
    assert bodies["Guitar"].size == pytest.approx([0.4, 1.0, 0.2])
    assert bodies["Sled"].size == pytest.approx([1, 1, 2])
    made["objects"].append(thing("Piano|2|3", "4d5e6f", (2, 0.5, 3)))
    with pytest.raises(EnvError, match=r"unknown asset '4d5e6f' of Piano\|2\|3.*no 'size'.*Objaverse"):
        load(made, databases)
    made["objects"][-1]["size"] = point(1, -1, 1)
    with pytest.raises(EnvError, match="size of Piano.*positive extents"):
        load(made, databases)


def spoil(path, value):
    """The house with one part replaced, or deleted if `value` is None."""
    made = copy.deepcopy(file())
    part = made
    for key in path[:-1]:
        part = part[key]
    if value is None:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return made


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["metadata", "schema"], "0.0.1", "house schema '0.0.1' is not known; expected '1.0.0'"),
        (["metadata", "schema"], None, "metadata has no 'schema'"),
        (["metadata", "agent"], None, "metadata has no 'agent'"),
        (["rooms"], None, "the house has no 'rooms'"),
        (["rooms"], [], "the house has no rooms"),
        (["rooms"], {}, "'rooms' is not a list of objects"),
        (["rooms", 0, "roomType"], "Garage", "room|2 is a 'Garage'; expected one of Kitchen"),
        (["rooms", 0, "floorPolygon"], [point(0, 0, 0)] * 4, "floorPolygon of room|2 has no area"),
        (["rooms", 0, "floorPolygon", 1, "x"], "left", "floorPolygon of room|2 is .*expected numbers x, z"),
        (["walls", 0, "roomId"], "room|9", "wall|2|0 is a wall of 'room|9', which is not among the rooms"),
        (["walls", 0, "polygon"], [point(0, 0, 0)], "polygon of wall|2|0 has 1 corners; expected 4"),
        (["doors", 0, "wall0"], "wall|7|7", "door|2|3 is in 'wall|7|7', which is not among the walls"),
        (["doors", 0, "holePolygon"], [point(0, 0, 0)], "holePolygon of door|2|3 has fewer than two points"),
        (["doors", 0, "holePolygon", 1, "x"], 9.0, "door|2|3 reaches from 0.50 to 9.00 m of wall|2|2, which is 4.00 m"),
        (["objects", 0, "position"], None, "DiningTable|2|0 has no 'position'"),
        (["objects", 0, "position", "y"], float("nan"), "position of DiningTable|2|0 is .*expected numbers x, y, z"),
        (["objects", 0, "children", 0, "id"], "DiningTable|2|0", "two objects .* are called 'DiningTable|2|0'"),
        (["proceduralParameters"], None, "the house has no 'proceduralParameters'"),
    ],
)  # fmt: skip
def test_malformed_houses_are_refused(databases, path, value, message):
    with pytest.raises(EnvError, match=re.escape(message).replace(r"\.\*", ".*")):
        load(spoil(path, value), databases)


def test_not_even_a_house(databases):
    with pytest.raises(EnvError, match="a house is a JSON object, got list"):
        load([], databases)
