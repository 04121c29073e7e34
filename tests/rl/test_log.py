"""All destinations get the same numbers; a broken one does not stop the run."""

import json
import logging
import math
from pathlib import Path

import pytest

from rl.ledger import read
from rl.log import RunLog


def test_record_and_history(tmp_path: Path) -> None:
    with RunLog(tmp_path, tensorboard=False, keep=3) as log:
        for i in range(5):
            log.write(i, {"env_steps": 10 * i, "rollout/success": i / 4})
        assert [r["iteration"] for r in log.history] == [2, 3, 4]
        assert log.last("rollout/success") == 1.0
        assert math.isnan(log.last("loss/none"))
    records = list(read(tmp_path / "metrics.jsonl"))
    assert [r["env_steps"] for r in records] == [0, 10, 20, 30, 40]
    assert all(r["wall_s"] >= 0 for r in records)


def test_not_finite_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with RunLog(tmp_path, tensorboard=False) as log, caplog.at_level(logging.WARNING):
        log.write(3, {"loss/policy": math.nan, "loss/value": 1.0})
    assert "loss/policy" in caplog.text
    (record,) = read(tmp_path / "metrics.jsonl")
    assert record["loss/value"] == 1.0
    assert "loss/policy" not in record


def test_resume_appends_and_keeps_the_clock(tmp_path: Path) -> None:
    with RunLog(tmp_path, tensorboard=False) as log:
        log.write(0, {})
    (first,) = read(tmp_path / "metrics.jsonl")
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write(json.dumps({"iteration": 1, "env_steps": 5, "wall_s": 100.0}) + "\n" + '{"torn')
    with RunLog(tmp_path, tensorboard=False) as log:
        assert len(log.history) == 2
        log.write(2, {})
    records = list(read(tmp_path / "metrics.jsonl"))
    assert [r["iteration"] for r in records] == [0, 1, 2]
    assert records[0] == first
    assert records[-1]["wall_s"] >= 100.0


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    with RunLog(tmp_path, tensorboard=True) as log:
        log.write(64, {"rollout/success": 0.25})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (scalar,) = events.Scalars("rollout/success")
    assert (scalar.step, scalar.value) == (64, 0.25)


def test_wandb_is_offline_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    seen: dict = {}

    class Run:
        def log(self, record: dict, step: int) -> None:
            seen["record"] = record

        def finish(self) -> None:
            seen["finished"] = True

    monkeypatch.setattr("wandb.init", lambda **kwargs: seen.update(kwargs) or Run())
    with RunLog(tmp_path, tensorboard=False, wandb=True, config={"out": Path("x")}) as log:
        log.write(1, {"loss/kl": 0.5})
    assert seen["mode"] == "offline"
    assert seen["config"] == {"out": "x"}
    assert seen["record"]["loss/kl"] == 0.5
    assert seen["finished"]


def test_broken_destination_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        calls = 0

        def log(self, record: dict, step: int) -> None:
            Broken.calls += 1
            raise OSError("no network")

        def finish(self) -> None: ...

    monkeypatch.setattr("wandb.init", lambda **kwargs: Broken())
    with RunLog(tmp_path, tensorboard=False, wandb=True) as log:
        log.write(1, {"loss/kl": 0.5})
        log.write(2, {"loss/kl": 0.4})
    assert Broken.calls == 1
    assert "no network" in caplog.text
    assert len(list(read(tmp_path / "metrics.jsonl"))) == 2
