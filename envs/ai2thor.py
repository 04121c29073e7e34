"""SPOC's Stretch robot in AI2-THOR, driven through the real `ai2thor` package's own Controller.

`backend: mini` takes the embedded simulator (envs/thor_mini), `unity` a build of AI2-THOR; everything up to the wire is
the same. Tasks are those of SPOC and FLaRe (envs/chores); the reward is FLaRe's, 10 for a right `done` and else 0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from envs import stretch
from envs.chores.houses import HouseFile, make_houses, room_at, rooms_of, to_enter
from envs.chores.judge import SEE_WITHIN, Judge, Verdict, View
from envs.chores.plan import Plan
from envs.chores.route import Route, path_to, plan
from envs.chores.sample import PICKUP_FACING, PICKUP_START, TARGETS, Place, Thing, read_things, sample
from envs.chores.tasks import GRASP, TYPES, Chore, TaskFile, check_type, horizon, write_spec
from envs.thor_link import Link, Start
from envs.thor_robot import DONE, PICKUP, SUB_DONE, Stretch, nav_meshes, screen, turn
from envs.types import BadState, EnvConfig, EnvError, EnvSpec, Observation, ResetNeeded, Step, check_action

EVALUATION_SEEDS = 1_000_000  # with split=auto, seeds below it are of houses of val, all others of train
TOP_DOWN = "top_down"  # a drawing of the house and the way, for people
LOOK_ANGLE = 50.0  # degrees to either side within which the navigation camera may see a target
RETRIES = 6  # draws of a task in each house
PRIVILEGED: Dict[str, Tuple[int, ...]] = {
    "agent": (4,),  # x, y, z, yaw
    "worked": (),  # whether the last action did, by SPOC's rules
    "target": (6,),  # centre and size of the nearest target
    "target_distance": (),
    "target_visible": (),  # within 2 m, in the navigation camera; looked for when that is possible
    "target_held": (),
    "target_graspable": (),
    "hand": (3,),
    "hand_distance": (),  # from the hand to the target's box
    "arm": (4,),  # lift, extension, wrist, whether something is held
    "arm_location": (4,),  # x, y, z and yaw of the wrist from the robot
    "marked": (),  # rooms that were marked, as a share
    "progress": (),  # in [0, 1]
    "collisions": (), "approached": (), "reached": (), "explored": (), "gave_up": (),  # totals, see envs/chores/judge
}  # fmt: skip


class Ai2thor:
    """`ai2thor/stretch`; its tasks are task types."""

    def __init__(
        self,
        *,
        name: str = "stretch",
        cameras: Optional[Mapping[str, Optional[Sequence[int]]]] = None,
        tasks: Sequence[str] = ("ObjectNavType",),
        max_steps: Optional[int] = None,
        houses: str = "generated",
        databases: str = "",
        num_houses: int = 0,
        rooms: Optional[int] = None,
        split: str = "auto",
        episodes_per_house: int = 1,
        targets: Sequence[str] = TARGETS,
        pickup_start: Sequence[float] = PICKUP_START,
        pickup_facing: Sequence[float] = PICKUP_FACING,
        task_file: str = "",
        shake_cameras: bool = True,
        random_materials: float = 0.0,
        backend: str = "mini",
        transport: str = "FIFO",
        executable: str = "",
        commit_id: str = "",
        platform: str = "",
        gpu: Optional[int] = None,
        mini_arguments: str = "",
        start_deadline_s: float = 120.0,
        house_deadline_s: float = 120.0,
        action_deadline_s: float = 30.0,
    ) -> None:
        """`cameras`: (Y, X) of the two, equal, or null, and of `top_down`; `max_steps`: null for each task's own.

        `houses`: generated, or a file or folder of ProcTHOR houses; `num_houses` limits how many different ones there
        are; `rooms`: of each generated one. In training, `episodes_per_house` follow one another in a house.
        `pickup_start`: metres from the target at which a drawn PickupType begins, least and most; `pickup_facing`:
        degrees to the right of straight ahead at which it lies then (the arm points to 90). `task_file`: written tasks
        instead of drawn ones. `random_materials`: the chance of other materials in an episode, of train houses."""
        if name != "stretch":
            raise EnvError(f"ai2thor: there is no robot '{name}'; expected 'stretch'")
        if split not in ("auto", "train", "val", "test"):
            raise EnvError(f"ai2thor: split '{split}' is unknown; expected auto, train, val or test")
        if not tasks:
            raise EnvError(f"ai2thor: no tasks were named; expected some of {', '.join(TYPES)}")
        kinds = tuple(check_type(t) for t in tasks)
        self.houses = make_houses(houses, databases=databases, limit=num_houses, rooms=rooms)
        self.file = TaskFile(task_file) if task_file else None
        self.split, self.targets, self.own_horizon = split, tuple(targets), max_steps
        self.shake, self.materials = shake_cameras, random_materials
        self.near = {"pickup_start": _span(pickup_start), "pickup_facing": _angles(pickup_facing)}
        self.sizes, self.drawn = _cameras(cameras)
        spec = stretch.spec(max_steps=max_steps or max(horizon(k) for k in kinds), tasks=kinds)
        shown = {**self.sizes, **self.drawn}
        self.spec: EnvSpec = replace(spec, cameras=shown, privileged=dict(PRIVILEGED), seed_block=episodes_per_house)
        start = Start(backend, transport, executable, commit_id, platform, gpu, mini_arguments, start_deadline_s,
                      house_deadline_s, action_deadline_s)  # fmt: skip
        self.link: Optional[Link] = Link(start, size=screen(next(iter(self.sizes.values()))))
        self.robot = Stretch(self.link)
        self.house: Tuple[str, int] = ("", -1)
        self.disturbed = self.running = False
        self.place = Place({}, {}, {}, np.zeros((0, 3)), lambda position, target: None)

    @staticmethod
    def needs(config: EnvConfig) -> List[Tuple[str, str, str]]:
        """What `launch.py doctor` says of this machine before it starts the simulator."""
        from envs.thor_doctor import examine

        return examine(config.sim)

    def reset(self, task: str, seed: int) -> Observation:
        """Start an episode. Raises EnvError if the task is unknown, or cannot be done in the house."""
        self._open()
        if task not in self.spec.tasks:
            raise EnvError(f"{self.spec.env_id}: unknown task '{task}'; expected one of {list(self.spec.tasks)}")
        self.running = False
        rng = np.random.default_rng([seed, TYPES.index(task)])
        self.chore, route = self._begin(task, int(seed), rng)
        self.steps, self.way, self.seen = 0, [self.robot.body.position], None
        self.limit = self.own_horizon or horizon(task)
        self.verdict, view = Verdict(), self._view()
        self.judge = Judge(self.chore, num_rooms=len(self.place.rooms), first=view)
        self.first = (view.distance, view.hand_distance)
        self.plans = {k: self._plan(size) for k, size in self.drawn.items()}
        self.running = True
        notes = {
            "category": self.chore.category,
            "house": f"{self.house[0]}/{self.house[1]}",
            "targets": list(self.chore.targets),
            "rooms": {k: [list(p) for p in polygon] for k, polygon in self.place.rooms.items()},
            "task": write_spec(self.chore, self._house_index()),
            **route.notes(),
        }
        if self.chore.expert_length is not None:
            notes["expert_length"] = self.chore.expert_length
        obs = self._observe(view, render=True)
        return replace(obs, notes=notes)

    def step(self, action: np.ndarray, render: bool = True) -> Step:
        """Perform one of the twenty actions, [index]."""
        self._open()
        if not self.running:
            raise ResetNeeded(f"{self.spec.env_id}: there is no running episode; call reset first")
        index = int(check_action(self.spec, action)[0])
        self.running = False  # stays so if the simulator fails
        worked = self.robot.act(index, render=render)
        self.disturbed |= index >= PICKUP
        self.steps += 1
        if index not in (DONE, SUB_DONE):
            self.seen = None
        self.way.append(self.robot.body.position)
        view = self._view(asked=index == DONE)
        self.verdict = self.judge.after(index, worked, view)
        truncated = not self.verdict.ended and self.steps >= self.limit
        self.running = not (self.verdict.ended or truncated)
        return Step(
            obs=self._observe(view, render=render),
            reward=self.verdict.reward,
            terminated=self.verdict.ended,
            truncated=truncated,
            success=self.verdict.success,
        )

    def render(self) -> Dict[str, np.ndarray]:
        """Pictures of the present state."""
        self._open()
        images = self.robot.frames(self.sizes)
        images.update({k: p.draw(self.way, self.robot.body.yaw) for k, p in self.plans.items()})
        return images

    def close(self) -> None:
        """End the simulator; calling it again does nothing."""
        link, self.link = self.link, None
        if link is not None:
            link.close()

    # --- houses and tasks ---

    def _begin(self, task: str, seed: int, rng: np.random.Generator) -> Tuple[Chore, Route]:
        """Enter the house of a seed, or one of the next that offers the task, and stand at the task's start."""
        split = self.split if self.split != "auto" else ("val" if seed < EVALUATION_SEEDS else "train")
        if self.file is not None:
            index, chore = self.file.pick(task, seed)
            self._enter(split, self.houses.number(index, split) if isinstance(self.houses, HouseFile) else index)
            return chore, self._stand(chore, rng)
        count = self.houses.count(split)
        number = seed // (self.spec.seed_block if split == "train" else 1)
        houses = to_enter(number, count)
        for further, house in enumerate(houses):
            self._enter(split, house)
            for again in range(RETRIES):
                try:
                    chore = sample(task, self.place, rng, targets=self.targets, **self.near)
                    return chore, self._stand(chore, rng)
                except EnvError:
                    if (further, again) == (len(houses) - 1, RETRIES - 1):
                        raise
        raise AssertionError("unreachable")

    def _stand(self, chore: Chore, rng: np.random.Generator) -> Route:
        """Stand at the start of a chore; returns the way to its end. Raises EnvError if it cannot be."""
        link, start = self._open(), chore.start
        assert start is not None
        route = plan(chore, self.place, link)
        if self.house[0] == "train" and self.materials > 0:
            link.step("RandomizeMaterials" if rng.random() < self.materials else "ResetMaterials", renderImage=False)
        self.robot.begin(start, rng if self.shake else None)
        if self.robot.error:
            raise EnvError(f"ai2thor: the robot cannot start at {start}: {self.robot.error}; choose another start")
        return route

    def _enter(self, split: str, number: int) -> None:
        """Have a house as it was built; one in which nothing was touched need not be built again."""
        link = self._open()
        if self.house == (split, number) and not self.disturbed:
            return
        house = self.houses.get(split, number)
        metadata = {**house.get("metadata", {}), "navMeshes": nav_meshes()}
        metadata["agent"] = {**metadata.get("agent", {}), "horizon": 0}
        self.house = ("", -1)
        event = link.load({**house, "metadata": metadata})
        link.step("SetObjectFilter", objectIds=[], renderImage=False)  # the rest would list every object in each answer
        if stretch.MANIPULATION not in self.sizes:
            link.step("DisableSecondaryCamera", renderImage=False)
        rooms = rooms_of(house)
        kinds = {str(r["id"]): str(r["roomType"]) for r in house["rooms"]}
        things = read_things(event.metadata["objects"], rooms)
        found = link.ask("GetReachablePositions", gridSize=0.25) or []
        standing = np.array([[p[k] for k in "xyz"] for p in found], dtype=np.float64).reshape(-1, 3)
        self.place = Place(things, rooms, kinds, standing, lambda position, target: path_to(link, position, target))
        self.house, self.disturbed = (split, number), False

    def _house_index(self) -> int:
        """The number of the present house in its file, or of a generated one."""
        split, number = self.house
        return self.houses.index(number, split) if isinstance(self.houses, HouseFile) else number

    def _plan(self, size: Tuple[int, int]) -> Plan:
        return Plan(size, self.place.rooms, list(self.place.things.values()), self.chore.targets)

    # --- what is seen ---

    def _nearest(self) -> Optional[Thing]:
        """The nearest target, where it is now."""
        body = self.robot.body
        for target in self.chore.targets:
            if target in body.held and target in self.place.things:
                return replace(self.place.things[target], centre=body.hand)
        return next(iter(self.place.nearest(body.position, self.chore.targets)), None)

    def _view(self, *, asked: bool = False) -> View:
        """What the judge looks at; `asked` whether the end of the chore is claimed."""
        body, thing = self.robot.body, self._nearest()
        x, y, z = (float(v) for v in body.position)
        distance = hand = np.inf
        if thing is not None:
            distance = float(np.linalg.norm(thing.centre - body.position))
            hand = float(np.linalg.norm(np.maximum(abs(body.hand - thing.centre) - thing.size / 2, 0.0)))
        elif self.chore.rooms:
            middles = [np.mean(self.place.rooms[r], axis=0) for r in self.chore.rooms]
            distance = min(float(np.hypot(*(m - body.position[[0, 2]]))) for m in middles)
        return View(
            (x, y, z),
            room_at(self.place.rooms, x, z),
            distance,
            hand,
            self._visible(asked),
            frozenset(body.held),
            frozenset(body.graspable),
        )

    def _visible(self, asked: bool) -> frozenset:
        """Objects within 2 m in the navigation camera, if a target may be among them; asked once per pose."""
        if self.seen is not None:
            return self.seen
        body = self.robot.body
        for thing in (self.place.things[t] for t in self.chore.targets if t in self.place.things):
            ahead = thing.centre - body.position
            reach = float(np.linalg.norm(thing.size)) / 2 + SEE_WITHIN
            side = abs(turn(body.yaw, float(np.degrees(np.arctan2(ahead[0], ahead[2])))))
            wide = float(np.linalg.norm(thing.size)) > 0.6  # a near thing that is large may be seen at its edge
            if np.hypot(ahead[0], ahead[2]) <= reach and (asked or wide or side <= LOOK_ANGLE):
                self.seen = frozenset(self._open().ask("GetVisibleObjects", maxDistance=SEE_WITHIN) or ())
                return self.seen
        return frozenset()

    def _observe(self, view: View, *, render: bool) -> Observation:
        body = self.robot.body
        held = np.array([float(len(body.held) > 0)], dtype=np.float32)
        return Observation(
            self.render() if render else {}, held, self.chore.instruction, self._privileged(view, float(held[0]))
        )

    def _privileged(self, view: View, held: float) -> Dict[str, np.ndarray]:
        body, chore, judge, thing = self.robot.body, self.chore, self.judge, self._nearest()
        targets = set(chore.targets)
        share = len(judge.marked) / max(1, len(self.place.rooms))
        values: Dict[str, Any] = {
            "agent": [*body.position, body.yaw],
            "worked": self.verdict.worked,
            "target": [0.0] * 6 if thing is None else [*thing.centre, *thing.size],
            "target_distance": _finite(view.distance),
            "target_visible": bool(targets & view.visible),
            "target_held": bool(targets & view.held),
            "target_graspable": bool(targets & view.graspable),
            "hand": body.hand,
            "hand_distance": _finite(view.hand_distance),
            "arm": [body.lift, body.extension, body.wrist, held],
            "arm_location": body.hand_offset,
            "marked": share,
            "progress": self._progress(view, share),
            **judge.totals,
        }
        out = {k: np.asarray(values[k], dtype=np.float64) for k in PRIVILEGED}
        if not all(np.isfinite(v).all() for v in out.values()):
            raise BadState(f"ai2thor: not finite: {[k for k, v in out.items() if not np.isfinite(v).all()]}")
        return out

    def _progress(self, view: View, share: float) -> float:
        if self.verdict.success:
            return 1.0
        if self.chore.task_type == "RoomVisit":
            return share
        near = 1.0 - min(_finite(view.distance) / max(_finite(self.first[0]), 1e-6), 1.0)
        if self.chore.task_type not in GRASP:
            return 0.9 * near
        hand = 1.0 - min(_finite(view.hand_distance) / max(_finite(self.first[1]), 1e-6), 1.0)
        return 0.5 * hand + 0.4 * bool(set(self.chore.targets) & view.held)

    def _open(self) -> Link:
        if self.link is None:
            raise EnvError(f"{self.spec.env_id}: the environment is closed; make a new one")
        return self.link


