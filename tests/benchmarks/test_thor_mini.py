"""The stand-in's benchmark takes steps, and computes its ratios from them. The figures themselves are not tested."""

import pytest

from benchmarks import thor_mini


@pytest.mark.sim
def test_one_process_and_controllers_at_once():
    if not thor_mini.PYTHON.exists():
        pytest.skip("AI2-THOR'S CONTROLLER IS NOT MEASURED: run `python launch.py install ai2thor`")
    said: list[str] = []
    found = thor_mini.measure("112x64", 1, 8, said.append)
    assert len(said) == 2
    assert all(rate > 1 for rate in found["rates"].values())
    assert 0 < found["processor_ms"]["alone"] < found["processor_ms"]["one"]  # of which the stand-in is a part
    for name, ratio in found["ratios"].items():
        above, below = name.split("/")
        assert ratio == pytest.approx(found["rates"][above] / found["rates"][below])


def test_results_are_compared_with_the_goals():
    found = {
        "rates": {"alone": 100.0, "one": 50.0, "two": 80.0, "four": 90.0, "eight": 95.0},
        "ratios": {"one/alone": 0.5, "two/one": 1.6, "four/one": 1.8, "eight/one": 1.9},
        "processor_ms": {"alone": 9.5, "one": 21.25},
        "rounds": 3,
    }
    results = thor_mini.as_results("396x224", found)
    assert results["thor_mini/396x224/alone/goal"]["ratio"] == 0.5
    assert results["thor_mini/396x224/alone/goal"]["goal"] == 1.0
    assert results["thor_mini/396x224/two/one"] == {
        "ratio": 1.6, "goal": None, "rounds": 3, "alone_steps_per_s": 100.0, "one_steps_per_s": 50.0,
        "two_steps_per_s": 80.0, "four_steps_per_s": 90.0, "eight_steps_per_s": 95.0, "alone_processor_ms": 9.5,
        "one_processor_ms": 21.25,
    }  # fmt: skip
    text = thor_mini.as_table({"396x224": found})
    assert "200 (missed)" in text
    assert "0.50" in text
    assert "21.25" in text
