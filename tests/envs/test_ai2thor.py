"""The AI2-THOR adapter over the real Controller and the embedded simulator: laws, actions, tasks, and supervision."""

import json
import os
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs import stretch
from envs.ai2thor import EVALUATION_SEEDS, PRIVILEGED
from envs.check import check_vector
from envs.chores.tasks import read_spec
from envs.experts import make_expert
from envs.thor_link import Start
from envs.thor_robot import Body, screen, worked, wrist_turn
from envs.types import EnvError
from envs.vector import SimVector
from rl.collect import TRAINING_SEEDS
from tests.thor_house import CAMERAS, PARTS, PYTHON, act, house_file, open_vector, reset, sim, start, thor_is_here

pytestmark = [pytest.mark.sim, pytest.mark.usefixtures("thor_is_here")]
__all__ = ["house_file", "thor_is_here"]
DEADLINE = 2.0
HOLD = 8  # seconds a test waits at most beyond what it measures


def test_laws_in_one_process(house_file: Path) -> None:
    """All laws on the adapter itself, in its own interpreter."""
    code = (
        "import json, sys; from envs.ai2thor import Ai2thor; from envs.check import check_env\n"
        "print(json.dumps(check_env(Ai2thor(**json.loads(sys.argv[1])))))"
    )
    options = {k: v for k, v in sim(house_file, max_steps=12).items() if k != "_target_"}
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [str(PYTHON), "-c", code, json.dumps(options)],
        env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    laws = json.loads(done.stdout.strip().splitlines()[-1])
    assert {"seeded reset", "rendering", "end of episode", "action bounds", "close twice"} <= set(laws)


@pytest.mark.parametrize("transport", ["FIFO", "WSGI"])
def test_laws_of_a_vector(house_file: Path, transport: str) -> None:
    vector = open_vector(house_file, rows=2, max_steps=12, transport=transport)
    assert check_vector(vector) == ["final observation", "kill -9 loses one episode", "close twice"]


def test_a_policy_sees_what_spoc_expects(house_file: Path) -> None:
    vector = open_vector(house_file)
    try:
        spec = vector.env_spec
        assert (spec.action_convention, spec.num_actions) == ("spoc_stretch_20", 20)
        assert list(spec.proprio) == [stretch.IN_HAND]
        arrival = reset(vector, "ObjectNavType", 0)
        assert arrival.obs is not None
        assert {k: v.shape for k, v in arrival.obs.images.items()} == {k: (*v, 3) for k, v in CAMERAS.items()}
        assert set(arrival.obs.privileged) == set(PRIVILEGED)
        notes = arrival.obs.notes
        assert notes["house"] == "val/0"
        assert set(notes["rooms"]) == {"room|1", "room|2"}
        assert notes["expert_length"] > 0
        assert notes["best_distance"] > 0
        assert notes["category"].lower() in arrival.obs.instruction
        chore = read_spec(notes["task"])
        assert (chore.instruction, chore.category) == (arrival.obs.instruction, notes["category"])
        assert np.array(chore.start)[[0, 2, 3]] == pytest.approx(arrival.obs.privileged["agent"][[0, 2, 3]])
        assert notes["task"]["house_index"] == 0
    finally:
        vector.close()


def test_actions_do_what_the_table_says(house_file: Path) -> None:
    vector = open_vector(house_file, shake_cameras=False)
    try:
        reset(vector, "ObjectNavType", 3)
        for name, key, entry, change in (
            ("r", "agent", 3, 30.0), ("l", "agent", 3, -30.0), ("rs", "agent", 3, 6.0), ("ls", "agent", 3, -6.0),
            ("yp", "arm", 0, 0.1), ("ym", "arm", 0, -0.1), ("yps", "arm", 0, 0.02), ("yms", "arm", 0, -0.02),
            ("zp", "arm", 1, 0.1), ("zm", "arm", 1, -0.1), ("zps", "arm", 1, 0.02), ("zms", "arm", 1, -0.02),
            ("wp", "arm", 2, -10.0), ("wm", "arm", 2, 10.0),
        ):  # fmt: skip
            before = now(vector)[key][entry]
            arrival = act(vector, name)
            after = now(vector)[key][entry]
            got = (after - before + 180) % 360 - 180 if abs(change) > 1 else after - before
            assert got == pytest.approx(change, abs=1e-6), name
            assert now(vector)["worked"] == 1, name
            assert not arrival.terminated
        x, _, z, yaw = now(vector)["agent"]
        for name, way in (("b", -1), ("m", 1)):
            act(vector, name)
            x2, _, z2, _ = now(vector)["agent"]
            ahead = (x2 - x) * np.sin(np.radians(yaw)) + (z2 - z) * np.cos(np.radians(yaw))
            assert ahead == pytest.approx(0.2 * way, abs=1e-6) or now(vector)["worked"] == 0
            x, z = x2, z2
        assert act(vector, "d").rewards.tolist() == [0]
        assert now(vector)["worked"] == 1
        act(vector, "p")
        assert now(vector)["worked"] == 0  # SPOC never counts a pickup as having worked
    finally:
        vector.close()


