"""Where Spoc may do as the original does."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


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
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"quirk {name} '{getattr(self, name)}' is unknown; expected {' or '.join(allowed)}")


FIXED = Quirks()
FAITHFUL = Quirks(text_padding="visible", cache="wrap", context="segment", rl_dropout=True)


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
