"""The audit finds nothing wrong with a real run, even one continued after a loss, and each thing that can be wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rl.finetune import finetune
from rl.invariants import broken
from rl.run import FinetuneRun
from tests.toy_parts import SUCCESS, checkpoint, toy

ALGO = {"epochs": 1, "minibatches": 1, "lr": {"": 1e-3}, "links": "sum", "reduction": "sum", "clip": 0.2}
Records = list[dict[str, Any]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five rounds, of which two were done again because the run went on from an older checkpoint."""
    base = tmp_path_factory.mktemp("audit")
    trained, out = checkpoint(base / "trained", "flow", execute=3), base / "out"
    settings = FinetuneRun(
        checkpoint=str(trained), env=toy(), out=str(out), algo=ALGO, rewards=SUCCESS, engine="local",
        envs_per_worker=2, decisions=6, iterations=4, save_every=2, logger={"tensorboard": False}, quiet=True,
    )  # fmt: skip
    finetune(settings)
    (out / "step_000004" / "policy.safetensors").write_bytes(b"torn")
    finetune(settings)
    return out


def test_nothing_is_wrong_with_a_continued_run(run: Path) -> None:
    assert broken(run) == []


def test_an_empty_folder(tmp_path: Path) -> None:
    assert broken(tmp_path) == [f"{tmp_path} holds no ledger.jsonl"]


def of(records: Records, event: str) -> Records:
    return [r for r in records if r["event"] == event]


def _one_episode_too_many(records: Records) -> None:
    of(records, "started")[0]["count"] -= 3


def _an_episode_ends_twice(records: Records) -> None:
    of(records, "episode")[-1]["name"] = of(records, "episode")[0]["name"]


def _a_round_is_missing(records: Records) -> None:
    records.remove(of(records, "iteration")[1])


def _a_round_is_not_voided(records: Records) -> None:
    records.remove(of(records, "resumed")[0])


def _steps_go_down(records: Records) -> None:
    of(records, "iteration")[-1]["env_steps"] = 1


def _a_segment_is_learned_twice(records: Records) -> None:
    rounds = of(records, "iteration")
    rounds[-1]["learned"] = rounds[0]["learned"]


def _seconds_are_missing(records: Records) -> None:
    of(records, "iteration")[0]["busy_s"] = 0.0


def _seconds_are_invented(records: Records) -> None:
    last = of(records, "iteration")[-1]
    last["busy_s"] += 100.0
    last["idle_s"] -= 100.0


def _a_span_is_wrong(records: Records) -> None:
    of(records, "iteration")[-1]["span_s"] += 30.0


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_one_episode_too_many, "episodes: "),
        (_an_episode_ends_twice, "ended 2 times"),
        (_a_round_is_missing, "rounds: number 3 stands where 2"),
        (_a_round_is_not_voided, "rounds: number 3 stands where 5"),
        (_steps_go_down, "environment steps go down"),
        (_a_segment_is_learned_twice, "was learned from 2 times"),
        (_seconds_are_missing, "wall-clock times devices is"),
        (_seconds_are_invented, "longer than there was time"),
        (_a_span_is_wrong, "of wall-clock"),
    ],
)
def test_each_broken_promise_is_found(run: Path, tmp_path: Path, harm: Callable[[Records], None], message: str) -> None:
    out = shutil.copytree(run, tmp_path / "out")
    records = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    harm(records)
    (out / "ledger.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert any(message in line for line in broken(out)), broken(out)


def test_checkpoints_that_do_not_fit_the_ledger(run: Path, tmp_path: Path) -> None:
    out = shutil.copytree(run, tmp_path / "out")
    shutil.rmtree(out / "step_000004")
    assert broken(out) == ["folder: the ledger tells of checkpoint 4, the newest is step_000002"]
    (out / "step_000002" / "policy.safetensors").write_bytes(b"torn")
    assert broken(out) == ["folder: the ledger tells of checkpoint 4, but there is none"]
    out = shutil.copytree(run, tmp_path / "other")
    state = json.loads((out / "step_000004" / "learner.json").read_text())
    assert state["loop"]["iteration"] == 4
    lines = (out / "ledger.jsonl").read_text().splitlines()
    (out / "ledger.jsonl").write_text("\n".join(x for x in lines if '"iteration": 4' not in x) + "\n")
    assert any("the ledger says nothing" in line for line in broken(out))
