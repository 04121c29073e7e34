"""Arms of fine-tuning runs, from the files that runs and evaluations leave."""

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.flip_arms import Run, audits, compared, curve, draw, learned, outcomes, over_seeds, rows
from rl.ledger import Ledger


def run(won: list[bool], after: list[bool]) -> Run:
    return Run([10 * k for k in range(1, len(won) + 1)], won, 40, after)


def test_three_seeds_have_students_interval() -> None:
    found = over_seeds([0.4, 0.5, 0.6])
    assert found.value == pytest.approx(0.5)
    assert found.high - found.value == pytest.approx(4.303 * 0.1 / 3**0.5)
    assert over_seeds([0.4]) == (0.4, -1.0, 1.0)


def test_learned_leaves_out_what_was_lost_or_done_again(tmp_path: Path) -> None:
    episode = {"valid": True, "guided": 0}
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        for i, (success, valid) in enumerate([(True, True), (False, False), (True, True)], 1):
            ledger.write("episode", iteration=i, success=success, **{**episode, "valid": valid})
            ledger.write("iteration", iteration=i, env_steps=100 * i)
        ledger.write("resumed", iteration=2)
        ledger.write("episode", iteration=3, success=False, **episode)
        ledger.write("iteration", iteration=3, env_steps=310)
    assert learned(tmp_path) == ([100, 310], [True, False], 310)


def test_curves_are_means_over_seeds_of_blocks() -> None:
    runs = [run([True, True, False, False], [True]), run([False, True, False, False], [True])]
    first, second = curve(runs, [0, 20, 40])
    assert (first.value, second.value) == (0.75, 0.0)
    assert first.high == 1.0
    assert second == (0.0, 0.0, 0.0)


def test_arms_are_compared_seed_by_seed() -> None:
    base = [run([True], [False] * 10), run([True], [False] * 5 + [True] * 5)]
    more = [run([True], [True] * 10), run([True], [True] * 10)]
    pooled, p, seeds = compared([r.after for r in base], [r.after for r in more])
    assert pooled.value == pytest.approx(0.75)
    assert p == pytest.approx(2 / 2**15)
    assert seeds.value == pytest.approx(0.75)
    before = {"": [False] * 10, "plan": [True] * 10}
    table = rows({"sparse": base, "plan": more}, before)
    assert table[0][2:5] == ["0 of 10 [0, 28]", "0 of 10 [0, 28]", "5 of 10 [24, 76]"]
    assert (table[0][-1], table[1][2]) == ("", "10 of 10 [72, 100]")
    assert table[1][-2].startswith("+0.0 [")
    assert table[1][-1].startswith("+75.0 [")


def test_evaluations_are_read_in_order_and_whole(tmp_path: Path) -> None:
    lines = [{"episode": k, "success": k == 1, "valid": True} for k in (2, 0, 1)]
    (tmp_path / "episodes.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert outcomes(tmp_path) == [False, True, False]
    (tmp_path / "episodes.jsonl").write_text(json.dumps({**lines[0], "valid": False}))
    with pytest.raises(ValueError, match="evaluate again"):
        outcomes(tmp_path)


def test_audits_name_their_evaluation(tmp_path: Path) -> None:
    audit = {"episodes": 20, "success": 0.25, "correlation": 0.5, "rank_correlation": None, "auroc": 0.9,
             "auroc_low": 0.8, "auroc_high": 1.0, "calibration_error": 0.1, "brier": 0.05, "mean_score": 0.6,
             "overrates": True, "underrates": False}  # fmt: skip
    folder = tmp_path / "liv_0" / "after"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"audit": {"liv": audit}}))
    (tmp_path / "summary.json").write_text("{}")
    assert audits(tmp_path) == [["liv_0/after, liv", "5 of 20", "0.50, none", "0.90 [0.80, 1.00]", "0.100, 0.050",
                                 "0.60, overrates"]]  # fmt: skip


def test_curves_are_drawn(tmp_path: Path) -> None:
    runs = [run([True, False, True, True], [True, False])] * 2
    draw({"sparse": runs, "plan": runs}, {"": [False, True]}, [0, 20, 40], tmp_path / "curves.jpg")
    with Image.open(tmp_path / "curves.jpg") as picture:
        assert picture.size == (640, 300)
