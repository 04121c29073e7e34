"""The play table in PyBullet: load, reset, physics, fixtures, lights, contacts.

The order of loading decides the order of contacts and with it every later bit, so it is the official one. Exact
repetition needs `load` again: neither a reset nor PyBullet's saved states clear the solver's contact caches.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from envs.calvin.robot import Robot
from envs.calvin.scenes import (
    BUTTON,
    DRAWER,
    FIXTURE_FORCE,
    GRAVITY,
    LIGHT_LINKS,
    LIGHT_OFF,
    LIGHT_ON,
    PEDESTAL_LENGTH,
    PEDESTAL_POSITION,
    PEDESTAL_RADIUS,
    ROBOT_URDF,
    SCALE,
    SCENES,
    SLIDE,
    SUBSTEPS,
    SWITCH,
    TIME_STEP,
)
from envs.types import EnvError

PLACEMENTS = 1000  # tries to place the blocks apart
DOORS = (SLIDE, DRAWER)
Info = Dict[str, Any]  # see `World.info`


def import_pybullet() -> Any:
    """The module, or an EnvError that says how to get it."""
    try:
        import pybullet  # prints its build time
    except ImportError as e:
        raise EnvError(
            f"PyBullet cannot be imported by {sys.executable} ({e}); run `python launch.py install calvin`, which "
            "installs what envs/requirements/calvin.txt lists"
        ) from e
    return pybullet


class World:
    """One scene in a PyBullet client of its own."""

    def __init__(self, scene: str, data: Path, *, seed: int = 0) -> None:
        """`data` is the folder that `find_data` returns; `seed` is of the stream that default resets draw from."""
        if scene not in SCENES:
            raise EnvError(f"CALVIN has no scene '{scene}'; expected one of {', '.join(SCENES)}")
        self.scene, self.data = SCENES[scene], data
        self._table_urdf = f"calvin_table_{scene}/urdf/calvin_table_{scene}.urdf"
        self.bullet = import_pybullet()
        self.client: int = self.bullet.connect(self.bullet.DIRECT)
        self.load(seed)

    def load(self, seed: int) -> None:
        """Everything anew, as in a fresh process."""
        b, client = self.bullet, self.client
        b.resetSimulation(physicsClientId=client)
        b.setTimeStep(TIME_STEP, physicsClientId=client)
        b.setGravity(0, 0, GRAVITY, physicsClientId=client)
        self.random = np.random.Generator(np.random.PCG64(seed))
        self.robot = Robot(b, client, self.path(ROBOT_URDF))
        shape = b.createVisualShape(
            b.GEOM_CYLINDER, radius=PEDESTAL_RADIUS, length=PEDESTAL_LENGTH, rgbaColor=[1, 1, 1, 1],
            visualFramePosition=PEDESTAL_POSITION, physicsClientId=client,
        )  # fmt: skip
        b.createMultiBody(baseVisualShapeIndex=shape, physicsClientId=client)
        self.robot.prepare()
        self.blocks: Dict[str, int] = {}
        for (colour, size), name in zip(self.scene.blocks, self.scene.block_names):
            position, orientation = self._sample()
            urdf = self.path(f"blocks/block_{colour}_{size}.urdf")
            self.blocks[name] = b.loadURDF(urdf, position, orientation, globalScaling=SCALE, physicsClientId=client)
        self.table: int = b.loadURDF(
            self.path(self._table_urdf), [0, 0, 0], [0, 0, 0, 1], globalScaling=SCALE, physicsClientId=client
        )
        self._find_parts()
        self._fixture_motors()
        b.loadURDF(self.path("plane/plane.urdf"), physicsClientId=client)
        self.lights = {"lightbulb": 0, "led": 0}
        self._button_latch = self._switch_latch = self._button_was_pressed = False

    def path(self, name: str) -> str:
        """Absolute: PyBullet looks a relative name up in the working directory first."""
        return str((self.data / name).resolve())

    def close(self) -> None:
        """Free the client; calling it again does nothing."""
        if self.client >= 0:
            with contextlib.suppress(self.bullet.error):
                self.bullet.disconnect(physicsClientId=self.client)
            self.client = -1

    # --- reset and step ------------------------------------------------------------------------------------------

    def reset(self, robot_obs: Optional[np.ndarray] = None, scene_obs: Optional[np.ndarray] = None) -> None:
        """Put scene and robot to these states [24] and [15], or to drawn block places and the robot's home.

        The gripper command, the "button was pressed" flag and contact caches survive, as they do in the original.
        """
        if scene_obs is None:
            self._reset_scene_by_chance()
        else:
            self._reset_scene(np.asarray(scene_obs, dtype=np.float64))
        self.robot.reset(None if robot_obs is None else np.asarray(robot_obs, dtype=np.float64))
        self._substep()

    def step(self) -> None:
        """One control step (1/30 s) towards the robot's present motor targets."""
        for _ in range(SUBSTEPS):
            self._substep()
        pressed = self._joint(BUTTON) > self._half[BUTTON]
        if pressed and not self._button_was_pressed:
            self._button_latch = not self._button_latch
            self._light("led", self._button_latch)
        self._button_was_pressed = pressed
        switched = self._joint(SWITCH) > self._half[SWITCH]
        if switched != self._switch_latch:
            self._light("lightbulb", switched)
        self._switch_latch = switched

    def _reset_scene(self, values: np.ndarray) -> None:
        expected = 6 + 6 * len(self.blocks)
        if values.shape != (expected,) or not np.isfinite(values).all():
            raise EnvError(f"scene_obs has shape {values.shape} or is not finite; expected {expected} finite numbers")
        for name, value in zip(DOORS, values):
            self._put(name, value)
        self._light("lightbulb", bool(values[4]))
        self._light("led", bool(values[5]))
        self._put(BUTTON, values[2])
        self._button_latch = bool(self.lights["led"])
        self._put(SWITCH, values[3])
        self._switch_latch = False
        for uid, pose in zip(self.blocks.values(), values[6:].reshape(-1, 6)):
            orientation = self.bullet.getQuaternionFromEuler(pose[3:].tolist())
            self._place(uid, pose[:3].tolist(), orientation)

    def _reset_scene_by_chance(self) -> None:
        for name in DOORS:
            self._put(name, 0.0)
        self._put(BUTTON, 0.0)
        self._button_latch = bool(self.lights["led"])  # before the lights go out: so it is in the original
        self._put(SWITCH, 0.0)
        self._switch_latch = False
        for name in self.lights:
            self._light(name, False)
        for _ in range(PLACEMENTS):
            for uid in self.blocks.values():
                self._place(uid, *self._sample())
            self._substep()
            if not self._blocks_touch():
                return
        raise EnvError(f"no place for the blocks was found in {PLACEMENTS} tries; take another seed")

    # --- what there is to see --------------------------------------------------------------------------------------

    def scene_obs(self) -> np.ndarray:
        """[24]: slide, drawer, button, switch, bulb, LED, then position and Euler angles of each block."""
        joints = [self._joint(name) for name in (SLIDE, DRAWER, BUTTON, SWITCH)]
        poses: List[float] = []
        for uid in self.blocks.values():
            position, orientation = self.block_pose(uid)
            poses += [*position, *self.bullet.getEulerFromQuaternion(orientation)]
        return np.array([*joints, self.lights["lightbulb"], self.lights["led"], *poses], dtype=np.float64)

    def block_pose(self, uid: int) -> Tuple[Sequence[float], Sequence[float]]:
        """Position and quaternion (xyzw)."""
        return self.bullet.getBasePositionAndOrientation(uid, physicsClientId=self.client)

    def contacts(self, uid: int) -> List[Tuple[int, int]]:
        """Sorted (body, link) pairs that touch a body, by the contact points of the last physics substep."""
        points = self.bullet.getContactPoints(bodyA=uid, physicsClientId=self.client)
        return sorted({(point[2], point[4]) for point in points})

    def info(self) -> Info:
        """The state that task rules compare (envs/calvin/oracle.py): plain numbers, lists and names."""
        movable = {}
        for name, uid in self.blocks.items():
            position, orientation = self.block_pose(uid)
            linear, angular = self.bullet.getBaseVelocity(uid, physicsClientId=self.client)
            movable[name] = {
                "uid": uid,
                "current_pos": position,
                "current_orn": orientation,
                "current_lin_vel": linear,
                "current_ang_vel": angular,
                "contacts": self.contacts(uid),
            }
        table = {"uid": self.table, "links": self.links, "contacts": self.contacts(self.table)}
        robot = {"uid": self.robot.uid, "contacts": self.contacts(self.robot.uid), **self.robot.info()}
        scene = {
            "fixed_objects": {"table": table},
            "movable_objects": movable,
            "doors": {name: {"current_state": self._joint(name)} for name in DOORS},
            "buttons": {BUTTON: {"joint_state": self._joint(BUTTON), "logical_state": int(self._button_latch)}},
            "switches": {SWITCH: {"joint_state": self._joint(SWITCH), "logical_state": int(self._switch_latch)}},
            "lights": {name: {"logical_state": value} for name, value in self.lights.items()},
        }
        return {"robot_info": robot, "scene_info": scene}

    # --- parts -----------------------------------------------------------------------------------------------------

    def _find_parts(self) -> None:
        """Joint and link numbers of the table, by their names in the URDF."""
        self.links = {"base_link": -1}
        self._joints: Dict[str, int] = {}
        self._half: Dict[str, float] = {}
        for i in range(self.bullet.getNumJoints(self.table, physicsClientId=self.client)):
            part = self.bullet.getJointInfo(self.table, i, physicsClientId=self.client)
            joint = part[1].decode()
            self.links[part[12].decode()] = i
            self._joints[joint] = i
            self._half[joint] = (part[8] + part[9]) / 2
        missing = [name for name in (SLIDE, DRAWER, BUTTON, SWITCH) if name not in self._joints]
        if missing:
            raise EnvError(f"the table {self._table_urdf} has no joint {', '.join(missing)}; take the official data")

    def _fixture_motors(self) -> None:
        b = self.bullet
        for name in (*DOORS, BUTTON, SWITCH):
            if name == BUTTON:
                goal: Dict[str, Any] = {"controlMode": b.POSITION_CONTROL, "targetPosition": 0}  # springs back
            else:
                goal = {"controlMode": b.VELOCITY_CONTROL, "targetVelocity": 0}  # friction
            joint = self._joints[name]
            b.setJointMotorControl2(self.table, joint, force=FIXTURE_FORCE, physicsClientId=self.client, **goal)

    def _sample(self) -> Tuple[List[float], Sequence[float]]:
        """A place for a block: a surface, a point on it and a turn about the vertical."""
        names = list(self.scene.surfaces)
        low, high = self.scene.surfaces[str(self.random.choice(names))]
        position = self.random.uniform(low, high)
        angles = self.random.uniform([0.0, 0.0, -np.pi], [0.0, 0.0, np.pi])
        return position.tolist(), self.bullet.getQuaternionFromEuler(angles.tolist())

    def _blocks_touch(self) -> bool:
        uids = list(self.blocks.values())
        pairs = [(one, other) for i, one in enumerate(uids) for other in uids[i + 1 :]]
        return any(self.bullet.getContactPoints(bodyA=a, bodyB=c, physicsClientId=self.client) for a, c in pairs)

    def _place(self, uid: int, position: Sequence[float], orientation: Sequence[float]) -> None:
        self.bullet.resetBasePositionAndOrientation(uid, position, orientation, physicsClientId=self.client)

    def _put(self, joint: str, value: float) -> None:
        self.bullet.resetJointState(self.table, self._joints[joint], float(value), physicsClientId=self.client)

    def _joint(self, name: str) -> float:
        return self.bullet.getJointState(self.table, self._joints[name], physicsClientId=self.client)[0]

    def _light(self, name: str, on: bool) -> None:
        self.lights[name] = int(on)
        colour = LIGHT_ON[name] if on else LIGHT_OFF
        link = self.links[LIGHT_LINKS[name]]
        self.bullet.changeVisualShape(self.table, link, rgbaColor=colour, physicsClientId=self.client)

    def _substep(self) -> None:
        self.bullet.stepSimulation(physicsClientId=self.client)