def now(vector: SimVector) -> dict[str, np.ndarray]:
    slab = vector._rows[0].child.slab
    return {k[11:]: v.copy() for k, v in slab.items() if k.startswith("privileged/")}


def test_a_wall_stops_the_robot_and_counts(house_file: Path) -> None:
    vector = open_vector(house_file, max_steps=60)
    try:
        reset(vector, "ObjectNavType", 0)
        for _ in range(50):
            act(vector, "m")
            if not now(vector)["worked"]:
                break
        still = now(vector)["agent"]
        collisions = float(now(vector)["collisions"])
        act(vector, "m")
        assert now(vector)["collisions"] == collisions + 1 >= 2
        assert now(vector)["agent"] == pytest.approx(still)
    finally:
        vector.close()


def test_a_wrong_done_ends_without_reward(house_file: Path) -> None:
    vector = open_vector(house_file, tasks=["FetchType"])
    try:
        reset(vector, "FetchType", 1)
        arrival = act(vector, "end")
        assert (arrival.terminated, arrival.success, float(arrival.rewards[0])) == (True, False, 0.0)
        assert now(vector)["gave_up"] == 1
    finally:
        vector.close()


@pytest.mark.parametrize("kind", ["ObjectNavType", "ObjectNavRoom", "PickupType", "FetchType", "RoomVisit", "RoomNav"])
def test_the_expert_does_it_and_is_paid_ten(house_file: Path, kind: str) -> None:
    vector = open_vector(house_file, tasks=[kind])
    try:
        for seed in (0, 5):
            expert = make_expert(vector.env_spec.env_id, kind, seed=seed)
            arrival = reset(vector, kind, seed)
            assert arrival.obs is not None
            expert.reset(arrival.obs)
            total = 0.0
            while not (arrival.terminated or arrival.truncated):
                assert arrival.obs is not None
                arrival = act(vector, int(expert.act(arrival.obs)[0]), render="none")
                total += float(arrival.rewards.sum())
            assert (arrival.success, total) == (True, 10.0), f"{kind}, seed {seed}"
            assert now(vector)["progress"] == 1
    finally:
        vector.close()


def test_seeds_of_evaluation_are_houses_of_val() -> None:
    assert EVALUATION_SEEDS == TRAINING_SEEDS


