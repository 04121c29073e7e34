"""Compose a verb's configuration and check it: `load("finetune", ["env=toy", "algo.lr=1e-4"])` gives a plain dict.

Hydra's compose API picks one file per group (`env=toy`); values (`algo.lr=1e-4`) are put on top here. The signature
of the class that a node's `_target_` names is the node's schema. A recipe (`run=...`) may hold one section per verb;
the section of the verb asked for is merged into the root, so one recipe serves `collect`, `pretrain` and the others.
This is the only file that knows Hydra and OmegaConf.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from configs.schema import Origin, check, nearest, parameters

CONFIGS = Path(__file__).parent
DEMO = "demo"  # the main job, a verb and a recipe
STAGES = ("collect", "pretrain", "evaluate", "finetune")  # what `demo` runs; a recipe may have a section for each
CLUSTER = "cluster"  # group, and the key of what describes a cluster; no verb takes it
ALIASES = {"reward": "rewards"}  # group -> key of the tree, where they differ


class Source(NamedTuple):
    """Where a value may have come from: a label for error messages and the values it set."""

    label: str
    values: DictConfig


def verbs(config_dir: Path | None = None) -> list[str]:
    """The verbs that have a root file."""
    return sorted(p.stem for p in (config_dir or CONFIGS).glob("*.yaml") if p.stem != "groups")


def choices(group: str, config_dir: Path | None = None) -> list[str]:
    """The files of a group, by the names used on the command line."""
    return sorted(p.stem for p in ((config_dir or CONFIGS) / group).glob("*.yaml"))


def load(verb: str, overrides: Sequence[str] = (), config_dir: Path | None = None) -> dict[str, Any]:
    """The resolved tree of `verb` as plain dicts. Raises ValueError naming the key, where it stands and the fix."""
    with _clearly(verb, overrides):
        return _load(verb, overrides, (config_dir or CONFIGS).resolve())


@contextlib.contextmanager
def _clearly(verb: str, overrides: Sequence[str]) -> Iterator[None]:
    """Whatever libraries say of files and words that make no sense, in one line, as the mistake that it is."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError, RecursionError) as e:
        said = " ".join([verb, *overrides])
        raise ValueError(f"{said}: {' '.join(str(e).split())}; expected YAML files and key=value") from e


def _load(verb: str, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    if verb not in verbs(folder):
        raise ValueError(f"unknown verb '{verb}'; {nearest(verb, verbs(folder))}")
    groups = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(("_", ".")))
    picks, values = _split(overrides, groups, folder)
    values = [v for v in values if v.key_or_group.split(".")[0] != CLUSTER]  # see `place`
    stages: dict[str, Any] = {}
    if verb == DEMO:
        stages = {stage: load(stage, _for_stage(stage, picks, values, folder), folder) for stage in STAGES}
        shared = {*groups, *ALIASES.values(), *STAGES}
        values = [v for v in values if v.key_or_group.split(".")[0] not in shared]
    tree, sources = _compose(verb, picks, folder)
    sources.extend(_apply(tree, values))
    plain = OmegaConf.to_container(tree, resolve=True)
    assert isinstance(plain, dict)
    # All verbs share one list of groups, so that a recipe fits them all; drop those that this one does not take.
    spoken = {v.key_or_group.split(".")[0] for v in values}
    surplus = {*groups, *ALIASES.values()} - set(parameters(str(plain.get("_target_", "")), verb)) - spoken
    root = {str(k): v for k, v in plain.items() if k not in surplus}
    check(root, origin=_origin(sources), root=verb)
    return {**root, **stages}


def place(verb: str, overrides: Sequence[str], config_dir: Path | None = None) -> dict[str, Any]:
    """The node of the cluster that a run goes to; {} if it stays here. Raises ValueError like `load`."""
    with _clearly(verb, overrides):
        return _place(verb, overrides, (config_dir or CONFIGS).resolve())


def _place(verb: str, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    groups = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(("_", ".")))
    picks, values = _split(overrides, groups, folder)
    tree, sources = _compose(verb, picks, folder)
    values = [v for v in values if v.key_or_group.split(".")[0] == CLUSTER]
    if CLUSTER not in tree:
        if values:
            raise ValueError(
                f"'{values[0].input_line}': this cluster= runs here and has no such key; choose another one"
            )
        return {}
    sources.extend(_apply(tree, values))
    node = OmegaConf.to_container(tree[CLUSTER], resolve=True)
    assert isinstance(node, dict)
    check({CLUSTER: node}, origin=_origin(sources), root=verb)
    return {str(k): v for k, v in node.items()}


