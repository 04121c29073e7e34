"""Draw a task for a house: what to look for, where to begin, and how to say it. A seed decides everything.

Only what can be done is asked: a target must be reachable from the start, and to be picked up it must be within the
arm's range of a place where the robot can stand. Needs numpy alone; Python 3.8 syntax.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from envs.chores.houses import Point, room_at
from envs.chores.judge import SEE_WITHIN
from envs.chores.tasks import GRASP, Chore
from envs.chores.words import USES, a, noun, sentence
from envs.types import EnvError

# What SPOC's robots were trained to find, of AI2-THOR's own types.
TARGETS = (
    "AlarmClock", "Apple", "BaseballBat", "BasketBall", "Bed", "Bowl", "Chair", "GarbageCan", "HousePlant", "Laptop",
    "Mug", "Sofa", "SprayBottle", "Television", "Toilet", "Vase",
)  # fmt: skip
GRASP_HEIGHT = (0.15, 1.15)  # metres; where the arm gets to
GRASP_REACH = 0.75  # metres from a standing place to the target
PICKUP_START = (0.45, 1.3)  # metres from the target, unless a recipe says otherwise
PICKUP_FACING = (-60.0, 60.0)  # degrees from straight ahead, to the right, at which the target lies then
NEAR = 1.0  # metres; of ObjectNavLocalRef
TRIES = 12  # starts, and targets of a category
Path = Optional[List[Point]]


@dataclass(frozen=True)
class Thing:
    """An object of the house."""

    object_id: str
    kind: str
    centre: np.ndarray  # [3]
    size: np.ndarray  # [3] along the axes of the world
    pickupable: bool
    on: Tuple[str, ...] = ()  # object ids
    room: str = ""


@dataclass(frozen=True)
class Place:
    """A house as a task needs to know it."""

    things: Dict[str, Thing]
    rooms: Dict[str, List[Point]]
    room_types: Dict[str, str]
    standing: np.ndarray  # [G, 3] where the robot can be
    path: Callable[[Sequence[float], str], Path]  # from a position to an object: corners, or None

    def nearest(self, position: np.ndarray, targets: Sequence[str]) -> List[Thing]:
        """Targets by their distance from a position."""
        found = [self.things[t] for t in targets if t in self.things]
        return sorted(found, key=lambda thing: float(np.linalg.norm(thing.centre - position)))


def read_things(objects: Sequence[Mapping[str, Any]], rooms: Dict[str, List[Point]]) -> Dict[str, Thing]:
    """The objects of an event's metadata that have a place."""
    things = {}
    for entry in objects:
        box = entry.get("axisAlignedBoundingBox") or {}
        centre, size = box.get("center") or entry["position"], box.get("size") or {"x": 0.0, "y": 0.0, "z": 0.0}
        middle = np.array([centre[k] for k in "xyz"], dtype=np.float64)
        things[entry["objectId"]] = Thing(
            entry["objectId"],
            entry["objectType"],
            middle,
            np.array([size[k] for k in "xyz"], dtype=np.float64),
            bool(entry.get("pickupable", False)),
            tuple(entry.get("parentReceptacles") or ()),
            room_at(rooms, middle[0], middle[2]) or "",
        )
    return things


def sample(
    task_type: str,
    place: Place,
    rng: np.random.Generator,
    *,
    targets: Sequence[str] = TARGETS,
    pickup_start: Tuple[float, float] = PICKUP_START,
    pickup_facing: Tuple[float, float] = PICKUP_FACING,
) -> Chore:
    """A task of this type; PickupType begins within `pickup_start` metres of the target, which then lies within
    `pickup_facing` degrees to the right of straight ahead. Raises EnvError if the house offers none."""
    if not len(place.standing):
        raise EnvError(f"ai2thor: {task_type}: there is no place in this house where the robot can stand")
    if task_type == "RoomVisit":
        start = _start(place, rng, None, (0.0, np.inf))
        assert start is not None
        return Chore(task_type, sentence(task_type, rng, count=str(len(place.rooms))), start=start)
    if task_type == "RoomNav":
        return _room_nav(place, rng)
    kinds = sorted({t.kind for t in place.things.values() if t.kind in targets})
    for kind in rng.permutation(kinds).tolist():
        chore = _about(task_type, kind, place, rng)
        if chore is not None:
            ready = _begun(chore, place, rng, pickup_start, pickup_facing)
            if ready is not None:
                return ready
    raise EnvError(
        f"ai2thor: {task_type}: none of {kinds or list(targets)} can be reached in this house; choose another house, "
        "other targets, or another task"
    )


