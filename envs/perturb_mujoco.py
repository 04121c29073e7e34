"""Perturbations on a compiled MuJoCo scene: what cameras see changes, and nothing that physics reads.

Colours, lights, textures and views are fields of the model that no step looks at. Distractors are not bodies: the
renderer adds solid shapes to its own scene, which hide things and cast shadows, and through which the robot passes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import numpy as np

from envs.perturb import Factor, draw_texture, uniform
from envs.types import EnvError

ROBOT = ("robot", "gripper", "mount", "base", "fixed_mount")  # beginnings of the names of its bodies
TABLE = ("table", "tabletop", "bin", "counter", "desk")  # words in names
FLOOR = ("floor", "ground")
REACH = 0.3  # m to either side of the middle of the objects, within which distractors stand
CLEARANCE = 0.05  # m between a distractor and anything that moves
LEVEL = 0.006  # m by which the ground below a distractor may vary
TRIES = 300  # draws of a place, for all distractors of an episode
FAR = 1.5  # m from the world's origin; robosuite keeps things there that are not in play
SAME_FLOOR = 0.2  # m above or below the objects within which distractors stand
WATCHED = "agentview"
STILL = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))


@dataclass(frozen=True)
class Solid:
    """A shape that is only drawn."""

    kind: int  # mjtGeom
    size: np.ndarray  # [3] m
    position: np.ndarray  # [3] m
    turn: np.ndarray  # [9]
    rgba: np.ndarray  # [4]


class Perturbed:
    """The factors on one model. `apply` begins an episode; the model is as it was compiled in between."""

    def __init__(self, model: Any, factors: Sequence[Factor]) -> None:
        """Raises EnvError if the scene has nothing of what a factor is about."""
        import mujoco

        self._mujoco, self._model, self._factors = mujoco, model, tuple(factors)
        self._parts = _Parts(model)
        self._back: List[Tuple[np.ndarray, Any, Any]] = []  # array, rows, what was there
        self.solids: List[Solid] = []
        self.textures: List[int] = []  # those that were ever changed: a renderer has copies
        for factor in self._factors:
            self._targets(factor)  # a wrong name is refused here

    def apply(self, data: Any, seed: int) -> None:
        """Draw everything anew. `data` is at the episode's first state; only its cameras' poses are written."""
        self.restore()
        work = {
            "object_color": self._colour, "table_color": self._colour, "light_color": self._light,
            "background_texture": self._texture, "table_texture": self._texture, "camera_pose": self._camera,
        }  # fmt: skip
        for factor in self._factors:
            if factor.variation != "distractor_object":
                work[factor.variation](factor, factor.rng(seed))
        self._mujoco.mj_camlight(self._model, data)
        self.solids = [
            s for f in self._factors if f.variation == "distractor_object" for s in self._stand(f, data, seed)
        ]

    def restore(self) -> None:
        """The model as it was."""
        while self._back:
            array, rows, value = self._back.pop()
            array[rows] = value
        self.solids = []

    def _write(self, array: np.ndarray, rows: Any, value: Any) -> None:
        self._back.append((array, rows, np.array(array[rows])))
        array[rows] = value

    def _targets(self, factor: Factor) -> List[int]:
        """Ids of what a factor is about: shapes, lights or cameras."""
        parts, kind = self._parts, factor.variation
        if kind == "light_color":
            return parts.named("LIGHT", factor.targets) if factor.targets else list(range(self._model.nlight))
        if kind == "camera_pose":
            return parts.named("CAMERA", factor.targets) if factor.targets else parts.cameras()
        if kind == "distractor_object":
            return []
        found = parts.shapes(factor.targets) if factor.targets else parts.of(kind)
        if not found:
            raise EnvError(
                f"perturb: this scene shows nothing for '{kind}'; name targets: bodies or geoms of the scene"
            )
        return found

    def _colour(self, factor: Factor, rng: np.random.Generator) -> None:
        """One colour for each body; a material, with its texture, gives way to it."""
        colours: Dict[int, np.ndarray] = {}
        for geom in self._targets(factor):
            body = int(self._model.geom_bodyid[geom])
            if body not in colours:
                colours[body] = factor.colour(rng)
            self._write(self._model.geom_matid, geom, -1)
            self._write(self._model.geom_rgba, (geom, slice(3)), colours[body])

    def _light(self, factor: Factor, rng: np.random.Generator) -> None:
        model = self._model
        for light in self._targets(factor):
            self._write(model.light_diffuse, light, factor.colour(rng))
            self._write(model.light_specular, light, factor.colour(rng))
        if not factor.targets:  # the light at the camera, which scenes of this kind mostly live on
            self._write(model.vis.headlight.diffuse, slice(3), factor.colour(rng))
            self._write(model.vis.headlight.specular, slice(3), factor.colour(rng))

    def _texture(self, factor: Factor, rng: np.random.Generator) -> None:
        """Another picture in the texture of the shapes' materials; shapes without one get a plain colour."""
        model, done = self._model, set()
        for geom in self._targets(factor):
            material = int(model.geom_matid[geom])
            texture = max((int(t) for t in np.ravel(model.mat_texid[material])), default=-1) if material >= 0 else -1
            if texture < 0:
                self._write(model.geom_matid, geom, -1)
                self._write(model.geom_rgba, (geom, slice(3)), factor.colour(rng))
            elif texture not in done:
                done.add(texture)
                self._write(model.mat_rgba, (material, slice(3)), 1.0)
                self._fill(texture, factor, rng)
        if factor.variation == "background_texture" and not factor.targets:
            for sky in np.flatnonzero(model.tex_type == int(self._mujoco.mjtTexture.mjTEXTURE_SKYBOX)):
                self._fill(int(sky), factor, rng)

    def _fill(self, texture: int, factor: Factor, rng: np.random.Generator) -> None:
        model = self._model
        size, channels = (
            (int(model.tex_height[texture]), int(model.tex_width[texture])),
            int(model.tex_nchannel[texture]),
        )
        picture = draw_texture(rng, size, factor.textures)
        full = np.full((*size, channels), 255, np.uint8)
        full[..., : min(3, channels)] = picture[..., :channels]
        start = int(model.tex_adr[texture])
        self._write(model.tex_data, slice(start, start + full.size), full.reshape(-1))
        if texture not in self.textures:
            self.textures.append(texture)

    def _camera(self, factor: Factor, rng: np.random.Generator) -> None:
        """Move along the world's axes, turn about the camera's own."""
        model = self._model
        for camera in self._targets(factor):
            shift = uniform(rng, factor.position_range or STILL)
            euler = uniform(rng, factor.euler_range or STILL)
            self._write(model.cam_pos, camera, model.cam_pos[camera] + shift)
            self._write(model.cam_quat, camera, self._turned(model.cam_quat[camera], euler))

    def _turned(self, quaternion: np.ndarray, euler: np.ndarray) -> np.ndarray:
        out, turn = np.array(quaternion, dtype=np.float64), np.empty(4)
        for axis, angle in zip(np.eye(3), euler):
            self._mujoco.mju_axisAngle2Quat(turn, axis, angle)
            before = out.copy()
            self._mujoco.mju_mulQuat(out, before, turn)
        return out

    # --- distractors ---

    def _stand(self, factor: Factor, data: Any, seed: int) -> Iterator[Solid]:
        """Solids on level, unmoving ground between the objects, clear of all that moves and of one another."""
        rng, kinds = factor.rng(seed), self._mujoco.mjtGeom
        middle = self._parts.middle(data)
        placed: List[np.ndarray] = []
        shapes = (kinds.mjGEOM_BOX, kinds.mjGEOM_CYLINDER, kinds.mjGEOM_SPHERE, kinds.mjGEOM_CAPSULE)
        for _ in range(TRIES):
            if len(placed) == factor.num_objects:
                return
            spot = middle[:2] + rng.uniform(-REACH, REACH, 2)
            half = rng.uniform(0.02, 0.04, 3)
            kind, angle, colour = shapes[rng.integers(len(shapes))], rng.uniform(0, np.pi), factor.colour(rng)
            if any(np.hypot(*(spot - other)) < 0.12 for other in placed):
                continue
            height = self._ground(data, spot, middle[2])
            if height is None or abs(height - middle[2]) > SAME_FLOOR:
                continue
            if not self._parts.in_view(data, np.array([spot[0], spot[1], height])):
                continue
            placed.append(spot)
            yield _solid(kinds, kind, half, np.array([spot[0], spot[1], height]), angle, colour)

    def _ground(self, data: Any, spot: np.ndarray, height: float) -> Any:
        """Height of the ground below a spot, None if it is not level or something that moves is near."""
        around = [(0.0, 0.0)] + [(np.cos(a), np.sin(a)) for a in np.linspace(0, 2 * np.pi, 8, endpoint=False)]
        heights = []
        for x, y in around:
            start = np.array([spot[0] + x * (0.04 + CLEARANCE), spot[1] + y * (0.04 + CLEARANCE), height + 0.6])
            hit = np.full(1, -1, np.int32)
            way = self._mujoco.mj_ray(self._model, data, start, np.array([0.0, 0.0, -1.0]), None, 1, -1, hit)
            if hit[0] < 0 or self._parts.moves[hit[0]] or self._parts.robot[hit[0]]:
                return None
            heights.append(start[2] - way)
        return heights[0] if max(heights) - min(heights) < LEVEL else None


