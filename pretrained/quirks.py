"""Presets of quirks: what an original does that one would not do again, as fields of a frozen dataclass per system.

Every system names its fields in a `Quirks` of its own and says here how they are checked and chosen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

Q = TypeVar("Q")


def check(quirks: Any, choices: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError unless every field in `choices` has one of its settings."""
    for name, allowed in choices.items():
        if getattr(quirks, name) not in allowed:
            raise ValueError(f"quirk {name} '{getattr(quirks, name)}' is unknown; expected {' or '.join(allowed)}")


def choose(fixed: Q, faithful: Q, preset: str, switches: Mapping[str, Any] | None) -> Q:
    """A preset with single fields changed. Raises ValueError naming what is unknown."""
    presets, changed = {"fixed": fixed, "faithful": faithful}, dict(switches or {})
    known = [f.name for f in fields(fixed)]  # type: ignore[arg-type]
    unknown = sorted(set(changed) - set(known))
    if preset not in presets:
        raise ValueError(f"quirks '{preset}' is unknown; expected fixed or faithful")
    if unknown:
        raise ValueError(f"switches {unknown} are unknown; expected some of {known}, which change single quirks")
    values = {name: changed.get(name, getattr(presets[preset], name)) for name in known}
    return type(fixed)(**values)
