"""The table of plans that were acted on, and the simulator's measure behind it."""

import numpy as np

from benchmarks.flip_value import Arm, Progress, name, row
from envs.types import EnvSpec, Observation

SPEC = EnvSpec(env_id="toy/reach", cameras={}, proprio={"x": "m"}, actions=("dx",), low=(-1.0,), high=(1.0,),
               control_hz=20.0, max_steps=50, tasks=("go",), action_convention="none")  # fmt: skip


def at(progress: float) -> Observation:
    return Observation({}, np.zeros(1, np.float32), "go", {"progress": np.array([progress])})


def test_progress_is_kept_at_the_end_and_at_its_highest() -> None:
    watch = Progress()
    watch.begin(3, SPEC, at(0.9))  # this attempt was lost
    watch.begin(3, SPEC, at(0.1))
    for value in (0.4, 0.7, 0.2):
        watch.follow(3, np.zeros((1, 1)), at(value))
    assert (watch.last, watch.best) == ({3: 0.2}, {3: 0.7})


def test_arms_are_compared_episode_by_episode() -> None:
    first = Arm(1, [False] * 30 + [True] * 10, ["go"] * 40, [0.2] * 30 + [1.0] * 10, [0.5] * 40, 1.0)
    best = Arm(8, [True] * 20 + [False] * 10 + [True] * 10, ["go"] * 40, [0.9] * 40, [0.9] * 40, 1.0)
    cells = row(best, first)
    assert cells[0] == name(8) == "the best of 8, by value"
    assert cells[1].startswith("75.0 % [")
    assert cells[2] == "0.900 [0.900, 0.900]"
    assert cells[4].startswith("+50.0 [")
    assert "p = 1.9e-06" in cells[4]
    gain = float(cells[5].split()[0])
    assert abs(gain - (0.7 * 30 - 0.1 * 10) / 40) < 1e-3
    assert row(first, first)[4:] == ["", ""]
