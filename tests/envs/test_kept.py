"""Tasks in memory: as many as fit, the one unused for longest goes first, and what is dropped is really gone."""

import gc
import weakref

import numpy as np
import pytest

from envs import kept
from envs.kept import Kept, release, resident_mb


@pytest.fixture
def memory(monkeypatch):
    """A process of 100 MB and what is put into `memory`."""
    sizes = {"process": 100.0}
    monkeypatch.setattr(kept, "resident_mb", lambda: sum(sizes.values()))
    monkeypatch.setattr(kept, "release", lambda: sum(sizes.values()))
    return sizes


def load(items, memory, name, size):
    if items.get(name) is None:
        items.make_room()
        items.add(name, name)
        memory[name] = size


def test_keeps_what_fits_and_drops_what_was_unused_for_longest(memory):
    items = Kept(memory_mb=300, close=memory.pop)
    for name in "abc":
        load(items, memory, name, 60.0)
    assert len(items) == 3
    load(items, memory, "a", 60.0)  # used again
    load(items, memory, "d", 60.0)
    assert sorted(memory) == ["a", "c", "d", "process"]
    assert items.get("b") is None
    items.clear()
    assert sorted(memory) == ["process"]


def test_one_item_may_be_over_the_limit_but_never_two(memory):
    items = Kept(memory_mb=50, close=memory.pop)
    for name in "aba":
        load(items, memory, name, 60.0)
        assert sorted(memory) == [name, "process"]


def test_a_larger_item_makes_more_room(memory):
    items = Kept(memory_mb=290, close=memory.pop)
    for name, size in (("a", 30.0), ("b", 30.0), ("c", 70.0), ("d", 70.0)):
        load(items, memory, name, size)
    assert sorted(memory) == ["b", "c", "d", "process"]


def test_what_is_dropped_is_given_back():
    class Simulator:
        def __init__(self) -> None:
            self.itself = self  # a circle, as robosuite's objects have
            self.pieces = [np.ones(2000) for _ in range(10_000)]  # small enough for the heap: 160 MB

    before = release()
    simulator = Simulator()
    gone = weakref.ref(simulator)
    assert resident_mb() > before + 150
    gc.disable()
    try:
        del simulator
        assert gone() is not None
        assert release() < before + 40
    finally:
        gc.enable()
    assert gone() is None
