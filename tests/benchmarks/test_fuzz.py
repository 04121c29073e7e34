"""Changed files and messages are taken or refused clearly: a few of each kind here, over 10,000 in `make fuzz`."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import fuzz


@pytest.mark.parametrize("kind", list(fuzz.READERS))
def test_a_few_of_each_kind(kind: str) -> None:
    verdicts = dict(fuzz.attack(kind, seed=1, first=0, count=200 if kind == "messages" else 20))
    assert {v for v in verdicts.values() if v not in ("taken", "refused")} == set()
    assert "refused" in verdicts.values()


@pytest.mark.parametrize("kind", ["key", "mute", "shell"])
def test_it_would_tell(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def reader(folder: Path) -> Callable[[random.Random], object]:
        def case(rng: random.Random) -> object:
            if kind == "shell":
                return os.system("true")
            raise {"key": KeyError("x"), "mute": ValueError()}[kind]

        return case

    monkeypatch.setitem(fuzz.READERS, kind, reader)
    ((_, verdict),) = fuzz.attack(kind, seed=0, first=0, count=1)
    assert verdict == {"key": "KeyError: 'x'", "mute": "no message", "shell": "ran something: ['os.system']"}[kind]


def test_mutations_repeat_and_change() -> None:
    data = bytes(range(256)) * 4
    once, again = (fuzz.mutate(data, random.Random(7)) for _ in range(2))
    assert once == again != data
    assert len({fuzz.mutate(data, random.Random(k)) for k in range(50)}) > 45
