"""The account balances, survives torn lines, and stays whole with several writers."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from rl.ledger import Flights, Ledger, account, cost_per_point, read, renewed


def test_account_balances(tmp_path: Path) -> None:
    with Ledger(tmp_path / "runs" / "ledger.jsonl", fsync=True) as ledger:
        ledger.write("started", count=5)
        ledger.write("episode", success=True, length=12, valid=True)
        ledger.write("episode", success=False, length=30, valid=True)
        ledger.write_many([{"event": "episode", "length": 5, "valid": False, "cause": "crashed: signal 9"}])
        ledger.write("episode", valid=False, cause="crashed: signal 11")
        ledger.write("worker_restart", cause="GetTimeoutError: too late")
        ledger.write("anything", note="ignored by the account")
    total = account(read(tmp_path / "runs" / "ledger.jsonl"))
    assert (total.started, total.finished, total.failed, total.in_flight) == (5, 2, 2, 1)
    assert total.restarts == {"crashed": 2, "worker GetTimeoutError": 1}
    assert total.env_steps == 47
    assert total.balanced


def test_account_notices_what_cannot_be() -> None:
    assert not account([{"event": "started"}, {"event": "episode"}, {"event": "episode"}]).balanced


def test_account_without_starts_has_none_in_flight() -> None:
    total = account([{"event": "episode"}, {"event": "episode", "valid": False}])
    assert (total.started, total.finished, total.failed, total.in_flight) == (2, 1, 1, 0)


def test_resume_counts_what_was_in_flight_as_failed() -> None:
    records = [{"event": "started", "count": 3}, {"event": "episode"}, {"event": "resumed"}, {"event": "started"}]
    total = account(records)
    assert (total.started, total.finished, total.failed, total.in_flight) == (4, 1, 2, 1)


def test_resume_of_a_run_that_told_of_no_starts_takes_them_as_ended() -> None:
    total = account(
        [{"event": "episode"}, {"event": "resumed"}, {"event": "started", "count": 2}, {"event": "episode"}]
    )
    assert (total.started, total.finished, total.failed, total.in_flight) == (3, 2, 0, 1)


def test_episodes_that_a_worker_took_along_are_failed() -> None:
    """Two workers with 3 rows: one is killed, the other is found to have been restarted."""
    first, later = {"carried": 0, "in_flight": 3}, {"carried": 3, "in_flight": 3}
    flights = Flights()
    assert flights.lost(1) == 0  # it had not delivered anything
    assert [flights.landed(i, first) for i in (0, 1)] == [[], []]
    assert [flights.landed(i, later) for i in (0, 1)] == [[], []]
    records = [{"event": "started", "count": 6}, {"event": "episode", "length": 4}, {"event": "started", "count": 1}]
    records.append({"event": "worker_restart", "cause": "killed", "lost": flights.lost(0)})
    (found,) = flights.landed(1, first)
    records.append({"event": found["kind"], **found})
    assert flights.landed(0, first) == []
    records.append({"event": "started", "count": 6})
    records.append({"event": "learner_restart", "cause": "died", "unlearned_steps": 40})
    total = account(records)
    assert (total.started, total.finished, total.failed, total.in_flight) == (13, 1, 6, 6)
    assert total.restarts == {"worker killed": 1, "worker found restarted": 1, "learner died": 1}
    assert total.unlearned_steps == 40


def test_a_resume_voids_what_the_checkpoint_does_not_know() -> None:
    """Round 2 is done again: its episodes do not count, its seconds are lost. One episode is carried on."""

    def round_(i: int) -> dict[str, object]:
        return {"event": "iteration", "iteration": i, "busy_s": 3.0, "idle_s": 1.0, "lost_s": 0.0, "device_s": 4.0}

    records = [
        {"event": "began"},
        {"event": "started", "count": 3, "iteration": 1},
        {"event": "episode", "length": 5, "iteration": 1},
        round_(1),
        {"event": "started", "count": 2, "iteration": 2},
        {"event": "episode", "length": 7, "iteration": 2},
        {"event": "episode", "valid": False, "cause": "hung: long", "iteration": 2},
        round_(2),
        {"event": "resumed", "iteration": 1, "carried": 1},
        {"event": "started", "count": 2, "iteration": 2},
        {"event": "episode", "length": 7, "iteration": 2},
        round_(2),
    ]
    total = account(records)
    assert (total.started, total.finished, total.failed, total.in_flight) == (7, 2, 3, 2)
    assert total.balanced
    assert (total.env_steps, total.abandoned, total.restarts) == (12, 1, {"hung": 1})
    assert (total.busy_s, total.idle_s, total.lost_s, total.device_s) == (6.0, 2.0, 4.0, 12.0)
    assert cost_per_point(total, 0.25, 0.5) == pytest.approx(12.0 / 25)
    assert cost_per_point(total, 0.5, 0.5) is None
    again = account([*records, {"event": "resumed", "iteration": 0, "carried": 0}])
    assert (again.started, again.finished, again.failed, again.in_flight, again.abandoned) == (7, 0, 7, 0, 3)


def test_rows_of_rounds_that_were_done_again_are_replaced() -> None:
    rows = [{"iteration": i, "try": t} for t, numbers in enumerate(([1, 2, 3, 4], [3], [2, 3, 4])) for i in numbers]
    assert [(r["iteration"], r["try"]) for r in renewed(rows)] == [(1, 0), (2, 2), (3, 2), (4, 2)]


@pytest.mark.parametrize("torn", [b'{"event": "fini', b'{"event": "finished", "text": "\xff', b"\0\0\0"])
def test_torn_line_is_skipped_and_closed(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path).write("started")
    with path.open("ab") as f:
        f.write(torn)
    assert [r["event"] for r in read(path)] == ["started"]
    with Ledger(path) as ledger:
        ledger.write("finished")
    assert [r["event"] for r in read(path)] == ["started", "finished"]


def test_missing_file_and_numbers_that_are_not_finite(tmp_path: Path) -> None:
    assert list(read(tmp_path / "none.jsonl")) == []
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        ledger.write("episode", reward=float("nan"), length=3)
    ledger.close()
    (record,) = read(tmp_path / "ledger.jsonl")
    assert record["reward"] is None
    assert record["length"] == 3


def _writer(path: Path, name: int, count: int) -> None:
    with Ledger(path) as ledger:
        for i in range(count):
            ledger.write("started", writer=name, number=i, padding="x" * 300)


def test_several_writers_tear_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_writer, args=(path, k, 400)) for k in range(4)]
    for w in writers:
        w.start()
    for w in writers:
        w.join()
    records = list(read(path))
    assert len(records) == len(path.read_bytes().splitlines()) == 1600
    for k in range(4):
        assert [r["number"] for r in records if r["writer"] == k] == list(range(400))


def test_killed_writer_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    writer = multiprocessing.get_context("fork").Process(target=_writer, args=(path, 0, 10**9))
    writer.start()
    deadline = time.monotonic() + 20
    while not (path.exists() and path.stat().st_size > 20_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert writer.pid
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    numbers = [r["number"] for r in read(path)]
    assert len(numbers) > 20
    assert numbers == list(range(len(numbers)))
