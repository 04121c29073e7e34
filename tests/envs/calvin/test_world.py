"""The play table against recordings of the official simulator: motion, contacts, resets and pictures."""

from pathlib import Path

import pytest

from tests.calvin_parts import need_calvin, run
from tests.golden_files import golden, golden_json

pytestmark = [pytest.mark.sim, pytest.mark.usefixtures("calvin")]
REPLAY = str(Path(__file__).with_name("replay.py"))
KINDS = ("abs", "pick", "fixtures", "push", "smooth")
FILES = [f"traj_{scene}_{kind}.npz" for kind in KINDS for scene in "ABCD"]
FILES += ["traj_D_resets.npz", "traj_D_chain279.npz"]


@pytest.fixture(scope="module")
def calvin():
    need_calvin()


@pytest.mark.parametrize("name", FILES)
def test_motion_is_the_recorded_one(name):
    """To the bit on the kind of machine of the recording, else within the recorded tolerances."""
    path = str(golden(f"calvin/{name}"))
    tolerances = golden_json("calvin/tolerances.json")
    found = run(REPLAY, "motion", path)[name]
    assert found["rows"] == tolerances["files"][name]["rows"]
    if not found["differs"]:
        return
    table = tolerances["files"][name]
    close = table["robot_obs_first_row_above"]["1e-09"] or found["rows"]
    for key in ("robot_obs", "scene_obs"):
        assert max(found["deviation"][key][:close]) <= 1e-6, (key, found["differs"])
        if name in tolerances["portable_files"]:
            assert max(found["deviation"][key]) <= 1e-3, (key, found["differs"])
    for key in ("fixture_logical", "contacts"):
        assert found["differs"].get(key, close) >= close, found["differs"]


def test_resets_are_the_recorded_ones():
    found = run(REPLAY, "resets", str(golden("calvin/reset_states.json")))["reset_states.json"]
    assert found["compared"] >= 60
    assert found["wrong"] == []


@pytest.mark.parametrize("scene", "ABCD")
def test_pictures_are_the_recorded_ones(scene):
    name = f"render_{scene}.npz"
    found = run(REPLAY, "pictures", str(golden(f"calvin/{name}")))[name]
    assert len(found) == 6
    for moment, gaps in found.items():
        assert gaps["pixels"] <= 0.005, (moment, gaps)
        assert gaps["depth"] <= 1e-6 or gaps["pixels"] > 0, (moment, gaps)
        assert max(gaps["view"], gaps["projection"]) < 1e-6, (moment, gaps)


def test_bodies_have_the_recorded_joints_and_dynamics():
    """Masses, frictions, limits and frames of every table link and block, read back from the loaded bodies."""
    recorded = golden_json("calvin/constants.json")["scenes"]
    code = """
import json
from envs.calvin.data import find_data
from envs.calvin.world import World
out = {}
for scene in "ABCD":
    w = World(scene, find_data())
    b = w.bullet
    def link(uid, i):
        d = b.getDynamicsInfo(uid, i)
        joint = b.getJointInfo(uid, i)[8:10] if i >= 0 else ()
        return [d[0], d[1], list(d[2]), list(joint)]
    out[scene] = {"table": [link(w.table, i) for i in range(-1, b.getNumJoints(w.table))],
                  "blocks": {name: link(uid, -1) for name, uid in w.blocks.items()}, "links": w.links}
    w.close()
print(json.dumps(out))
"""
    found = run("-c", code)
    for scene, table in ((scene, recorded[scene]) for scene in "ABCD"):
        for seen, wanted in zip(found[scene]["table"], table["table_links"]["links"], strict=True):
            assert seen[:3] == [wanted["mass"], wanted["lateral_friction"], wanted["local_inertia_diagonal"]]
            assert seen[3] == ([wanted["lower"], wanted["upper"]] if wanted["index"] >= 0 else [])
            assert found[scene]["links"][wanted["link"]] == wanted["index"]
        assert list(found[scene]["blocks"]) == [block["name"] for block in table["blocks_in_order"]]
        for block in table["blocks_in_order"]:
            seen = found[scene]["blocks"][block["name"]]
            assert seen[:3] == [block["mass"], block["lateral_friction"], block["inertia_diagonal"]]


def test_wrong_states_and_commands_are_refused():
    code = """
import json, numpy as np
from envs.calvin.data import find_data
from envs.calvin.world import World
from envs.types import EnvError
messages = []
w = World("A", find_data())
for bad in (lambda: World("E", find_data()), lambda: w.reset(np.zeros(14)), lambda: w.reset(None, np.full(24, np.nan)),
            lambda: w.robot.relative(np.array([0, 0, 0, 0, 0, 0, 0.5])), lambda: w.robot.joints([0.0] * 7, 0)):
    try:
        bad()
        messages.append("accepted")
    except EnvError as e:
        messages.append(str(e))
before = w.robot.target_position.tolist()
try:
    w.robot.relative(np.array([1.0, 0, 0, 0, 0, 0, 0.5]))
except EnvError:
    pass
messages.append(before == w.robot.target_position.tolist())
w.close(); w.close()
print(json.dumps(messages))
"""
    scene, robot, state, grip, joints, kept = run("-c", code)
    assert "no scene 'E'; expected one of A, B, C, D" in scene
    assert "robot_obs has shape (14,)" in robot
    assert "scene_obs" in state
    assert "gripper command is 0.5; expected exactly 1 (open) or -1 (close)" in grip
    assert "gripper command is 0" in joints
    assert kept is True  # a refused action leaves the target where it was
