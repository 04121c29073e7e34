"""Harm to the processes of a real run, at random moments that a seed decides, and what came of it.

    Chaos.start ─► a driver process ─► Chaos.strike (kill or stop) ─► back at work? how long? ─► audit ─► next

The run is told nothing. Whether it is back is read from what any user sees: its processes and its ledger.
"""

import contextlib
import itertools
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from rl.invariants import broken
from rl.ledger import account, read
from tests.chaos.processes import commands, gone, harm, members

ROOT = Path(__file__).resolve().parents[2]
BLINK_S = 3.0  # a look at the processes that takes longer was interrupted: the machine was halted
PATIENCE_S = 300.0  # until a run that is late is called lost
BUDGET_S = {"environment": 30.0, "worker": 60.0, "judge": 60.0, "learner": 300.0, "driver": 300.0, "disk": 300.0,
            "node": 60.0}  # fmt: skip


@dataclass
class Strike:
    """One harm and its end."""

    kind: str
    how: str
    engine: str
    recovery_s: float | None  # None: it did not come back
    by_command: bool  # the run had ended, and went on by the same command
    wrong: list[str] = field(default_factory=list)  # what the audit found afterwards
    load: float = 0.0  # processes that wanted a core, on average of the last minute


@dataclass
class Chaos:
    """A run under attack."""

    settings: dict[str, Any]  # of FinetuneRun
    seed: int
    files: Path  # where the command's settings and what it says are kept
    environment: dict[str, str] = field(default_factory=dict)  # variables for the driver
    strikes: list[Strike] = field(default_factory=list)
    driver: Any = None
    finished: dict[str, Any] | None = None  # what `finish` returned
    left: dict[int, str] = field(default_factory=dict)  # processes of drivers that were killed: they must go, too
    absent_s: float = 0.0  # that this process itself did not run, as on a machine that is halted
    limit_s: ClassVar[float] = math.inf  # after which a run is struck no more

    def __post_init__(self) -> None:
        self.until = time.monotonic() + self.limit_s
        self.random = random.Random(self.seed)
        self.out = Path(self.settings["out"])

    @property
    def ledger(self) -> list[dict[str, Any]]:
        return list(read(self.out / "ledger.jsonl"))

    def start(self) -> None:
        """Give the command; the same one every time."""
        file = self.files / f"{self.out.name}.json"
        file.write_text(json.dumps(self.settings))
        with (self.files / f"{self.out.name}.log").open("ab") as log:
            self.driver = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.driver", str(file)],
                cwd=ROOT, stdout=log, stderr=log, env={**os.environ, **self.environment},
            )  # fmt: skip

    def rounds(self) -> int:
        return sum(r["event"] == "iteration" for r in self.ledger)

    def wait(self, what: Callable[[], Any], within_s: float) -> bool:
        """Until something is so, or the driver ends, or the time is over."""
        deadline = self.now() + within_s
        while self.now() < deadline:
            began = time.monotonic()
            if what():
                return True
            if self.driver.poll() is not None:
                return bool(what())
            time.sleep(0.05)
            gap = time.monotonic() - began
            self.absent_s += gap if gap > BLINK_S else 0.0
        return False

    def now(self) -> float:
        """Seconds on a clock that stands still while this process does not run."""
        return time.monotonic() - self.absent_s

    def turns(self, times: int) -> Iterator[int]:
        """0, 1, ... as long as there is time."""
        return itertools.takewhile(lambda _: time.monotonic() < self.until, range(times))

    def ready(self, within_s: float = 600.0) -> None:
        """Wait for the next finished round."""
        before = self.rounds()
        assert self.wait(lambda: self.rounds() > before, within_s), self.last_words()

    def last_words(self) -> str:
        return (self.files / f"{self.out.name}.log").read_text()[-3000:]

    def pause(self) -> None:
        """Any moment; a run that gave up before is given its command again."""
        if self.driver.poll() is not None:
            self.start()
            self.ready()
        time.sleep(self.random.uniform(0.0, 1.0))

    # --- the harms ---------------------------------------------------------------------------------------------------

    def environments(self, count: int, hows: str | None = None) -> None:
        """Harm some simulators at once."""
        self.pause()
        there = members(self.driver.pid, "environment")
        assert there, self.last_words()
        victims = self.random.sample(sorted(there), min(count, len(there)))
        began, done = self.now(), []
        for pid in victims:
            how = hows or self.random.choice(["kill", "stop"])
            if harm(pid, how):
                done.append((pid, how))

        def back() -> bool:
            now = members(self.driver.pid, "environment")
            return len(now) >= len(there) and not set(now) & {p for p, _ in done}

        came = self.wait(back, PATIENCE_S)
        before = self.rounds()
        came = came and self.wait(lambda: self.rounds() > before, PATIENCE_S)
        self._note("environment", [how for _, how in done], began, came)

    def workers(self, count: int) -> None:
        """Harm some rollout workers at once."""
        self._actors("worker", count, self._full_fleet)

    def learner(self) -> None:
        """Harm the learner, where it is a process of its own."""

        def learned() -> bool:
            after = self.ledger[self._mark :]
            restarts = [i for i, r in enumerate(after) if r["event"] == "learner_restart"]
            return bool(restarts) and any(r["event"] == "iteration" and r["learned"] for r in after[restarts[0] :])

        self._actors("learner", 1, lambda victims: learned())

    def judge(self) -> None:
        """Harm the actor that a learned reward asks: back when another one paid for a round, and it is gone itself."""

        def paid(victims: set[int]) -> bool:
            after = self.ledger[self._mark :]
            unpaid = {r["iteration"] for r in after if r["event"] == "reward_lost"}
            return bool(unpaid) and not victims & set(commands(self.driver.pid)) and any(
                r["event"] == "iteration" and r["learned"] and r["iteration"] > max(unpaid) for r in after
            )  # fmt: skip

        self.wait(lambda: members(self.driver.pid, "judge"), PATIENCE_S)
        self._actors("judge", 1, paid)

    def kill_driver(self, how: str) -> None:
        """End the driver at any moment, starting included; then give the same command again."""
        self.pause()
        there = commands(self.driver.pid)
        harm(self.driver.pid, how)
        if how == "stop":  # nobody watches over the driver: a person finds it hanging, and is told whom to kill
            time.sleep(1.0)
            harm(self.driver.pid, "kill")
        self.driver.wait()
        self.left |= there
        began = self.now()
        mark = len(self.ledger)
        self.start()
        came = self.wait(lambda: any(r["event"] == "iteration" for r in self.ledger[mark:]), PATIENCE_S)
        self._note("driver", [how], began, came)

    def fill_disk(self) -> None:
        """Fill the disk under the run's folder; once the run has ended, free it and give the same command again."""
        self.pause()
        filler, began = self.out.parent / "filler", self.now()
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as f:
            while f.write(b"x" * 4096):
                pass
        ended = self.wait(lambda: self.driver.poll() is not None, 60.0)
        filler.unlink(missing_ok=True)
        clear = "give the same command again" in self.last_words()
        mark = len(self.ledger)
        self.start()
        came = self.wait(lambda: any(r["event"] == "iteration" for r in self.ledger[mark:]), PATIENCE_S)
        self._note("disk", ["full"], began, came and ended and clear)

    def _actors(self, kind: str, count: int, back: Callable[[set[int]], bool]) -> None:
        self.pause()
        self._mark = len(self.ledger)
        there = members(self.driver.pid, kind)
        assert there, f"no {kind} to be found: {sorted(c[:40] for c in commands(self.driver.pid).values())}"
        began, done = self.now(), []
        for pid in self.random.sample(sorted(there), min(count, len(there))):
            how = self.random.choice(["kill", "stop"])
            if harm(pid, how):
                done.append((pid, how))
        came = self.wait(lambda: back({p for p, _ in done}), PATIENCE_S)
        self._note(kind, [how for _, how in done], began, came)

    def _full_fleet(self, victims: set[int]) -> bool:
        """Every victim is told of, and a round after that was collected by all."""
        after = self.ledger[self._mark :]
        told = [i for i, r in enumerate(after) if r["event"] == "worker_restart"]
        if len(told) < len(victims):
            return False
        rounds = [r["iteration"] for r in after[told[len(victims) - 1] :] if r["event"] == "iteration"]
        wanted = self.settings["num_workers"]
        return any(m["iteration"] in rounds and m.get("rollout/workers") == wanted
                   for m in read(self.out / "metrics.jsonl"))  # fmt: skip

    def _note(self, kind: str, hows: Iterable[str], began: float, came: bool) -> None:
        again = kind in ("driver", "disk")
        if not came and self.driver.poll() is not None:  # it gave up, as it says it would: the same command goes on
            again, mark = True, len(self.ledger)
            self.start()
            came = self.wait(lambda: any(r["event"] == "iteration" for r in self.ledger[mark:]), PATIENCE_S)
        took = round(self.now() - began, 2) if came else None
        wrong = self.check()
        for how in hows:
            self.strikes.append(Strike(kind, how, self.settings["engine"], took, again, wrong, os.getloadavg()[0]))

    def check(self) -> list[str]:
        """What the audit finds; asked again a few times, as the run goes on while its files are read."""
        for _ in range(4):
            wrong = broken(self.out)
            if not wrong:
                return []
            time.sleep(0.5)
        return wrong

    def finish(self) -> dict[str, Any]:
        """End the run, let it come to its own end, and add up."""
        if self.driver.poll() is None:
            there = commands(self.driver.pid)
            harm(self.driver.pid, "kill")
            self.driver.wait()
            self.left |= there
        last = max((int(r["iteration"]) for r in self.ledger if r["event"] == "iteration"), default=0)
        self.settings["iterations"] = last + 2
        self.start()
        self.wait(lambda: self.driver.poll() is not None, PATIENCE_S)
        status = self.driver.poll()
        orphans = gone(self.left, 60.0)
        total = account(self.ledger)
        wrong = broken(self.out) + ([] if status == 0 else [f"the last run ended with status {status}"])
        return {
            "strikes": [asdict(s) for s in self.strikes],
            "rounds": self.rounds(),
            "started": total.started, "finished": total.finished, "failed": total.failed,
            "in_flight": total.in_flight, "busy_s": round(total.busy_s, 1), "idle_s": round(total.idle_s, 1),
            "lost_s": round(total.lost_s, 1), "device_s": round(total.device_s, 1),
            "orphans": orphans, "wrong": wrong,
        }  # fmt: skip
