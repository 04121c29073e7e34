"""Stages of imitation: some policies are trained in several, each of which trains another class."""

import inspect
from collections.abc import Mapping
from typing import Any

from envs.build import locate


def staged(node: Mapping[str, Any], stage: str) -> Mapping[str, Any]:
    """The node of what is trained in `stage`, with those settings of the policy's node that it takes.

    A policy names its stages in `stages`, stage -> target. Raises ValueError if it has no such stage."""
    if not stage:
        return node
    target = str(node.get("_target_"))
    stages = getattr(locate(target), "stages", {})
    if stage not in stages:
        raise ValueError(f"stage '{stage}': {target} has {', '.join(stages) or 'no stages'}; leave out what it has not")
    known = inspect.signature(locate(stages[stage])).parameters
    return {"_target_": stages[stage], **{k: v for k, v in node.items() if k in known}}
