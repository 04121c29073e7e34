"""A sweep measures every cell once, whatever interrupts it; choices and early ends keep their promises."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rl.sweep
from pretrained.checkpoint import save
from rl.cells import checkpoints, perturbed
from rl.evaluate import EvaluateRun
from rl.ledger import alone
from rl.store import COLUMNS, Store
from rl.sweep import RESULTS, Result, SweepRun, describe, sweep
from rl.sweep_report import sweep_report
from tests.page_parts import read_page
from tests.toy_parts import make_policy, policy_node, toy, toy_spec

ROOT = Path(rl.sweep.__file__).resolve().parents[1]
WALK: dict[str, Any] = {"hold": 1, "max_steps": 10, "discrete": True}
RATES = {"a": 0.3, "b": 0.8, "c": 0.3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tiny checkpoints, a, b and c."""
    folder, spec = tmp_path_factory.mktemp("runs"), toy_spec(**WALK)
    for seed, name in enumerate(RATES):
        node = policy_node("categorical")
        save(folder / name, make_policy("categorical", spec, seed=seed), node=node, env=spec)
    return folder


def settings(runs: Path, out: Path, *names: str, **kwargs: Any) -> SweepRun:
    options: dict[str, Any] = {"tasks": ["red", "blue"], "engine": "local", "episodes": 3, "videos": 0, "workers": 1,
                               "quiet": True, "perturbations": {"none": [], "short": ["sim.max_steps=5"]}}  # fmt: skip
    return SweepRun([str(runs / n) for n in names or ("a", "b")], toy(**WALK), str(out), **options | kwargs)


class Coins:
    """In place of simulators: success by the checkpoint's rate, on initial states that are hard or easy for all."""

    def __init__(self) -> None:
        self.jobs: list[EvaluateRun] = []
        self.break_at = -1

    def __call__(self, job: EvaluateRun) -> Result:
        if len(self.jobs) == self.break_at:
            raise KeyboardInterrupt
        self.jobs.append(job)
        records, rate = [], RATES[Path(job.checkpoint).name]
        for k in range(job.episodes):
            seed, task = job.seed_start + k, job.env.tasks[0]
            luck = np.random.default_rng([seed, len(task)]).random()
            records.append({"episode": k, "task": task, "seed": seed, "success": bool(luck < rate), "valid": True,
                            "length": 5, "reward": 0.0, "cause": ""})  # fmt: skip
        return Result(records, {}, {}, 0.5)


@pytest.fixture
def coins(monkeypatch: pytest.MonkeyPatch) -> Coins:
    found = Coins()
    monkeypatch.setattr(rl.sweep, "measure", found)
    return found


def stored(out: Path) -> list[dict[str, Any]]:
    with Store(out / RESULTS) as store:
        return store.episodes(sorted(store.finished()))


def test_the_real_thing_on_the_toy(runs: Path, tmp_path: Path) -> None:
    """Two cells, one of them perturbed; its videos, its tapes, and the page."""
    page = sweep(settings(runs, tmp_path, "a", tasks=["red"], episodes=2, videos=1, command="sweep <me>"))
    rows = stored(tmp_path)
    assert len(rows) == 4
    assert {r["length"] <= 5 for r in rows} == {True, False}
    seen = read_page(page)
    assert all(source.startswith("data:") for source in seen.loads)
    for word in ("none", "short", "McNemar", "sweep <me>", "launch.py replay"):
        assert word in seen.text
    folders = sorted((tmp_path / "cells").iterdir())
    assert all((folder / "actions.npz").is_file() and list((folder / "videos").glob("*.mp4")) for folder in folders)


def test_an_interrupted_sweep_goes_on_where_it_was(runs: Path, tmp_path: Path, coins: Coins) -> None:
    run = settings(runs, tmp_path / "out")
    coins.break_at = 3
    with pytest.raises(KeyboardInterrupt):
        sweep(run)
    coins.break_at = -1
    assert "3 are there already" in describe(run)[0]
    assert "5 cells are missing" in read_page(sweep_report(tmp_path / "out")).text
    page = sweep(run)
    assert len(coins.jobs) == 8  # none twice
    assert "missing" not in read_page(page).text
    sweep(run)
    assert len(coins.jobs) == 8
    whole = settings(runs, tmp_path / "whole")
    sweep(whole)
    assert stored(tmp_path / "out") == stored(tmp_path / "whole")