def reaches(path: Path, thing: Thing) -> bool:
    """Whether a path ends where its target can be seen from; the simulator's ends at the nearest free place."""
    if not path:
        return False
    away = float(np.hypot(path[-1][0] - thing.centre[0], path[-1][1] - thing.centre[2]))
    return away <= SEE_WITHIN - 0.2 + float(np.hypot(thing.size[0], thing.size[2])) / 2


def _about(task_type: str, kind: str, place: Place, rng: np.random.Generator) -> Optional[Chore]:
    """The task with its sentence and targets, if things of this kind allow it; its start comes later."""
    group = [t for t in place.things.values() if t.kind == kind]
    word = noun(kind)
    if task_type in GRASP:
        group = [t for t in group if t.pickupable and _graspable(t, place)]
        words = {"x": a(word), "bare": word}
    elif task_type == "ObjectNavType":
        words = {"x": a(word)}
    elif task_type == "ObjectNavAffordance":
        words = {"use": USES.get(kind, "")}
        group = group if words["use"] else []
    elif task_type == "ObjectNavRoom":
        types = sorted({place.room_types.get(t.room, "") for t in group} - {""})
        room = str(rng.choice(types)) if types else ""
        group = [t for t in group if room and place.room_types.get(t.room) == room]
        words = {"x": a(word), "room": noun(room)}
    elif task_type == "ObjectNavRelAttribute":
        group, words = _relation(group, word, place, rng)
    elif task_type == "ObjectNavLocalRef":
        group, words = _local(group, word, place, rng)
    else:
        raise EnvError(f"ai2thor: tasks of type {task_type} cannot be drawn; bring them in a task file")
    if not group:
        return None
    return Chore(task_type, sentence(task_type, rng, **words), tuple(t.object_id for t in group), category=kind)


def _relation(
    group: List[Thing], word: str, place: Place, rng: np.random.Generator
) -> Tuple[List[Thing], Dict[str, str]]:
    """One of several alike: the smallest or largest, or the nearest to something else in its room."""
    if len(group) < 2:
        return [], {}
    largest = bool(rng.integers(2))
    if rng.integers(2):
        chosen = sorted(group, key=lambda t: float(np.prod(t.size)), reverse=largest)[0]
        return [chosen], {"relation": f"{'largest' if largest else 'smallest'} {word}"}
    others = [t for t in place.things.values() if t.kind in TARGETS and t.kind != group[0].kind and t.room]
    if not others:
        return [], {}
    other = others[int(rng.integers(len(others)))]
    inside = [t for t in group if t.room == other.room]
    if len(inside) < 2 or sum(t.kind == other.kind and t.room == other.room for t in others) > 1:
        return [], {}
    far = sorted(inside, key=lambda t: float(np.linalg.norm(t.centre - other.centre)), reverse=largest)[0]
    where = f"{'furthest' if largest else 'closest'} {word} {'from' if largest else 'to'} the {noun(other.kind)}"
    return [far], {"relation": f"{where} in the {noun(place.room_types.get(other.room, 'room'))}"}


