"""The page holds what the run's files say, asks for nothing from outside, and survives missing files."""

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import imageio.v2 as imageio
import numpy as np
import pytest

from rl.chart import line_chart, number, ticks
from rl.report import report
from rl.stats import wilson
from tests.page_parts import read_page


def write_evaluation(folder: Path, outcomes: list[bool], *, videos: bool = True) -> dict:
    """An evaluation folder as `rl.evaluate` leaves it."""
    (folder / "videos").mkdir(parents=True)
    low, high = wilson(sum(outcomes), len(outcomes))
    part = {"success": sum(outcomes) / len(outcomes), "low": low, "high": high, "episodes": len(outcomes)}
    rows = [{"episode": i, "task": "lift", "seed": i, "success": o, "valid": True} for i, o in enumerate(outcomes)]
    (folder / "episodes.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "summary.json").write_text(json.dumps(part | {"command": "python launch.py evaluate", "tasks": {}}))
    for i in range(2 if videos else 0):
        frames = np.random.default_rng(i).integers(0, 255, (6, 32, 48, 3), dtype=np.uint8)
        imageio.mimwrite(folder / "videos" / f"00{i}_seed{i}_success.mp4", list(frames), fps=10, macro_block_size=16)
    return part


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A complete run folder."""
    folder = tmp_path / "run"
    before = write_evaluation(folder / "evaluate_before", [i < 30 for i in range(100)])
    after = write_evaluation(folder / "evaluate_after", [i < 85 for i in range(100)])
    summary = {"task": "robosuite/Lift <b>", "seed": 3, "before": before, "after": after}
    summary |= {"env_steps": 123456, "wall_s": 754.2, "command": "python launch.py demo seed=3 && echo '<x>'"}
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = []
    for i in range(1000):
        rate = 0.3 + 0.5 * i / 1000
        line = {"iteration": i, "env_steps": 120 * i, "wall_s": 0.6 * i, "rollout/success": rate, "loss/kl": 0.01}
        lines.append(line | {"rollout/success_low": rate - 0.1, "rollout/success_high": rate + 0.1})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines) + '{"torn')
    ledger = [{"event": "episode", "valid": True}, {"event": "episode", "valid": False, "cause": "hung: 60 s"}]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ledger))
    (folder / "config.yaml").write_text("algo: {clip: 0.01}\n")
    return folder


def test_page_tells_the_whole_run(run_dir: Path) -> None:
    page = report(run_dir)
    assert page == run_dir / "report.html"
    reader = read_page(page)
    for words in ("robosuite/Lift <b>, seed 3", "30%", "85%", "100 episodes", "+55 points", "100 pairs", "p < 0.0001"):
        assert words in reader.text
    for words in ("123k", "12 min 34 s", "1 finished, 1 lost", "restarts: hung", "echo '<x>'", "algo: {clip: 0.01}"):
        assert words in reader.text
    low, high = wilson(30, 100)
    assert f"{low:.0%} to {high:.0%}" in reader.text
    assert reader.tags.count("video") == 4
    assert not list(run_dir.glob("*.part"))


def test_page_of_a_run_on_its_own_has_its_commands_and_configuration(run_dir: Path) -> None:
    """From the ledger, each once, and from the newest checkpoint."""
    (run_dir / "config.yaml").unlink()
    for step in ("step_000009", "step_000010"):
        (run_dir / step).mkdir()
        (run_dir / step / "config.yaml").write_text(f"from: {step}\n")
    lives = [{"event": "began", "command": "python launch.py finetune seed=8"}, {"event": "resumed"},
             {"event": "resumed", "command": "python launch.py finetune seed=8"},
             {"event": "resumed", "command": "python launch.py finetune seed=8 iterations=9"}]  # fmt: skip
    with (run_dir / "ledger.jsonl").open("a") as file:
        file.writelines(json.dumps(r) + "\n" for r in lives)
    text = read_page(report(run_dir)).text
    assert text.count("finetune seed=8") == 2
    assert "finetune seed=8 iterations=9" in text
    assert "from: step_000010" in text
    assert "from: step_000009" not in text


def test_page_says_where_the_time_went_and_what_a_point_cost(run_dir: Path) -> None:
    seconds = {"device_s": 7260.0, "busy_s": 3630.0, "idle_s": 3267.0, "lost_s": 363.0}
    with (run_dir / "ledger.jsonl").open("a") as file:
        file.write(json.dumps({"event": "iteration", "iteration": 1, **seconds}) + "\n")
    text = read_page(report(run_dir)).text
    assert "2 h 01 min: 50% busy, 45% idle, 5% lost to failures" in text
    assert re.search(r"device time per success point\s*2 min 12 s", text)  # 7260 s for the way from 30 % to 85 %


def test_page_says_what_still_fails_and_how_to_see_it(run_dir: Path) -> None:
    after = run_dir / "evaluate_after"
    (after / "videos" / "000_seed0_success.mp4").rename(after / "videos" / "090_seed90_failure.mp4")
    for k in range(86, 90):
        shutil.copy(after / "videos" / "090_seed90_failure.mp4", after / "videos" / f"0{k}_seed{k}_failure.mp4")
    reader = read_page(report(run_dir))
    assert "15 episodes of evaluate_after." in reader.text
    assert f"python launch.py replay {after}:85\n" in reader.text
    assert [f"0{k} seed{k} failure" in reader.text for k in range(86, 91)] == [True] * 4 + [False]
    assert reader.text.count("001 seed1 success") == 2  # a pair


def test_page_says_what_the_videos_show(run_dir: Path) -> None:
    summary = json.loads((run_dir / "evaluate_after" / "summary.json").read_text())
    shown = {"agentview": [256, 250], "hand": [64, 64]}
    videos = {"shown": shown, "missing": {"002_seed1_success.mp4": "<it fell over>"}}
    summary |= {"cameras": {"hand": [64, 64]}, "videos": videos}
    path = run_dir / "evaluate_after" / "summary.json"
    path.write_text(json.dumps(summary))
    text = read_page(report(run_dir)).text
    assert "From left to right: agentview 256x250, hand 64x64. The policy sees only hand 64x64." in text
    assert "1 replays went wrong and are left out." in text
    path.write_text(json.dumps(summary | {"cameras": shown}))
    assert "The policy sees what is shown." in read_page(report(run_dir)).text


def test_page_asks_for_nothing_from_outside(run_dir: Path) -> None:
    page = report(run_dir)
    reader = read_page(page)
    assert reader.loads
    assert all(link.startswith("data:video/mp4;base64,") for link in reader.loads)
    text = page.read_text()
    assert not re.search(r"https?://|@import|url\(|<script", text)
    assert "prefers-color-scheme:dark" in text
    assert "width=device-width" in text


def test_large_video_is_named_not_embedded(run_dir: Path) -> None:
    (run_dir / "evaluate_after" / "videos" / "000_seed0_success.mp4").write_bytes(b"0" * (7 * 2**20))
    page = report(run_dir)
    assert page.stat().st_size < 3 * 2**20
    assert "too large to embed" in page.read_text()


def test_a_run_cut_short_still_reports(run_dir: Path) -> None:
    for name in (
        "summary.json",
        "ledger.jsonl",
        "config.yaml",
        "evaluate_after/summary.json",
        "evaluate_after/episodes.jsonl",
    ):
        (run_dir / name).unlink()
    reader = read_page(report(run_dir))
    assert "Not evaluated: after" in reader.text
    assert "30%" in reader.text
    assert "svg" in reader.tags


def test_evaluation_is_counted_if_its_summary_is_missing(run_dir: Path) -> None:
    for name in ("summary.json", "evaluate_after/summary.json"):
        (run_dir / name).unlink()
    assert "85%" in read_page(report(run_dir)).text


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected the folder of a run"):
        report(tmp_path)
    (tmp_path / "summary.json").write_text('{"task": ')
    with pytest.raises(ValueError, match="is not JSON"):
        report(tmp_path)


def test_chart_is_well_formed_and_thin() -> None:
    xs = [float(i) for i in range(5000)]
    svg = line_chart(xs, xs, title='a "quoted" <title>', x_label="x & y")
    line = ElementTree.fromstring(svg).find("polyline")
    assert line is not None
    points = line.get("points", "").split()
    assert len(points) == 400
    assert points[0].split(",")[0] == "52.0"
    ElementTree.fromstring(line_chart([], []))
    ElementTree.fromstring(line_chart([1.0], [2.0]))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 97, [0, 20, 40, 60, 80, 100]),
        (-0.5, 1.5, [-0.5, 0, 0.5, 1.0, 1.5]),
        (5, 5, [2, 3, 4, 5, 6, 7, 8]),
        (float("nan"), 1, [0, 1]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 5) == pytest.approx(expected)


def test_number() -> None:
    assert [number(x) for x in (1234567, 35000, 0.05, 7.0)] == ["1.23M", "35k", "0.05", "7"]
