"""Fifty made houses: nothing overlaps, doors are in walls, an agent reaches every room, and they load."""

import json
import math
from collections import deque
from functools import cache

import numpy as np
import pytest

from envs.thor_mini import data, generate, house, shapes
from envs.thor_mini.furnish import contains
from envs.thor_mini.house import length
from envs.types import EnvError

SEEDS = range(50)
CELL = 0.1
RADIUS = 0.25  # of the agent


@pytest.fixture(scope="module")
def databases():
    return data.databases()


@cache
def made(seed, split="train"):
    return generate.house(seed, data.databases(), split=split)


@cache
def loaded(seed):
    return house.load(made(seed), data.databases())


def corners(body):
    """low and high [3] of a body that stands at a right angle."""
    assert body.yaw % 90 == pytest.approx(0)
    half = body.size / 2
    half = half if body.yaw % 180 < 1 else half[[2, 1, 0]]
    return body.position - half, body.position + half


def ancestors(body, by_id):
    found = set()
    while body.parent is not None:
        found.add(body.parent)
        body = by_id[body.parent]
    return found


def overlaps(a, b):
    (low, high), (other_low, other_high) = corners(a), corners(b)
    return bool((low < other_high - 1e-6).all() and (other_low < high - 1e-6).all())


def free_cells(scene):
    """bool [X, Z] where an agent can be, with the place of cell 0, 0. Walls stop it, open doors do not."""
    everything = np.concatenate([room.polygon for room in scene.rooms])
    low, high = everything.min(axis=0) - 0.5, everything.max(axis=0) + 0.5
    x, z = np.meshgrid(np.arange(low[0], high[0], CELL), np.arange(low[1], high[1], CELL), indexing="ij")
    free = np.zeros(x.shape, bool)
    for room in scene.rooms:
        free |= contains(room.polygon, x, z)
    for wall in scene.walls:
        along = (np.array(wall.end) - wall.start) / length(wall)
        t = (x - wall.start[0]) * along[0] + (z - wall.start[1]) * along[1]
        across = np.abs((x - wall.start[0]) * along[1] - (z - wall.start[1]) * along[0])
        near = (across < RADIUS) & (t > -RADIUS) & (t < length(wall) + RADIUS)
        for opening in wall.openings:
            if opening.kind == "empty" or (opening.kind == "door" and opening.is_open):
                margin = 0 if opening.kind == "empty" else RADIUS
                near &= ~((t > opening.start + margin) & (t < opening.end - margin))
        free &= ~near
    for body in scene.bodies:
        if not body.pickupable or body.parent is None:
            (x0, y0, z0), (x1, _, z1) = corners(body)
            dx, dz = np.maximum(np.maximum(x0 - x, x - x1), 0), np.maximum(np.maximum(z0 - z, z - z1), 0)
            if y0 < 1.2:
                free &= np.hypot(dx, dz) > RADIUS
    return free, low


def reached(free, low, start):
    seen = np.zeros_like(free)
    first = tuple(round((s - o) / CELL) for s, o in zip(start, low, strict=True))
    assert free[first], "the agent starts inside something"
    seen[first] = True
    queue = deque([first])
    while queue:
        i, j = queue.popleft()
        for a, b in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
            if free[a, b] and not seen[a, b]:
                seen[a, b] = True
                queue.append((a, b))
    return seen


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_overlaps(seed):
    scene = loaded(seed)
    by_id = {body.object_id: body for body in scene.bodies}
    assert len(by_id) == len(scene.bodies) >= 5
    for i, a in enumerate(scene.bodies):
        for b in scene.bodies[:i]:
            if a.object_id in ancestors(b, by_id) or b.object_id in ancestors(a, by_id):
                continue
            assert not overlaps(a, b), f"{a.object_id} and {b.object_id}"


@pytest.mark.parametrize("seed", SEEDS)
def test_everything_is_inside_and_stands_on_something(seed):
    scene = loaded(seed)
    by_id = {body.object_id: body for body in scene.bodies}
    for body in scene.bodies:
        if body.object_type == "Doorway":
            continue
        low, high = corners(body)
        x, z = np.meshgrid([low[0], high[0]], [low[2], high[2]])
        assert any(contains(room.polygon, x, z).all() for room in scene.rooms), body.object_id
        assert low[1] > -1e-6
        assert high[1] < scene.ceiling
        if body.parent is None:
            assert body.on_wall or low[1] < 0.01, f"{body.object_id} floats"
        else:
            parent = by_id[body.parent]
            top = shapes.surface(parent.object_type, tuple(parent.size))
            assert low[1] == pytest.approx(corners(parent)[0][1] + top.height, abs=0.01)


