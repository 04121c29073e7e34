"""What must hold of a run's folder, whatever happened to the run. Each broken promise is one line.

episodes   started = finished + failed + in flight; every one ends once
rounds     each is there once, in order; environment steps add up
segments   none is learned from twice
seconds    busy + idle + lost = wall-clock times devices, within 1 %
folder     the newest checkpoint is whole and knows of no more than the ledger
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrained.checkpoint import load_learner, newest, verify
from rl.ledger import account, read, surviving

TOLERANCE = 0.01  # of the seconds
SLACK_S = 0.5  # per life: what short runs may differ by, as clocks are read one after the other
Record = Mapping[str, Any]


def broken(run_dir: Path) -> list[str]:
    """Everything that is wrong with a run that is not at work at present; empty if nothing is."""
    records = list(read(run_dir / "ledger.jsonl"))
    if not records:
        return [f"{run_dir} holds no ledger.jsonl"]
    live = [r for r, counts in surviving(records) if counts]
    return _episodes(records, live) + _rounds(live) + _segments(live) + _seconds(records) + _checkpoint(run_dir, live)


def _episodes(records: Sequence[Record], live: Sequence[Record]) -> list[str]:
    total = account(records)
    found = []
    if not total.balanced:
        found.append(
            f"episodes: {total.started} started, but {total.finished} finished, {total.failed} failed and "
            f"{total.in_flight} are in flight"
        )
    ended = [str(r["name"]) for r in live if r["event"] == "episode" and r.get("name")]
    return found + [f"episodes: {name} ended {n} times" for name, n in _doubled(ended)]


def _rounds(live: Sequence[Record]) -> list[str]:
    rounds = [r for r in live if r["event"] == "iteration"]
    numbers = [int(r["iteration"]) for r in rounds]
    found = []
    if numbers != list(range(1, len(numbers) + 1)):
        odd = next(i for i, n in enumerate(numbers, 1) if n != i)
        found.append(f"rounds: number {numbers[odd - 1]} stands where {odd} was expected")
    steps = [int(r["env_steps"]) for r in rounds]
    if any(b < a for a, b in itertools.pairwise(steps)):
        found.append(f"rounds: environment steps go down: {steps}")
    return found


def _segments(live: Sequence[Record]) -> list[str]:
    learned = [name for r in live if r["event"] == "iteration" for name in r.get("learned", [])]
    return [f"segments: {name} was learned from {n} times" for name, n in _doubled(learned)]


def _seconds(records: Sequence[Record]) -> list[str]:
    """Sums over all devices, and the rounds of each life against the clock that dates the records."""
    total = account(records)
    found = []
    parts = total.busy_s + total.idle_s + total.lost_s
    if abs(parts - total.device_s) > TOLERANCE * total.device_s + 1e-3:
        found.append(f"seconds: busy, idle and lost are {parts:.2f}, wall-clock times devices is {total.device_s:.2f}")
    if total.idle_s < -TOLERANCE * total.device_s - SLACK_S:
        found.append(f"seconds: devices worked {-total.idle_s:.2f} longer than there was time")
    for life in _lives(records):
        spans = [r for r in life if "span_s" in r]
        wall, told = float(spans[-1]["time"]) - float(life[0]["time"]), sum(float(r["span_s"]) for r in spans)
        if abs(wall - told) > TOLERANCE * wall + SLACK_S:
            found.append(f"seconds: rounds of {told:.2f} stand in {wall:.2f} of wall-clock")
    return found


def _lives(records: Iterable[Record]) -> list[list[Record]]:
    """The records of each process that was at work on the run; those that finished no round are left out."""
    lives: list[list[Record]] = []
    for r in records:
        if r["event"] in ("began", "resumed"):
            lives.append([])
        if lives:
            lives[-1].append(r)
    return [life for life in lives if any("span_s" in r for r in life)]


def _checkpoint(run_dir: Path, live: Sequence[Record]) -> list[str]:
    rounds = {int(r["iteration"]): int(r["env_steps"]) for r in live if r["event"] == "iteration"}
    told = [int(r["iteration"]) for r in live if r["event"] == "checkpoint"]
    folder = newest(run_dir)
    if folder is None:
        return [f"folder: the ledger tells of checkpoint {told[-1]}, but there is none"] if told else []
    try:
        verify(folder)
        state = load_learner(folder)
    except ValueError as e:
        return [f"folder: {e}"]
    if state is None:
        return [f"folder: {folder.name} holds no learner state"]
    loop, found = state["loop"], []
    iteration, steps = int(loop["iteration"]), int(loop["env_steps"])
    if iteration and rounds.get(iteration) != steps:
        found.append(
            f"folder: {folder.name} was saved after {steps} steps, the ledger says {rounds.get(iteration, 'nothing')}"
        )
    if told and max(told) > iteration:
        found.append(f"folder: the ledger tells of checkpoint {max(told)}, the newest is {folder.name}")
    return found


def _doubled(names: Iterable[str]) -> list[tuple[str, int]]:
    return [(name, n) for name, n in Counter(names).items() if n > 1]
