"""A checkpoint is a folder; without a valid manifest it does not exist.

    policy.safetensors     weights (the EMA ones after imitation), normalisers included
    learner.safetensors    tensors of the optimiser and of the raw weights   } optional
    learner.json           everything else of the learner, as a tree         }
    card.json              how to build the policy again, and what it may be used with
    config.yaml            the configuration of the run that wrote it
    manifest.json          size and SHA-256 of every other file, written last

Plain tensors and JSON only: loading a stranger's checkpoint runs none of their code.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from envs.build import build, targets
from envs.types import EnvSpec
from pretrained.tensors import flatten, load_tensors, save_tensors, sync, unflatten
from pretrained.types import Policy, PolicySpec

FORMAT = 1
MANIFEST = "manifest.json"
# A stage may attach these to weights that were trained without them; anything else that is missing is an error.
NEW_HEADS = ("noise.", "critic.", "kernel.", "base.")
NEW_HEAD_WORDS = ("log_std", "actor.plan.")
# What a policy cannot survive a change of. Tasks, step limits and privileged state may differ.
BINDING = ("cameras", "proprio", "actions", "action_convention", "low", "high", "num_actions", "control_hz", "renderer")
# Sampling settings that an override may change without touching the weights' meaning.
LOOSE = {"links", "frozen_links", "execute", "memoryless"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Card:
    """What card.json says."""

    node: dict[str, Any]  # `_target_` and keyword arguments of the policy
    env: EnvSpec
    policy: PolicySpec
    metrics: dict[str, Any] = field(default_factory=dict)
    parent: str = ""  # the checkpoint this one was trained from
    revision: str = ""  # of the source tree
    created: str = ""
    normalizers: dict[str, Any] = field(default_factory=dict)  # a readable copy; the weights file is what counts
    format: int = FORMAT


@dataclass(frozen=True)
class LoadReport:
    """Which weights did not come from, or did not fit into, the checkpoint. Empty unless overrides were given."""

    fresh: tuple[str, ...] = ()  # left at their initialisation
    dropped: tuple[str, ...] = ()  # in the file, not in the policy


def save(
    folder: Path | str,
    policy: Policy,
    *,
    node: Mapping[str, Any],
    env: EnvSpec,
    metrics: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    parent: str = "",
    learner: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint. `folder` appears complete or not at all; an old one stays until the new one is on disk."""
    folder = Path(folder).absolute()
    new, old = _sibling(folder, "new"), _sibling(folder, "old")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if old.exists() and not folder.exists():  # a previous `save` was killed between its two renames
        os.replace(old, folder)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir()
    try:
        _fill(new, policy, node=node, env=env, metrics=metrics, config=config, parent=parent, learner=learner)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)  # a full disk must not stay full of what is of no use
        raise
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _fill(
    folder: Path,
    policy: Policy,
    *,
    node: Mapping[str, Any],
    env: EnvSpec,
    metrics: Mapping[str, Any] | None,
    config: Mapping[str, Any] | None,
    parent: str,
    learner: Mapping[str, Any] | None,
) -> None:
    module: Any = policy
    save_tensors(folder / "policy.safetensors", module.state_dict())
    if learner is not None:
        tensors: dict[str, Tensor] = {}
        tree = flatten(learner, "learner", tensors)
        save_tensors(folder / "learner.safetensors", tensors)
        _write(folder / "learner.json", json.dumps(tree))
    card = {
        "format": FORMAT,
        "node": dict(node),
        "env": env.to_json(),
        "policy": policy.spec.to_json(),
        "metrics": dict(metrics or {}),
        "parent": str(parent),
        "revision": revision(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "normalizers": _normalizers(module),
    }
    _write(folder / "card.json", _dumps(card, "card.json"))
    _write(folder / "config.yaml", yaml.safe_dump(json.loads(_dumps(dict(config or {}), "config")), sort_keys=False))
    _write_manifest(folder)
    sync(folder)


def load_policy(
    folder: Path | str,
    *,
    env: EnvSpec | None = None,
    overrides: Mapping[str, Any] | None = None,
    spare_cameras: bool = False,
) -> Policy:
    """Build the policy of a checkpoint and load its weights; `policy.load_report` says what did not match.

    `env` is checked against what the policy was trained with (see `check_env`). `overrides` are merged into the
    keyword arguments: with them, new noise, critic and log-std weights keep their initialisation and surplus weights
    are dropped.
    """
    folder = _existing(Path(folder))
    verify(folder)
    card = read_card(folder)
    if env is not None:
        check_env(card.env, env, folder, spare_cameras=spare_cameras)
    if wrong := [t for t in targets(card.node) if not t.startswith("pretrained.")]:
        raise ValueError(
            f"{folder}: _target_ '{wrong[0]}' is not allowed in a checkpoint; only models of pretrained. are"
        )
    policy = build(merge(card.node, overrides or {}), env=card.env)
    _check_spec(card.policy, policy.spec, folder, loose=bool(overrides))
    weights = load_tensors(folder / "policy.safetensors")
    policy.load_report = _load_weights(policy, weights, folder, tolerant=bool(overrides))
    return policy


def load_learner(folder: Path | str) -> dict[str, Any] | None:
    """The `learner` that was given to `save`, or None if there was none."""
    folder = _existing(Path(folder))
    if not (folder / "learner.json").exists():
        return None
    verify(folder)
    tensors = load_tensors(folder / "learner.safetensors")
    try:
        return unflatten(json.loads((folder / "learner.json").read_text()), tensors)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(
            f"{folder}/learner.json cannot be read ({type(e).__name__}: {e}); use another checkpoint"
        ) from e


def read_card(folder: Path | str) -> Card:
    """Parse card.json. Raises ValueError if it is of a newer format."""
    folder = _existing(Path(folder))
    try:
        data = json.loads((folder / "card.json").read_text())
    except (OSError, ValueError, RecursionError) as e:
        raise ValueError(f"{folder}/card.json cannot be read ({e}); use another checkpoint") from e
    if data.get("format", 0) > FORMAT:
        raise ValueError(
            f"{folder} has checkpoint format {data['format']}, this version reads up to {FORMAT}; update the code"
        )
    try:
        data["env"], data["policy"] = EnvSpec.from_json(data["env"]), PolicySpec.from_json(data["policy"])
        return Card(**{k: v for k, v in data.items() if k in Card.__dataclass_fields__})
    except (LookupError, TypeError, AttributeError) as e:
        raise ValueError(f"{folder}/card.json lacks an entry or has a strange one ({e}); use another checkpoint") from e


def newest(run_dir: Path | str, *, content: bool = False) -> Path | None:
    """The valid `step_*` folder with the largest number, or None; with `content`, checksums are compared, too."""
    for folder in reversed(steps(run_dir)):
        if valid(folder, content=content):
            return folder
        log.warning("%s has no valid manifest; skipped", folder)
    return None


def steps(run_dir: Path | str) -> list[Path]:
    """All `step_*` folders, valid or not, in the order of their numbers."""
    found = [p for p in Path(run_dir).glob("step_*") if p.is_dir() and p.name[5:].isdigit()]
    return sorted(found, key=lambda p: int(p.name[5:]))


def find(path: Path | str) -> Path:
    """The checkpoint that `path` means: itself, or the newest one of a run folder."""
    path = Path(path)
    if valid(path):
        return path
    for run_dir in (path, path / "checkpoints"):
        found = newest(run_dir)
        if found:
            return found
    inside = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    raise ValueError(
        f"no checkpoint at {path}: expected a folder with a valid {MANIFEST}, or with step_* folders inside; "
        + (f"it holds {inside[:12]}" if inside else "there is no such folder")
    )


def choose(path: Path | str, which: str) -> list[Path]:
    """Checkpoints of a run folder, newest first: `latest` or `last` is the newest one, `last_three` the three newest,
    a number that step's. Raises ValueError naming what there is."""
    if which in ("latest", "last"):
        return [find(path)]
    if which != "last_three" and not which.isdigit():
        raise ValueError(f"eval_type is '{which}'; expected latest, last, last_three or the number of a step")
    inside = [p for run_dir in (Path(path), Path(path) / "checkpoints") for p in steps(run_dir) if valid(p)]
    there = [int(p.name[5:]) for p in inside]
    if which != "last_three":
        if int(which) not in there:
            raise ValueError(f"eval_type={which}: {path} has no checkpoint of that step, it has {there}")
        return [inside[there.index(int(which))]]
    if len(inside) < 3:
        raise ValueError(f"eval_type=last_three: {path} has the checkpoints {there}; train with keep=3 or more")
    return inside[:-4:-1]


def valid(folder: Path | str, *, content: bool = False) -> bool:
    """Whether the manifest is there and all files have the size it says; with `content`, and the checksum."""
    try:
        verify(Path(folder), content=content)
    except ValueError:
        return False
    return True


def verify(folder: Path, *, content: bool = True) -> None:
    """Raise ValueError if the manifest is missing or a file differs from it."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        items = [(str(name), int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(
            f"{folder} is not a checkpoint: it has no valid {MANIFEST} ({type(e).__name__}); "
            "it was probably cut short while being written: use another one"
        ) from e
    for name, size, digest in items:
        file = folder / name
        actual = file.stat().st_size if file.is_file() else -1
        if actual != size:
            what = "is missing" if actual < 0 else f"has {actual} bytes"
            raise ValueError(f"{file} {what}, its manifest says {size}; copy the checkpoint again, or use another one")
        if content and _sha256(file) != digest:
            raise ValueError(f"{file} differs from its manifest's SHA-256; copy the checkpoint again, or use another")


def check_env(
    trained: EnvSpec, env: EnvSpec, folder: Path | str = "the checkpoint", *, spare_cameras: bool = False
) -> None:
    """Raise ValueError naming the first field in which an environment differs from the one trained with.

    `spare_cameras` allows more cameras than those, between or behind them: rewards and proposals may look through them,
    policies take theirs by name."""
    for name in BINDING:
        theirs, ours = _plain(getattr(trained, name)), _plain(getattr(env, name))
        known = [c for c in ours if c[0] in trained.cameras] if name == "cameras" and spare_cameras else ours
        if theirs != known:
            raise ValueError(
                f"{folder} was trained with {name} = {theirs}, but environment '{env.env_id}' has {name} = {ours}; "
                f"configure the environment as in training ('{trained.env_id}', see card.json) or train a new policy"
            )


def merge(node: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`node` with `overrides`; dicts merge key by key, unless the override names another `_target_`."""
    out = dict(node)
    for key, value in overrides.items():
        present = out.get(key)
        out[key] = value
        if isinstance(value, Mapping) and isinstance(present, Mapping):
            target = present.get("_target_")
            out[key] = merge(present, value) if value.get("_target_", target) == target else value
    return out


def revision() -> str:
    """The git revision of the source tree, "" outside of one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _check_spec(card: PolicySpec, built: PolicySpec, folder: Path, *, loose: bool) -> None:
    theirs, ours = card.to_json(), built.to_json()
    for name in theirs:
        if loose and name in LOOSE:
            continue
        if _plain(theirs[name]) != _plain(ours[name]):
            raise ValueError(
                f"{folder}: the card says {name} = {theirs[name]}, the policy built from it has {name} = {ours[name]}; "
                "the code or the overrides changed it: use the revision named in card.json, or drop the override"
            )


def _load_weights(policy: Any, weights: dict[str, Tensor], folder: Path, *, tolerant: bool) -> LoadReport:
    own = policy.state_dict()
    unfit = [k for k in own if k in weights and own[k].shape != weights[k].shape]
    missing = [k for k in own if k not in weights]
    surplus = [k for k in weights if k not in own]
    fresh = [k for k in missing + unfit if tolerant and _is_new_head(k)]
    wrong = [f"{k}: the file has {list(weights[k].shape)}, the policy {list(own[k].shape)}" for k in unfit]
    problems = [w for w, k in zip(wrong, unfit, strict=True) if k not in fresh]
    problems += [f"{k}: missing in the file" for k in missing if k not in fresh]
    problems += [f"{k}: surplus in the file" for k in surplus if not tolerant]
    if problems:
        listed = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(
            f"{folder}/policy.safetensors does not fit the policy: {listed}. "
            "Load it with the code and configuration that wrote it (see card.json)."
        )
    policy.load_state_dict({k: v for k, v in weights.items() if k in own and k not in fresh}, strict=False)
    report = LoadReport(tuple(fresh), tuple(surplus))
    if fresh or surplus:
        log.info(
            "%s: %d weights are fresh %s, %d were dropped %s", folder, len(fresh), fresh[:8], len(surplus), surplus[:8]
        )
    return report


def _is_new_head(key: str) -> bool:
    return key.startswith(NEW_HEADS) or any(word in key for word in NEW_HEAD_WORDS)


def _normalizers(module: Any) -> dict[str, Any]:
    """Small buffers that look like normalisers, for the reader of the card."""
    names = ("actions.", "proprio.", "normalizer")
    found = {k: v for k, v in module.named_buffers() if k.startswith(names) and v.numel() <= 64}
    return {k: v.tolist() for k, v in found.items()}


def _plain(value: Any) -> Any:
    """As lists, so that order counts and JSON's tuples compare equal."""
    if isinstance(value, Mapping):
        return [[k, _plain(v)] for k, v in value.items()]
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _existing(folder: Path) -> Path:
    """`folder`, or the copy that a save killed between its two renames left beside it."""
    old = _sibling(folder.absolute(), "old")
    return old if not folder.exists() and valid(old) else folder


def _sibling(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}")


def _write_manifest(folder: Path) -> None:
    files = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(folder.iterdir())}
    _write(folder / MANIFEST, json.dumps({"format": FORMAT, "files": files}, indent=1))


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    sync(path)


def _dumps(data: Any, what: str) -> str:
    try:
        return json.dumps(data, indent=1)
    except TypeError as e:
        raise ValueError(f"{what} must be plain data (numbers, strings, lists, dicts): {e}") from e


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
