"""How often a simulator may be started again before its run gives up."""

import time
from collections import deque
from dataclasses import dataclass, field

from envs.child import Failure
from envs.types import EnvError


@dataclass(frozen=True)
class RestartBudget:
    """How often one row may be restarted. Whole episodes in a row forgive it, so that a run of weeks survives."""

    in_all: int = 200  # since the last `forgiven` episodes in a row
    forgiven: int = 20
    per_window: int = 10
    window_s: float = 300.0


@dataclass
class Restarts:
    """The account of one row."""

    budget: RestartBudget
    spent: int = 0  # restarts not yet forgiven
    whole: int = 0  # episodes since the last restart that ended by themselves
    recent: deque[float] = field(default_factory=deque)  # moments in the window, s

    def spend(self, who: str, failure: Failure | None) -> None:
        """Account for one restart of `who`, or raise EnvError with the last cause."""
        now = time.monotonic()
        while self.recent and now - self.recent[0] > self.budget.window_s:
            self.recent.popleft()
        if self.whole >= self.budget.forgiven:
            self.spent = 0
        self.whole = 0
        if self.spent >= self.budget.in_all or len(self.recent) >= self.budget.per_window:
            raise EnvError(
                f"{who} failed {self.spent + 1} times, {len(self.recent) + 1} of them within "
                f"{self.budget.window_s:g} s; giving up. Last cause: "
                f"{failure.cause if failure else '?'}: {failure.detail if failure else ''}"
            )
        self.recent.append(now)
        self.spent += 1
