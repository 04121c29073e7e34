"""The benchmarks run, count right, and keep each other's results. The figures themselves are not tested here."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from benchmarks import equality, families, log_probs, loop, rollout, sims
from benchmarks.tables import table, write_results, write_section
from envs.types import EnvConfig
from rl.ppo import Ppo

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "demos": {"episodes": 3},
    "imitate": {"steps": 4, "batch_size": 8},
    "policy": {"width": 32},
    "finetune": {"envs_per_worker": 2, "decisions": 2, "iterations": 4},  # one more than the critic's warm-up
}


def test_measures_five_rates_of_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rollout.ENVS, "toy_5ms", EnvConfig(sim={**rollout.TOY, "step_ms": 1.0, "max_steps": 12}))
    said: list[str] = []
    try:
        found = rollout.measure("toy_5ms", "gaussian", seconds=0.0, count=2, decisions=2, say=said.append)
    finally:
        ray.shutdown()
    assert found["rounds"] == len(said) == 2
    middle = found["middle"]
    assert all(middle[k] > 0 for k in ("raw", "vector", "policy", "in turn", "loop"))
    assert middle["raw"] <= 2 * 1000  # two processes that need a millisecond of processor time per step
    results = rollout.as_results("toy_5ms", "gaussian", found)
    assert {k: v["goal"] for k, v in results.items()} == {
        "rollout/toy_5ms/gaussian/vector": 0.95,
        "rollout/toy_5ms/gaussian/policy": 0.90,
        "rollout/toy_5ms/gaussian/loop": 0.85,
    }
    assert results["rollout/toy_5ms/gaussian/vector"]["raw_steps_per_s"] == round(middle["raw"], 2)


def test_measures_a_run_with_and_without_lag_against_bare_stepping() -> None:
    said: list[str] = []
    try:
        found = loop.measure(100.0, 2, 2, 0.0, said.append)
    finally:
        ray.shutdown()
    assert found["rounds"] == 2
    assert found["decisions"] == 10  # two seconds
    assert found["slowest"] in ("simulators", "policy", "learner")
    assert 0 < found["middle"]["raw"] <= 2 / 0.1  # two processes that sleep for 100 ms in each step
    assert set(found["ratio"]) == {"lag 0", "lag 1"}
    low = {**found, "ratio": {"lag 0": 0.5, "lag 1": 0.6}, "slowest": "simulators"}
    results = loop.as_results({(100.0, 2, 2): low})
    assert results["loop/100ms_2rows_chunk2"]["ratio"] == 0.6
    assert loop.as_table({(100.0, 2, 2): low}).splitlines()[2].count("*") == 1
    assert loop.as_table({(100.0, 2, 2): {**low, "slowest": "learner"}}).splitlines()[2].count("*") == 0


@pytest.mark.sim
@pytest.mark.skipif(find_spec("robosuite") is None, reason="robosuite is NOT installed in this interpreter")
def test_measures_one_simulator_in_alternation() -> None:
    said: list[str] = []
    found = sims.measure("robosuite_lift", 1, ["--steps", "8", "--no-cameras"], said.append)
    assert set(found["ms"]) == {"bare", "untouched", "stock", "fast"}
    assert all(ms > 0 for ms in found["ms"].values())
    assert set(found["ratio"]) == {"fast/untouched", "fast/bare", "stock/untouched"}
    assert found["ratio"]["fast/untouched"] == pytest.approx(found["ms"]["untouched"] / found["ms"]["fast"])
    assert len(said) == 1


def test_speeds_are_kept_and_shown_with_their_goals() -> None:
    ms = {"bare": 0.5, "untouched": 4.0, "stock": 3.0, "fast": 1.0}
    ratio = {"fast/untouched": 4.0, "fast/bare": 0.9, "stock/untouched": 1.3}
    found = {"ms": ms, "ratio": ratio, "rounds": 2}
    row = sims.as_table({"lift": found}).splitlines()[2]
    assert "4.00 *" in row
    assert row.count("*") == 1
    kept = sims.as_results("lift", found)
    assert kept["sims/lift/fast/bare"] == {"ratio": 0.9, "goal": 0.85, "ms": {"bare": 0.5, "fast": 1.0}, "rounds": 2}
    assert kept["sims/lift/stock/untouched"]["goal"] is None


@pytest.mark.sim
@pytest.mark.skipif(find_spec("robosuite") is None, reason="robosuite is NOT installed in this interpreter")
def test_compares_one_simulator_with_the_untouched_package() -> None:
    said: list[str] = []
    found = equality.measure("Lift", ["--expert-steps", "60", "--random-steps", "10", "--no-cameras"], said.append)
    assert len(said) == found["episodes"] + 1 >= 3  # and random actions
    assert found["expert_steps"] > 60
    assert found["random_steps"] == 10
    assert found["states"] == found["observations"] == 0
    assert found["solved"] == found["replayed"] == found["within"] == found["episodes"]
    assert equality.faults(found) == []


def test_a_difference_is_found_and_its_row_is_marked() -> None:
    ours = {
        "state": np.zeros(5),
        "eef_pos": np.ones(3),
        "state_size": np.array([4.0]),
        "image/a": np.full(4, 7, np.uint8),
    }
    theirs = {"state": np.zeros(4), "eef_pos": np.ones(3), "image/a": np.full(4, 9, np.uint8)}
    assert equality.difference(ours, theirs) == {"states": 0, "observations": 0, "pixels": 2}
    theirs["eef_pos"] = np.array([1.0, 1.0, np.nan])
    assert equality.difference(ours, theirs)["observations"] == np.inf
    with pytest.raises(ValueError, match="observed differently.*eef_quat"):
        equality.difference(ours, {**theirs, "eef_quat": np.ones(4)})
    untouched = {"states": 0.0, "observations": 0.0, "pixels": 0.0}
    expert = {"kind": "expert", "task": "a", "steps": 9, "untouched": untouched}
    expert.update(solved=True, replayed=True, outcome=False, fast=1e-12, nudged=None)
    random = {"kind": "random", "task": "a", "steps": 5, "untouched": untouched}
    good = equality.summary([expert, random])
    assert equality.faults(good) == []
    worse = {**expert, "replayed": False, "fast": 1e-3, "nudged": 1e-4}
    bad = equality.summary([expert, worse, {**random, "untouched": {**untouched, "states": 1e-16}}])
    assert equality.faults(bad) == ["states", "replayed", "fast"]
    assert (bad["within"], bad["episodes"], bad["replayed"], bad["solved"]) == (1, 2, 1, 2)
    rows = equality.as_table({"good": good, "bad": bad, "still": equality.summary([random])}).splitlines()
    assert [row.count("*") for row in rows[2:5]] == [0, 3, 0]


def test_what_misses_its_goal_is_marked() -> None:
    middle = {"raw": 100.0, "vector": 96.0, "policy": 80.0, "in turn": 70.0, "loop": 90.0}
    ratio = {"vector": 0.96, "policy": 0.80, "in turn": 0.70, "loop": 0.90}
    text = rollout.as_table({("toy", "flow"): {"middle": middle, "ratio": ratio, "rounds": 3, "processes": 4}})
    assert "0.960 " in text
    assert "0.800 *" in text
    assert "0.700 *" not in text  # has no goal
    assert "0.900 *" not in text


def test_log_probs_are_compared_between_rollout_and_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    found = log_probs.measure("flow", 2, rows=2, decisions=3)
    assert found["scored"] == 2 * 3 * 2
    assert found["ratio"] < log_probs.LIMIT
    assert found["gap"] < 1e-3
    plain = log_probs.Ppo
    monkeypatch.setattr(log_probs, "Ppo", lambda **k: plain(**{**k, "lr": 1e-3}))
    moved = log_probs.measure("flow", 2, rows=2, decisions=3)
    assert moved["ratio"] > log_probs.LIMIT
    assert log_probs.as_table({("flow", 2): moved}).splitlines()[2].count("*") == 1


def test_a_family_goes_through_the_whole_job_and_continues(tmp_path: Path) -> None:
    result = families.run("gaussian", tmp_path, episodes=4, seed=0, changes=TINY)
    for moment in ("before", "after"):
        assert result[moment]["episodes"] == 4
        assert 0 <= result[moment]["low"] <= result[moment]["success"] <= result[moment]["high"] <= 1
    assert 0 < result["env_steps"] <= 4 * 2 * 2 * 8
    manifest = tmp_path / "finetune" / "step_000004" / "manifest.json"
    written = manifest.stat().st_mtime_ns
    again = families.run("gaussian", tmp_path, episodes=4, seed=0, changes=TINY)
    assert again == result
    assert manifest.stat().st_mtime_ns == written


@pytest.mark.parametrize("family", families.FAMILIES)
def test_settings_of_every_family_are_complete(family: str) -> None:
    s = families.settings(family)
    assert set(s) == set(families.BASE)
    assert (ROOT / "configs" / "policy" / f"{family}.yaml").is_file()
    algo = Ppo(**s["algo"])
    first = algo.stage(0)
    if first.losses == ("value",):
        assert "actor" in first.freeze
    assert algo.stage(10**6).losses == ("policy", "value")


def test_sections_and_results_keep_the_others(tmp_path: Path) -> None:
    page, numbers = tmp_path / "RESULTS.md", tmp_path / "results.json"
    write_section("a", "old a", page)
    write_section("b", "only b", page)
    write_section("a", "new a", page)
    text = page.read_text()
    assert "old a" not in text
    assert text.index("new a") < text.index("only b")
    write_results({"x": {"ratio": 1}, "y": 2}, numbers)
    write_results({"x": {"ratio": 3}}, numbers)
    assert json.loads(numbers.read_text()) == {"x": {"ratio": 3}, "y": 2}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["RESULTS.md", "results.json"]


def test_tables_line_up() -> None:
    rows: list[Any] = table(["a", "long head"], [["wide cell", "1"]]).splitlines()
    assert len({len(r) for r in rows}) == 1