def _finite(value: float) -> float:
    """Distances to what is not there count as 0."""
    return float(value) if np.isfinite(value) else 0.0


def _span(metres: Sequence[float]) -> Tuple[float, float]:
    """Least and most metres from a target."""
    values = [float(v) for v in metres]
    if len(values) != 2 or not 0.0 <= values[0] < values[1]:
        raise EnvError(
            f"ai2thor: pickup_start is {values}; expected the least and the most metres, such as {PICKUP_START}"
        )
    return values[0], values[1]


def _angles(degrees: Sequence[float]) -> Tuple[float, float]:
    """Least and most degrees to the right of straight ahead."""
    values = [float(v) for v in degrees]
    if len(values) != 2 or not -180.0 <= values[0] < values[1] <= 180.0:
        raise EnvError(
            f"ai2thor: pickup_facing is {values}; expected the least and the most degrees to the right of straight "
            f"ahead, between -180 and 180, such as {list(PICKUP_FACING)}"
        )
    return values[0], values[1]


def _cameras(
    cameras: Optional[Mapping[str, Optional[Sequence[int]]]],
) -> Tuple[Dict[str, Tuple[int, int]], Dict[str, Tuple[int, int]]]:
    """Sizes of the robot's cameras, and of drawings."""
    both = (stretch.NAVIGATION, stretch.MANIPULATION)
    chosen: Mapping[str, Optional[Sequence[int]]] = {c: stretch.FRAME for c in both} if cameras is None else cameras
    sizes = {k: (int(v[0]), int(v[1])) for k, v in chosen.items() if v is not None}  # null: not that one
    robot = {k: v for k, v in sizes.items() if k in both}
    drawn: List[str] = [k for k in sizes if k not in both]
    if not robot or len(set(robot.values())) != 1 or drawn not in ([], [TOP_DOWN]):
        raise EnvError(
            f"ai2thor: cameras {sizes} cannot be had; expected {both[0]}, {both[1]} or both, of one size (Y, X), and "
            f"if wanted {TOP_DOWN}"
        )
    return robot, {k: sizes[k] for k in drawn}
