"""Where FLIP may do as the original does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pretrained import quirks

CHOICES = {
    "latent_std": ("single", "double"),
    "weighting": ("motion", "error"),
    "schedule": ("respaced", "short"),
    "pixels": ("centred", "imagenet"),
    "scores": ("fixed", "batch"),
    "replacement": ("history", "records"),
    "total": ("discounted", "sum"),
    "grid": ("inside", "edge"),
}


@dataclass(frozen=True)
class Quirks:
    """What the original does that one would not do again. The first setting of each is the repaired one."""

    # "double": the standard deviation of the flow model's latent is exp(exp(logvar / 2)), so that plans are drawn with
    # e = 2.718 in place of 1, while the loss compares the single exponential with the prior. Published weights were
    # trained so.
    latent_std: str = "single"
    # "error": steps that are predicted badly weigh 100 times as much. "motion": steps that truly move do.
    weighting: str = "motion"
    # "short": samplers build a schedule of few steps and tell the network their numbers, as if they were steps of the
    # one it was trained on; the noise it is told of is not the noise that it sees.
    schedule: str = "respaced"
    # "imagenet": the video model's autoencoder gets pictures with ImageNet's statistics instead of those in [-1, 1].
    # Published weights were trained so.
    pixels: str = "centred"
    # "batch": generated frames are stretched to [0, 1] by the extremes of all candidates before they are judged, so
    # that a candidate's score depends on its competitors.
    scores: str = "fixed"
    # "records": the worst beam takes over the plan of the best one, but goes on from its own pictures.
    replacement: str = "history"
    # "sum": the value of a plan is the sum of its segments' scores. The paper discounts.
    total: str = "discounted"
    # "edge": the last points of the grid lie one pixel outside of the picture; height and width are swapped.
    grid: str = "inside"

    def __post_init__(self) -> None:
        quirks.check(self, CHOICES)


FIXED = Quirks()
FAITHFUL = Quirks(**{name: allowed[1] for name, allowed in CHOICES.items()})


def choose(preset: str, switches: Mapping[str, Any] | None = None) -> Quirks:
    """A preset with single fields changed. Raises ValueError naming what is unknown."""
    return quirks.choose(FIXED, FAITHFUL, preset, switches)
