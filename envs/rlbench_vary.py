"""Perturbations on RLBench's scene, through PyRep's objects: applied after a reset, taken back before the next.

Distractors are not: Colosseum spawns models of its own, which are no part of RLBench.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

import numpy as np

from envs.perturb import Factor, draw_texture, uniform
from envs.types import EnvError

WALLS = ("Wall1", "Wall2", "Wall3", "Wall4")
TABLE = ("diningTable_visible",)
LIGHTS = ("DefaultLightA", "DefaultLightB", "DefaultLightD")
SENSORS = {"front": "cam_front", "left_shoulder": "cam_over_shoulder_left", "right_shoulder": "cam_over_shoulder_right",
           "overhead": "cam_overhead"}  # fmt: skip
TEXTURE = (256, 256)  # px, of the patterns that are made up


class Variations:
    """The factors of an adapter. Objects are found by name in the scene when they are needed."""

    def __init__(self, factors: Sequence[Factor], *, cameras: Sequence[str]) -> None:
        for factor in factors:
            if factor.variation == "distractor_object":
                raise EnvError("rlbench: distractor_object needs Colosseum's models, which RLBench lacks; leave it out")
            if factor.variation == "object_color" and not factor.targets:
                raise EnvError("rlbench: object_color needs targets: names of shapes in the task's scene")
        self._factors, self._cameras = tuple(factors), tuple(cameras)
        self._back: List[Callable[[], Any]] = []
        self._folder = ""

    def apply(self, env: Any, seed: int) -> None:
        """Draw and apply all factors; `env` is RLBench's Environment. EnvError if the scene has no such object."""
        work: Dict[str, Callable[[Factor, np.random.Generator, Any], None]] = {
            "object_color": self._colour, "table_color": self._colour, "light_color": self._light,
            "camera_pose": self._camera, "background_texture": self._texture, "table_texture": self._texture,
        }  # fmt: skip
        for factor in self._factors:
            work[factor.variation](factor, factor.rng(seed), env)

    def restore(self) -> None:
        """Take back what `apply` changed, last change first. Objects that their task took along are gone anyway."""
        while self._back:
            self._back.pop()()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = ""

    def _colour(self, factor: Factor, rng: np.random.Generator, env: Any) -> None:
        from pyrep.objects.shape import Shape

        for name in factor.targets or TABLE:
            shape = _found(Shape, name)
            self._later(shape, shape.set_color, shape.get_color())
            shape.set_color(factor.colour(rng).tolist())

    def _light(self, factor: Factor, rng: np.random.Generator, env: Any) -> None:
        from pyrep.objects.light import Light

        for name in factor.targets or LIGHTS:
            light = _found(Light, name)
            for put, get in ((light.set_diffuse, light.get_diffuse), (light.set_specular, light.get_specular)):
                self._later(light, put, list(get()))
                put(factor.colour(rng).tolist())

    def _camera(self, factor: Factor, rng: np.random.Generator, env: Any) -> None:
        from pyrep.objects.vision_sensor import VisionSensor

        there = [SENSORS[c] for c in self._cameras if c in SENSORS]  # the package removes sensors that nobody reads
        for name in factor.targets or there:
            if name in SENSORS.values() and name not in there:
                continue
            sensor = _found(VisionSensor, name)
            for put, get, bounds in (
                (sensor.set_position, sensor.get_position, factor.position_range),
                (sensor.set_orientation, sensor.get_orientation, factor.euler_range),
            ):
                first = np.asarray(get(), dtype=np.float64)
                self._later(sensor, put, first.tolist())
                put((first + (uniform(rng, bounds) if bounds is not None else 0.0)).tolist())

    def _texture(self, factor: Factor, rng: np.random.Generator, env: Any) -> None:
        from PIL import Image
        from pyrep.const import TextureMappingMode
        from pyrep.objects.shape import Shape

        self._folder = self._folder or tempfile.mkdtemp(prefix="temper-textures-")
        path = Path(self._folder) / f"{factor.variation}.png"
        Image.fromarray(draw_texture(rng, TEXTURE, factor.textures)).save(path)
        carrier, texture = env._pyrep.create_texture(str(path))
        self._back.append(carrier.remove)
        for name in factor.targets or (WALLS if factor.variation == "background_texture" else TABLE):
            shape = _found(Shape, name)
            self._back.append(shape.remove_texture)
            shape.set_texture(texture, mapping_mode=TextureMappingMode.PLANE, repeat_along_u=True, repeat_along_v=True)

    def _later(self, thing: Any, put: Callable[[Any], Any], value: Any) -> None:
        def back() -> None:
            if thing.still_exists():
                put(value)

        self._back.append(back)


def _found(kind: Any, name: str) -> Any:
    try:
        return kind(name)
    except Exception as e:  # PyRep's own errors differ from version to version
        raise EnvError(f"rlbench: the scene has no {kind.__name__} '{name}' ({e}); correct the factor's targets") from e
