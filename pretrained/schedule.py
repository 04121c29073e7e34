"""The learning rate of imitation at each step."""

import math
from typing import Protocol

SCHEDULES = ("cosine", "constant", "tri_stage")


class Schedule(Protocol):
    """What of a run's settings the rate depends on."""

    @property
    def lr(self) -> float: ...

    @property
    def steps(self) -> int: ...

    @property
    def warmup(self) -> int: ...

    @property
    def schedule(self) -> str: ...


def learning_rate(run: Schedule, step: int) -> float:
    """Linear warm-up, then a half cosine to zero, or no change; `tri_stage` is VPP's: 2 % of the steps from a tenth
    of lr, 8 % at lr, then a half cosine to a millionth of it."""
    if run.schedule == "tri_stage":
        rise, hold = 0.02 * run.steps, 0.08 * run.steps
        if step < rise:
            return run.lr * (0.1 + 0.9 * step / rise)
        done = min(1.0, max(0.0, step - rise - hold) / max(1.0, run.steps - rise - hold))
        return run.lr * (1e-6 + (1 - 1e-6) * 0.5 * (1 + math.cos(math.pi * done)))
    if step < run.warmup:
        return run.lr * (step + 1) / run.warmup
    if run.schedule == "constant":
        return run.lr
    done = (step - run.warmup) / max(1, run.steps - run.warmup)
    return run.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
