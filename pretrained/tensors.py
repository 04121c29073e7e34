"""Trees of tensors and plain values on disk, as safetensors and JSON: nothing that could run code when loaded."""

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """A JSON tree of `value`, its tensors moved to `tensors` under their paths."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.require(value, requirements=["C", "W"]))
    if isinstance(value, Tensor):
        while path in tensors:  # keys 3 and "3" of one dict
            path += "'"
        tensors[path] = value
        return {"$tensor": path}
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        items = [flatten(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, Mapping):
        pairs = [[k, flatten(v, f"{path}/{k}", tensors)] for k, v in value.items()]
        if all(isinstance(k, str) and not k.startswith("$") for k in value):
            return dict(pairs)
        if all(isinstance(k, (str, int)) for k in value):
            return {"$pairs": pairs}
    raise ValueError(
        f"{path} is a {type(value).__name__}; a checkpoint holds tensors, numbers, strings, lists and dicts"
    )


def unflatten(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `flatten` was given."""
    if isinstance(tree, list):
        return [unflatten(v, tensors) for v in tree]
    if not isinstance(tree, dict):
        return tree
    if "$tensor" in tree:
        return tensors[tree["$tensor"]]
    if "$tuple" in tree:
        return tuple(unflatten(v, tensors) for v in tree["$tuple"])
    if "$pairs" in tree:
        return {k: unflatten(v, tensors) for k, v in tree["$pairs"]}
    return {k: unflatten(v, tensors) for k, v in tree.items()}


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, and wait until they are on disk."""
    # Cloned, because the format refuses tensors that share memory (tied weights).
    try:
        save_file({k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}, path)
    except SafetensorError as e:
        number = errno.ENOSPC if shutil.disk_usage(path.parent).free < 2**20 else errno.EIO
        raise OSError(number, f"could not write tensors ({e})", str(path)) from e
    sync(path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors; ValueError if the file is not readable."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{path} is not a readable safetensors file ({e}); use another checkpoint") from e


def sync(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