def _local(group: List[Thing], word: str, place: Place, rng: np.random.Generator) -> Tuple[List[Thing], Dict[str, str]]:
    """On something, or near two things."""
    under = sorted({place.things[o].kind for t in group for o in t.on if o in place.things} - {"Floor"})
    if under and rng.integers(2):
        kind = str(rng.choice(under))
        on = [t for t in group if any(o in place.things and place.things[o].kind == kind for o in t.on)]
        return on, {"x": a(word), "place": f"on a {noun(kind)}"}

    def beside(t: Thing) -> set:
        close = (o for o in place.things.values() if float(np.linalg.norm(o.centre - t.centre)) < NEAR)
        return {o.kind for o in close} & set(TARGETS) - {t.kind}

    about = {t.object_id: beside(t) for t in group}
    rich = [t for t in group if len(about[t.object_id]) > 1]
    if not rich:
        return [], {}
    one, two = rng.permutation(sorted(about[rich[int(rng.integers(len(rich)))].object_id])).tolist()[:2]
    same = [t for t in group if {one, two} <= about[t.object_id]]
    return same, {"x": a(word), "place": f"near {a(noun(one))} and {a(noun(two))}"}


def _graspable(thing: Thing, place: Place) -> bool:
    if not GRASP_HEIGHT[0] <= thing.centre[1] <= GRASP_HEIGHT[1]:
        return False
    away = np.hypot(*(place.standing[:, [0, 2]] - thing.centre[[0, 2]]).T)
    return bool((away <= GRASP_REACH).any())


def _begun(
    chore: Chore,
    place: Place,
    rng: np.random.Generator,
    pickup_start: Tuple[float, float],
    pickup_facing: Tuple[float, float],
) -> Optional[Chore]:
    """The task with a start from which a target can be reached."""
    things = [place.things[t] for t in chore.targets]
    for _ in range(TRIES):
        if chore.task_type == "PickupType":
            start = _start(place, rng, [things[int(rng.integers(len(things)))]], pickup_start, pickup_facing)
        else:
            start = _start(place, rng, things, (SEE_WITHIN, np.inf))
        if start is None:
            continue
        for thing in place.nearest(np.array(start[:3]), chore.targets)[:2]:
            if reaches(place.path(start[:3], thing.object_id), thing):
                return replace(chore, start=start)
    return None


def _start(
    place: Place,
    rng: np.random.Generator,
    things: Optional[List[Thing]],
    away: Tuple[float, float],
    facing: Tuple[float, float] = PICKUP_FACING,
) -> Optional[Tuple[float, float, float, float]]:
    """A pose whose distance to the nearest of the things is within bounds; one near a thing has it at `facing`."""
    free = place.standing
    if things:
        apart = np.stack([np.hypot(*(free[:, [0, 2]] - t.centre[[0, 2]]).T) for t in things]).min(0)
        free = free[(apart >= away[0]) & (apart <= away[1])]
    if not len(free):
        return None
    x, y, z = (float(v) for v in free[int(rng.integers(len(free)))])
    yaw = float(rng.integers(12) * 30)
    if things and np.isfinite(away[1]):
        ahead = things[0].centre - (x, y, z)
        yaw = round((np.degrees(np.arctan2(ahead[0], ahead[2])) + rng.uniform(-facing[1], -facing[0])) / 6) * 6 % 360
    return x, y, z, float(yaw)


def _room_nav(place: Place, rng: np.random.Generator) -> Chore:
    kinds = sorted(set(place.room_types.values()))
    for kind in rng.permutation(kinds).tolist():
        rooms = tuple(r for r, k in place.room_types.items() if k == kind)
        where = [room_at(place.rooms, p[0], p[2]) for p in place.standing]
        outside = np.array([w is not None and w not in rooms for w in where])
        if outside.any() and any(w in rooms for w in where):
            start = _start(replace(place, standing=place.standing[outside]), rng, None, (0.0, np.inf))
            words = sentence("RoomNav", rng, room=noun(kind))
            return Chore("RoomNav", words, rooms=rooms, category=kind, start=start)
    raise EnvError("ai2thor: RoomNav: this house has no second kind of room that can be reached; choose another house")
