"""When a chore is done, and what its steps are worth: SPOC's success and the terms of its rewards, one by one.

The reward of the task is FLaRe's: 10 when the robot says it is done and is right. The other terms are totals since the
start of the episode (`Judge.totals`), so that a reward can be made of their changes, each with a weight of its own.
Two departures: the terms do not hang together (in the original a penalty for collisions has no effect without shaping),
and collisions count in every task. Standard library only; Python 3.8 syntax.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Dict, FrozenSet, Optional, Set, Tuple

from envs.chores.tasks import GRASP, NAVIGATE, Chore
from envs.thor_robot import DONE, DROPOFF, PICKUP, SUB_DONE

SUCCESS = 10.0  # reward
SEE_WITHIN = 2.0  # metres
HAND_WEIGHT, FIRST_TOUCH = 5.0, 5.0  # of coming nearer with the hand, and of the first time the target is within reach
NEW_CELL, NEW_ROOM, MARK_RIGHT, MARK_WRONG = 0.005, 2.0, 2.0, -0.2
CELL = 0.1  # metres


@dataclass(frozen=True)
class View:
    """What is to be known of the world after an action."""

    position: Tuple[float, float, float]  # of the robot
    room: Optional[str] = None
    distance: float = math.inf  # metres to the nearest target
    hand_distance: float = math.inf  # metres from the hand to the nearest target
    visible: FrozenSet[str] = frozenset()  # within SEE_WITHIN in the navigation camera
    held: FrozenSet[str] = frozenset()
    graspable: FrozenSet[str] = frozenset()


@dataclass(frozen=True)
class Verdict:
    """Of one action."""

    reward: float = 0.0
    ended: bool = False
    success: bool = False
    worked: bool = True


class Judge:
    """Follows one episode."""

    def __init__(self, chore: Chore, *, num_rooms: int, first: View) -> None:
        """`first` is the view before the first action; the house has `num_rooms` rooms."""
        self.chore, self.num_rooms = chore, num_rooms
        self.marked: Set[str] = set()
        self.marks = 0
        self.totals: Dict[str, float] = {
            "collisions": 0.0,  # moves of base or arm that did not work
            "approached": 0.0,  # metres nearer to the target than ever before
            "reached": 0.0,  # 5 per metre nearer with the hand, and 5 for the first touch
            "explored": 0.0,  # new cells and rooms, and marks
            "gave_up": 0.0,  # 1 after a wrong `done`
        }
        self._best, self._best_hand = first.distance, first.hand_distance
        self._touched = False
        self._cells: Set[Tuple[int, int]] = set()
        self._rooms: Set[str] = set()

    def after(self, action: int, worked: bool, view: View) -> Verdict:
        """Judge an action (an index of envs.stretch.ACTIONS) that led to `view`."""
        reward, ended, success = 0.0, False, False
        if action == DONE:
            ended, success = True, self.holds(view)
            worked, reward = success, SUCCESS if success else 0.0
            self.totals["gave_up"] += not success
        elif action == SUB_DONE:
            worked = self._mark(view.room)
        elif not worked and action not in (PICKUP, DROPOFF):
            self.totals["collisions"] += 1
        self._shape(view)
        return Verdict(reward, ended, success, worked)

    def holds(self, view: View) -> bool:
        """Whether the chore is done, if the robot says so now."""
        kind = self.chore.task_type
        if kind in NAVIGATE:
            return not view.visible.isdisjoint(self.chore.targets)
        if kind in GRASP:
            return not view.held.isdisjoint(self.chore.targets)
        if kind == "RoomNav":
            return view.room in self.chore.rooms
        return len(self.marked) >= self.num_rooms

    def _mark(self, room: Optional[str]) -> bool:
        new = room is not None and room not in self.marked
        self.marks += 1
        if room is not None and new:
            self.marked.add(room)
        if self.chore.task_type == "RoomVisit":
            self.totals["explored"] += MARK_RIGHT if new else MARK_WRONG
        return new

    def _shape(self, view: View) -> None:
        kind, totals = self.chore.task_type, self.totals
        if view.distance < self._best:
            totals["approached"] += self._best - view.distance
            self._best = view.distance
        if kind in GRASP:
            if view.hand_distance < self._best_hand:
                totals["reached"] += HAND_WEIGHT * (self._best_hand - view.hand_distance)
                self._best_hand = view.hand_distance
            if not self._touched and not view.graspable.isdisjoint(self.chore.targets):
                self._touched = True
                totals["reached"] += FIRST_TOUCH
        if kind == "RoomVisit":
            cell = (round(view.position[0] / CELL), round(view.position[2] / CELL))
            if cell not in self._cells:
                self._cells.add(cell)
                totals["explored"] += NEW_CELL
            if view.room is not None and view.room not in self._rooms:
                self._rooms.add(view.room)
                totals["explored"] += NEW_ROOM
