"""A kinematic house: one Stretch robot that moves, reaches and carries among boxes. What it does is in `actions`.

Nothing has momentum. The base is an upright cylinder; arm and hand are thin rods; what is let go falls straight down
onto the highest surface below it. Everything follows from the actions alone, so the same actions give the same world.
Needs numpy alone; Python 3.8 syntax.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

from envs.thor_mini import arm as stretch
from envs.thor_mini.above import draw_from_above
from envs.thor_mini.arm import Arm, Base
from envs.thor_mini.arm_look import arm_poses
from envs.thor_mini.colours import named_colours
from envs.thor_mini.nav import RADII, Mesh, in_polygon
from envs.thor_mini.scene import Body, Camera, Frame, Room, Scene, Wall
from envs.thor_mini.solids import boxes_of, pieces_of, segment_distance, solid_segments

RADIUS = 0.2  # metres, of the base
HEIGHT = 1.41  # metres; what hangs higher is no obstacle
STEP_OVER = 0.05  # metres; rugs and mats are driven over
AGENT_Y = 0.9  # metres, the height at which AI2-THOR says the agent is
STRIDE = 0.05  # metres between two looks for a collision
ARM_STRIDE, WRIST_STRIDE = 0.02, 5.0  # metres, degrees; likewise
ARM_MARGIN = 0.3  # metres; what is farther from the arm is not looked at; more than it and what it holds are thick
GRAVITY = 9.81  # metres per second squared
SUPPORT = 0.02  # metres; a surface this far above the lower face still carries it
SLACK = 1e-3  # metres; touching counts as free
NAVIGATION, MANIPULATION = (0.0, 1.44, 0.07), (0.06, 1.42, -0.06)  # metres; cameras: right, up, forward of the base


@dataclass
class Settings:
    """What `Initialize` sets."""

    visibility: float = 1.5  # metres
    near: float = 0.1
    far: float = 20.0
    ids: bool = False
    depth: bool = False
    classes: bool = False
    patches: bool = False  # answer queries with what changed alone
    heaviest: Optional[float] = None  # kg; what weighs more cannot be picked up
    started: bool = False


@dataclass
class Mount:
    """One of the two cameras on the mast."""

    pitch: float
    fov: float = 59.0


@dataclass
class View:
    """A camera that stands somewhere in the house. `across` is the height it shows, if it has no perspective."""

    camera: Camera
    across: Optional[float] = None  # metres


@dataclass
class Outcome:
    """What came of an action."""

    value: Any = None  # becomes actionReturn
    error: str = ""
    code: str = ""


@dataclass
class Parts:
    """Where houses and pictures come from."""

    load: Callable[[Dict[str, Any]], Scene]
    renderer: Callable[[Scene, int, int], Any]


def empty_scene(name: str = "Procedural", *, size: float = 5.0) -> Scene:
    """One square room with nothing in it: what there is before a house is made."""
    low, high = -size / 2, size / 2
    corners = [(low, low), (low, high), (high, high), (high, low)]
    walls = [
        Wall(f"wall|0|{i}", "room|0", corners[i], corners[(i + 1) % 4], 2.5, "", (200, 200, 200)) for i in range(4)
    ]
    return Scene(name, [Room("room|0", "LivingRoom", np.array(corners))], walls, [], 2.5)


@dataclass
class World:
    """Everything that can change. Use `load` to put another house in place."""

    parts: Parts
    width: int
    height: int
    scene: Scene = field(default_factory=empty_scene)
    settings: Settings = field(default_factory=Settings)
    shuffles: int = 0  # how often materials were shuffled; each time gives others

    def __post_init__(self) -> None:
        """Enter the house."""
        self.radii: Dict[int, float] = dict(RADII)
        self.enter(self.scene)

    def enter(self, scene: Scene) -> None:
        """Put the robot at the start of a house in which nothing has been moved."""
        self.scene = self.original = scene
        bodies = scene.bodies
        self.index = {body.object_id: i for i, body in enumerate(bodies)}
        if len(self.index) != len(bodies):
            twice = next(b.object_id for i, b in enumerate(bodies) if self.index[b.object_id] != i)
            raise ValueError(f"house {scene.name}: object id {twice} occurs twice; ids must differ")
        self.boxes = boxes_of(bodies)
        self.pickupable = np.array([b.pickupable for b in bodies], dtype=bool)
        self.pieces, self.owners = pieces_of(bodies, np.flatnonzero(~self.pickupable).tolist())
        self.colours = named_colours(bodies)
        self.parents: List[Optional[str]] = [b.parent or self._floor_under(b) for b in bodies]
        self.segments, self.segment_names = solid_segments(scene.walls)
        self.base = Base(*scene.start)
        self.arm = Arm()
        self.mounts = {"navigation": Mount(27.0), "manipulation": Mount(33.0)}
        self.second_camera = True
        self.views: List[View] = []
        self.bounds: Dict[str, Any] = {}  # of the house, as metadata; filled in when first asked for
        self.filter: Optional[List[str]] = None  # ids whose metadata is sent; None: all
        self.held: Optional[int] = None
        self.falling: Dict[int, float] = {}  # body -> seconds since it was let go
        self._mesh: Optional[Mesh] = None
        self._renderer: Any = None
        self._cameras: List[View] = []
        self._frames: Dict[int, Frame] = {}
        self._spare: Dict[int, Frame] = {}

    def resize(self, width: int, height: int) -> None:
        """Change the size of the pictures."""
        if (width, height) != (self.width, self.height):
            self.width, self.height = width, height
            self._renderer = None
            self._spare.clear()
        self.changed()

    def redecorate(self, scene: Scene) -> None:
        """Show the same house with other colours and materials."""
        self.scene, self._renderer = scene, None
        self.changed()

    def changed(self) -> None:
        """Forget the pictures of the state before."""
        self._cameras = []
        self._frames.clear()

    # --- moving -------------------------------------------------------------------------------------------------------

    def obstacles(self) -> np.ndarray:
        """Indices of the bodies that the base can run into."""
        tall = (self.boxes.top() > STEP_OVER) & (self.boxes.bottom() < HEIGHT)
        if self.held is not None:
            tall[self.held] = False
        return np.flatnonzero(tall)

    def base_clearance(self, places: np.ndarray) -> Tuple[np.ndarray, List[str]]:
        """For places [P, 2], the metres between the base and the nearest obstacle, and that obstacle's name."""
        chosen = self.obstacles()
        far = np.concatenate(
            [self.boxes.plan_distance(places, chosen), segment_distance(places, self.segments)], axis=1
        )
        if not far.shape[1]:
            return np.full(len(places), np.inf), [""] * len(places)
        nearest = far.argmin(1)
        names = [self._name(int(i), chosen) for i in nearest]
        return far[np.arange(len(places)), nearest] - RADIUS, names

    def move_base(self, ahead: float, right: float, *, keep: bool, with_arm: bool) -> str:
        """Drive straight; returns what stopped it, or "". If it is stopped, `keep` leaves it where it got to."""
        goal = stretch.to_world(self.base, right, 0.0, ahead)
        count = max(int(np.ceil(np.hypot(ahead, right) / STRIDE - 1e-9)), 1)
        way = [
            replace(self.base, x=self.base.x + (goal[0] - self.base.x) * s, z=self.base.z + (goal[2] - self.base.z) * s)
            for s in np.arange(1, count + 1) / count
        ]
        return self._go([(base, self.arm) for base in way], base=True, arm=with_arm, keep=keep)

    def turn_base(self, degrees: float, *, keep: bool, with_arm: bool) -> str:
        """Turn on the spot, clockwise; as `move_base`. The round base itself never hits anything."""
        count = max(int(np.ceil(abs(degrees) / WRIST_STRIDE - 1e-9)), 1)
        way = [replace(self.base, yaw=(self.base.yaw + degrees * s) % 360.0) for s in np.arange(1, count + 1) / count]
        return self._go([(base, self.arm) for base in way], base=False, arm=with_arm, keep=keep)

    def move_arm(self, goal: Arm, *, keep: bool) -> str:
        """Move the joints, lift first, then extension, then wrist; as `move_base`."""
        way = stretch.steps_between(self.arm, goal, metres=ARM_STRIDE, degrees=WRIST_STRIDE)
        return self._go([(self.base, arm) for arm in way], base=False, arm=True, keep=keep)

    def teleport(self, base: Base) -> None:
        """Be elsewhere."""
        self.base = base
        self._carry()

    def _go(self, way: List[Tuple[Base, Arm]], *, base: bool, arm: bool, keep: bool) -> str:
        """Follow a way until something is in it. What is already touched may be left, but not pushed into further."""
        if not way:
            return ""
        poses = [(self.base, self.arm), *way]
        blocked, name = len(way), ""
        if base:
            room, names = self.base_clearance(np.array([[b.x, b.z] for b, _ in poses]))
            hits = np.flatnonzero((room[1:] < -SLACK) & (room[1:] < room[:-1] - 1e-9))
            if len(hits):
                blocked, name = int(hits[0]), names[int(hits[0]) + 1]
        if arm:
            room, names = self._arm_clearance(poses)
            hits = np.flatnonzero((room[1:] < -SLACK) & (room[1:] < room[:-1] - 1e-9))
            if len(hits) and int(hits[0]) < blocked:
                blocked, name = int(hits[0]), names[int(hits[0]) + 1]
        reached = blocked if keep or not name else 0
        self.base, self.arm = poses[reached]
        self._carry()
        return name

    def _arm_clearance(self, poses: List[Tuple[Base, Arm]]) -> Tuple[np.ndarray, List[str]]:
        """For every pose, the metres between the arm, with what it holds, and the nearest obstacle, and its name.

        Things that can be picked up are pushed aside by nothing: the hand closes around them instead.
        """
        points, ends = stretch.outlines(poses)
        thick = np.full(len(points), stretch.THICKNESS)
        if self.held is not None:
            thick[ends - 1] = max(stretch.THICKNESS, 0.9 * float(self.boxes.half[self.held].min()))
        low, high = points.min(0) - ARM_MARGIN, points.max(0) + ARM_MARGIN
        reach = np.hypot(self.pieces.half[:, 0], self.pieces.half[:, 2])
        middle = self.pieces.positions
        close = (middle[:, 0] > low[0] - reach) & (middle[:, 0] < high[0] + reach)
        close &= (middle[:, 2] > low[2] - reach) & (middle[:, 2] < high[2] + reach)
        close &= abs(middle[:, 1] - (low[1] + high[1]) / 2) < (high[1] - low[1]) / 2 + self.pieces.half[:, 1]
        chosen = np.flatnonzero(close)
        far = np.concatenate(
            [self.pieces.distance(points, chosen), segment_distance(points[:, [0, 2]], self.segments)], axis=1
        )
        if not far.shape[1]:
            return np.full(len(poses), np.inf), [""] * len(poses)
        nearest = far.argmin(1)
        room = far[np.arange(len(points)), nearest] - thick
        clearances, names = [], []
        for start, end in zip([0, *ends[:-1]], ends):
            worst = int(start) + int(room[start:end].argmin())
            clearances.append(room[worst])
            names.append(self._name(int(nearest[worst]), self.owners[chosen]))
        return np.array(clearances), names

    def _name(self, column: int, chosen: np.ndarray) -> str:
        """Who stands in a column of distances: first the chosen bodies, then the walls."""
        if column < len(chosen):
            return self.scene.bodies[int(chosen[column])].object_id
        return self.segment_names[column - len(chosen)]

    # --- holding ------------------------------------------------------------------------------------------------------

    def within_hand(self) -> List[int]:
        """Bodies that the gripper's sphere touches and that can be picked up, nearest first."""
        chosen = np.flatnonzero(self.pickupable)
        far = self.boxes.distance(stretch.hand_centre(self.base, self.arm)[None], chosen)[0]
        order = np.argsort(far, kind="stable")
        return [int(chosen[i]) for i in order if far[i] <= stretch.HAND_RADIUS]

    def take(self, index: int) -> None:
        """Hold a body: it follows the hand from now on, and what lay on it falls."""
        name = self.scene.bodies[index].object_id
        self.held, self.parents[index] = index, None
        self.falling.pop(index, None)
        hand = stretch.hand_centre(self.base, self.arm)
        turn = stretch.hand_yaw(self.base, self.arm)
        sin, cos = np.sin(np.radians(turn)), np.cos(np.radians(turn))
        x, y, z = self.boxes.positions[index] - hand
        self._grip = (np.array([x * cos - z * sin, y, x * sin + z * cos]), self.boxes.yaws[index] - turn)
        for i, parent in enumerate(self.parents):
            if parent == name:
                self.parents[i] = None
                self.falling[i] = 0.0

    def let_go(self) -> None:
        """Stop holding; the body hangs in the air until time passes."""
        if self.held is not None:
            self.falling[self.held] = 0.0
            self.held = None

    def pass_time(self, seconds: float) -> None:
        """Let loose bodies fall, lowest first, so that stacks land in order."""
        order = sorted(self.falling, key=lambda i: (self.boxes.positions[i, 1], i))
        for i in order:
            before = self.falling[i]
            drop = GRAVITY / 2 * ((before + seconds) ** 2 - before**2)
            surface, carrier = self._support(i)
            bottom = self.boxes.positions[i, 1] - self.boxes.half[i, 1]
            place = self.boxes.positions[i].copy()
            if bottom - drop <= surface:
                place[1] = surface + self.boxes.half[i, 1]
                self.parents[i] = carrier
                del self.falling[i]
            else:
                place[1] -= drop
                self.falling[i] = before + seconds
            self.boxes.place(i, place, float(self.boxes.yaws[i]))

    def _support(self, index: int) -> Tuple[float, Optional[str]]:
        """Height and id of the highest surface under the middle of a body; the floor is its room."""
        place = self.boxes.positions[index]
        bottom = place[1] - self.boxes.half[index, 1]
        loose = [i for i in np.flatnonzero(self.pickupable) if i not in (index, self.held)]
        best, carrier = 0.0, -1
        for boxes, owners, chosen in (
            (self.pieces, self.owners, np.arange(len(self.owners))),
            (self.boxes, np.arange(len(self.pickupable)), np.array(loose, dtype=int)),
        ):
            top = boxes.top()[chosen]
            over = (boxes.plan_distance(place[None, [0, 2]], chosen)[0] <= 0.0) & (top <= bottom + SUPPORT)
            if over.any() and top[over].max() > best:
                best = float(top[over].max())
                carrier = int(owners[chosen[over][top[over].argmax()]])
        if carrier >= 0:
            return best, self.scene.bodies[carrier].object_id
        return 0.0, self.room_at(float(place[0]), float(place[2]))

    def _carry(self) -> None:
        """Bring what is held along."""
        if self.held is None:
            return
        offset, turn = self._grip
        yaw = stretch.hand_yaw(self.base, self.arm)
        sin, cos = np.sin(np.radians(yaw)), np.cos(np.radians(yaw))
        x, y, z = offset
        hand = stretch.hand_centre(self.base, self.arm)
        place = hand + np.array([x * cos + z * sin, y, z * cos - x * sin])
        self.boxes.place(self.held, place, float((yaw + turn) % 360.0))

    # --- looking ------------------------------------------------------------------------------------------------------

    def _floor_under(self, body: Body) -> Optional[str]:
        """The room that a body stands in, if it stands on the floor."""
        low = body.position[1] - body.size[1] / 2 <= SUPPORT
        return self.room_at(float(body.position[0]), float(body.position[2])) if low else None

    def room_at(self, x: float, z: float) -> Optional[str]:
        """The room whose floor is under a point."""
        for room in self.scene.rooms:
            if in_polygon(np.array([[x, z]]), room.polygon)[0]:
                return room.room_id
        return None

    def mesh(self) -> Mesh:
        """Where the robot can be. Made once a house: things that can be picked up do not block the way."""
        if self._mesh is None:
            tall = (self.boxes.top() > STEP_OVER) & (self.boxes.bottom() < HEIGHT) & ~self.pickupable
            self._mesh = Mesh(self.scene.rooms, self.boxes, np.flatnonzero(tall), self.segments)
        return self._mesh

    def cameras(self) -> List[View]:
        """The navigation camera, then all third-party cameras, the manipulation camera first."""
        if self._cameras:
            return self._cameras
        base, mounts = self.base, self.mounts
        ahead = Camera(
            stretch.to_world(base, *NAVIGATION), base.yaw, mounts["navigation"].pitch, mounts["navigation"].fov
        )
        aside = Camera(
            stretch.to_world(base, *MANIPULATION),
            (base.yaw + 90.0) % 360.0,
            mounts["manipulation"].pitch,
            mounts["manipulation"].fov,
        )
        self._cameras = [View(ahead), *([View(aside)] if self.second_camera else []), *self.views]
        return self._cameras

    def frame(self, camera: int) -> Frame:
        """The picture of one of `cameras()`; drawn at most once in a state."""
        if camera not in self._frames:
            view = self.cameras()[camera]
            if view.across is not None:
                robot, shape = (self.base.x, self.base.z), (self.height, self.width)
                self._frames[camera] = draw_from_above(
                    self.scene, self.segments, self.boxes, robot, view.camera, view.across, shape
                )
            else:
                if self._renderer is None:
                    self._renderer = self.parts.renderer(self.scene, self.width, self.height)
                drawn = self._renderer.draw(
                    view.camera, self.boxes.positions, self.boxes.yaws, out=self._spare.get(camera),
                    arm=arm_poses(self.base, self.arm),
                )  # fmt: skip
                self._frames[camera] = self._spare[camera] = drawn
        return self._frames[camera]
