"""SimVector: every way a simulator can fail, what the caller may get wrong, and what must not leak."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from envs.child import Child
from envs.experts import make_expert
from envs.restarts import RestartBudget
from envs.toy import Toy
from envs.types import EnvConfig, EnvError, ResetNeeded
from envs.vector import Arrival, SimVector
from tests.toy_parts import toy

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., SimVector]
STAY = np.zeros((1, 2))


@pytest.fixture
def vector() -> Iterator[Make]:
    """Makes vectors and stops them."""
    made: list[SimVector] = []

    def make(n: int = 1, config: EnvConfig | None = None, **kwargs: Any) -> SimVector:
        made.append(SimVector([config or toy()] * n, max_chunk=4, **kwargs))
        return made[-1]

    yield make
    for v in made:
        v.close()


def answer(v: SimVector, i: int = 0) -> Arrival:
    while i not in v.wait():
        pass
    return v.take(i)


def reset(v: SimVector, i: int = 0, seed: int = 0, task: str = "red") -> Arrival:
    v.send_reset(i, task, seed)
    return answer(v, i)


def step(v: SimVector, i: int = 0, chunk: np.ndarray = STAY, render: str = "last") -> Arrival:
    v.send_step(i, chunk, render)
    return answer(v, i)


def kill(v: SimVector, i: int = 0) -> int:
    pid = v.pids()[i]
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def memory_maps() -> int:
    return Path("/proc/self/maps").read_text().count("temper-slab")


def gone(pid: int) -> bool:
    try:
        return "zombie" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


# --- what arrives ---


def test_the_same_as_in_this_process(vector: Make) -> None:
    v, env = vector(), Toy(size=[16, 16], max_steps=10)
    first, ours = reset(v, seed=5), env.reset("red", 5)
    assert first.kind == "reset"
    assert first.obs is not None
    np.testing.assert_array_equal(first.obs.images["top"], ours.images["top"])
    assert first.obs.instruction == ours.instruction
    chunk = np.random.default_rng(0).uniform(-1, 1, (4, 2))
    for _ in range(3):
        a = step(v, chunk=chunk, render="all")
        steps = []
        for action in chunk:
            steps.append(env.step(action))
            if steps[-1].truncated:
                break
        last = steps[-1]
        assert a.obs is not None
        assert a.executed == len(steps)
        assert (a.terminated, a.truncated, a.success) == (last.terminated, last.truncated, last.success)
        np.testing.assert_array_equal(a.rewards, np.float32([s.reward for s in steps]))
        np.testing.assert_array_equal(a.frames["top"], np.stack([s.obs.images["top"] for s in steps]))
        np.testing.assert_array_equal(a.obs.images["top"], last.obs.images["top"])
        np.testing.assert_array_equal(a.obs.proprio, last.obs.proprio)
        for k, value in last.obs.privileged.items():
            np.testing.assert_array_equal(a.obs.privileged[k], value)
    assert a.truncated
    assert a.executed == 2
    with pytest.raises(ResetNeeded, match="call reset"):
        step(v)
    assert reset(v).kind == "reset"
    assert v.restarts == 0


def test_the_final_picture_is_rendered_when_the_episode_ends_inside_a_chunk(vector: Make) -> None:
    v, env = vector(config=toy(max_steps=2)), Toy(size=[16, 16], max_steps=2)
    reset(v, seed=1)
    env.reset("red", 1)
    a = step(v, chunk=np.full((4, 2), 0.5))
    last = [env.step(np.full(2, 0.5)) for _ in range(2)][-1]
    assert a.truncated
    assert a.obs is not None
    np.testing.assert_array_equal(a.obs.images["top"], last.obs.images["top"])


@pytest.mark.parametrize("theirs", ["", "glibc.malloc.tcache_count=3"])
def test_simulators_keep_big_blocks_unless_the_user_tunes_malloc(
    vector: Make, monkeypatch: pytest.MonkeyPatch, theirs: str
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if theirs:
        monkeypatch.setenv("GLIBC_TUNABLES", theirs)
    v = vector()
    reset(v)
    told = Path(f"/proc/{v.pids()[0]}/environ").read_text()  # the C library cuts its value up where it lies
    assert "GLIBC_TUNABLES=" in told
    assert ("tcache_count=3" in told) == bool(theirs)
    assert ("glibc.malloc.hugetlb=1" in told) == (not theirs)


def test_waiting_has_a_limit_if_asked(vector: Make) -> None:
    v = vector(config=toy(wait_ms=1500.0))
    v.send_reset(0, v.tasks[0], 0)
    assert v.wait() == [0]
    v.take(0)
    v.send_step(0, STAY)
    assert v.wait(0.01) == []
    assert v.wait() == [0]


def test_a_new_instruction_inside_an_episode_ends_the_chunk(vector: Make) -> None:
    v, expert = vector(config=toy(relay=True, hold=1, max_steps=40)), make_expert("toy/reach", "red")
    first = reset(v, seed=3)
    assert first.obs is not None
    texts, rewards, a = [first.obs.instruction], 0.0, first
    while not a.terminated:
        assert a.obs is not None
        toward = np.repeat(expert.act(a.obs)[None], 4, axis=0)  # four times the same: it stops inside a chunk
        a = step(v, chunk=toward, render="all")
        assert a.obs is not None
        assert len(a.frames["top"]) == a.executed
        rewards += float(a.rewards.sum())
        assert a.renewed == (a.obs.instruction != texts[-1])
        if a.renewed:
            assert a.rewards[-1] == 1.0
            texts.append(a.obs.instruction)
    assert texts == ["reach the red target", "reach the blue target"]
    assert (rewards, a.success, a.renewed) == (2.0, True, False)
    again = reset(v, seed=3)
    assert again.obs is not None
    assert again.obs.instruction == texts[0]
    assert not again.renewed


# --- failures ---


@pytest.mark.parametrize(
    ("fault", "cause", "detail"),
    [
        ("crash", "crashed", "SIGKILL"),
        ("hang", "hung", "no answer to 'step' within 0.5 s"),
        ("nan", "bad_state", "proprioception .*hand_x.* not finite"),
        ("black", "bad_frame", "camera 'top' is black"),
    ],
)
def test_a_failing_row_is_replaced_and_the_others_do_not_notice(
    vector: Make, fault: str, cause: str, detail: str
) -> None:
    deadline = 0.5 if fault == "hang" else 10.0
    v = vector(2, toy(**{f"{fault}_at": 2}, fault_seed=13, step_deadline_s=deadline))
    reset(v, 0, seed=1)
    reset(v, 1, seed=13)
    old = v.pids()
    assert step(v, 1).kind == "step"
    v.send_step(0, STAY)
    v.send_step(1, STAY)
    good, bad = answer(v, 0), answer(v, 1)
    assert good.kind == "step"
    assert bad.kind == "failed"
    assert bad.obs is None
    assert bad.failure is not None
    assert bad.failure.cause == cause
    assert re.search(detail, bad.failure.detail)
    assert gone(old[1])
    assert reset(v, 1, seed=2).kind == "reset"
    assert step(v, 1).kind == "step"
    assert step(v, 0).kind == "step"  # its episode went on
    assert v.pids()[0] == old[0] != v.pids()[1] != old[1]
    assert v.restarts == 1


def test_kill_9_while_a_chunk_runs(vector: Make) -> None:
    v = vector(config=toy(step_ms=200.0))
    reset(v)
    v.send_step(0, np.zeros((4, 2)))
    time.sleep(0.1)
    kill(v)
    a = answer(v)
    assert a.kind == "failed"
    assert a.failure is not None
    assert a.failure.cause == "crashed"
    assert reset(v).kind == "reset"


@pytest.mark.parametrize("noticed", [False, True])
def test_kill_9_between_requests(vector: Make, noticed: bool) -> None:
    """Whether or not the vector saw it die, the step is answered by a failure and not by a child without an episode."""
    v = vector(2, toy(step_ms=20.0))
    reset(v, 0)
    reset(v, 1)
    kill(v, 0)
    if noticed:  # while waiting for the other row
        step(v, 1, np.zeros((4, 2)))
        assert v.pids()[0] == -1
    v.send_step(0, STAY)
    a = answer(v)
    assert a.kind == "failed"
    assert a.failure is not None
    assert a.failure.cause == "crashed"
    assert reset(v, 0).kind == "reset"
    assert step(v, 0).kind == "step"


def test_a_hang_is_noticed_while_others_keep_answering(vector: Make) -> None:
    v = vector(2, toy(hang_at=1, fault_seed=13, step_deadline_s=0.5, max_steps=10**6))
    reset(v, 0, seed=1)
    reset(v, 1, seed=13)
    v.send_step(1, STAY)
    v.send_step(0, STAY)
    started = time.monotonic()
    while True:
        rows = v.wait()
        if 1 in rows:
            break
        for i in rows:
            v.take(i)
            v.send_step(i, STAY)
        assert time.monotonic() - started < 5.0
    assert v.take(1).kind == "failed"


def test_a_stuck_renderer_is_noticed(vector: Make) -> None:
    """The picture stays while the hand moves far enough to be seen; standing still is no failure."""
    v = vector(config=toy(max_steps=100))
    reset(v)
    for _ in range(6):
        assert step(v).kind == "step"
    slab = v._rows[0].child.slab
    still = slab["image/top"].copy()
    kinds = []
    for i in range(6):
        v.send_step(0, np.full((1, 2), 1.0 if i % 2 else -1.0))
        v.wait()
        slab["image/top"][...] = still
        slab["proprio"][...] = [0.1 * i, 0.0]
        kinds.append(v.take(0).kind)
        if kinds[-1] == "failed":
            break
    assert kinds[-1] == "failed"
    failure = v._rows[0].child.failure
    assert failure is not None
    assert failure.cause == "bad_frame"


def test_an_exception_in_the_simulator_is_told(vector: Make) -> None:
    v = vector()
    reset(v)
    v._rows[0].child.ask({"op": "step", "n": 99, "render": "last"})  # beyond the slab: an IndexError over there
    v._rows[0].asked = "step"
    a = answer(v)
    assert a.kind == "failed"
    assert a.failure is not None
    assert a.failure.cause == "raised"
    assert "IndexError" in a.failure.detail


def test_out_of_budget(vector: Make) -> None:
    v = vector(config=toy(crash_at=0, fault_seed=3), budget=RestartBudget(per_window=2, window_s=60.0))
    for _ in range(3):
        assert reset(v, seed=3).kind == "failed"
    with pytest.raises(EnvError, match=r"environment 0 \(toy/reach\) failed 3 times.*giving up.*crashed"):
        v.send_reset(0, "red", 1)
    v = vector(config=toy(crash_at=0, fault_seed=3), budget=RestartBudget(in_all=1, per_window=9, window_s=0.0))
    for _ in range(2):
        assert reset(v, seed=3).kind == "failed"
    with pytest.raises(EnvError, match="giving up"):
        v.send_reset(0, "red", 1)


def test_whole_episodes_forgive_restarts(vector: Make) -> None:
    """A simulator that dies now and then for weeks must not end the run; one that seldom ends an episode must."""
    config = toy(crash_at=0, fault_seed=3, max_steps=4)
    v = vector(config=config, budget=RestartBudget(in_all=1, forgiven=2, per_window=9, window_s=0.0))

    def fail_after(episodes: int) -> None:
        for _ in range(episodes):
            assert reset(v, seed=1).kind == "reset"
            assert step(v, chunk=np.zeros((4, 2))).truncated
        assert reset(v, seed=3).kind == "failed"

    for _ in range(3):
        fail_after(2)
    fail_after(1)
    with pytest.raises(EnvError, match=r"failed 2 times.*giving up"):
        v.send_reset(0, "red", 1)


# --- what callers get wrong ---


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (np.zeros((5, 2)), r"shape \(5, 2\), expected \(1\.\.4, 2\)"),
        (np.zeros((0, 2)), "shape"),
        (np.zeros((1, 3)), "shape"),
        (np.zeros(2), "shape"),
        (np.array([[0.0, np.nan]]), "not finite"),
        (np.array([[0.0, 0.0], [1.5, 0.0]]), "'dx' = 1.5 is outside"),
    ],
)
def test_bad_chunks_are_refused_and_the_row_stays_usable(vector: Make, chunk: np.ndarray, message: str) -> None:
    v = vector()
    reset(v)
    with pytest.raises(EnvError, match=message):
        v.send_step(0, chunk)
    assert step(v).kind == "step"
    assert v.restarts == 0


def test_bad_requests_are_refused_and_the_row_stays_usable(vector: Make) -> None:
    v = vector()
    with pytest.raises(ResetNeeded):
        step(v)
    with pytest.raises(EnvError, match="no task 'green'"):
        reset(v, task="green")
    with pytest.raises(EnvError, match="no request is under way"):
        v.wait()
    with pytest.raises(EnvError, match="has no answer"):
        v.take(0)
    v.send_reset(0, "red", 0)
    with pytest.raises(EnvError, match="still owes an answer to 'reset'"):
        v.send_step(0, STAY)
    assert answer(v).kind == "reset"
    assert v.restarts == 0


def test_a_simulator_that_cannot_start_is_an_error() -> None:
    before = descriptors()
    for config, message in (
        (EnvConfig({"_target_": "envs.toy.Toy", "name": "run"}), "expected 'reach'"),
        (EnvConfig({"_target_": "envs.toy.Toy", "wings": 2}), "wings"),
        (EnvConfig({"_target_": "envs.toy.Toy"}, python="no/such/python"), "launch.py install toy"),
    ):
        with pytest.raises(EnvError, match=message):
            SimVector([toy(), config])
    assert descriptors() == before
    with pytest.raises(EnvError, match="at least one"):
        SimVector([])
    with pytest.raises(EnvError, match="one interface"):
        SimVector([toy(), toy(discrete=True)])


def test_too_little_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = descriptors()
    with pytest.raises(EnvError, match="too little shared memory"):
        SimVector([toy()])
    assert descriptors() == before


# --- leaks ---


@pytest.mark.slow
def test_fifty_restarts_leak_nothing(vector: Make) -> None:
    v = vector(2, budget=RestartBudget(per_window=10**6))
    reset(v, 0)
    reset(v, 1)
    kill(v, 0)
    assert step(v, 0).kind == "failed"
    reset(v, 0)
    files, maps, shared, pids = descriptors(), memory_maps(), sorted(os.listdir("/dev/shm")), []
    for _ in range(25):
        pids += [kill(v, i) for i in range(2)]
        for i in range(2):
            v.send_step(i, STAY)
        for i in range(2):
            assert answer(v, i).kind == "failed"
            v.send_reset(i, "red", 0)
        for i in range(2):
            assert answer(v, i).kind == "reset"
    assert v.restarts == 51
    assert (descriptors(), memory_maps()) == (files, maps)
    assert all(gone(p) for p in pids)
    assert sorted(n for n in os.listdir("/dev/shm") if n not in shared and "temper" in n) == []
    v.close()
    assert memory_maps() == 0


def test_close_ends_all_and_may_be_called_twice() -> None:
    before = descriptors()
    v = SimVector([toy()] * 2)
    pids = v.pids()
    v.send_reset(0, "red", 0)
    v.close()
    v.close()
    assert all(gone(p) for p in pids)
    assert descriptors() == before


def test_children_leave_with_a_killed_supervisor() -> None:
    """Even one that hangs, and so never reads that its line is closed."""
    code = (
        "import time\nfrom envs.vector import SimVector\nfrom tests.toy_parts import toy\n"
        "v = SimVector([toy(hang_at=0)])\nv.send_reset(0, 'red', 0)\nprint(v.pids()[0], flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert not gone(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while not gone(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert gone(child)


# --- Gymnasium's face ---


def test_gymnasium_face(vector: Make) -> None:
    v = vector(2, toy(max_steps=3))
    assert isinstance(v, gymnasium.vector.VectorEnv)
    assert v.metadata["autoreset_mode"] == AutoresetMode.DISABLED
    obs, info = v.reset(seed=4)
    assert not info["failed"].any()
    single = [
        {"images": {"top": obs["images"]["top"][i]}, "proprio": obs["proprio"][i], "instruction": obs["instruction"][i]}
        for i in range(2)
    ]
    assert all(v.single_observation_space.contains(s) for s in single)
    env = Toy(size=[16, 16], max_steps=3)
    env.reset("red", 5)
    for k in range(3):
        actions = np.full((2, 2), 0.3, np.float32)
        obs, reward, terminated, truncated, info = v.step(actions)
        ours = env.step(actions[1])
        assert reward.shape == (2,)
        assert truncated.tolist() == [k == 2] * 2
        assert not terminated.any()
        np.testing.assert_array_equal(obs["images"]["top"][1], ours.obs.images["top"])  # the final one, not a new one
        np.testing.assert_array_equal(obs["proprio"][1], ours.obs.proprio)
    with pytest.raises(ResetNeeded, match="rows \\[0, 1\\] have no running episode"):
        v.step(actions)
    v.reset(seed=[7, None], options={"reset_mask": np.array([True, False])})
    with pytest.raises(ResetNeeded, match="rows \\[1\\]"):
        v.step(actions)
    v.reset(options={"reset_mask": np.array([False, True]), "task": "blue"})
    obs, _, _, truncated, info = v.step(np.zeros((2, 4, 2)))  # a chunk, cut by the clock
    assert obs["instruction"] == ("reach the red target", "reach the blue target")
    assert info["executed"].tolist() == [3, 3]
    assert truncated.all()


def test_gymnasium_face_reports_failures_and_refuses_nonsense(vector: Make) -> None:
    v = vector(2)
    with pytest.raises(EnvError, match="no task 'green'"):
        v.reset(seed=0, options={"task": "green"})
    v.reset(seed=0)  # both rows answered, so both can be asked again
    for bad in (np.zeros((2, 4)), np.zeros((3, 2)), np.zeros(2), np.full((2, 2), 2.0)):
        with pytest.raises(EnvError, match="shape|outside"):
            v.step(bad)
    kill(v, 1)
    _, _, terminated, truncated, info = v.step(np.zeros((2, 2)))
    assert info["failed"].tolist() == [False, True]
    assert truncated.tolist() == [False, True]
    assert not terminated.any()
    _, info = v.reset(seed=0, options={"reset_mask": info["failed"]})
    assert not info["failed"].any()
    v.step(np.zeros((2, 2)))


def test_discrete_actions(vector: Make) -> None:
    v = vector(2, toy(discrete=True))
    v.reset(seed=0)
    for actions in (v.action_space.sample(), np.array([0, 4]), np.array([[1], [2]])):
        assert v.step(actions)[4]["executed"].tolist() == [1, 1]
    with pytest.raises(EnvError, match="outside"):
        v.step(np.array([0, 5]))


# --- simulators with conflicting pins ---


@pytest.mark.slow
@pytest.mark.sim
def test_two_interpreters_in_one_vector() -> None:
    """robosuite 1.4 beside 1.5, each in its own interpreter."""
    pythons = [sys.executable, str(ROOT / ".venvs" / "robosuite15" / "bin" / "python")]
    versions = []
    for python in pythons:
        if not Path(python).exists():
            pytest.skip(f"no interpreter at {python}: run `python launch.py install robosuite15`; NOT TESTED")
        found = subprocess.run(
            [python, "-c", "import robosuite; print('version', robosuite.__version__)"],
            capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""},
        ).stdout  # fmt: skip
        if "version" not in found:
            pytest.skip(f"{python} has no robosuite; NOT TESTED")
        versions.append(found.split()[-1].rsplit(".", 1)[0])
    assert len(set(versions)) == 2, versions
    sim = {"_target_": "envs.robosuite.Robosuite", "name": "Lift", "max_steps": 4}
    sim["cameras"] = {"agentview": [32, 32]}
    v = SimVector([EnvConfig(sim, python=p) for p in pythons], max_chunk=2)
    try:
        for i in range(2):
            v.send_reset(i, v.tasks[0], 0)
        assert [answer(v, i).kind for i in range(2)] == ["reset", "reset"]
        kill(v, 1)
        chunk = np.zeros((2, v.env_spec.action_dim))
        assert [step(v, i, chunk).kind for i in range(2)] == ["step", "failed"]
        assert reset(v, 1, task=v.tasks[0]).kind == "reset"
        for i in range(2):
            a = step(v, i, chunk)
            assert a.executed == 2
            assert a.obs is not None
            assert a.obs.images["agentview"].any()
    finally:
        v.close()


# --- memory ---


def test_a_child_that_leaks_is_replaced_at_the_bound_and_nothing_is_lost(vector: Make) -> None:
    v = vector(config=EnvConfig({**toy().sim, "leak_mib": 16.0}, memory_mib=150))
    pids, most = set(), 0.0
    for seed in range(24):
        assert reset(v, seed=seed).kind == "reset"
        pids.add(v.pids()[0])
        most = max(most, v._rows[0].child.resident_mib)
    assert v.recycled == len(pids) - 1 >= 2
    assert v.restarts == 0
    assert 150 < most < 150 + 2 * 16


def test_memory_of_what_a_simulator_has_started_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    eat = "import sys; kept = bytearray(b'x' * (100 << 20)); print(flush=True); sys.stdin.read()"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {eat!r}])"
    child = Child(toy(), max_chunk=1)
    assert child.resident_mib == 0.0
    with subprocess.Popen([sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          start_new_session=True) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()  # the other one has eaten
        monkeypatch.setattr(child, "_process", process)
        assert child.resident_mib > 100.0
        child.kill()
    assert child.resident_mib == 0.0


def test_memory_is_flat_over_two_thousand_resets(vector: Make) -> None:
    v = vector()
    sizes = []
    for seed in range(2000):
        reset(v, seed=seed)
        if seed in (199, 1999):
            sizes.append(v._rows[0].child.resident_mib)
    assert v.recycled == 0
    assert sizes[0] > 0
    assert sizes[1] - sizes[0] < 1.0
