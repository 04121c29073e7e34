"""Which checkpoints of a run are evaluated, and pictures of what a proposal painted."""

import json
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
import torch

from pretrained.checkpoint import choose
from pretrained.types import ObsBatch, Rng
from rl.evaluate import EvaluateRun, evaluate
from rl.hint_pictures import HintPictures
from rl.replay import read_tape
from tests.toy_parts import checkpoint, toy


class Stripes:
    """Paints every picture in one grey, brighter from plan to plan."""

    def __init__(self, *, every: int = 1) -> None:
        self.every, self.asked = every, 0

    def __call__(self, obs: ObsBatch, rng: Rng) -> dict[str, torch.Tensor]:
        """Hints."""
        self.asked += 1
        size = next(iter(obs.images.values())).shape[2:]
        return {"target/a": torch.full((len(obs), *size), min(255, 10 * self.asked), dtype=torch.uint8)}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for step in (5, 10, 15, 100):
        checkpoint(folder / f"step_{step:06d}", seed=step, execute=2)
    (folder / "step_000200").mkdir()  # one that was being written
    return folder


def settings(run_dir: Path, out: Path, **more: Any) -> EvaluateRun:
    known: dict[str, Any] = {"episodes": 2, "workers": 1, "videos": 0, "quiet": True, **more}
    return EvaluateRun(str(run_dir), toy(hold=1, max_steps=6), str(out), **known)


def test_which_checkpoints(run_dir: Path, tmp_path: Path) -> None:
    names = {which: [p.name for p in choose(run_dir, which)] for which in ("latest", "last", "last_three", "10")}
    assert names["latest"] == names["last"] == ["step_000100"]
    assert names["last_three"] == ["step_000100", "step_000015", "step_000010"]
    assert names["10"] == ["step_000010"]
    for which, said in (("11", r"no checkpoint of that step, it has \[5, 10, 15, 100\]"), ("best", "expected latest")):
        with pytest.raises(ValueError, match=said):
            choose(run_dir, which)
    checkpoint(tmp_path / "checkpoints" / "step_000001")
    assert choose(tmp_path, "1")[0].name == "step_000001"
    with pytest.raises(ValueError, match="train with keep=3"):
        choose(tmp_path, "last_three")


def test_three_checkpoints_see_the_same_episodes(run_dir: Path, tmp_path: Path) -> None:
    summary = evaluate(settings(run_dir, tmp_path / "out", eval_type="last_three"))
    assert list(summary["checkpoints"]) == ["step_000100", "step_000015", "step_000010"]
    assert summary["episodes"] == 6
    each = [json.loads((tmp_path / "out" / n / "summary.json").read_text()) for n in summary["checkpoints"]]
    assert [s["checkpoint"][-3:] for s in each] == ["100", "015", "010"]
    assert summary["success"] == pytest.approx(np.mean([s["success"] for s in each]))
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == json.loads(json.dumps(summary))
    rows = [(tmp_path / "out" / n / "episodes.jsonl").read_text().splitlines() for n in summary["checkpoints"]]
    assert len({tuple((json.loads(r)["task"], json.loads(r)["seed"]) for r in lines) for lines in rows}) == 1
    one = evaluate(settings(run_dir, tmp_path / "one", eval_type=15))
    assert Path(one["checkpoint"]).name == "step_000015"


def test_the_execution_horizon_is_honoured(run_dir: Path, tmp_path: Path) -> None:
    """GENIMA's name for how many steps of a chunk are executed."""
    for execute in (1, 3):
        evaluate(settings(run_dir, tmp_path / str(execute), policy_overrides={"execute": execute}))
        chunks = read_tape(tmp_path / str(execute), 0).chunks
        assert set(chunks[:-1].tolist()) == {execute}  # the last may be cut by the end of the episode


def test_painted_pictures_are_written(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.evaluate.build", lambda node: Stripes(every=2))
    evaluate(settings(run_dir, tmp_path, proposal={"_target_": "rl.mine"}, hint_pictures=1, episodes=2))
    folders = sorted((tmp_path / "pictures").iterdir())
    assert [f.name for f in folders] == ["000_seed0"]  # of the first episode alone
    files = sorted(folders[0].iterdir())
    length = json.loads((tmp_path / "episodes.jsonl").read_text().splitlines()[0])["length"]
    assert [f.name for f in files] == [
        f"{k:04d}.png" for k in range(-(-length // 4))
    ]  # plans of 2 decisions of 2 steps
    picture = imageio.imread(files[0])
    assert picture.shape == (16 + 4 + 16, picture.shape[1], 3)
    assert (picture[20:, :16] == 10).all()  # painted, below
    assert picture[:16, :16].std() > 1  # seen, above


def test_refusals(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hint_pictures needs a proposal"):
        settings(run_dir, tmp_path, hint_pictures=1)
    with pytest.raises(ValueError, match=r"hints \['plan'\] are no pictures"):
        HintPictures(tmp_path, episodes=1).add(0, 0, {}, {"plan": torch.zeros(4)})
