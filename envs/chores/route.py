"""The way to a chore's end, by the simulator's shortest paths: for experts, and to measure others by.

Needs numpy alone; Python 3.8 syntax.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from envs.chores.houses import Point, room_at
from envs.chores.sample import Path, Place, Thing, reaches
from envs.chores.tasks import GRASP, Chore
from envs.thor_link import Link
from envs.thor_robot import MOVE, SMALL_TURN, TURN, turn
from envs.types import EnvError

MESHES = (2, 3)  # ids of the meshes for robots of 0.3 and 0.2 m radius, in the order of trying
Place3 = Union[Sequence[float], np.ndarray]
ARM_ACTIONS = 14  # that a planned grasp takes
STAND, STANDS = 0.6, 4  # metres from what is to be picked up; how many such places are tried
AT_HAND = (0.45, 0.75)  # metres from where one stands, so that the arm reaches without a step


@dataclass(frozen=True)
class Leg:
    """A part of the way."""

    corners: List[Point]
    room: str = ""  # to be marked at its end


@dataclass(frozen=True)
class Route:
    """All of it, with the distance and the number of actions that a good robot needs; -1 for what has no meaning."""

    legs: List[Leg]
    distance: float
    actions: int

    def notes(self) -> Dict[str, Any]:
        """As JSON."""
        legs = [{"corners": [list(p) for p in leg.corners], "room": leg.room} for leg in self.legs]
        return {"route": legs, "best_distance": self.distance, "expert_length": self.actions}


def path_to(link: Link, position: Sequence[float], object_id: str) -> Path:
    """Corners (x, z) of the shortest way from a position to an object, or None."""
    where = {k: float(v) for k, v in zip("xyz", position)}
    for mesh in MESHES:
        found = link.ask("GetShortestPath", objectId=object_id, position=where, navMeshId=mesh)
        if found and found.get("corners"):
            return [(float(c["x"]), float(c["z"])) for c in found["corners"]]
    return None


def path_to_point(link: Link, position: Place3, point: Place3) -> Path:
    """Corners (x, z) of the shortest way between two positions [3], or None."""
    here, there = ({k: float(v) for k, v in zip("xyz", p)} for p in (position, point))
    for mesh in MESHES:
        found = link.ask("GetShortestPathToPoint", position=here, target=there, navMeshId=mesh)
        if found and found.get("corners"):
            return [(float(c["x"]), float(c["z"])) for c in found["corners"]]
    return None


def plan(chore: Chore, place: Place, link: Link) -> Route:
    """The way from the chore's start. Raises EnvError if a target cannot be reached."""
    assert chore.start is not None
    start, yaw = chore.start[:3], chore.start[3]
    if chore.task_type == "RoomVisit":
        legs = _tour(place, link, start)
        return Route(legs, -1.0, count_actions(legs, yaw) + len(legs))
    if chore.task_type == "RoomNav":
        leg = _into(chore.rooms, place, link, start)
        return Route([leg], length(leg.corners), count_actions([leg], yaw))
    paths = [(t, place.path(start, t.object_id)) for t in place.nearest(np.array(start), chore.targets)[:3]]
    found = [(t, p) for t, p in paths if p is not None and reaches(p, t)]
    if not found:
        raise EnvError(
            f"ai2thor: '{chore.instruction}': no target of {list(chore.targets)} can be reached from {start}; it "
            f"{'is not in this house' if not paths else 'has no way there'}: choose another task, start or house"
        )
    thing, corners = min(found, key=lambda pair: length(pair[1]))
    legs = [Leg(corners)]
    if chore.task_type in GRASP:
        straight = float(np.linalg.norm(thing.centre - np.array(start)))
        legs = [Leg(_beside(thing, place, link, start) or corners)]
        return Route(legs, straight, count_actions(legs, yaw) + ARM_ACTIONS)
    return Route(legs, length(corners), count_actions(legs, yaw))


def _beside(thing: Thing, place: Place, link: Link, start: Sequence[float]) -> Path:
    """The way to a place from which the arm reaches the thing."""
    if AT_HAND[0] <= math.dist((start[0], start[2]), thing.centre[[0, 2]]) <= AT_HAND[1]:
        return [(float(start[0]), float(start[2]))]
    away = np.hypot(*(place.standing[:, [0, 2]] - thing.centre[[0, 2]]).T)
    for index in np.argsort(np.abs(away - STAND), kind="stable")[:STANDS]:
        corners = path_to_point(link, start, place.standing[index])
        if corners is not None and math.dist(corners[-1], place.standing[index][[0, 2]]) < MOVE:
            return corners
    return None


def length(corners: Sequence[Point]) -> float:
    """Metres."""
    return float(sum(math.dist(a, b) for a, b in zip(corners, corners[1:])))


def bearing(a: Place3, b: Place3) -> float:
    """Yaw from one point (x, z) to another."""
    return math.degrees(math.atan2(b[0] - a[0], b[1] - a[1]))


def count_actions(legs: Sequence[Leg], yaw: float) -> int:
    """Moves and turns that the legs take, and one `done`."""
    count = 1
    for leg in legs:
        for a, b in zip(leg.corners, leg.corners[1:]):
            if math.dist(a, b) < MOVE / 2:
                continue
            away = abs(turn(yaw, bearing(a, b)))
            count += int(away // TURN) + round(away % TURN / SMALL_TURN) + round(math.dist(a, b) / MOVE)
            yaw = bearing(a, b)
    return count


def _tour(place: Place, link: Link, start: Sequence[float]) -> List[Leg]:
    """Through all rooms, always to the nearest one that is left."""
    middles: Dict[str, np.ndarray] = {}
    for room, polygon in place.rooms.items():
        inside = [p for p in place.standing if room_at(place.rooms, p[0], p[2]) == room]
        if inside:
            centre = np.mean(np.array(polygon), axis=0)
            middles[room] = min(inside, key=lambda p: float(np.hypot(*(p[[0, 2]] - centre))))
    missing = sorted(set(place.rooms) - set(middles))
    if missing:
        raise EnvError(f"ai2thor: RoomVisit: rooms {missing} of this house cannot be entered; choose another house")
    legs: List[Leg] = []
    here: Tuple[float, ...] = tuple(start)
    first = room_at(place.rooms, here[0], here[2])
    if first in middles:
        del middles[first]
        legs.append(Leg([(here[0], here[2])], first or ""))
    while middles:
        room = min(middles, key=lambda r: float(np.linalg.norm(middles[r] - np.array(here))))
        goal = middles.pop(room)
        corners = path_to_point(link, here, goal)
        if corners is None:
            raise EnvError(f"ai2thor: RoomVisit: there is no way into room {room}; choose another house")
        legs.append(Leg(corners, room))
        here = tuple(float(v) for v in goal)
    return legs


def _into(rooms: Sequence[str], place: Place, link: Link, start: Sequence[float]) -> Leg:
    """The shortest way into any of the rooms."""
    best: Optional[List[Point]] = None
    for room in rooms:
        inside = [p for p in place.standing if room_at(place.rooms, p[0], p[2]) == room]
        centre = np.mean(np.array(place.rooms[room]), axis=0)
        for goal in sorted(inside, key=lambda p: float(np.hypot(*(p[[0, 2]] - centre))))[:1]:
            corners = path_to_point(link, start, goal)
            if corners is not None and (best is None or length(corners) < length(best)):
                best = corners
    if best is None:
        raise EnvError(
            f"ai2thor: RoomNav: there is no way into {list(rooms)} from {tuple(start)}; choose another start"
        )
    return Leg(best)
