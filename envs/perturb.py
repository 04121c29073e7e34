"""Perturbations of what is seen, after the Colosseum benchmark: which ones, drawn how, and what a run says of them.

`env.perturb` is one of the `SHORT` names, the path of a YAML file of Colosseum's, or such a file's content: factors of
which those with `enabled: true` are applied. A factor draws anew for each episode, from its own seed and the episode's,
so that an episode's seed always looks the same. Standard library and numpy only, Python 3.8 syntax.
"""

from __future__ import annotations

import difflib
import json
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np

from envs.types import EnvError

Range = Tuple[Tuple[float, float, float], Tuple[float, float, float]]
SEED = 42  # of the published configurations
FINE = 256  # px across a pattern that is made up
# What each variation draws from, if its entry does not say. Ranges are Colosseum's published ones.
DEFAULTS: Dict[str, Dict[str, Any]] = {
    "object_color": {},
    "distractor_object": {"num_objects": 2},
    "light_color": {"color_range": [[0.0] * 3, [0.5] * 3]},
    "background_texture": {},
    "table_texture": {},
    "table_color": {"color_range": [[0.25] * 3, [1.0] * 3]},
    "camera_pose": {"position_range": [[-0.1] * 3, [0.1] * 3], "euler_range": [[-0.05] * 3, [0.05] * 3]},
}
SHORT = {  # short name -> variation; the second names are those of GENIMA's configuration files
    **{name: name for name in DEFAULTS},
    "random_object_color": "object_color",
    "distractor_objects": "distractor_object",
    "lighting_variations": "light_color",
    "random_background_textures": "background_texture",
    "random_table_textures": "table_texture",
    "random_camera_poses": "camera_pose",
}
OTHERS = ("object_size", "object_texture", "object_mass", "object_friction")  # known to the benchmark, not drawn here
NAMED_COLOURS: Dict[str, Tuple[float, float, float]] = {  # twenty, as in RLBench: a name says what a person sees
    "red": (1.0, 0.0, 0.0), "maroon": (0.5, 0.0, 0.0), "lime": (0.0, 1.0, 0.0), "green": (0.0, 0.5, 0.0),
    "blue": (0.0, 0.0, 1.0), "navy": (0.0, 0.0, 0.5), "yellow": (1.0, 1.0, 0.0), "cyan": (0.0, 1.0, 1.0),
    "magenta": (1.0, 0.0, 1.0), "silver": (0.75, 0.75, 0.75), "gray": (0.5, 0.5, 0.5), "orange": (1.0, 0.5, 0.0),
    "olive": (0.5, 0.5, 0.0), "purple": (0.5, 0.0, 0.5), "teal": (0.0, 0.5, 0.5), "azure": (0.0, 0.5, 1.0),
    "violet": (0.5, 0.0, 1.0), "rose": (1.0, 0.0, 0.5), "black": (0.0, 0.0, 0.0), "white": (1.0, 1.0, 1.0),
}  # fmt: skip


@dataclass(frozen=True)
class Factor:
    """One variation that is switched on."""

    variation: str
    targets: Tuple[str, ...] = ()  # names in the scene; () takes what the adapter knows to be meant
    color_range: Any = None  # Range of RGB from 0 to 1; None: one of the named colours
    position_range: Any = None  # Range in metres
    euler_range: Any = None  # Range in radians
    num_objects: int = 0
    textures: str = ""  # folder of pictures; "" makes some up
    seed: int = SEED
    name: str = ""

    def rng(self, episode_seed: int) -> np.random.Generator:
        """What this factor draws from in an episode."""
        own = zlib.crc32(" ".join((self.variation, self.name, *self.targets)).encode())
        return np.random.default_rng([self.seed, own, episode_seed])

    def colour(self, rng: np.random.Generator) -> np.ndarray:
        """RGB [3] from the range, or of a named colour."""
        if self.color_range is not None:
            return uniform(rng, self.color_range)
        return np.array(list(NAMED_COLOURS.values())[rng.integers(len(NAMED_COLOURS))])


def uniform(rng: np.random.Generator, bounds: Range) -> np.ndarray:
    """[3] between two corners."""
    return rng.uniform(np.asarray(bounds[0]), np.asarray(bounds[1]))


def read_factors(node: Any, quality: str = "") -> Tuple[Factor, ...]:
    """The factors that are switched on. Raises EnvError for what is unknown, malformed, or not for this quality."""
    if node is None or (isinstance(node, (str, list, tuple, dict)) and not node):
        return ()
    if quality == "soft":
        raise EnvError("render_quality: soft draws scenes as they were compiled; perturb needs exact, fast or lite")
    if isinstance(node, str):
        if node in SHORT:
            return (_factor({"variation": SHORT[node]}, SEED, node),)
        if not node.endswith((".yaml", ".yml")):
            raise EnvError(f"perturb '{node}' is unknown; {_nearest(node, list(SHORT))}, or the path of a YAML file")
        node = _read_yaml(Path(node))
    seed: Any = SEED
    if isinstance(node, Mapping):
        scene: Any = node.get("env", node)
        seed = scene.get("seed", SEED)
        node = scene.get("scene", scene).get("factors")
    if not isinstance(node, (list, tuple)) or not all(isinstance(entry, Mapping) for entry in node):
        raise EnvError(f"perturb holds {node!r:.80}; expected a list of factors, as in Colosseum's `env.scene.factors`")
    found = [_factor(entry, seed, f"factor {i}") for i, entry in enumerate(node) if entry.get("enabled", True)]
    return tuple(found)


