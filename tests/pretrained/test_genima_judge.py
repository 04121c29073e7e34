"""How a painter is measured: known shifts are found, what is not painted is not found, wrong grippers count."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers", reason="diffusers IS NOT INSTALLED; run `make setup`")

from pretrained.checkpoint import save
from pretrained.genima.judge import LARGER, SHOWN, beside, compare, grip_agrees, judge, main
from pretrained.genima.painter import TargetPainter
from pretrained.genima.render import render
from pretrained.genima.spheres import BASE, ELBOW, GRIPPER_CLOSED, GRIPPER_OPEN, WRIST
from tests.pretrained.test_genima_render import demos, run

SCENE = np.full((2, 32, 32, 3), 120, dtype=np.uint8)


def dotted(x: int, y: int, colour: tuple[int, int, int]) -> np.ndarray:
    out = SCENE.copy()
    out[:, y : y + 4, x : x + 4] = colour
    return out


def test_a_known_shift_is_found() -> None:
    errors = compare(dotted(13, 14, ELBOW), dotted(10, 10, ELBOW), SCENE)
    assert list(errors) == ["elbow"]
    assert errors["elbow"] == pytest.approx([5.0, 5.0])
    for share, over in ((0.5, 0), (0.4, 200), (0.4, 120)):  # blurred with black, white and grey
        red, green, blue = (round(share * c + (1 - share) * over) for c in ELBOW)
        assert compare(dotted(10, 10, (red, green, blue)), dotted(10, 10, ELBOW), SCENE)["elbow"] == pytest.approx(
            [0, 0]
        )
    for other in (GRIPPER_OPEN, GRIPPER_CLOSED, BASE, WRIST, (0, 0, 0), (255, 255, 255)):
        assert np.isnan(compare(dotted(10, 10, other), dotted(10, 10, ELBOW), SCENE)["elbow"]).all(), other


def test_what_is_not_painted_is_not_found() -> None:
    assert np.isnan(compare(SCENE, dotted(10, 10, ELBOW), SCENE)["elbow"]).all()
    assert compare(dotted(10, 10, ELBOW), SCENE, SCENE) == {}  # nor is anything asked for
    own = dotted(10, 10, ELBOW)  # a thing of that colour in the scene is no sphere
    assert np.isnan(compare(own, dotted(20, 20, ELBOW), own)["elbow"]).all()


def test_grippers() -> None:
    both = [dotted(10, 10, c) for c in (GRIPPER_OPEN, GRIPPER_CLOSED)]
    assert [bool(grip_agrees(a, b, SCENE).all()) for a in both for b in both] == [True, False, False, True]
    assert len(grip_agrees(both[0], SCENE, SCENE)) == 0


def test_a_perfect_painter_and_one_that_stands_still(tmp_path: Path) -> None:
    demos(tmp_path / "raw.hdf5")
    # In the made-up demonstrations every pixel is noise, so spheres of this size always show.
    settings: Any = {"cameras": ["side", "front"], "scale": 9.0}
    tiles = render(run(tmp_path, **settings, out=str(tmp_path / "tiles.hdf5")))
    still = render(run(tmp_path, **settings, out=str(tmp_path / "still.hdf5"), horizon=1))

    class Perfect:
        views, steps = ("side", "front"), 1

        def __init__(self) -> None:
            from pretrained.demos import Demos, stored_spec
            from pretrained.genima.render import TARGET

            spec = stored_spec(str(tiles))
            assert spec is not None
            known = Demos(str(tiles), env=spec, horizon=1)
            shown = known.batch(range(len(known))).obs.images
            scenes, targets = (np.asarray(shown[k])[:, -1] for k in ("tile(side,front)", TARGET))
            self.known = {s.tobytes(): t for s, t in zip(scenes, targets, strict=True)}

        def paint(self, scenes: np.ndarray, *_: Any, **__: Any) -> torch.Tensor:
            return torch.from_numpy(np.stack([self.known[s.tobytes()] for s in scenes]))

    found = judge(Perfect(), str(tiles), against=str(still), quiet=True)
    assert found["frames"] == 21
    for camera in ("side", "front"):
        rows = found["views"]["painted"][camera]
        assert rows["right_gripper"] == 1.0
        assert {"elbow", "gripper"} <= set(rows)
        assert all(r["median"] == r["p90"] == 0 and r["found"] == r["shown"] for k, r in rows.items() if "_" not in k)
    assert found["views"]["still"]["front"]["gripper"]["median"] > 2
    some = judge(Perfect(), str(tiles), every=4, quiet=True)
    assert some["frames"] == 6
    assert some["views"]["painted"]["front"]["gripper"]["median"] == 0
    with pytest.raises(ValueError, match="every = 0: expected at least 1"):
        judge(Perfect(), str(tiles), every=0, quiet=True)


def test_frames_side_by_side() -> None:
    a, b = (np.arange(10, dtype=np.uint8)[:, None, None, None] + np.full((2, 4, 3), k, np.uint8) for k in (0, 100))
    shown = beside(a, b, count=4)[::LARGER, ::LARGER, 0]
    assert shown[::2, 0].tolist() == [0, 3, 6, 9]
    assert shown[::2, 4].tolist() == [100, 103, 106, 109]


def test_command_line_and_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.pretrained.test_genima_painter import painter, spec

    demos(tmp_path / "raw.hdf5")
    tiles = render(run(tmp_path, cameras=["side", "front"], out=str(tmp_path / "tiles.hdf5")))
    model = TargetPainter(env=_spec(tiles), model="tiny", steps=1)
    node = {"_target_": "pretrained.genima.painter.TargetPainter", "model": "tiny", "steps": 1}
    save(tmp_path / "painter", model, node=node, env=_spec(tiles))
    words = ["--out", str(tmp_path / "out.json"), "--picture", str(tmp_path / "shown.png")]
    assert main([str(tmp_path / "painter"), str(tiles), *words]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["frames"] == 21
    tall, wide = _spec(tiles).cameras["tile(side,front)"]
    shown = np.asarray(Image.open(tmp_path / "shown.png"))
    assert shown.shape == (SHOWN * LARGER * tall, 3 * LARGER * wide, 3)
    save(tmp_path / "other", painter(), node=node, env=spec())
    demos(tmp_path / "two.hdf5", count=2)
    two = {"demos": str(tmp_path / "two.hdf5"), "out": str(tmp_path / "fewer.hdf5")}
    fewer = render(run(tmp_path, cameras=["side", "front"], **two))
    for words, said in (
        ([str(tmp_path / "other"), str(tiles)], r"has no picture 'tile(front,hand)'"),
        ([str(tmp_path / "painter"), str(tiles), "--against", str(fewer)], "has 14 frames"),
    ):
        with pytest.raises((SystemExit, ValueError)):
            main(words)
        assert said in capsys.readouterr().err


def _spec(tiles: Path) -> Any:
    from pretrained.demos import stored_spec

    return stored_spec(str(tiles))
