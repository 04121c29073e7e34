"""The constructor signature is the schema: check a plain tree against the classes that its `_target_`s name."""

import difflib
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal

Origin = Callable[[str], str]  # dotted path of a key -> the file or override that set it
ALLOWED = ("envs.", "pretrained.", "rl.")


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of an error message: the nearest known name, or all of them."""
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f"did you mean '{close[0]}'?" if close else f"expected one of: {', '.join(known) or '(none)'}"


def parameters(target: str, path: str) -> dict[str, Any]:
    """Keyword names that `target` accepts -> type hint (`Any` where it cannot be resolved)."""
    made = locate(target, path)
    init = made.__init__ if inspect.isclass(made) else made
    try:
        hints = typing.get_type_hints(init)
    except (NameError, TypeError):  # names imported for type checking only
        hints = {}
    found = inspect.signature(made).parameters.values()
    return {p.name: hints.get(p.name, Any) for p in found if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}


def locate(target: str, path: str) -> Any:
    """Import the class named `target`. Raises ValueError if it is not one of ours, or if there is no such class."""
    where = f"{path}._target_ = '{target}'"
    if not target.startswith(ALLOWED):
        raise ValueError(f"{where} is not allowed; expected a class under {', '.join(ALLOWED)}")
    module, _, name = target.rpartition(".")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as e:
        if e.name and not target.startswith(e.name):
            raise ValueError(f"{where} needs the package '{e.name}', which is not installed; run 'make setup'") from e
        raise ValueError(f"{where}: there is no module '{e.name}'; check its spelling") from e
    if not hasattr(found, name):
        raise ValueError(f"{where}: module '{module}' has no '{name}'; {nearest(name, _classes(found))}")
    made = getattr(found, name)
    if not str(getattr(made, "__module__", "")).startswith(ALLOWED):  # a module of ours has only imported it
        raise ValueError(f"{where} is not a class of ours; {nearest(name, _classes(found))}")
    return made


def check(node: Any, *, origin: Origin, root: str, path: str = "") -> None:
    """Check every node with a `_target_` in the tree. Raises ValueError naming the first bad key."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            _check_keys(node, origin, root, path)
        for key, value in node.items():
            check(value, origin=origin, root=root, path=f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            check(value, origin=origin, root=root, path=f"{path}[{i}]")


def _check_keys(node: Mapping[Any, Any], origin: Origin, root: str, path: str) -> None:
    target = str(node["_target_"])
    known = parameters(target, path or root)
    for key, value in node.items():
        full = f"{path}.{key}" if path else str(key)
        if key == "_target_":
            continue
        if key not in known:
            hint = nearest(str(key), list(known))
            raise ValueError(f"unknown key '{full}' in {origin(full)}; {hint} ({target})")
        if value == "???":
            raise ValueError(f"'{full}' has no value; give one: {full}=... ({target})")
        if not fits(value, known[key]):
            got = f"{value!r} ({type(value).__name__})"
            raise ValueError(f"'{full}' is {got} in {origin(full)}; expected {_describe(known[key])} ({target})")


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value may be passed for a parameter of this type; True wherever we cannot tell."""
    if hint is Any or isinstance(hint, (str, typing.TypeVar)):
        return True
    kind = typing.get_origin(hint)
    if kind in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in typing.get_args(hint))
    if kind is Literal:
        return value in typing.get_args(hint)
    plain = kind or hint
    if not inspect.isclass(plain):
        return True
    if isinstance(value, Mapping):  # a node for `build`, or a plain mapping
        return plain not in (bool, int, float, str) and not _is_sequence(plain)
    if plain in (bool, str, types.NoneType):
        return type(value) is plain
    if plain is int:
        return type(value) is int
    if plain is float:
        return type(value) in (int, float)
    if issubclass(plain, PurePath):
        return isinstance(value, str)
    if isinstance(value, list):
        return _is_sequence(plain) and _items_fit(value, hint)
    return not (_is_sequence(plain) or _is_mapping(plain))


def _is_sequence(plain: type) -> bool:
    return issubclass(plain, Sequence) and plain is not str


def _is_mapping(plain: type) -> bool:
    return issubclass(plain, Mapping)


def _items_fit(value: list[Any], hint: Any) -> bool:
    arguments = [a for a in typing.get_args(hint) if a is not Ellipsis]
    if len(arguments) == 1:
        return all(fits(v, arguments[0]) for v in value)
    return not arguments or (len(arguments) == len(value) and all(map(fits, value, arguments)))


def _describe(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)) if inspect.isclass(hint) else str(hint).replace("typing.", "")


def _classes(module: types.ModuleType) -> list[str]:
    return [n for n, v in vars(module).items() if inspect.isclass(v) and v.__module__ == module.__name__]