def recorded(factors: Sequence[Factor]) -> str:
    """The factors as text, for the specification of an environment and the records of a run; "" for none."""
    return (
        json.dumps([{k: v for k, v in asdict(f).items() if v not in ("", None, 0, ())} for f in factors])
        if factors
        else ""
    )


def _read_yaml(path: Path) -> Any:
    try:
        import yaml

        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except ImportError as e:
        raise EnvError(f"reading {path} needs the package pyyaml in this interpreter; give the factors inline") from e
    except (OSError, ValueError) as e:
        raise EnvError(f"perturb file {path} cannot be read ({e}); expected one of Colosseum's YAML files") from e
    except yaml.YAMLError as e:
        raise EnvError(f"perturb file {path} is no YAML ({e}); expected one of Colosseum's files") from e


def _factor(entry: Mapping[str, Any], seed: Any, where: str) -> Factor:
    variation = str(entry.get("variation", ""))
    if variation in OTHERS:
        raise EnvError(
            f"perturb {where}: '{variation}' is not supported; it changes more than colours, lights and views"
        )
    if variation not in DEFAULTS:
        raise EnvError(f"perturb {where}: there is no variation '{variation}'; {_nearest(variation, list(DEFAULTS))}")
    known = [f.name for f in fields(Factor)]
    values = {**DEFAULTS[variation], **{k: v for k, v in entry.items() if k != "enabled"}}
    for key in values:
        if key not in known:
            raise EnvError(f"perturb {where} ({variation}): unknown key '{key}'; {_nearest(str(key), known)}")
    for key in ("color_range", "position_range", "euler_range"):
        if values.get(key) is not None:
            values[key] = _range(values[key], f"perturb {where} ({variation}): {key}")
    own = values.get("seed", seed)
    own = seed if isinstance(own, str) and own.startswith("${") else own  # Colosseum writes ${env.seed}
    if not isinstance(own, int):
        raise EnvError(f"perturb {where} ({variation}): seed is {own!r}; expected a whole number")
    targets = values.get("targets") or ()
    if isinstance(targets, str) or not all(isinstance(t, str) for t in targets):
        raise EnvError(f"perturb {where} ({variation}): targets are {targets!r}; expected a list of names")
    count = values.get("num_objects", 0)
    if not isinstance(count, int) or not 0 <= count <= 20:
        raise EnvError(f"perturb {where} ({variation}): num_objects is {count!r}; expected 0 to 20")
    return Factor(**{**values, "seed": own, "targets": tuple(targets), "name": str(values.get("name", ""))})


def _range(value: Any, where: str) -> Range:
    try:
        low, high = (tuple(float(v) for v in corner) for corner in value)
    except (TypeError, ValueError) as e:
        raise EnvError(f"{where} is {value!r}; expected [[a, b, c], [d, e, f]]") from e
    if len(low) != 3 or len(high) != 3 or not np.isfinite(low + high).all() or any(a > b for a, b in zip(low, high)):
        raise EnvError(f"{where} is {value!r}; expected two corners of three numbers, the first not above the second")
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def _nearest(name: str, known: List[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(known)}"


# --- pictures to put on walls and tables ------------------------------------------------------------------------------


def draw_texture(rng: np.random.Generator, size: Tuple[int, int], folder: str = "") -> np.ndarray:
    """uint8 [Y, X, 3]: a picture of the folder, else a pattern of two to four colours that no scene has."""
    if folder:
        return _picture(rng, size, Path(folder))
    coarse = -(-size[1] // FINE)  # px of a large texture that share a value
    y, x = (-(-n // coarse) for n in size)
    colours = rng.integers(0, 256, (int(rng.integers(2, 5)), 3))
    v, u = np.mgrid[0:y, 0:x].astype(np.float64)
    u, v = u / x, v / y
    kind, turn, bars = rng.integers(4), rng.uniform(0, np.pi), rng.uniform(4, 16)
    along, across = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
    if kind == 0:  # stripes
        value = along * bars
    elif kind == 1:  # checks
        value = np.floor(along * bars) + np.floor(across * bars)
    elif kind == 2:  # rings
        value = np.hypot(u - rng.uniform(), v - rng.uniform()) * bars
    else:  # waves, as in wood
        value = (along + 0.08 * np.sin(across * 2 * np.pi * rng.uniform(1, 4))) * bars
    picked = colours[np.floor(value).astype(np.int64) % len(colours)]
    small = np.clip(picked + rng.normal(0, 6, (y, x, 1)), 0, 255).astype(np.uint8)
    return np.repeat(np.repeat(small, coarse, 0), coarse, 1)[: size[0], : size[1]]


def _picture(rng: np.random.Generator, size: Tuple[int, int], folder: Path) -> np.ndarray:
    files = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp"))
    if not files:
        raise EnvError(f"perturb: there is no picture in {folder}; expected .png or .jpg files, or leave textures out")
    path = files[int(rng.integers(len(files)))]
    try:
        from PIL import Image

        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((size[1], size[0])), dtype=np.uint8)
    except ImportError as e:
        raise EnvError(f"perturb: reading {path} needs the package pillow; leave textures out for made-up ones") from e
    except (OSError, ValueError) as e:
        raise EnvError(f"perturb: {path} is no readable picture ({e}); take it out of the folder") from e
