"""Where each weight of an official VPP checkpoint goes: names of the Video Former, the action head and CLIP's text."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

# Ours -> theirs, as patterns. Layers of a Former without attention among frames have their MLP in second place.
FORMER = {
    r"project\.(\d)\.(\w+)": r"goal_emb.\1.\2",
    r"frame": r"time_pos_emb",
    r"latents": r"latents",
    r"layers\.(\d+)\.cross\.(norm_\w+)\.(\w+)": r"layers.\1.0.\2.\3",
    r"layers\.(\d+)\.cross\.(q|k|v|out)\.(\w+)": r"layers.\1.0.to_\2.\3",
    r"layers\.(\d+)\.temporal\.(\w+)\.(\w+)": r"layers.\1.1.\2.\3",
    r"layers\.(\d+)\.mlp\.(\d)\.(\w+)": r"layers.\1.{mlp}.\2.\3",
    r"norm\.(\w+)": r"norm.\1",
}


def former_names(ours: Sequence[str]) -> dict[str, str]:
    """Our name -> theirs, for all weights of a Video Former."""
    mlp = "2" if any(".temporal." in name for name in ours) else "1"
    return {name: official(name, FORMER).replace("{mlp}", mlp) for name in ours}


def official(name: str, patterns: Mapping[str, str]) -> str:
    """The official name of one of ours."""
    for ours, theirs in patterns.items():
        if re.fullmatch(ours, name):
            return re.sub(ours, theirs, name)
    raise ValueError(f"weight {name} has no official name")


def take(weights: Mapping[str, Tensor], names: Mapping[str, str], prefix: str) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under our names, and the official names that are missing."""
    found = {ours: weights[prefix + theirs] for ours, theirs in names.items() if prefix + theirs in weights}
    return found, [prefix + theirs for ours, theirs in names.items() if ours not in found]
