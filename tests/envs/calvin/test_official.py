"""The official package as a backend, with a stand-in for it: the same conversions, the same episodes, clear errors."""

from pathlib import Path

import pytest

from tests.calvin_parts import need_calvin, run

FAKE = str(Path(__file__).with_name("fake_official"))
CODE = """
import json, sys
import numpy as np
from envs.calvin.env import Calvin
from envs.experts import make_expert
SIZES = {"rgb_static": (20, 24), "rgb_gripper": (16, 16)}
def refused(**sim):
    try:
        Calvin(**{"cameras": SIZES, "backend": "official", **sim})
    except Exception as e:
        return f"{type(e).__name__}: {e}"
def play(env, task, steps=40, actions=None):
    obs, rows, expert = env.reset(task, 3), [], make_expert("calvin/D", task)
    expert.reset(obs)
    pictures = [obs.images[k].tobytes().hex() for k in sorted(obs.images)]
    for i in range(steps):
        step = env.step(expert.act(obs) if actions is None else actions, render=False)
        obs = step.obs
        rows.append([step.reward, step.success, *(obs.privileged[k].tobytes().hex() for k in sorted(obs.privileged)
                                                 if k != "tcp_quat")])
        if step.terminated:
            break
    quat = float(np.abs(obs.privileged["tcp_quat"] * np.sign(obs.privileged["tcp_quat"][0])).sum())
    return rows, pictures, quat
"""
PLAY = """
dataset, empty = sys.argv[1:]
reach = np.array([0.1, -0.2, 0.55, 3.09, 0.0, 1.5, 1.0])
out = {}
for kind, actions in (("relative", None), ("absolute", reach)):
    native = Calvin(cameras=SIZES, actions=kind)
    a = play(native, "turn_on_led", actions=actions)
    native.close()
    official = Calvin(cameras=SIZES, actions=kind, backend="official", dataset=dataset)
    fake = official._world._env
    b = play(official, "turn_on_led", actions=actions)
    out[kind] = {"same": a[:2] == b[:2], "quat": abs(a[2] - b[2]), "success": b[0][-1][1], "drawn": fake.drawn,
                 "renderer": official.spec.renderer}
    official.close()
    official.close()
out["refused"] = [
    refused(), refused(dataset=empty), refused(dataset=dataset, name="A"), refused(dataset=dataset, renderer="fast"),
    refused(dataset=dataset, cameras={"rgb_static": (200, 200)}), refused(dataset=dataset, cameras={"top": (8, 8)}),
]
print(json.dumps(out))
"""
ABSENT = """
print(json.dumps([refused(dataset=sys.argv[1])]))
"""


@pytest.fixture(scope="module")
def calvin():
    need_calvin()


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / "split" / ".hydra").mkdir(parents=True)
    (tmp_path / "split" / ".hydra" / "merged_config.yaml").write_text("scene:\n  name: calvin_scene_D\n")
    return str(tmp_path / "split")


@pytest.mark.sim
@pytest.mark.usefixtures("calvin")
def test_it_plays_the_same_episodes_and_refuses_what_it_cannot_do(dataset, tmp_path):
    found = run("-c", f"import sys\nsys.path.insert(0, {FAKE!r})\n" + CODE + PLAY, dataset, str(tmp_path))
    for kind in ("relative", "absolute"):
        assert found[kind]["same"], kind
        assert found[kind]["quat"] < 1e-6
        assert found[kind]["drawn"] == 2, "cameras were drawn in between"
        assert found[kind]["renderer"] == ""
    assert found["relative"]["success"]
    expected = [
        "set `env.sim.dataset` to the folder",
        "set `env.sim.dataset` to the folder",
        "is of scene D, and env.sim.name is A",
        "renderer: fast draws our own table",
        "rgb_static is (20, 24) in the dataset's configuration, and env.sim.cameras asks for (200, 200)",
        "camera top is missing in the dataset's configuration",
    ]
    for message, text in zip(found["refused"], expected, strict=True):
        assert message.startswith("EnvError")
        assert text in message


@pytest.mark.sim
@pytest.mark.usefixtures("calvin")
def test_the_missing_package_is_named(dataset):
    assert "calvin_env cannot be imported" in run("-c", CODE + ABSENT, dataset)[0]
