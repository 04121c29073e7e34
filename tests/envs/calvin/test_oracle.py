"""The 34 tasks on recorded pairs of states, and what a recorded episode achieves row by row."""

import pytest

from envs.calvin.instructions import INSTRUCTIONS
from envs.calvin.oracle import TASKS, achieved, is_done
from envs.types import EnvError
from tests.golden_files import golden_json


@pytest.fixture(scope="module")
def recorded():
    return golden_json("calvin/oracle.json")


def test_every_recorded_verdict(recorded):
    cases, infos = recorded["cases"], recorded["infos"]
    assert len(cases) > 0
    for case in cases:
        start, end = infos[case["start"]], infos[case["end"]]
        assert is_done(case["task"], start, end) is case["expected"], case["id"]
        assert sorted(achieved(start, end)) == sorted(case["achieved"]), case["id"]


def test_each_task_is_seen_to_hold_and_to_fail(recorded):
    for task in TASKS:
        verdicts = [case["expected"] for case in recorded["cases"] if case["task"] == task]
        assert True in verdicts, task
        assert False in verdicts, task


def test_tasks_and_sentences_are_the_benchmarks():
    constants = golden_json("calvin/constants.json")
    parameters = constants["oracle"]["task_order_and_parameters"]
    assert list(TASKS) == list(parameters)
    for task, (_, arguments) in TASKS.items():
        recorded = [value for value in parameters[task][1:] if value not in ("table", 0.0)]
        if task not in ("push_into_drawer",) and not task.startswith("turn_"):
            assert list(arguments) == recorded, task
    assert constants["instructions_validation"] == INSTRUCTIONS


def test_unknown_task_is_refused(recorded):
    info = next(iter(recorded["infos"].values()))
    with pytest.raises(EnvError, match="no task 'fly'; expected one of rotate_red_block_right"):
        is_done("fly", info, info)
