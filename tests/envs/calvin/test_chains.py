"""Chains: the benchmark's list by its checksum, its rules, and training chains apart from it."""

import json

import pytest

from envs.calvin import chains
from envs.calvin.oracle import TASKS
from tests.golden_files import golden_json


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path))
    chains._drawn.cache_clear()
    yield tmp_path
    chains._drawn.cache_clear()


def same_way(one, other):
    """A condition and an effect, comparable."""

    def tuples(node):
        return {k: tuple(v) if isinstance(v, list | tuple) else (v,) for k, v in node.items()}

    return [tuples(part) for part in one] == [tuples(part) for part in other]


def test_rules_are_the_benchmarks():
    recorded = golden_json("calvin/constants.json")["chains"]
    assert {task: chains.kind(task) for task in TASKS} == recorded["categories"]
    assert {k: list(v) for k, v in chains.OPTIONS.items()} == recorded["state_options_in_order"]
    assert len(chains.initial_states()) == recorded["n_states"]
    for task, wanted in recorded["tasks"].items():
        ways, left = chains.ways(task), list(wanted)
        assert len(ways) == len(wanted), task
        for way in ways:
            match = [w for w in left if same_way(way, (w["condition"], w["effect"]))]
            assert match, (task, way)
            left.remove(match[0])


def test_a_few_chains_are_the_benchmarks(empty_cache):
    recorded = golden_json("calvin/sequences.json")["chains"]
    for index in (0, 7, 49):
        state, tasks = chains.official_chain(index)
        assert [state, tasks] == recorded[index]
        assert list(state) == list(recorded[index][0])  # the order counts: it is part of a state's seed
        assert chains.is_chain(state, tasks)
        assert not chains.is_chain(state, tasks[::-1])


@pytest.mark.slow
def test_the_whole_list_has_the_recorded_checksum(empty_cache):
    recorded = golden_json("calvin/sequences.json")
    found = chains.official_chains()
    assert chains.chains_hash(found) == recorded["sha256_of_full_1000"]
    counts = {task: sum(task in tasks for _, tasks in found) for task in TASKS}
    assert counts == recorded["task_counts_over_5000_subtasks"]
    other = recorded["other_lengths"]["192"]
    assert chains.chains_hash(chains.official_chains(192)) == other["sha256"]


def test_cached_chains_are_used_and_damaged_ones_drawn_again(empty_cache, monkeypatch):
    state, _ = chains._order(chains.OFFICIAL)[0]
    first = chains._drawn(state, 1)
    file = empty_cache / "calvin-chains" / f"{state}.json"
    kept = file.read_text()
    for damage in ("", "[[", json.dumps([["open_drawer"] * 5] * 6)):
        file.write_text(damage)
        chains._drawn.cache_clear()
        assert chains._drawn(state, 1) == first
        assert file.read_text() == kept
    chains._drawn.cache_clear()
    monkeypatch.setattr(chains, "_chains_from", None)  # drawing would fail
    assert chains._drawn(state, 1) == first


def test_training_chains_follow_the_rules_and_have_seeds_of_their_own():
    state, tasks = chains.training_chain(1_000_000)
    assert chains.is_chain(state, tasks)
    assert chains.training_chain(1_000_000) == (state, tasks)
    assert chains.training_chain(2_000_000_000) != (state, tasks)
    with pytest.raises(ValueError, match="seed 999 is an official chain"):
        chains.training_chain(999)
    with pytest.raises(ValueError, match="no official chain 1000"):
        chains.official_chain(1000)