def test_equal_content_is_measured_once(runs: Path, tmp_path: Path, coins: Coins) -> None:
    """A copied checkpoint, and a perturbation that changes nothing; both appear in the tables all the same."""
    shutil.copytree(runs / "a", tmp_path / "moved" / "a")
    same = {"none": [], "also none": [f"sim.max_steps={WALK['max_steps']}"]}
    run = replace(settings(runs, tmp_path / "out", perturbations=same),
                  checkpoints=[str(runs / "a"), str(tmp_path / "moved" / "a")])  # fmt: skip
    sweep(run)
    assert len(coins.jobs) == 2  # tasks
    rates = json.loads((tmp_path / "out" / "summary.json").read_text())["rates"]
    assert len(rates) == 4
    assert len({json.dumps(r["success"]) for r in rates}) == 1


def test_cells_differ_by_whatever_matters(runs: Path) -> None:
    base = settings(runs, Path("out"), "a")
    (chosen,) = checkpoints(base.checkpoints)
    keys = [c.key for run in (base, replace(base, greedy=False), replace(base, seed_start=1), replace(base, episodes=4),
                              replace(base, policy_overrides={"execute": 1}), replace(base, env=toy(**WALK, step_ms=1)))
            for c in run.cells([chosen], ["red", "blue"], "test")]  # fmt: skip
    assert len(set(keys)) == len(keys) == 24
    elsewhere = replace(base, env=replace(base.env, python="/other/python", step_deadline_s=1.0), out="b", videos=3)
    assert [c.key for c in elsewhere.cells([chosen], ["red", "blue"], "test")] == keys[:4]


def test_a_checkpoint_is_chosen_on_other_seeds_than_it_is_judged_by(runs: Path, tmp_path: Path, coins: Coins) -> None:
    sweep(settings(runs, tmp_path, "a", "b", "c", validation=10, episodes=6, perturbations={"none": []}))
    with Store(tmp_path / RESULTS) as store:
        plan = json.loads(store.meta("plan"))
        assert store.meta("chosen") == "b"
    seeds: dict[str, set[int]] = {"validation": set(), "test": set()}
    for p in plan:
        seeds[p["split"]] |= set(range(p["seed_start"], p["seed_start"] + p["episodes"]))
    assert seeds == {"validation": set(range(10)), "test": set(range(10, 16))}
    assert {p["checkpoint"] for p in plan if p["split"] == "test"} == {"a", "b"}
    assert "b (chosen)" in read_page(tmp_path / "report.html").text


def test_a_decided_comparison_takes_no_more_seeds(runs: Path, tmp_path: Path, coins: Coins) -> None:
    run = settings(
        runs, tmp_path, "a", "b", "c", episodes=100, block=10, stop={"share": 0.8}, perturbations={"none": []}
    )
    sweep(run)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["decisions"]["b / none"] == "better"
    counts = {r["names"][1]: r["episodes"] for r in summary["rates"]}
    assert counts["b"] < 100
    assert counts["c"] > counts["b"]  # equal to a on every state: no pair ever differs, and nothing can be said
    before = len(coins.jobs)
    sweep(run)
    assert len(coins.jobs) == before


