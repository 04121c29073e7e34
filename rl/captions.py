"""What a video says of a discrete decision."""

import math

from envs import stretch
from envs.types import EnvSpec
from pretrained.types import Decision

STRETCH = "spoc_stretch_20"  # the convention of actions that have names
BAR = 20  # characters of a certain action's bar


def caption(spec: EnvSpec, decision: Decision, row: int) -> str:
    """What one environment decided, how likely that was, and the critic's value; of discrete actions."""
    index, chance = int(decision.chunk[row, 0, 0]), math.exp(float(decision.log_prob[row].sum()))
    name = stretch.ACTIONS[index][0] if spec.action_convention == STRETCH else f"action {index}"
    return f"{name}  {'|' * round(BAR * chance)} {100 * chance:.0f} %  value {float(decision.value[row]):.2f}"
