"""Predicted memory: its arithmetic, and beside the measured peak of a run."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import launch
from rl.memory import MIB, Process, Rehearsal, multiply, process, rehearse, used
from rl.run import FinetuneRun
from tests.toy_parts import SUCCESS, checkpoint, toy

ROOT = Path(launch.__file__).parent
ALGO = {"epochs": 1, "minibatches": 4, "links": "sum", "reduction": "sum", "clip": 0.2}
ONE = Rehearsal(
    start=Process(own=100 * MIB, files=200 * MIB),
    learner=Process(own=150 * MIB, files=220 * MIB),
    simulator=Process(own=30 * MIB, files=40 * MIB, shared=1 * MIB),
    policy=10 * MIB,
    trained=8 * MIB,
    decision=0.5 * MIB,
    kept=2 * MIB,
    memoryless=True,
)


def settings(out: Path, **kwargs: Any) -> FinetuneRun:
    fields: dict[str, Any] = {"checkpoint": str(out), "env": toy(), "out": str(out), "algo": ALGO, "rewards": SUCCESS,
                              "engine": "local", "envs_per_worker": 4, "decisions": 32, "iterations": 1}  # fmt: skip
    return FinetuneRun(**(fields | kwargs))


def test_parts_by_hand(tmp_path: Path) -> None:
    parts = multiply(settings(tmp_path), ONE).parts
    assert parts["simulators"] == (4 * 31 + 40) * MIB
    assert parts["segments"] == 4 * 32 * 0.5 * MIB
    # set up by libraries 150 - 100 - 24 - 10, gradients and moments 24, a minibatch of 4 * 32 / 4 rows
    assert parts["learning"] == (16 + 24 + 32 * (0.5 + 2)) * MIB
    assert parts["driver"] == 110 * MIB
    assert "Ray" not in parts


def test_more_of_everything_takes_more(tmp_path: Path) -> None:
    base = multiply(settings(tmp_path), ONE).total
    for change in ({"envs_per_worker": 8}, {"num_workers": 2}, {"decisions": 64}, {"engine": "ray"},
                   {"algo": {**ALGO, "minibatches": 1}}):  # fmt: skip
        assert multiply(settings(tmp_path, **change), ONE).total > base, change
    lag = [multiply(settings(tmp_path, engine="ray", max_lag=n), ONE).total for n in (0, 1)]
    assert lag[1] - lag[0] == pytest.approx(4 * 32 * 0.5 * MIB)
    streams = multiply(settings(tmp_path), replace(ONE, memoryless=False))
    assert streams.parts["learning"] == (16 + 24 + 1 * (32 * 0.5 + 2)) * MIB  # minibatches of one stream


def test_learners_share_the_batch(tmp_path: Path) -> None:
    parts = multiply(settings(tmp_path, engine="ray", num_workers=2, num_learners=2), ONE).parts
    # each is a process with the policy, and has half of 2 * 4 * 32 rows in four minibatches; nothing is joined
    assert parts["learning"] == 2 * (16 + 24 + 32 * (0.5 + 2) + 100 + 10) * MIB


def test_memory_of_an_accelerator_is_counted_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    found = multiply(settings(tmp_path, device="cuda"), ONE)
    assert found.device == (10 + 24 + 32 * 2) * MIB
    assert found.parts["learning"] == (16 + 24 + 32 * 0.5) * MIB
    assert "accelerator" in found.lines()[-1]


def test_a_process_and_its_children_are_measured() -> None:
    hold = f"import numpy, time; a = numpy.ones({50 * MIB}, 'u1'); print('ready', flush=True); time.sleep(60)"
    code = f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {hold!r}]); time.sleep(60)"
    before = process().own
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        one, all_of_it = process(child.pid), used(child.pid)
        child.kill()
    assert 50 * MIB < one.own < 150 * MIB
    assert one.own < all_of_it < one.own + one.files + one.shared + MIB
    assert abs(process().own - before) < 20 * MIB
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()  # the grandchild's word
        assert used(parent.pid) > 55 * MIB > process(parent.pid).own
        os.killpg(parent.pid, signal.SIGKILL)
    assert used(child.pid) == 0.0


def test_dry_says_what_it_cannot_predict(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert launch.main(["finetune", "--dry", "env=toy", f"checkpoint={tmp_path}/nothing"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("# peak memory: not predicted, because ")
    assert "nothing" in last


@pytest.mark.slow
def test_prediction_is_within_a_fifth_of_the_measured_peak(tmp_path: Path) -> None:
    """A whole run in a process of its own, as a user would start it."""
    size = [64, 64]
    start = checkpoint_for(tmp_path / "step_000001", size)
    words = ["env=toy", f"env.sim.size={size}".replace(" ", ""), "env.sim.max_steps=10", "algo=ppo", "engine=local",
             "envs_per_worker=4", "decisions=96", "iterations=3", f"checkpoint={start}", "quiet=true"]  # fmt: skip
    dry = subprocess.run([sys.executable, "launch.py", "finetune", "--dry", *words, f"out={tmp_path}/run"], cwd=ROOT,
                         capture_output=True, text=True, check=True)  # fmt: skip
    line = next(x for x in dry.stdout.splitlines() if "peak memory, predicted" in x)
    number, unit = line.split()[-2:]
    predicted = float(number) * {"MiB": MIB, "GiB": 1024 * MIB}[unit]
    peak = 0.0
    with subprocess.Popen([sys.executable, "launch.py", "finetune", *words, f"out={tmp_path}/run"], cwd=ROOT,
                          stdout=subprocess.DEVNULL) as run:  # fmt: skip
        while run.poll() is None:
            peak = max(peak, used(run.pid))
            time.sleep(0.05)
    assert run.returncode == 0
    assert predicted == pytest.approx(peak, rel=0.2), dry.stdout


def checkpoint_for(folder: Path, size: list[int]) -> Path:
    """A policy for the toy with pictures of that size."""
    from pretrained.checkpoint import save
    from tests.toy_parts import make_policy, policy_node, toy_spec

    spec = toy_spec(size=size)
    save(folder, make_policy("flow", spec), node=policy_node("flow"), env=spec)
    return folder


def test_rehearsal_counts_what_there_is(tmp_path: Path) -> None:
    start = checkpoint(tmp_path / "step_000001", "flow")
    one = rehearse(settings(start, logger={"tensorboard": False}))
    image = 16 * 16 * 3
    assert image < one.decision < 10 * image + 4096
    assert one.kept > 4 * image  # pictures as float32 at least
    assert 0 < one.trained <= one.policy
    assert one.memoryless
    assert one.simulator.own > 5 * MIB
