"""Messages between a policy server and a robot: msgpack maps whose arrays are NumPy's.

An array is a map of `__ndarray__` (true), `dtype` (NumPy's string, such as "|u1" or "<f4"), `shape` and `data` (its
bytes, row by row). Keys may be strings or bytes, so that clients of other packages which write it so are understood.
"""

import math
from typing import Any, cast

import msgpack
import numpy as np

MARK = "__ndarray__"
KINDS = "buif"  # booleans and numbers: nothing that could hold a Python object


def pack(message: Any) -> bytes:
    """A message of plain data and arrays as bytes."""
    return cast(bytes, msgpack.packb(message, default=_array_out, use_bin_type=True))


def unpack(data: bytes | str) -> Any:
    """The message in `data`. Raises ValueError, saying why, if there is none."""
    if isinstance(data, str):
        raise ValueError("expected a binary message of msgpack, got text")
    try:
        return msgpack.unpackb(data, object_hook=_array_in, strict_map_key=False, raw=False)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as e:
        raise ValueError(f"a message of {len(data)} bytes is no msgpack of data and arrays: {e}") from e


def _array_out(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in KINDS:
        plain = np.ascontiguousarray(value)
        return {MARK: True, "dtype": plain.dtype.str, "shape": list(plain.shape), "data": plain.tobytes()}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"cannot send a {type(value).__name__}")


def _array_in(value: dict[Any, Any]) -> Any:
    named = {k.decode(errors="replace") if isinstance(k, bytes) else k: v for k, v in value.items()}
    if not named.get(MARK):
        return named
    dtype, shape, data = (named.get(k) for k in ("dtype", "shape", "data"))
    text = dtype.decode(errors="replace") if isinstance(dtype, bytes) else dtype
    try:
        kind = np.dtype(str(text))
    except (TypeError, ValueError, SyntaxError) as e:  # NumPy parses some of them as Python
        raise ValueError(f"an array has dtype {text!r}, expected one of NumPy's, such as '|u1'") from e
    if kind.kind not in KINDS:
        raise ValueError(f"an array has dtype {text!r}, expected booleans or numbers")
    if not isinstance(shape, (list, tuple)) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array has shape {shape!r}, expected a list of sizes")
    size = math.prod(shape) * kind.itemsize
    if not isinstance(data, bytes) or len(data) != size:
        held = len(data) if isinstance(data, bytes) else type(data).__name__
        raise ValueError(f"an array of shape {list(shape)} and dtype {text!r} takes {size} bytes, its data has {held}")
    return np.frombuffer(data, dtype=kind).reshape(shape)