def test_a_cell_that_fails_is_tried_again_and_shown(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coins, calls = Coins(), []

    def ill(job: EvaluateRun) -> Result:
        calls.append(job)
        bad = Path(job.checkpoint).name == "b" or len(calls) == 1
        return replace(coins(job), records=[], error="EnvError: no display") if bad else coins(job)

    monkeypatch.setattr(rl.sweep, "measure", ill)
    page = sweep(settings(runs, tmp_path, tasks=["red"], perturbations={"none": []}))
    assert len(calls) == 4  # two attempts each: the first checkpoint's second one succeeds
    assert "EnvError: no display" in read_page(page).text
    monkeypatch.setattr(rl.sweep, "measure", coins)
    sweep(settings(runs, tmp_path, tasks=["red"], perturbations={"none": []}))  # only what failed
    assert Path(coins.jobs[-1].checkpoint).name == "b"
    assert len(stored(tmp_path)) == 6


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"perturbations": {"x": ["sim.max_stepz=5"]}}, "perturbation 'x'.*no 'max_stepz'"),
        ({"perturbations": {"x": ["max_steps"]}}, "perturbation 'x'.*not KEY=VALUE"),
        ({"perturbations": {"x": ["python=/bin/sh"]}}, "perturbation 'x'.*KEY under"),
        ({"perturbations": {"x": ["sim._target_=os.system"]}}, "_target_ 'os.system' is not allowed"),
        ({"stop": {"share": 0.8}}, "stop needs block"),
        ({"stop": {"low": 0.8}}, "stop has .'low'."),
        ({"episodes": 0}, "must be at least 1"),
        ({"seed_start": 10**6}, "larger seeds belong to training"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(
    runs: Path, tmp_path: Path, kwargs: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        sweep(settings(runs, tmp_path, **kwargs))
    assert not (tmp_path / "cells").exists()


def test_perturbations_reach_into_nested_settings() -> None:
    config = perturbed(toy(**WALK), ["env.sim.size=[8, 8]", "sim.name=reach"], name="p")
    assert (config.sim["size"], config.sim["name"], config.sim["max_steps"]) == ([8, 8], "reach", 10)


def test_paths_with_stars_come_in_the_order_of_their_numbers(runs: Path, tmp_path: Path) -> None:
    for number in (9, 10, 100):
        shutil.copytree(runs / "a", tmp_path / f"step_{number}")
    assert [c.name for c in checkpoints([str(tmp_path / "step_*")])] == ["step_9", "step_10", "step_100"]
    with pytest.raises(ValueError, match="nothing matches"):
        checkpoints([str(tmp_path / "stop_*")])


WRITER = """
import sys
from pathlib import Path
from rl.store import COLUMNS, Store
row = dict.fromkeys(COLUMNS, 0) | {"task": "t", "cause": "x" * 200}
with Store(Path(sys.argv[1])) as store:
    for k in range(100000):
        store.put(f"cell{k}", {}, [row | {"episode": e} for e in range(50)], wall_s=1.0, summary={})
        print(k, flush=True)
"""


def test_a_killed_writer_leaves_whole_cells(tmp_path: Path) -> None:
    path, told = tmp_path / RESULTS, -1
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            told = max(told, int(writer.stdout.readline()))
            time.sleep(0.05)
            writer.send_signal(signal.SIGKILL)
        with Store(path) as store:
            cells = store.finished()
            assert len(cells) > told
            assert len(store.episodes(sorted(cells))) == 50 * len(cells)


def test_a_full_disk_keeps_whole_cells_and_says_so(tmp_path: Path) -> None:
    row = dict.fromkeys(COLUMNS, 0) | {"task": "t", "cause": "x" * 200}
    rows = [row | {"episode": e} for e in range(50)]
    with Store(tmp_path / RESULTS) as store:
        store.put("cell0", {}, rows, wall_s=1.0, summary={})
        pages = int(store._db.execute("pragma page_count").fetchone()[0])
        store._db.execute(f"pragma max_page_count = {pages + 1}")  # what SQLite finds on a full disk
        with pytest.raises(OSError, match=r"is full \(database or disk is full\).*give the same command again") as full:
            store.put("cell1", {}, rows, wall_s=1.0, summary={})
        assert full.value.errno == errno.ENOSPC
    with Store(tmp_path / RESULTS) as store:
        assert store.finished() == {"cell0"}
        assert len(store.episodes(["cell0"])) == 50


def test_two_sweeps_do_not_measure_the_same_at_once(runs: Path, tmp_path: Path, coins: Coins) -> None:
    (tmp_path / "s").mkdir()
    with alone(tmp_path / "s"), pytest.raises(ValueError, match=f"process {os.getpid()} is at work"):
        sweep(settings(runs, tmp_path / "s"))
    assert coins.jobs == []


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / RESULTS).write_bytes(b"not a database, but long enough to be looked at" * 30)
    with pytest.raises(ValueError, match="is not a sweep's results"):
        Store(tmp_path / RESULTS)
    with Store(tmp_path / "new.sqlite") as store:
        store.remember(format="99")
    with pytest.raises(ValueError, match="format 99.*update the code"):
        Store(tmp_path / "new.sqlite")


@pytest.mark.ray
def test_ray_measures_the_same(runs: Path, tmp_path: Path) -> None:
    import ray

    options: dict[str, Any] = {"tasks": ["red"], "perturbations": {"none": []}, "episodes": 2}
    try:
        sweep(settings(runs, tmp_path / "ray", engine="ray", **options))
    finally:
        ray.shutdown()
    sweep(settings(runs, tmp_path / "local", **options))
    assert stored(tmp_path / "ray") == stored(tmp_path / "local")
    assert len(stored(tmp_path / "ray")) == 4
