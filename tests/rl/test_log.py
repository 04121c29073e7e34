"""All destinations get the same numbers; a broken one does not stop the run."""

import json
import logging
import math
import re
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


def test_wandb_goes_on_under_the_same_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict] = []
    monkeypatch.setattr("wandb.init", lambda **kwargs: seen.append(kwargs))
    for folder in ("a", "a", "b"):
        RunLog(tmp_path / folder, tensorboard=False, wandb=True).close()
    first, again, other = (call["id"] for call in seen)
    assert first == again != other
    assert {call["resume"] for call in seen} == {"allow"}


def test_prometheus_gets_names_that_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, tuple[float, dict]] = {}

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.name = name

        def set(self, value: float, tags: dict) -> None:
            seen[self.name] = (value, tags)

    monkeypatch.setattr("ray.util.metrics.Gauge", Gauge)
    with RunLog(tmp_path / "mine", tensorboard=False, prometheus=True) as log:
        log.write(1, {"rollout/success": 0.5})
        log.write(2, {"rollout/success": 0.75, "loss/nonsense": float("nan")})
    assert seen["temper_rollout_success"] == (0.75, {"run": "mine"})
    assert seen["temper_iteration"][0] == 2.0
    assert "temper_loss_nonsense" not in seen


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    """Every query of the Grafana dashboard names a key that some file of rl/ writes."""
    root = Path(RunLog.__init__.__code__.co_filename).parents[1]
    dashboard = json.loads((root / "docker" / "grafana" / "temper.json").read_text())
    written = set().union(*(re.findall(r'"((?:rollout|loss|time|reward)/\w+)"', p.read_text())
                            for p in (root / "rl").rglob("*.py")))  # fmt: skip
    known = {"ray_temper_" + re.sub(r"\W", "_", key) for key in written} | {"ray_temper_env_steps"}
    asked = {name for panel in dashboard["panels"] for target in panel["targets"]
             for name in re.findall(r"ray_temper_\w+", target["expr"])}  # fmt: skip
    assert asked <= known
    assert len(asked) >= 10
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


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
