"""Environments. `envs.make("toy/reach:red")` gives a gymnasium.Env, `envs.make_vector(id, n)` a VectorEnv.

Importing this package imports nothing more: adapters run in child processes whose Python may lack Gymnasium.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envs.gym_env import SimEnv, make, make_vector
    from envs.vector import SimVector

__all__ = ["SimEnv", "SimVector", "make", "make_vector"]

_HOME = {"SimEnv": "gym_env", "SimVector": "vector", "make": "gym_env", "make_vector": "gym_env"}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'envs' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module("envs." + _HOME[name]), name)
