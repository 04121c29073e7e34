"""Pages in a real browser: they render, complain of nothing, ask for nothing, and fit a phone."""

import json
from collections.abc import Iterator
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest

from rl.page import table, video, write_page
from rl.report import report
from rl.store import COLUMNS, Store
from rl.sweep_report import sweep_report
from tests.browser import FOUND, Browser
from tests.rl.test_report import write_evaluation

PERTURBATIONS = ("none", "light_color_and_table_texture")
PHONE = {"width": 360, "height": 740}
pytestmark = pytest.mark.skipif(not FOUND, reason="no browser here; install chromium (make browser)")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def fill(out: Path) -> None:
    """A sweep's store: two checkpoints, two perturbations, two tasks with long names, one lost episode, one video."""
    plan, rng = [], np.random.default_rng(0)
    row = dict.fromkeys(COLUMNS, 0) | {"cause": "", "valid": True, "reward": 0.0}
    with Store(out / "results.sqlite") as store:
        for k in range(8):
            names = {"checkpoint": f"step_{k % 2}", "perturbation": PERTURBATIONS[k // 2 % 2],
                     "task": f"pick_up_the_object_{k // 4}_and_place_it_in_the_basket", "split": "test"}  # fmt: skip
            rows = [row | {"episode": i, "seed": i, "task": names["task"], "success": bool(rng.random() < 0.5)}
                    for i in range(9)]  # fmt: skip
            rows[8] |= {"valid": False, "cause": "hung: no answer"}
            store.put(f"cell{k}", {}, rows, wall_s=60.0, summary={})
            plan.append({**names, "key": f"cell{k}", "seed_start": 0, "episodes": 9})
            failure = next(r for r in rows if not r["success"])["episode"]
            frames = list(rng.integers(0, 255, (4, 32, 48, 3), dtype=np.uint8))
            folder = out / "cells" / f"cell{k}" / "videos"
            folder.mkdir(parents=True)
            imageio.mimwrite(folder / f"{failure:03d}_seed0_failure.mp4", frames, fps=10, macro_block_size=16)
        command = (
            "python launch.py sweep checkpoints=[runs/finetune/checkpoints/step_0,runs/finetune/checkpoints/step_1]"
        )
        store.remember(plan=json.dumps(plan), first="step_0", command=command, config="{}")


def test_a_sweep_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    fill(tmp_path)
    page = sweep_report(tmp_path)
    browser.open(page, **PHONE)
    assert browser.errors == []
    assert [r for r in browser.requests if not r.startswith(("file://", "data:"))] == []
    assert browser.requests.count(page.as_uri()) == 1
    assert sum(r.startswith("file://") for r in browser.requests) == 1
    assert browser.value("document.documentElement.scrollWidth") <= PHONE["width"]
    assert browser.value("document.querySelectorAll('h2').length") >= 6
    assert browser.value("document.querySelector('svg.chart').getBoundingClientRect().height") > 50
    assert browser.value("[...document.querySelectorAll('video')].filter(v => v.error).length") == 0
    assert browser.value("document.querySelectorAll('video').length") == 4
    assert browser.picture(tmp_path / "page.png").stat().st_size > 10_000


def test_a_run_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    for side, share in (("before", 3), ("after", 8)):
        write_evaluation(tmp_path / f"evaluate_{side}", [i % 10 < share for i in range(40)])
    rows = [{"iteration": i, "env_steps": 500 * i, "wall_s": 9.0 * i, "rollout/success": 0.3 + i / 40, "loss/kl": 0.01}
            for i in range(20)]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    command = "python launch.py finetune run=libero_object_0 checkpoint=runs/libero_object_0/imitation/step_00001500"
    told = [{"event": "began", "command": command}, {"event": "iteration", "iteration": 1, "device_s": 60.0}]
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(r) + "\n" for r in told))
    page = report(tmp_path)
    browser.open(page, **PHONE)
    assert browser.errors == []
    assert [r for r in browser.requests if not r.startswith(("file://", "data:"))] == []
    assert sum(r.startswith("file://") for r in browser.requests) == 1
    assert browser.value("document.documentElement.scrollWidth") <= PHONE["width"]
    assert browser.value("document.querySelector('svg.chart').getBoundingClientRect().height") > 50
    assert browser.value("document.querySelectorAll('video').length") == 4
    assert browser.value("[...document.querySelectorAll('video')].filter(v => v.error).length") == 0
    shown = browser.value("document.body.innerText")
    assert command in shown
    assert "device time per success point" in shown


def test_the_browser_would_tell(browser: Browser, tmp_path: Path) -> None:
    """A page that asks for something, and is too wide, is found out."""
    wide = '<p style="width:900px">x</p><img src="http://localhost:9/x.png">' + table(["a"], [["b"]])
    browser.open(write_page(tmp_path / "bad.html", "bad", [wide]), **PHONE)
    assert browser.errors  # refused by the page's own policy
    assert browser.value("document.documentElement.scrollWidth") > PHONE["width"]
    (tmp_path / "x.mp4").write_bytes(b"0" * (7 * 2**20))
    assert "too large to embed" in video(tmp_path / "x.mp4", "after")
