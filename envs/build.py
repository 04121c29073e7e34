"""Build the object that a configuration node names. Standard library only, Python 3.8 syntax."""

from __future__ import annotations

import importlib
from typing import Any, Mapping

ALLOWED = ("envs.", "pretrained.", "rl.")


def locate(target: str) -> Any:
    """Import `package.module.Name`. Raises ValueError outside our own packages or if there is no such thing."""
    if not target.startswith(ALLOWED):
        raise ValueError(f"_target_ '{target}' is not allowed; expected a name under {', '.join(ALLOWED)}")
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as e:
        if isinstance(e, ModuleNotFoundError) and e.name and not target.startswith(e.name):
            raise  # a dependency of that module is missing: a different problem
        raise ValueError(f"_target_ '{target}' does not exist ({e}); check its spelling") from e


def build(node: Mapping[str, Any], **extra: Any) -> Any:
    """Call the `_target_` of `node` with its other entries and `extra` as keyword arguments."""
    if "_target_" not in node:
        raise ValueError(f"expected a node with '_target_', got keys {sorted(node)}")
    kwargs = {k: v for k, v in node.items() if k != "_target_"}
    return locate(node["_target_"])(**kwargs, **extra)
