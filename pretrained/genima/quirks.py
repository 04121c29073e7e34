"""Where the controller may do as the original does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pretrained import quirks

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
        quirks.check(self, CHOICES)


FIXED = Quirks()
FAITHFUL = Quirks(**{name: allowed[1] for name, allowed in CHOICES.items()})


def choose(preset: str, switches: Mapping[str, Any]) -> Quirks:
    """A preset with single fields changed. Raises ValueError naming what is unknown."""
    return quirks.choose(FIXED, FAITHFUL, preset, switches)