def dump(tree: dict[str, Any]) -> str:
    """The tree as YAML, for `--dry` and for the `config.yaml` of a run."""
    return OmegaConf.to_yaml(OmegaConf.create(tree))


def _split(overrides: Sequence[str], groups: list[str], folder: Path) -> tuple[list[str], list[Override]]:
    """Separate `group=choice` from `key=value`, and refuse what is neither."""
    picks, values = [], []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as e:
            raise ValueError(f"cannot read '{text}': {str(e).splitlines()[0]}; expected key=value") from e
        if override.is_sweep_override():
            raise ValueError(f"'{text}' lists several values; expected one (put a list into brackets: key=[a,b])")
        key, value = override.key_or_group, override.value()
        if key in groups and (value is None or isinstance(value, str)):
            known = choices(key, folder)
            if value is not None and value not in known:
                raise ValueError(f"{key}={value}: there is no configs/{key}/{value}.yaml; {nearest(value, known)}")
            picks.append(text)
        else:
            values.append(override)
    return picks, values


def _compose(verb: str, picks: list[str], folder: Path) -> tuple[DictConfig, list[Source]]:
    """Let Hydra choose files and merge the recipe's section; return the tree and, in order, what set its values."""
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(folder)):
            tree = compose(config_name=verb, overrides=picks, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as e:
        raise ValueError(f"{verb} {' '.join(picks)}: {' '.join(str(e).split())}") from e
    OmegaConf.set_struct(tree, False)
    chosen = {str(k): v for k, v in tree.hydra.runtime.choices.items() if v and not str(k).startswith("hydra/")}
    del tree["hydra"]
    # `run` is last in groups.yaml, and a recipe's section goes over everything, so it is also the last source.
    files = [(verb, None), *((f"{group}/{name}", group) for group, name in chosen.items())]
    sources = [_source(folder, name, group, verb) for name, group in files]
    section = tree.get(verb) or {}
    for name in verbs(folder):
        tree.pop(name, None)
    tree = OmegaConf.merge(tree, section)
    assert isinstance(tree, DictConfig)
    return tree, sources


def _source(folder: Path, name: str, group: str | None, verb: str) -> Source:
    """Read one chosen file again, put where its `@package` header puts it."""
    path = folder / f"{name}.yaml"
    lines = path.read_text().splitlines()
    package = lines[0].removeprefix("# @package").strip() if lines[:1] and lines[0].startswith("# @package") else group
    values = OmegaConf.load(path)
    assert isinstance(values, DictConfig)
    values.pop("defaults", None)
    if package and package != "_global_":
        values = OmegaConf.create({package: values})
    return Source(f"configs/{name}.yaml", OmegaConf.merge(values, values.get(verb) or {}))  # type: ignore[arg-type]


def _apply(tree: DictConfig, values: list[Override]) -> list[Source]:
    """Put command-line values into the tree; return them as sources."""
    sources = []
    for override in values:
        try:
            if override.is_delete():
                keys = override.key_or_group.split(".")
                parent = OmegaConf.select(tree, ".".join(keys[:-1])) if keys[1:] else tree
                if not isinstance(parent, DictConfig) or keys[-1] not in parent:
                    raise ValueError(f"'{override.input_line}': there is no such key to remove")
                del parent[keys[-1]]
                continue
            for target in (tree, own := OmegaConf.create({})):
                OmegaConf.update(target, override.key_or_group, override.value(), force_add=True)
        except OmegaConfBaseException as e:
            raise ValueError(f"'{override.input_line}': {str(e).splitlines()[0]}") from e
        sources.append(Source(f"'{override.input_line}'", own))
    return sources


def _origin(sources: list[Source]) -> Origin:
    def origin(path: str) -> str:
        missing = object()
        for source in reversed(sources):
            if OmegaConf.select(source.values, path, default=missing, throw_on_missing=False) is not missing:
                return source.label
        return "the composed configuration"

    return origin


def _for_stage(stage: str, picks: list[str], values: list[Override], folder: Path) -> list[str]:
    """The part of the demo's command line that concerns one stage: all groups, shared nodes, and its own section."""
    if not any(p.startswith("run=") for p in picks):
        picks = [*picks, f"run={DEMO}"]
    taken = parameters(str(OmegaConf.select(OmegaConf.load(folder / f"{stage}.yaml"), "_target_")), stage)
    out = list(picks)
    for value in values:
        head = value.key_or_group.split(".")[0]
        text = str(value.input_line)
        if head == stage:
            out.append(text.replace(f"{stage}.", "", 1))
        elif "." in value.key_or_group and head in taken and head not in STAGES:
            out.append(text)
    return out
