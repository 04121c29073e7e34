"""What a sweep measures: cells of one checkpoint, perturbation, task and run of seeds, each with a name of its content.

A perturbation is a list of overrides of the environment, `key=value` with the value as JSON: `sim.max_steps=50`.
"""

import glob
import hashlib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from envs.build import locate
from envs.types import EnvConfig
from pretrained.checkpoint import MANIFEST, find, verify

# Of EnvConfig; no part in the outcome.
PLACES = ("python", "tasks", "step_deadline_s", "open_deadline_s", "video", "tables")
VERSION = 1  # of the evaluation loop; a change that moves outcomes raises it


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint under the name by which tables call it."""

    name: str
    path: str
    digest: str  # of policy and card


@dataclass(frozen=True)
class Cell:
    """The unit of work. `env` has the perturbation in it."""

    checkpoint: Checkpoint
    perturbation: str
    env: EnvConfig
    task: str
    seed_start: int
    episodes: int
    split: str = "test"  # or validation
    options: Mapping[str, Any] | None = None  # of the evaluation: greedy, policy_overrides, proposal

    @property
    def content(self) -> dict[str, Any]:
        """Everything that determines the outcome; names and paths do not."""
        return {
            "version": VERSION,
            "checkpoint": self.checkpoint.digest,
            "env": {k: v for k, v in asdict(self.env).items() if k not in PLACES},
            "task": self.task,
            "seeds": [self.seed_start, self.episodes],
            "options": dict(self.options or {}),
        }

    @property
    def key(self) -> str:
        text = json.dumps(self.content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def checkpoints(paths: Sequence[str]) -> list[Checkpoint]:
    """Find and read checkpoints; a path with `*` stands for all that match, in order of their numbers or names."""
    found: list[Path] = []
    for path in paths:
        matches = sorted(glob.glob(path), key=_natural) if glob.has_magic(path) else [path]
        if not matches:
            raise ValueError(f"checkpoints: nothing matches {path}")
        found += [find(match) for match in matches]
    if len(set(found)) != len(found):
        twice = sorted({str(p) for p in found if found.count(p) > 1})
        raise ValueError(f"checkpoints: {twice[0]} is named twice")
    return [Checkpoint(n, str(p.resolve()), digest(p)) for n, p in zip(_names(found), found, strict=True)]


def digest(checkpoint: Path) -> str:
    """SHA-256 of the content that acts: the weights and the card. The files are verified first."""
    verify(checkpoint)
    listed = json.loads((checkpoint / MANIFEST).read_text())["files"]
    return hashlib.sha256(
        "".join(listed[n]["sha256"] for n in ("policy.safetensors", "card.json")).encode()
    ).hexdigest()


def perturbed(config: EnvConfig, overrides: Sequence[str], *, name: str) -> EnvConfig:
    """The environment with a perturbation. Raises ValueError naming a key that is not there."""
    known = {f.name for f in fields(EnvConfig)}
    for override in overrides:
        key, mark, text = str(override).partition("=")
        path = key.strip().removeprefix("env.").split(".")
        if not mark or path[0] not in known or path[0] in PLACES:
            wanted = ", ".join(sorted(known - set(PLACES)))
            raise ValueError(f"perturbation '{name}': '{override}' is not KEY=VALUE with KEY under {wanted}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text  # a word
        config = replace(config, **{path[0]: _put(getattr(config, path[0]), path[1:], value)})
    _check_sim(config, name)
    return config


def plan(
    chosen: Sequence[Checkpoint],
    envs: Mapping[str, EnvConfig],
    tasks: Sequence[str],
    seeds: tuple[int, int],
    *,
    block: int,
    split: str,
    options: Mapping[str, Any],
) -> list[Cell]:
    """All cells; in rounds of `block` seeds each, so that every round compares like with like."""
    start, count = seeds
    size = block or count
    return [
        Cell(checkpoint, name, env, task, first, min(size, start + count - first), split, options)
        for first in range(start, start + count, size)
        for checkpoint in chosen
        for name, env in envs.items()
        for task in tasks
    ]


def _put(old: Any, path: Sequence[str], value: Any) -> Any:
    if not path:
        return value
    inner = dict(old) if isinstance(old, Mapping) else {}
    return {**inner, path[0]: _put(inner.get(path[0]), path[1:], value)}


def _check_sim(config: EnvConfig, name: str) -> None:
    """Simulators refuse unknown settings, too, but only in their own process and after minutes."""
    known = inspect.signature(locate(str(config.sim["_target_"]))).parameters
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    for key in config.sim:
        if key != "_target_" and key not in known:
            raise ValueError(f"perturbation '{name}': {config.sim['_target_']} has no '{key}'; it has {sorted(known)}")


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [p.resolve().parts for p in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(p) for p in paths]


def _natural(path: str) -> list[tuple[int, str]]:
    """step_9 before step_10."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", path)]
