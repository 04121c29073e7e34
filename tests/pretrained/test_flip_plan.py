"""The verb `plan`: what it writes, and what it refuses."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrained import checkpoint
from pretrained.demos.clips import TrackReader
from pretrained.flip import measure
from pretrained.flip.plan import PlanRun, make_plan
from pretrained.flip.stage import FlowStage, ValueStage, VideoStage
from tests.pretrained.test_flip_stage import NODE, shard

pytestmark = pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> PlanRun:
    """Untrained modules, saved as training would."""
    folder = tmp_path_factory.mktemp("flip")
    env = TrackReader(paths=shard(folder / "shard", episodes=2), history=3).env
    text = {"text": NODE["text"], "length": NODE["length"]}
    nodes: dict[str, Any] = {
        "flow": {"_target_": "pretrained.flip.stage.FlowStage", "flow": NODE["flow"], **text},
        "video": {"_target_": "pretrained.flip.stage.VideoStage", "video": NODE["video"], "vae": NODE["vae"], **text},
        "value": {"_target_": "pretrained.flip.stage.ValueStage", "value": NODE["value"]},
    }
    kinds: dict[str, Any] = {"flow": FlowStage, "video": VideoStage, "value": ValueStage}
    for name, node in nodes.items():
        torch.manual_seed(0)
        stage = kinds[name](env=env, **{k: v for k, v in node.items() if k != "_target_"})
        checkpoint.save(folder / name, stage, node=node, env=env)
    paths: dict[str, Any] = {name: str(folder / name) for name in nodes}
    return PlanRun(**paths, out=str(folder / "plan"), demos=str(folder / "shard"), points=9, steps=2, segments=2,
                   candidates=3, device="cpu")  # fmt: skip


def changed(run: PlanRun, **options: Any) -> PlanRun:
    return PlanRun(**{**vars(run), **options})


def test_a_plan_is_written_and_repeats(run: PlanRun) -> None:
    compared = changed(run, compare=[30, 2], compare_episodes=2)
    video = make_plan(compared)
    assert video.stat().st_size > 1000
    told = json.loads((Path(run.out) / "plan.json").read_text())
    assert told["instruction"] == "slide the square"
    assert len(told["scores"]) == len(told["candidates"]) == 2
    assert [len(beam) for beam in told["candidates"][0]] == [3, 3, 3]  # two beams, and the first candidate alone
    assert told["network_calls"] == 4
    assert told["value"] == pytest.approx(max(told["beams"]), abs=1e-5)
    assert told["value"] >= told["beams"][-1] - 1e-6  # never worse than no search
    rows = json.loads((Path(run.out) / "steps.json").read_text())
    assert [(r["steps"], r["sampler"], r["network_calls"], r["plans"]) for r in rows] == [
        (30, "ancestral", 60, 2),
        (2, "DDIM", 4, 2),
    ]
    make_plan(changed(run, out=str(Path(run.out).with_name("again"))))
    again = json.loads((Path(run.out).with_name("again") / "plan.json").read_text())
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in told.items() if k != "seconds"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flow": ""}, "missing: flow"),
        ({"demos": ""}, "name what to plan from"),
        ({"episode": 7}, "episodes 7 to 7 are not in"),
        ({"demos": "", "picture": "nowhere.png", "instruction": "go"}, "cannot be read"),
    ],
)
def test_mistakes_are_named(run: PlanRun, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(changed(run, **options))


def test_modules_of_other_stages_and_other_pictures_are_refused(run: PlanRun, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds a ValueStage, expected one of stage=video"):
        make_plan(changed(run, video=run.value))
    from envs.record import write_picture

    write_picture(tmp_path / "wide.png", torch.zeros(32, 48, 3, dtype=torch.uint8).numpy())
    wide = {"demos": "", "picture": str(tmp_path / "wide.png"), "instruction": "go"}
    with pytest.raises(ValueError, match=r"of 32x48, the models see 32x32"):
        make_plan(changed(run, **wide))


def test_modules_are_measured(run: PlanRun, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [f"--{name}={getattr(run, name)}" for name in ("flow", "video", "value")]
    sizes = ["--history=3", "--fraction=0.5", "--clips=3", "--calls=2", f"--others={run.demos}"]
    measure.main([run.demos, *paths, *sizes])
    out = json.loads(capsys.readouterr().out)
    assert out["held_out_episodes"] == 1
    # Points on the square move by two pixels per step: by 2, 4, 6, 8 and 10 in five.
    assert out["flow"]["still"] == {"ade": [6.0] * 3, "ltdr": [pytest.approx((0.0 + 0.2 + 0.6) / 3, abs=1e-4)] * 3}
    assert 0 < out["flow"]["mean_motion"]["ade"][0] < 6  # the other episode moves likewise
    assert out["flow"]["drawn"]["ade"][0] > 0
    assert set(out["video"]) == {"true_tracks", "drawn_tracks", "autoencoder", "copy", "whole"}
    assert out["video"]["whole"]["copy"][0] > out["video"]["copy"][0]  # most pixels stand still
    assert 0 < out["video"]["copy"][0] < 20
    assert (out["value"]["successes"], out["value"]["failures"], out["value"]["auroc"]) == (1, 0, None)
    assert out["value_of_others"]["successes"] == 2
    assert measure.interval([1.0, 3.0])[0] == 2
    area = measure._auroc(np.array([0.9, 0.8, 0.3, 0.2]), np.array([True, False, True, False]))
    assert area is not None
    assert area[0] == 0.75
    with pytest.raises(ValueError, match="holds none out"):
        measure.main([run.demos, "--fraction=0.1"])