class _Parts:
    """Which shapes of a model are what."""

    def __init__(self, model: Any) -> None:
        import mujoco

        self._mujoco, self._model = mujoco, model
        bodies = [self._name("BODY", b) for b in range(model.nbody)]
        names = [f"{self._name('GEOM', g)} {bodies[model.geom_bodyid[g]]}".lower() for g in range(model.ngeom)]
        self._words = [set(re.split(r"[^a-z]+", name)) for name in names]
        self._seen = (model.geom_group == 1) & ((model.geom_rgba[:, 3] > 0) | (model.geom_matid >= 0))
        robots = np.array([bodies[b].startswith(ROBOT) for b in range(model.nbody)])
        for body in range(1, model.nbody):  # what hangs on the robot is the robot's
            robots[body] |= robots[model.body_parentid[body]]
        self.robot = robots[model.geom_bodyid]
        self.moves = (model.body_weldid != 0)[model.geom_bodyid]
        free = model.jnt_bodyid[model.jnt_type == int(mujoco.mjtJoint.mjJNT_FREE)]
        self._free = [int(b) for b in free if not robots[b]]
        self._loose = np.isin(model.body_rootid[model.geom_bodyid], self._free)

    def _name(self, kind: str, i: int) -> str:
        return self._mujoco.mj_id2name(self._model, getattr(self._mujoco.mjtObj, "mjOBJ_" + kind), i) or ""

    def of(self, variation: str) -> List[int]:
        """The shapes that a variation is about if nobody names them."""
        seen = self._seen & ~self.robot
        if variation == "object_color":  # what lies about; else doors, drawers and the like
            loose = np.flatnonzero(seen & self._loose)
            return [int(g) for g in (loose if len(loose) else np.flatnonzero(seen & self.moves))]
        table, floor = self._like(TABLE) & ~self.moves, self._like(FLOOR) & ~self.moves
        if not (seen & table).any():  # scenes whose objects lie on the floor
            table = floor
        ground = ((self._model.geom_bodyid == 0) | floor) & ~table  # what an arena is made of belongs to the world
        return [int(g) for g in np.flatnonzero(seen & (table if variation.startswith("table") else ground))]

    def _like(self, words: Sequence[str]) -> np.ndarray:
        return np.array([bool(found & set(words)) for found in self._words])

    def shapes(self, targets: Sequence[str]) -> List[int]:
        """The shapes that are seen of bodies or geoms by name, with everything that hangs on a body."""
        out: List[int] = []
        for name in targets:
            geom = self._mujoco.mj_name2id(self._model, self._mujoco.mjtObj.mjOBJ_GEOM, name)
            body = self._mujoco.mj_name2id(self._model, self._mujoco.mjtObj.mjOBJ_BODY, name)
            if geom < 0 and body < 0:
                raise EnvError(
                    f"perturb: the scene has no body or geom '{name}', only bodies {self._bodies()}; leave targets "
                    "out for the usual ones"
                )
            out += [geom] if geom >= 0 else [int(g) for g in np.flatnonzero(self._seen) if self._under(int(g), body)]
        return out

    def _under(self, geom: int, body: int) -> bool:
        at = int(self._model.geom_bodyid[geom])
        while at > 0 and at != body:
            at = int(self._model.body_parentid[at])
        return at == body

    def _bodies(self) -> str:
        return ", ".join(
            n for n in (self._name("BODY", b) for b in range(1, self._model.nbody)) if not n.startswith(ROBOT)
        )

    def named(self, kind: str, names: Sequence[str]) -> List[int]:
        """Lights or cameras by name."""
        out = []
        for name in names:
            found = self._mujoco.mj_name2id(self._model, getattr(self._mujoco.mjtObj, "mjOBJ_" + kind), name)
            if found < 0:
                raise EnvError(f"perturb: the scene has no {kind.lower()} '{name}'; leave targets out for all")
            out.append(found)
        return out

    def cameras(self) -> List[int]:
        """The cameras that stand still."""
        return [c for c in range(self._model.ncam) if self._model.body_weldid[self._model.cam_bodyid[c]] == 0
                and not self._name("CAMERA", c).startswith(ROBOT)]  # fmt: skip

    def middle(self, data: Any) -> np.ndarray:
        """Where the objects are, on average [3]; the origin of the world at table height if there are none."""
        places = [data.xpos[b] for b in self._free if np.hypot(*data.xpos[b][:2]) < FAR]
        return np.mean(places, axis=0) if places else np.array([0.0, 0.0, 0.8])

    def in_view(self, data: Any, point: np.ndarray) -> bool:
        """Whether the camera that these scenes are watched with sees a point; True if there is none."""
        camera = self._mujoco.mj_name2id(self._model, self._mujoco.mjtObj.mjOBJ_CAMERA, WATCHED)
        if camera < 0:
            return True
        x, y, z = data.cam_xmat[camera].reshape(3, 3).T @ (point - data.cam_xpos[camera])
        slope = 0.9 * np.tan(np.radians(self._model.cam_fovy[camera]) / 2)
        return bool(z < 0 and max(abs(x), abs(y)) < -z * slope)


def _solid(kinds: Any, kind: Any, half: np.ndarray, foot: np.ndarray, angle: float, colour: np.ndarray) -> Solid:
    """A shape of about these half sizes, standing on `foot`."""
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([cos, -sin, 0.0, sin, cos, 0.0, 0.0, 0.0, 1.0])
    size = {
        int(kinds.mjGEOM_BOX): half,
        int(kinds.mjGEOM_CYLINDER): np.array([half[0], half[0], half[2]]),
        int(kinds.mjGEOM_SPHERE): np.full(3, half[0]),
        int(kinds.mjGEOM_CAPSULE): np.array([half[0] * 0.7, half[0] * 0.7, half[2]]),
    }[int(kind)]
    rise = size[2] + (size[0] if int(kind) == int(kinds.mjGEOM_CAPSULE) else 0.0)
    return Solid(int(kind), size, foot + np.array([0.0, 0.0, rise]), turn, np.array([*colour, 1.0]))
