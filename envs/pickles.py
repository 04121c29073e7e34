"""Pickles as data. Every name in a file maps to a stand-in of ours, so that reading it runs nothing of the file's.

Standard library and numpy only, Python 3.8 syntax.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO, Dict, Mapping, Sequence, Tuple

import numpy as np

DEEPEST = 64  # levels of lists in lists
_MODULES = ("numpy.core.", "numpy._core.")


class Made:
    """Stands for an object of a pickle: notes how it was to be made, makes nothing."""

    name = ""  # of the class that it stands for
    args: Tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *args: Any) -> None:  # not called for all of them
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(Made):
    """A numpy array: its state is (version, shape, dtype, by columns, bytes or list)."""


class _Scalar(Made):
    """A numpy number or text: (dtype, bytes)."""


class _Buffer(Made):
    """A numpy array of protocol 5: (bytes, dtype, shape, order)."""


class _Dtype(Made):
    """A numpy type: its arguments begin with a name like f8, the second entry of its state is the byte order."""


class _Object(Made):
    """An object of a class that the caller admits."""


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding '{encoding}'")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """What protocols below 3 have for the data of an empty array."""
    return b""


def _rebuilt(kind: Any, base: Any, state: Any) -> Any:
    """Objects of protocols 0 and 1."""
    if not (isinstance(kind, type) and issubclass(kind, _Object)):
        raise pickle.UnpicklingError(f"it rebuilds {kind}")
    return kind()


_STAND_INS: Dict[Tuple[str, str], Any] = {
    **{(module + "multiarray", "_reconstruct"): _Array for module in _MODULES},
    **{(module + "multiarray", "scalar"): _Scalar for module in _MODULES},
    **{(module + "numeric", "_frombuffer"): _Buffer for module in _MODULES},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
}


class _Reader(pickle.Unpickler):
    """Admits the names that arrays, numbers and texts need, and those of the caller."""

    def __init__(self, stream: BinaryIO, admitted: Sequence[str]) -> None:
        super().__init__(stream)
        self._known: Dict[Tuple[str, str], Any] = dict(_STAND_INS)
        for full in admitted:
            module, _, name = full.rpartition(".")
            self._known[module, name] = type(name, (_Object,), {"name": full})
        if admitted:
            self._known["copy_reg", "_reconstructor"] = self._known["copyreg", "_reconstructor"] = _rebuilt
            self._known["builtins", "object"] = self._known["__builtin__", "object"] = object

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Only what is known; everything else is refused by name."""
        if (module_name, global_name) not in self._known:
            raise pickle.UnpicklingError(f"it asks for '{module_name}.{global_name}'")
        return self._known[module_name, global_name]


class Record:
    """An object of an admitted class: its name and the fields that it had."""

    def __init__(self, name: str, fields: Mapping[str, Any]) -> None:
        self.name, self.fields = name, dict(fields)


def read_pickle(stream: BinaryIO, *, admitted: Sequence[str] = ()) -> Any:
    """The content of a pickle as plain data: numbers, texts, numpy arrays, lists, dicts, and `Record`s of `admitted`.

    Raises whatever a damaged or hostile stream makes the reader raise; nothing of the stream is run. Arrays of objects
    come as lists."""
    return _Plain()(_Reader(stream, admitted).load())


def read_pickle_file(path: Path, *, admitted: Sequence[str] = (), limit_mb: int = 1024) -> Any:
    """`read_pickle` of a file. Raises ValueError, with what is wrong, if it is none or would need to run code."""
    try:
        size = path.stat().st_size
        if size > limit_mb << 20:
            raise ValueError(f"it is larger than {limit_mb} MiB")
        with path.open("rb") as stream:
            return read_pickle(stream, admitted=admitted)
    except FileNotFoundError as e:
        raise ValueError(f"{path} is missing") from e
    except Exception as e:  # whatever a damaged or hostile file makes the reader raise
        raise ValueError(f"{path} cannot be read as data ({type(e).__name__}: {e}); nothing of it was run") from e


class _Plain:
    """Turns what was noted into data; what occurs twice is turned once."""

    def __init__(self) -> None:
        self._done: Dict[int, Any] = {}

    def __call__(self, node: Any, depth: int = 0) -> Any:
        if node is None or isinstance(node, (bool, int, float, str, bytes, bytearray)):
            return node
        if depth > DEEPEST:
            raise pickle.UnpicklingError(f"it is nested more than {DEEPEST} deep")
        if id(node) not in self._done:
            self._done[id(node)] = self._turned(node, depth + 1)
        return self._done[id(node)]

    def _turned(self, node: Any, depth: int) -> Any:
        if isinstance(node, dict):
            return {self(k, depth): self(v, depth) for k, v in node.items()}
        if isinstance(node, (list, tuple)):
            return type(node)(self(v, depth) for v in node)
        if isinstance(node, _Object):
            return Record(node.name, self(node.state or {}, depth))
        if isinstance(node, _Scalar):
            return np.frombuffer(node.args[1], _dtype(node.args[0]))[0].item()
        if isinstance(node, _Buffer):
            data, dtype, shape, order = node.args
            return np.frombuffer(data, _dtype(dtype)).reshape(shape, order=order).copy()
        if isinstance(node, _Array):
            _, shape, dtype, by_columns, data = node.state
            if isinstance(data, list):
                return self(data, depth)
            return np.frombuffer(data, _dtype(dtype)).reshape(shape, order="F" if by_columns else "C").copy()
        raise pickle.UnpicklingError(f"it holds a {type(node).__name__}")


def _dtype(made: Any) -> np.dtype:
    name, order = str(made.args[0]), str(made.state[1])
    if not re.fullmatch(r"[biufU]\d{1,5}", name) or order not in ("<", ">", "|", "="):
        raise pickle.UnpicklingError(f"numbers of type '{name}'")
    return np.dtype(order.replace("|", "=") + name)
