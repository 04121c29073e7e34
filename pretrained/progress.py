"""One line that says how far a long phase is and when it will end."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_EVERY_S = 30.0  # without a terminal, a plain line this often


class Bar:
    """A progress bar on standard error; plain lines if that is not a terminal; nothing if `quiet`.

    with Bar("imitate", total=2000) as bar:
        bar.advance(1, loss=0.12)
    """

    def __init__(self, name: str, *, total: int, done: int = 0, quiet: bool = False) -> None:
        self.name, self.total, self.done = name, total, done
        self._first, self._began, self._said = done, time.monotonic(), time.monotonic()
        self._console = Console(stderr=True, quiet=quiet, soft_wrap=True)
        self._quiet = quiet
        self._live: Progress | None = None
        self._task = TaskID(0)
        if not quiet and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            live = Progress(*columns, console=self._console)
            self._task = live.add_task(name, total=total, completed=done, note="")
            self._live = live

    def __enter__(self) -> "Bar":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._live:
            self._live.stop()
        elif not self._quiet and kind is None:
            self._line("done in " + _clock(time.monotonic() - self._began))

    def advance(self, steps: int = 1, **figures: float | str) -> None:
        """`steps` more are done; `figures` are shown beside the bar."""
        self.done += steps
        note = " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
        if self._live:
            self._live.update(self._task, completed=self.done, note=note)
        elif not self._quiet and time.monotonic() - self._said >= LINE_EVERY_S:
            self._said = time.monotonic()
            self._line(f"ETA {_clock(self.eta_s())} {note}")

    def eta_s(self) -> float:
        """Seconds left at the speed so far."""
        fresh = self.done - self._first
        if fresh <= 0:
            return float("inf")
        return (time.monotonic() - self._began) / fresh * max(0, self.total - self.done)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text, highlight=False, markup=False)

    def _line(self, text: str) -> None:
        self.say(f"{self.name}: {self.done}/{self.total} {text}")


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
