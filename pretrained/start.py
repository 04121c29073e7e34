"""The policy that imitation begins with: a new one, one that is trained on, or another task's with new normalisers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envs.build import build
from envs.types import EnvSpec
from pretrained import checkpoint


def first_policy(node: Mapping[str, Any], env: EnvSpec, start: Path | None, *, refit: bool) -> Any:
    """`start` is a checkpoint. With `refit` it may be of another environment: weights alone are taken from it, and the
    normalisers are still to be fitted. Raises ValueError if its weights do not fit."""
    if start is None:
        return build(node, env=env)
    if not refit:
        return checkpoint.load_policy(start, env=env, overrides=node)
    policy: Any = build(node, env=env)
    other: Any = checkpoint.load_policy(start)
    try:
        policy.load_state_dict(other.state_dict())
    except RuntimeError as e:
        raise ValueError(f"the weights of {start} do not fit this policy and environment: {e}") from e
    return policy
