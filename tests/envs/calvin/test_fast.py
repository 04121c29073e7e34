"""Our renderer against PyBullet's recorded pictures; it leaves motion alone, and is never mixed in silently."""

import json
from pathlib import Path

import pytest

from envs.calvin.env import calvin_spec
from pretrained.checkpoint import check_env
from tests.calvin_parts import need_calvin, run
from tests.golden_files import golden

REPLAY = str(Path(__file__).with_name("replay.py"))
SIZES = {"rgb_static": (24, 32), "rgb_gripper": (16, 16)}
# Two links and a block move, a light goes on; which way pictures are drawn must not show in the state.
PLAY = f"""
import json
import numpy as np
from envs.calvin.env import Calvin
from envs.experts import make_expert
def play(renderer, every):
    env = Calvin(cameras={SIZES}, renderer=renderer)
    obs = env.reset("turn_on_led", 5)
    expert = make_expert(env.spec.env_id, "turn_on_led")
    expert.reset(obs)
    states, pictures = [], [obs.images]
    while True:
        step = env.step(expert.act(obs), render=every)
        obs = step.obs
        states.append(obs.privileged["state"].tobytes().hex())
        if step.terminated or step.truncated:
            return step.success, states, [obs.images or env.render(), *pictures]
a, b = play("exact", False), play("fast", True)
share = [float((x[c] != y[c]).any(-1).mean()) for x, y in zip(a[2], b[2]) for c in x]
lit = float(np.abs(b[2][0]["rgb_static"].astype(int) - b[2][1]["rgb_static"]).max())
print(json.dumps({{"success": [a[0], b[0]], "same": a[1] == b[1], "share": share, "lit": lit}}))
"""


@pytest.fixture(scope="module")
def calvin():
    need_calvin()


@pytest.mark.sim
@pytest.mark.usefixtures("calvin")
def test_pictures_are_close_to_the_recorded_ones():
    """Of all scenes, before and after the arm has moved; the remaining pixels are at the edges of small faces."""
    found = run(REPLAY, "fast", *(str(golden(f"calvin/render_{scene}.npz")) for scene in "ABCD"))
    gaps = {(name, moment): g for name, moments in found.items() for moment, g in moments.items()}
    assert len(gaps) == 24
    assert {k: g["pixels"] for k, g in gaps.items() if g["pixels"] > 0.01} == {}
    assert {k: g["psnr"] for k, g in gaps.items() if g["psnr"] < 34} == {}


@pytest.mark.sim
@pytest.mark.usefixtures("calvin")
def test_motion_does_not_depend_on_pictures():
    found = run("-c", PLAY)
    assert found["success"] == [True, True]
    assert found["same"]
    assert max(found["share"]) < 0.05  # small pictures are mostly edges
    assert found["lit"] > 30


def test_checkpoints_refuse_the_other_renderer():
    exact, fast = (calvin_spec("D", sizes=SIZES, renderer=renderer) for renderer in ("", "fast"))
    assert json.loads(json.dumps(fast.to_json()))["renderer"] == "fast"
    assert type(fast).from_json(fast.to_json()) == fast
    check_env(fast, fast)
    with pytest.raises(ValueError, match="trained with renderer = , but environment 'calvin/D' has renderer = fast"):
        check_env(exact, fast)
