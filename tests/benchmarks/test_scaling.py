"""The driver's benchmark counts what it says, and the model of a fleet does its sums."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import fleet, scaling
from benchmarks.fleet import Constants, predict

C = Constants(step=5e-3, step_from="assumed", decide=8e-3, steps=8, learn=40e-3, gpu=50, gpu_from="assumed",
              decision=2.0**15, weights=2.0**22, driver_step=2e-6, put=2.0**30)  # fmt: skip
DRIVER: dict[str, Any] = {
    "us_per_step": {2: 4.0, 64: 2.0},
    "broadcast": {"mib": 256, "put_s": 0.25, "all_s": 0.3, "receivers": 8},
}


def test_a_fleet_by_hand() -> None:
    p = predict(C, 1000, 8, nodes=16)
    assert p["sim_share"] == pytest.approx(5 / 6)  # 5 ms of 5 + 8 / 8
    collect, learn = 1000 / 6e-3, 8 * 50 / 40e-3 * 8  # environment steps per second: 166,667 and 80,000
    assert p["steps_per_s"] == pytest.approx(1 / (1 / collect + 1 / learn))
    assert p["steps_per_s_overlapped"] == pytest.approx(learn)
    assert p["iteration_s"] == pytest.approx(2000 * 32 * 8 / p["steps_per_s"])
    assert p["gib_per_s"] == pytest.approx(learn / 8 * 2**15 / 2**30)
    assert p["driver_share"] == pytest.approx(learn * 2e-6)


def test_constants_say_where_they_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fleet.constants(DRIVER, tmp_path / "none.json", case="tiny")
    assert (found.step, found.step_from, found.gpu_from) == (fleet.ASSUMED_STEP_MS / 1e3, "assumed", "assumed")
    assert found.driver_step == 2e-6  # with the most actors
    assert found.put == pytest.approx(2**30)
    assert found.decide > 0
    assert found.learn > 0
    assert found.decision > 2 * 16 * 16 * 3
    known = {
        fleet.STEP[0]: {"ms": {fleet.STEP[1]: 2.5}},
        "learner/flow/bare": {"ours_s": 10.0},
        "learner_cuda/flow/float32": {"samples_per_s": 512 * 4 / 10.0 * 70},
    }
    (tmp_path / "results.json").write_text(json.dumps(known))
    found = fleet.constants(DRIVER, tmp_path / "results.json", case="tiny")
    assert (found.step, found.step_from) == (2.5e-3, "benchmarks.sims")
    assert found.gpu == pytest.approx(70)
    monkeypatch.setattr(fleet, "PAGE", tmp_path / "scaling.md")
    (tmp_path / "scaling.md").write_text("# Scaling\n\n<!-- constants -->\nNot yet.\n<!-- /constants -->\n\nThe end.\n")
    fleet.write(found)
    text = (tmp_path / "scaling.md").read_text()
    assert "Not yet" not in text
    assert "1000 + 8" in text
    assert text.endswith("The end.\n")


def test_the_ratio_is_shown_with_its_goal() -> None:
    found: dict[str, Any] = {"cpu_s": {2: 0.01, 64: 0.4}, "us_per_step": {2: 2.4, 64: 3.0}, "ratio": 1.25,
                             "ms_per_call": 6.0, "ms_per_iteration": 1.0, "rounds": 5, **DRIVER}  # fmt: skip
    found["us_per_step"] = {2: 2.4, 64: 3.0}
    assert "per step: 1.25 * (at most 1.2)" in scaling.as_table(found)
    kept = scaling.as_results(found)["scaling/driver"]
    assert (kept["ratio"], kept["goal"], kept["at_most"]) == (1.25, 1.2, True)
    assert (kept["us_per_step_64"], kept["us_per_step_2"]) == (3.0, 2.4)


@pytest.fixture
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    from rl.plain import start_ray

    start_ray(SimpleNamespace(ray_address="", num_workers=0, num_learners=0, dashboard=False))  # type: ignore[arg-type]
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_the_real_driver_takes_every_answer(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "WEIGHTS", 1000)
    found = scaling.measure([1, 2], 2, lambda line: None, steps=100, pause=0.0, repeat=1)
    assert set(found["cpu_s"]) == {1, 2}
    assert all(v > 0 for v in found["cpu_s"].values())
    assert found["us_per_step"][2] == pytest.approx(1e6 * found["cpu_s"][2] / 200)
    assert found["broadcast"]["receivers"] == 2
    assert 0 < found["broadcast"]["put_s"] <= found["broadcast"]["all_s"] + 0.05