def test_training_stays_in_a_house_for_some_episodes(tmp_path: Path) -> None:
    with (tmp_path / "many.jsonl").open("w") as file:
        for _ in range(30):
            file.write(json.dumps(json.loads(start())) + "\n")
    vector = open_vector(tmp_path / "many.jsonl", episodes_per_house=4)
    try:
        assert vector.env_spec.seed_block == 4
        houses = []
        for seed in range(TRAINING_SEEDS, TRAINING_SEEDS + 12):
            arrival = reset(vector, "ObjectNavType", seed)
            assert arrival.obs is not None
            houses.append(arrival.obs.notes["house"])
        assert [len(set(houses[i : i + 4])) for i in (0, 4, 8)] == [1, 1, 1]
        assert len(set(houses)) == 3
        assert all(h.startswith("train/") for h in houses)
        arrival = reset(vector, "ObjectNavType", 7)
        assert arrival.obs is not None
        assert arrival.obs.notes["house"].startswith("val/")
    finally:
        vector.close()


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tasks": ["ObjectNavTyp"]}, "task type 'ObjectNavTyp' is unknown"),
        ({"tasks": []}, "no tasks were named"),
        ({"backend": "unreal"}, "backend 'unreal' is unknown; expected mini or unity"),
        ({"transport": "TCP"}, "transport 'TCP' is unknown"),
        ({"split": "training"}, "split 'training' is unknown"),
        ({"houses": "nowhere.jsonl"}, "there are no houses at 'nowhere.jsonl'"),
        ({"backend": "unity", "executable": "no/such/thor"}, "executable 'no/such/thor' does not exist"),
        ({"commit_id": "abc"}, "are for backend=unity"),
        ({"pickup_start": [0.8, 0.5]}, r"pickup_start is \[0.8, 0.5\]; expected the least and the most"),
        ({"pickup_facing": [90]}, r"pickup_facing is \[90.0\]; expected the least and the most degrees"),
        ({"name": "locobot"}, "there is no robot 'locobot'"),
        ({"cameras": {"front": [64, 112]}}, "cameras .* cannot be had"),
        ({"cameras": {stretch.NAVIGATION: [64, 112], stretch.MANIPULATION: [32, 56]}}, "of one size"),
    ],
)
def test_mistakes_are_named(house_file: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(EnvError, match=words):
        open_vector(house_file, **options).close()


def test_an_unreachable_target_is_named(house_file: Path) -> None:
    spec = {
        "task_type": "FetchType", "house_index": 0, "natural_language_spec": "find a mug and take it",
        "agent_starting_position": [2.0, 0.9, 2.0], "agent_y_rotation": 0.0, "synsets": ["mug.n.04"],
        "broad_synset_to_object_ids": {"mug.n.04": ["Mug|elsewhere"]},
    }  # fmt: skip
    tasks = house_file.parent / "tasks.jsonl"
    tasks.write_text(json.dumps(spec) + "\n")
    vector = open_vector(house_file, tasks=["FetchType"], task_file=str(tasks))
    try:
        with pytest.raises(
            EnvError, match="no target of .'Mug.elsewhere'. can be reached from .* is not in this house"
        ):
            reset(vector, "FetchType", 0)
        spec["broad_synset_to_object_ids"] = {"mug.n.04": ["Mug|surface|1|2"]}
    finally:
        vector.close()
    tasks.write_text(json.dumps(spec) + "\n")
    vector = open_vector(house_file, tasks=["FetchType"], task_file=str(tasks))
    try:
        arrival = reset(vector, "FetchType", 0)
        assert arrival.obs is not None
        assert arrival.obs.instruction == "find a mug and take it"
        assert arrival.obs.privileged["agent"][:3] == pytest.approx([2.0, 0.9, 2.0], abs=0.05)
    finally:
        vector.close()


def test_a_house_that_cannot_be_built_is_named(house_file: Path) -> None:
    """The embedded simulator's own reader wants walls; this file has none."""
    vector = open_vector(house_file, mini_arguments="")
    try:
        with pytest.raises(EnvError, match="ai2thor refuses 'CreateHouse'"):
            reset(vector, "ObjectNavType", 0)
        assert vector.restarts == 0
    finally:
        vector.close()


# --- supervision ------------------------------------------------------------------------------------------------------


def broken(house_file: Path, fault: str, **options: Any) -> SimVector:
    """A simulator that goes wrong once, at its second step ahead."""
    mark = house_file.parent / "happened"
    arguments = f"{PARTS} {fault} --fault-only MoveAheadQuick --fault-once {mark}"
    return open_vector(house_file, mini_arguments=arguments, action_deadline_s=DEADLINE, **options)


@pytest.mark.parametrize("transport", ["FIFO", "WSGI"])
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("--crash-at 2 --crash-how exit --exit-code 7", "ended with status 7"),
        ("--crash-at 2 --crash-how segv", "was killed by SIGSEGV"),
        ("--crash-at 2 --crash-how abort", "was killed by SIGABRT"),
        ("--crash-at 2 --crash-how kill", "was killed by SIGKILL"),
        ("--hang-at 2", "did not answer 'MoveAheadQuick' within 2 s"),
        ("--truncate-at 2", "the simulator (sent what cannot be read .*reshape|ended with status 1)"),
        ("--cut-at 2", "the simulator (ended|sent what)"),
    ],
    ids=["exit", "segv", "abort", "kill", "hang", "truncated", "cut"],
)
def test_a_broken_simulator_costs_one_episode(house_file: Path, fault: str, words: str, transport: str) -> None:
    vector = broken(house_file, fault, transport=transport)
    try:
        reset(vector, "ObjectNavType", 0)
        assert act(vector, "m").kind == "step"
        began = time.monotonic()
        lost = act(vector, "m")
        took = time.monotonic() - began
        assert lost.kind == "failed"
        assert lost.failure is not None
        assert lost.failure.cause == "bad_state"
        assert re.search(words, lost.failure.detail), lost.failure.detail
        assert took < DEADLINE + 1.0
        again = reset(vector, "ObjectNavType", 0)
        assert again.kind == "reset"
        assert vector.restarts == 1
        assert act(vector, "m").kind == "step"
    finally:
        vector.close()


