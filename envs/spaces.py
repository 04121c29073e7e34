"""A simulator's observations and actions as Gymnasium spaces."""

from typing import Any

import numpy as np
from gymnasium import spaces

from envs.types import EnvSpec


def observation_space(spec: EnvSpec) -> spaces.Dict:
    """Images, proprioception and the instruction as a Gymnasium space."""
    images: dict[str, spaces.Space[Any]] = {
        name: spaces.Box(0, 255, (y, x, 3), np.uint8) for name, (y, x) in spec.cameras.items()
    }
    proprio = spaces.Box(-np.inf, np.inf, (spec.proprio_dim,), np.float32)
    charset = "".join(chr(c) for c in range(32, 127))
    text = spaces.Text(max_length=512, min_length=0, charset=charset)
    return spaces.Dict({"images": spaces.Dict(images), "proprio": proprio, "instruction": text})


def action_space(spec: EnvSpec) -> spaces.Space[Any]:
    """Box in environment units, or Discrete."""
    if spec.num_actions:
        return spaces.Discrete(spec.num_actions)
    return spaces.Box(np.asarray(spec.low, np.float32), np.asarray(spec.high, np.float32), dtype=np.float32)
