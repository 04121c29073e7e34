"""Where the controller may do as the original does."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

CHOICES = {
    "gripper": ("probability", "logit"),
    "padding": ("masked", "counted"),
    "first_state": ("normalized", "raw"),
    "augmentation": ("each", "batch"),
}


@dataclass(frozen=True)
class Quirks:
    """What the original does that one would not do again. Both settings of each:"""

    # "probability": the gripper opens where its probability is above a half. "logit": where the logit is, so that an
    # opening of 50 to 62 % is taken for closing.
    gripper: str = "probability"
    # "masked": the loss is the mean over the demonstrated steps. "counted": padding adds 0, but counts.
    padding: str = "masked"
    # "normalized": the state always is. "raw": not at the first decision of an episode.
    first_state: str = "normalized"
    # "each": pictures of a batch are disturbed independently. "batch": all in the same way, all views too.
    augmentation: str = "each"

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"quirk {name} '{getattr(self, name)}' is unknown; expected {' or '.join(allowed)}")


FIXED = Quirks()
FAITHFUL = Quirks(**{name: allowed[1] for name, allowed in CHOICES.items()})


def choose(preset: str, switches: Mapping[str, Any]) -> Quirks:
    """A preset with single fields changed. Raises ValueError naming what is unknown."""
    presets = {"fixed": FIXED, "faithful": FAITHFUL}
    known = [f.name for f in fields(Quirks)]
    unknown = sorted(set(switches) - set(known))
    if preset not in presets or unknown:
        what = (
            f"switches {unknown} are unknown; expected some of {known}" if unknown else f"quirks '{preset}' is unknown"
        )
        raise ValueError(f"{what}; quirks is 'fixed' or 'faithful', and switches change single fields of it")
    return Quirks(**{name: switches.get(name, getattr(presets[preset], name)) for name in known})
