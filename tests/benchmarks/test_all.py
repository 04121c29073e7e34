"""`make bench`: one table of everything that was measured, and programs that fail do not stop the others."""

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as bench
from benchmarks.tables import write_section

RESULTS = {
    "rollout/toy/vector": {"ratio": 0.99, "goal": 0.95, "steps_per_s": 99.0, "raw_steps_per_s": 100.0, "rounds": 3},
    "sims/lift/fast/bare": {"ratio": 0.5, "goal": 0.85, "ms": {"bare": 0.5, "fast": 1.0}, "rounds": 2},
    "vs_rllib/free/learner": {"ratio": 0.6, "goal": 0.55, "at_most": True, "ours": 6.0, "rllib": 10.0, "unit": "us"},
    "sims/lift/stock": {"ratio": 1.3, "goal": None, "ms": {}, "rounds": 2},
    "families/flow": {"before": {"success": 0.5}},
}


def test_one_row_per_ratio_with_goal_and_raw_figures() -> None:
    rows = bench.as_table(RESULTS).splitlines()[2:-2]
    assert len(rows) == 4
    cells = {r.split("|")[1].strip(): [c.strip() for c in r.split("|")[2:5]] for r in rows}
    assert cells["rollout/toy/vector"] == ["0.99", ">= 0.95", "steps_per_s 99, raw_steps_per_s 100"]
    assert cells["sims/lift/fast/bare"] == ["0.5 *", ">= 0.85", "bare ms 0.5, fast ms 1"]
    assert cells["vs_rllib/free/learner"] == ["0.6 *", "<= 0.55", "ours 6 us, rllib 10 us"]
    assert cells["sims/lift/stock"][:2] == ["1.3", ""]


def test_a_failure_is_named_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    ran: list[str] = []
    given: list[str] = []

    def run(name: str, options: str) -> str:
        ran.append(name)
        given.append(options)
        if name == "sims":
            page = tmp_path / "results.json"
            page.write_text(json.dumps(json.loads(page.read_text()) | {"sims/lift/stock": {"ratio": 1.0 + len(ran)}}))
        return "learner broke" if name == "learner" else ""

    monkeypatch.setattr(bench, "HERE", tmp_path)
    monkeypatch.setattr(bench, "write_section", lambda name, text, first: (tmp_path / "page").write_text(text))
    monkeypatch.setattr(bench, "run", run)
    monkeypatch.setattr("sys.argv", ["benchmarks"])
    assert bench.main() == 1
    assert ran == list(bench.PROGRAMS)
    assert "learner broke" in capsys.readouterr().err
    assert "learner broke: its rows are from an earlier run" in (tmp_path / "page").read_text()
    monkeypatch.setattr("sys.argv", ["benchmarks", "sims"])
    assert bench.main() == 0
    assert ran[-1] == "sims"
    assert given[-1] == ""
    now, earlier = (tmp_path / "page").read_text().split("From earlier runs")
    assert "sims/lift/stock" in now
    assert "sims/lift/stock" not in earlier
    assert "sims/lift/fast/bare" in earlier  # of the same program, but this run did not measure it
    assert "rollout/toy/vector" in earlier
    monkeypatch.setattr("sys.argv", ["benchmarks", "sims", "--quick"])
    assert bench.main() == 0
    assert given[-1] == bench.QUICK["sims"]
    assert "`python -m benchmarks sims --quick`" in (tmp_path / "page").read_text()
    monkeypatch.setattr("sys.argv", ["benchmarks", "--only-table"])
    assert bench.main() == 0
    assert ran[-1] == "sims"  # nothing more
    assert "nothing was measured for these rows" in (tmp_path / "page").read_text()
    monkeypatch.setattr("sys.argv", ["benchmarks", "sim"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "unknown programs ['sim']" in capsys.readouterr().err


def test_every_program_exists_and_writes_ratios() -> None:
    assert set(bench.QUICK) <= set(bench.PROGRAMS)
    for name in bench.PROGRAMS:
        text = (Path(bench.__file__).parent / f"{name}.py").read_text()
        assert "write_results(" in text
        assert "write_section(" in text


def test_the_first_section_stays_on_top(tmp_path: Path) -> None:
    page = tmp_path / "RESULTS.md"
    write_section("a", "text a", page)
    write_section("all", "the table", page, first=True)
    write_section("all", "the new table", page, first=True)
    write_section("b", "text b", page)
    text = page.read_text()
    assert text.index("# Benchmark") < text.index("the new table") < text.index("text a") < text.index("text b")
    assert text.count("<!-- all -->") == 1