@pytest.mark.parametrize("seed", SEEDS)
def test_doors_are_in_both_faces_of_walls_and_join_all_rooms(seed):
    file, scene = made(seed), loaded(seed)
    walls = {wall["id"]: wall for wall in file["walls"]}
    for row in [*file["doors"], *file["windows"]]:
        (x0, y0), (x1, y1) = [(p["x"], p["y"]) for p in row["holePolygon"]]
        ends = {}
        for key, number in (("wall0", row["room0"]), ("wall1", row["room1"])):
            wall = walls[row[key]]
            outer = row["room0"] == row["room1"] and key == "wall1"
            assert wall["roomId"] == ("exterior" if outer else number)
            points = [(p["x"], p["z"]) for p in wall["polygon"][:2]]
            long = math.dist(*points)
            assert 0 < x0 < x1 < long
            assert 0 <= y0 < y1 < wall["polygon"][3]["y"]
            start = x0 if key == "wall0" else long - x1
            share = (start + (x1 - x0) / 2) / long
            ends[key] = [a + share * (b - a) for a, b in zip(*points, strict=True)]
        assert ends["wall0"] == pytest.approx(ends["wall1"], abs=1e-6)
    assert len({row[k] for row in [*file["doors"], *file["windows"]] for k in ("wall0", "wall1")}) == 2 * (
        len(file["doors"]) + len(file["windows"])
    ), "Unity allows one hole per wall"
    assert sum(row["room0"] == row["room1"] for row in file["doors"]) == 1
    free, low = free_cells(scene)
    seen = reached(free, low, scene.start[:2])
    for room in scene.rooms:
        x, z = np.meshgrid(*(o + CELL * np.arange(n) for o, n in zip(low, free.shape, strict=True)), indexing="ij")
        inside = contains(room.polygon, x, z)
        assert (seen & inside).sum() > 0.15 * inside.sum(), f"{room.room_id} of seed {seed} cannot be walked"


def test_windows_have_their_true_size(databases):
    rows = [row for seed in SEEDS for row in made(seed)["windows"]]
    assert len(rows) > 50
    for row in rows:
        (x0, y0), (x1, y1) = [(p["x"], p["y"]) for p in row["holePolygon"]]
        assert (x1 - x0, y1 - y0) == pytest.approx(databases.holes[row["assetId"]], abs=1e-6)


def test_the_same_seed_makes_the_same_house_and_splits_differ(databases):
    for seed in range(5):
        assert generate.house(seed, databases) == generate.house(seed, databases)
        assert len({json.dumps(made(seed, split)) for split in data.SPLITS}) == 3
    assert len({json.dumps(made(seed)) for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("split", data.SPLITS)
def test_models_belong_to_the_split(databases, split):
    used = set()
    for seed in range(12):
        file = made(seed, split)
        rows = [*file["doors"], *file["windows"], *file["objects"]]
        rows += [child for row in file["objects"] for child in row.get("children", ())]
        used |= {row["assetId"] for row in rows}
    assert len(used) > 60
    assert {databases.assets[name].split for name in used} == {split, None}


def test_houses_are_furnished_as_the_databases_say(databases):
    floor, on = {}, {}
    for seed in SEEDS:
        rooms = {row["id"].split("|")[1]: row["roomType"] for row in made(seed)["rooms"]}
        for row in made(seed)["objects"]:
            kind, number = row["id"].split("|")[:2]
            floor.setdefault(kind, set()).add(rooms[number])
            for child in row.get("children", ()):
                on.setdefault(kind, set()).add(child["id"].split("|")[0])
    assert {"Bed", "Fridge", "Sofa", "Toilet", "DiningTable", "Chair", "CounterTop", "Television"} <= set(floor) | on[
        "TVStand"
    ]
    for kind in set(floor) - {"Painting", "Sink"}:  # sinks are annotated for no room: bathrooms have them
        rooms = {room for room, weight in databases.placements[kind].rooms.items() if weight > 0}
        assert floor[kind] <= rooms, kind
    for kind, children in on.items():
        assert children <= set(databases.contents[kind]) | {"Television"}
    assert len(set().union(*on.values())) > 35


def test_rooms_and_types_can_be_asked_for(databases):
    for count in range(1, 7):
        assert len(generate.house(3, databases, rooms=count)["rooms"]) == count
    asked = ("Kitchen", "Bedroom", "Bedroom")
    assert sorted(row["roomType"] for row in generate.house(3, databases, types=asked)["rooms"]) == sorted(asked)
    with pytest.raises(EnvError, match="rooms=7: expected 1 to 6"):
        generate.house(0, databases, rooms=7)
    with pytest.raises(EnvError, match="no split 'dev'; expected one of train, val, test"):
        generate.house(0, databases, split="dev")
    with pytest.raises(EnvError, match="no room type 'Garage'; expected some of"):
        generate.house(0, databases, types=("Garage",))
    with pytest.raises(EnvError, match="one per room"):
        generate.house(0, databases, rooms=2, types=("Kitchen",))


def test_files_go_through_json(databases):
    file = made(4)
    assert json.loads(json.dumps(file)) == file
    assert file["metadata"]["schema"] == "1.0.0"