def test_a_slow_simulator_is_waited_for(house_file: Path) -> None:
    vector = open_vector(house_file, mini_arguments=f"{PARTS} --slow 0.05", action_deadline_s=DEADLINE)
    try:
        reset(vector, "ObjectNavType", 0)
        assert act(vector, "m").kind == "step"
        assert vector.restarts == 0
    finally:
        vector.close()


@pytest.mark.parametrize("transport", ["FIFO", "WSGI"])
def test_a_simulator_that_never_connects_is_given_up(house_file: Path, transport: str) -> None:
    began = time.monotonic()
    with pytest.raises(EnvError, match=r"did not start \(bad_state\).*did not answer 'start' within 2 s"):
        open_vector(house_file, mini_arguments=f"{PARTS} --never-connect", start_deadline_s=2.0, transport=transport)
    assert time.monotonic() - began < 2.0 + 1.0 + HOLD  # and the interpreter's own start


def test_nothing_is_left_behind(house_file: Path) -> None:
    """A hung simulator is killed with its child, and so is one whose child is killed."""
    vector = broken(house_file, "--hang-at 1")
    try:
        reset(vector, "ObjectNavType", 0)
        group = vector.pids()[0]
        assert act(vector, "m").kind == "failed"
    finally:
        vector.close()
    deadline = time.monotonic() + HOLD
    while processes_of(group) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(group) == []


def processes_of(group: int) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(entry.name)
    return found


# --- small parts ------------------------------------------------------------------------------------------------------


def test_screens_are_cropped_to_size() -> None:
    assert screen((224, 384)) == (224, 396)
    for width in (56, 112, 128, 192, 384):
        y, x = screen((64, width))
        assert stretch.crop_sides(np.zeros((y, x, 4), np.uint8)).shape == (64, width, 3)


def test_the_wrist_stops_at_the_ends_of_its_arc() -> None:
    assert wrist_turn(0.0, 10.0) == 10.0
    assert wrist_turn(70.0, 10.0) == pytest.approx(5.0)
    assert wrist_turn(75.0, 10.0) == pytest.approx(0.0)
    assert wrist_turn(100.0, -10.0) == pytest.approx(0.0)  # 100 is -260, the other stop
    assert wrist_turn(105.0, -10.0) == pytest.approx(-5.0)
    assert wrist_turn(180.0, -10.0) == pytest.approx(-10.0)


def test_start_says_what_it_takes() -> None:
    with pytest.raises(EnvError, match="backend 'x' is unknown"):
        Start(backend="x")


def test_worked_follows_spoc() -> None:
    body = Body(np.zeros(3), 0.0, 0.5, 0.2, 0.0, np.zeros(3), np.zeros(4), (), ())
    i = stretch.action_index
    ahead = replace(body, position=np.array([0.0, 0.0, 0.2]))
    assert worked(i("m"), body, ahead, "")
    assert not worked(i("m"), body, ahead, "agent Collided with Wall")
    assert not worked(i("m"), body, body, "")
    assert worked(i("r"), body, replace(body, yaw=30.0), "")
    assert not worked(i("yp"), body, replace(body, lift=0.504), "")
    assert worked(i("yps"), body, replace(body, lift=0.52), "")
    assert not worked(i("wm"), body, replace(body, wrist=1.0), "")
    assert not worked(i("p"), body, ahead, "")
    assert worked(i("d"), body, body, "collided")
