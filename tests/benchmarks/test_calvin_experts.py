"""The tables of CALVIN's expert, from outcomes made up and from two that are played."""

import pytest

from benchmarks import calvin_experts as experts
from envs.calvin.chains import official_chain
from envs.experts.calvin import PLANS
from tests.calvin_parts import need_calvin


def test_chains_of_known_tasks_are_listed_once_more() -> None:
    known = [set(official_chain(i)[1]) <= set(PLANS) for i in range(12)]
    assert 0 < sum(known) < 12
    rows, tables = experts.chain_rows([5 if k else 1 for k in known])
    assert [row[:2] for row in rows] == [["all", "12"], ["of known tasks", str(sum(known))]]
    assert rows[1][2:7] == ["100.0 %"] * 5
    assert rows[1][7].startswith("5.00 [")
    assert tables["all"]["average_length"]["value"] == pytest.approx((5 * sum(known) + 12 - sum(known)) / 12)
    assert not tables["all"]["official"]


def test_a_task_has_its_interval_and_the_steps_of_its_successes() -> None:
    rows = experts.task_rows({"open_drawer": [[1, 40], [0, 360], [1, 50], [1, 45]], "push": [[0, 9]]})
    assert rows[0][:2] == ["open_drawer", "3 of 4"]
    assert rows[0][3] == "45"
    assert rows[1] == ["push", "0 of 1", "[0, 79] %", ""]


@pytest.mark.sim
def test_the_expert_plays_until_it_meets_a_task_that_it_does_not_know() -> None:
    need_calvin()
    tasks = official_chain(0)[1]
    unknown = next((k for k, task in enumerate(tasks) if task not in PLANS), 5)
    played = experts.measure(1, 1, ["turn_on_led"])
    assert played["turn_on_led"][0][0] == 1
    assert 0 < played["turn_on_led"][0][1] < 60
    assert played["chain"][0][0] <= unknown
