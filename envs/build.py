"""Build the object that a configuration node names. Standard library only, Python 3.8 syntax."""

from __future__ import annotations

import importlib
from typing import Any, Iterator, Mapping

ALLOWED = ("envs.", "pretrained.", "rl.")


def locate(target: str) -> Any:
    """Import `package.module.Name`. Raises ValueError if there is no such thing, or if it is none of our own."""
    if not target.startswith(ALLOWED):
        raise ValueError(f"_target_ '{target}' is not allowed; expected a name under {', '.join(ALLOWED)}")
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as e:
        if isinstance(e, ModuleNotFoundError) and e.name and not target.startswith(e.name):
            raise  # a dependency of that module is missing: a different problem
        raise ValueError(f"_target_ '{target}' does not exist ({e}); check its spelling") from e
    if not ours(found):
        raise ValueError(f"_target_ '{target}' is not a class or function of ours; expected the name of one")
    return found


def ours(found: Any) -> bool:
    """Whether this is a class or function that our own packages define.

    What a module of ours has only imported is not: otherwise a file could call whatever some module happens to use.
    """
    return callable(found) and str(getattr(found, "__module__", "")).startswith(ALLOWED)


def targets(node: Any) -> Iterator[str]:
    """Every `_target_` in a tree of plain data."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from targets(value)


def build(node: Mapping[str, Any], **extra: Any) -> Any:
    """Call the `_target_` of `node` with its other entries and `extra` as keyword arguments."""
    if "_target_" not in node:
        raise ValueError(f"expected a node with '_target_', got keys {sorted(node)}")
    kwargs = {k: v for k, v in node.items() if k != "_target_"}
    return locate(node["_target_"])(**kwargs, **extra)
