"""Tables of chains from records: rates in a row, the average and its interval, tasks by themselves."""

import pytest

from envs.calvin.chains import official_chain, training_chain
from rl.chains import chain_tables
from rl.stats import wilson
from rl.types import EpisodeRecord


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path))


def record(seed, solved, *, valid=True, env="calvin/D_chains"):
    return EpisodeRecord(env, "chain", seed, solved == 5, 100, float(solved), valid, "" if valid else "crashed: x")


def test_tables_of_four_chains():
    """Solved 5, 2, 0 and 2 tasks; a fifth chain was lost with its simulator and counts nowhere."""
    tables = chain_tables([record(0, 5), record(1, 2), record(2, 0), record(3, 2), record(4, 3, valid=False)])
    assert [tables["in_a_row"][str(k)]["success"] for k in range(1, 6)] == [0.75, 0.75, 0.25, 0.25, 0.25]
    average = tables["average_length"]
    assert average["value"] == pytest.approx(9 / 4)
    low, high = (2 * wilson(3, 4)[i] + 3 * wilson(1, 4)[i] for i in (0, 1))
    assert (average["low"], average["high"]) == (pytest.approx(low), pytest.approx(high))
    assert low < average["value"] < high
    assert tables["official"] is False
    solved = {task: row["solved"] for task, row in tables["subtasks"].items()}
    assert sum(solved.values()) == 9
    assert sum(row["trials"] for row in tables["subtasks"].values()) == 5 + 3 + 1 + 3  # begun
    first = official_chain(2)[1][0]  # the task at which chain 2 failed
    assert tables["subtasks"][first]["trials"] > tables["subtasks"][first]["solved"]
    unseen = set(official_chain(2)[1][1:]) - set(official_chain(0)[1]) - set(official_chain(1)[1][:3])
    for task in unseen - set(official_chain(3)[1][:3]):
        assert task not in tables["subtasks"]


def test_training_chains_have_their_own_tasks():
    tables = chain_tables([record(1_000_000, 5)])
    assert sorted(tables["subtasks"]) == sorted(training_chain(1_000_000)[1])


def test_nothing_is_added_to_other_environments():
    assert chain_tables([record(0, 1, env="calvin/D")]) == {}
    assert chain_tables([record(0, 1, valid=False)]) == {}


def test_all_solved_has_a_lower_limit_below_five():
    average = chain_tables([record(seed, 5) for seed in range(3)])["average_length"]
    assert average["value"] == average["high"] == 5.0
    assert average["low"] < 4.0
