"""Where VPP may do as the original does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pretrained import quirks

CHOICES = {
    "cross_attention": ("full", "causal"),
    "action_positions": ("learned", "none"),
    "frame_mask": ("attention", "embedding"),
    "fps": ("trained", "four"),
    "noise": ("stored", "fresh"),
    "preview_augmentation": ("none", "default"),
}


@dataclass(frozen=True)
class Quirks:
    """What the original does that one would not do again. The first setting of each is the repaired one."""

    # "causal": action i sees the context tokens 0 to i only, and most of the 225 tokens are never looked at. Published
    # weights were trained so.
    cross_attention: str = "full"
    # "none": only the causal mask tells the actions of a chunk apart. "learned" starts at zero, so that imported
    # weights decide as they did.
    action_positions: str = "learned"
    # "embedding": a frame that is masked loses its frame embedding, and is attended to like every other.
    frame_mask: str = "attention"
    # "four": features are taken at 4 frames per second, while the video model was trained at 7. Published weights were
    # trained so.
    fps: str = "trained"
    # "fresh": each call draws other noise for the video model, so that one picture has many features. The seed is
    # stored with the features either way.
    noise: str = "stored"
    # "default": previews tell the video model of an augmentation of 0.02 that nobody added.
    preview_augmentation: str = "none"

    def __post_init__(self) -> None:
        quirks.check(self, CHOICES)


FIXED = Quirks()
FAITHFUL = Quirks(**{name: allowed[1] for name, allowed in CHOICES.items()})


def choose(preset: str, switches: Mapping[str, Any]) -> Quirks:
    """A preset with single fields changed. Raises ValueError naming what is unknown."""
    return quirks.choose(FIXED, FAITHFUL, preset, switches)
