"""The benchmark of memory over resets, on the toy: a leak shows, and so does what does not reset."""

import pytest

from benchmarks import resets

TOY = {"_target_": "envs.toy.Toy", "size": [8, 8]}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resets, "MARKS", (2, 6))


def test_a_leak_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resets, "SIMS", {"toy": TOY, "leaking": {**TOY, "leak_mib": 8.0}})
    found = {name: resets.measure(name, 6) for name in resets.SIMS}
    assert [list(r["mib"]) for r in found.values()] == [["2", "6"]] * 2
    assert abs(found["toy"]["grown"]) < 4.0
    assert found["leaking"]["grown"] > 4 * 8.0 - 4.0
    row = resets.as_table(found).splitlines()[-1]
    assert row.replace("|", " ").split() == ["leaking", *(f"{x:.1f}" for x in found["leaking"]["mib"].values()),
                                             f"{found['leaking']['grown']:+.1f}"]  # fmt: skip


def test_a_reset_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resets, "SIMS", {"toy": {**TOY, "crash_at": 0, "fault_seed": 3}})
    with pytest.raises(RuntimeError, match="reset 3 failed"):
        resets.measure("toy", 6)
