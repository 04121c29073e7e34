"""Where Spoc may do as the original does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pretrained import quirks


@dataclass(frozen=True)
class Quirks:
    """What the original does that one would not do again. Both settings of each:"""

    # "masked": the fusion sees words only. "visible": also the padding up to the longest sentence of the same call, so
    # that a row's answer depends on its neighbours' sentences.
    text_padding: str = "masked"
    # "slide": the oldest moment falls out of the window. "wrap": a full cache is emptied, and the agent forgets.
    cache: str = "slide"
    # "episode": a segment begins with the cache of the one before. "segment": it begins with an empty one, and
    # learning, unlike acting, sees the whole segment whatever the window is.
    context: str = "episode"
    # Dropout of the fusion in training mode also where log-probs are computed: the first ratio is not 1. Temper's
    # own PPO keeps policies in evaluation mode, where it has no effect.
    rl_dropout: bool = False

    def __post_init__(self) -> None:
        choices = {"text_padding": ("masked", "visible"), "cache": ("slide", "wrap"), "context": ("episode", "segment")}
        quirks.check(self, choices)


FIXED = Quirks()
FAITHFUL = Quirks(text_padding="visible", cache="wrap", context="segment", rl_dropout=True)


def choose(preset: str, switches: Mapping[str, Any]) -> Quirks:
    """A preset with single fields changed. Raises ValueError naming what is unknown."""
    return quirks.choose(FIXED, FAITHFUL, preset, switches)
