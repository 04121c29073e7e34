"""Bad input gets one clear error that says what was wrong, what was expected and the fix; and whatever is killed midway
leaves nothing that looks complete, and goes on when the same command is given again.

Covered elsewhere and not repeated: unknown configuration keys and values (test_configs, test_launch), LIBERO assets
that are missing, damaged or hostile (envs/test_libero_files), OSMesa missing and simulations that blow up
(envs/test_robosuite), packages and interpreters that fail to install or are cut short (envs/test_install), HDF5 files
that are truncated, missing, or of wrong shapes and types (pretrained/test_demos), checkpoints with another camera
order, action convention or format, and damaged ones (pretrained/test_checkpoint), observations of wrong size or type
for a policy (pretrained/test_chunk_policy), torn ledgers (rl/test_ledger).
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import launch
from envs.types import BadState, EnvConfig, EnvError, Observation
from envs.vector import SimVector
from pretrained import checkpoint as checkpoints
from pretrained.demos import Demos, DemoWriter, Recorded
from rl.collect import Collector
from tests import toy_parts

ROOT = Path(__file__).resolve().parents[1]


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command line answers to a mistake: exit status 2 and a few lines without a traceback."""
    assert launch.main(words) == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


def python(code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run code in a process of its own; a value of "" removes the variable."""
    env = {k: v for k, v in {**os.environ, **environment}.items() if v}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=env, timeout=200)


# --- the machine ------------------------------------------------------------------------------------------------------

START = """
from envs.types import EnvConfig, EnvError
from envs.vector import SimVector
vector = None
try:
    vector = SimVector([EnvConfig({sim!r})])
    vector.send_reset(0, vector.tasks[0], 0)
    vector.wait()
    print(vector.take(0).kind)
except EnvError as e:
    print("refused:", e)
finally:
    if vector is not None:
        vector.close()
"""
LIFT = {"_target_": "envs.robosuite.Robosuite", "name": "Lift", "cameras": {"robot0_eye_in_hand": [16, 16]}}


@pytest.mark.sim
@pytest.mark.parametrize("backend", ["glfw", "no_such_library"])
def test_rendering_without_display_or_library(backend: str) -> None:
    if importlib.util.find_spec("robosuite") is None:
        pytest.skip("robosuite is not installed")
    display = {"DISPLAY": "", "WAYLAND_DISPLAY": "", "PYOPENGL_PLATFORM": ""}
    done = python(START.format(sim=LIFT), MUJOCO_GL=backend, **display)
    assert done.stdout.startswith(f"refused: offscreen rendering with MUJOCO_GL={backend} is not possible"), done
    assert "expected 'osmesa' or 'egl'" in done.stdout
    assert "set MUJOCO_GL=osmesa" in done.stdout
    assert "DISPLAY is ''" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="limits of file sizes bind shared memory on Linux only")
def test_too_little_shared_memory() -> None:
    sim = {"_target_": "envs.toy.Toy", "cameras": {"top": [600, 600]}}
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))"
    done = python(limit + START.format(sim=sim))
    assert done.stdout.startswith("refused: too little shared memory: could not reserve 17.5 MiB"), done
    assert "use fewer environments or smaller cameras" in done.stdout


def test_interpreter_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"out={tmp_path / 'd.hdf5'}"
    text = said(capsys, "collect", "env=toy", "env.python=.venvs/none/bin/python", "episodes=1", out)
    assert "interpreter '.venvs/none/bin/python' of envs.toy.Toy does not exist" in text
    assert "launch.py install toy` or correct env.python" in text
    assert not list(tmp_path.iterdir())


def test_program_that_is_no_python(tmp_path: Path) -> None:
    with pytest.raises(EnvError, match=r"envs.toy.Toy.* did not start \(crashed\): .*exited with status"):
        SimVector([EnvConfig({"_target_": "envs.toy.Toy"}, python="/bin/false")])


def test_ray_address_where_nobody_listens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    start = toy_parts.checkpoint(tmp_path / "start")
    words = ["env=toy", "iterations=1", f"checkpoint={start}", f"out={tmp_path / 'run'}", "ray_address=127.0.0.1:1"]
    for engine in ("ray", "rllib"):
        began = time.monotonic()
        text = said(capsys, "finetune", *words, f"engine={engine}")
        assert "no Ray cluster answers at ray_address = '127.0.0.1:1'" in text
        assert "ray start --head --port=1" in text
        assert time.monotonic() - began < 60


# --- files ------------------------------------------------------------------------------------------------------------


def test_demonstrations_that_are_no_hdf5(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.hdf5").write_bytes(b"this is not what it says " * 999)
    text = said(capsys, "pretrain", "policy=gaussian", f"demos={tmp_path / 'a.hdf5'}", f"out={tmp_path / 'run'}")
    assert "a.hdf5 is not a readable demonstration file" in text
    assert not (tmp_path / "run").exists()


def test_demonstrations_with_damaged_pictures(tmp_path: Path) -> None:
    spec, rng = toy_parts.toy_spec(), np.random.default_rng(0)
    images = {"top": rng.integers(0, 255, size=(9, 16, 16, 3), dtype=np.uint8) // 64}  # compressible
    rows = np.zeros((9, 2))
    writer = DemoWriter(tmp_path / "a.hdf5", env=spec, identity={}, compression="gzip")
    writer.add(0, Recorded(images, rows.astype(np.float32), rows, rows, rows[:, 0], rows, "go", "red", 0, True))
    path = writer.finish([0], {})
    assert Demos(path, env=spec, horizon=1).batch([4]).obs.images["top"].shape == (1, 1, 16, 16, 3)
    with h5py.File(path) as file:
        chunk = file["data/demo_0/obs/top_rgb"].id.get_chunk_info(4)
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset + 2)
        file.write(b"\xff" * (chunk.size - 2))
    with pytest.raises(ValueError, match="a.hdf5 is not a readable demonstration file"):
        Demos(path, env=spec, horizon=1).batch([4])


def test_checkpoint_of_another_robot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = toy_parts.checkpoint(tmp_path / "start")
    out = [f"checkpoint={start}", f"out={tmp_path / 'eval'}", "episodes=1"]
    text = said(capsys, "evaluate", "env=toy", *out)
    assert "was trained with cameras = [['top', [16, 16]]]" in text
    assert "environment 'toy/reach' has cameras = [['top', [32, 32]]]" in text
    assert "configure the environment as in training" in text
    text = said(capsys, "evaluate", "env=toy_discrete", "+env.sim.size=[16,16]", *out)
    assert "was trained with actions = ['dx', 'dy']" in text
    assert "has actions = ['move']" in text
    card = json.loads((start / "card.json").read_text())
    (start / "card.json").write_text(json.dumps({**card, "format": 99}))
    text = said(capsys, "evaluate", "env=toy", *out)
    assert str(start) in text
    assert not (tmp_path / "eval" / "summary.json").exists()


# --- values that cross the border -------------------------------------------------------------------------------------


def test_actions_that_no_robot_could_do() -> None:
    vector = SimVector([toy_parts.toy()])
    try:
        vector.send_reset(0, "red", 0)
        vector.wait()
        vector.take(0)
        for chunk, message in [
            ([[0.0, np.nan]], r"row 0: an action is not finite: \[\[0.0, nan\]\]; check the policy's output"),
            ([[np.inf, 0.0]], r"row 0: an action is not finite"),
            ([[0.0, 0.0], [0.0, 1.5]], r"row 0: action 'dy' = 1.5 is outside \[-1, 1\]; clip it"),
            ([[0.0, 0.0, 0.0]], r"row 0: chunk has shape \(1, 3\), expected \(1..16, 2\)"),
            (np.zeros((17, 2)), r"chunk has shape \(17, 2\), expected \(1..16, 2\)"),
        ]:
            with pytest.raises(EnvError, match=message):
                vector.send_step(0, np.asarray(chunk))
        vector.send_step(0, np.zeros((1, 2)))  # the row stayed usable
        vector.wait()
        assert vector.take(0).executed == 1
        assert vector.restarts == 0
    finally:
        vector.close()


class _Camera:
    """An environment whose camera delivers what it is told to."""

    def __init__(self, image: np.ndarray) -> None:
        self.spec, self.image = toy_parts.toy_spec(), image

    def reset(self, task: str, seed: int) -> Observation:
        state = {k: np.zeros(s) for k, s in self.spec.privileged.items()}
        return Observation({"top": self.image}, np.zeros(2, np.float32), "", state)


@pytest.mark.parametrize(
    ("image", "got"),
    [(np.zeros((16, 12, 3), np.uint8), r"uint8 \(16, 12, 3\)"), (np.ones((16, 16, 3)), r"float64 \(16, 16, 3\)")],
    ids=["size", "type"],
)
def test_pictures_of_another_size_or_type(image: np.ndarray, got: str) -> None:
    from envs.wire import make_slab, map_slab, slab_layout
    from envs.worker import Host

    host = Host()
    env: Any = _Camera(image)
    host.env = env
    layout, size = slab_layout(host.env.spec, 1)
    fd = make_slab(size)
    host.slab = map_slab(fd, size, layout)
    os.close(fd)
    with pytest.raises(BadState, match=rf"toy/reach: camera 'top' gave {got}, expected uint8 \(16, 16, 3\)"):
        host.reset({"task": "red", "seed": 0})


def test_observations_that_are_not_finite_are_not_learned_from() -> None:
    policy = toy_parts.make_policy()
    vector = SimVector([toy_parts.toy(nan_at=3, hold=99)])
    try:
        collector = Collector(vector, policy, decisions=4, gamma=0.99)
        segment = collector.collect(0)
    finally:
        vector.close()
    lost = [e for e in segment.episodes if not e.valid]
    assert lost
    assert all("bad_state" in e.cause and "['hand_x', 'hand_y'] is not finite" in e.cause for e in lost)
    assert not segment.valid.all()
    assert np.isfinite(segment.value[segment.valid].numpy()).all()
    assert all(np.isfinite(v[segment.valid].float().numpy()).all() for v in segment.features.values())


# --- killed midway ----------------------------------------------------------------------------------------------------


def killed(words: list[str], when: Callable[[], bool]) -> None:
    """Give a command and kill it with SIGKILL as soon as `when` is true; it must not have ended by itself."""
    process = subprocess.Popen(
        [sys.executable, "launch.py", *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    ends = time.monotonic() + 200
    while not when():
        assert process.poll() is None, process.stderr and process.stderr.read().decode()[-800:]
        assert time.monotonic() < ends, "nothing happened"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert process.stderr is not None
    process.stderr.close()


def done(*words: str) -> None:
    assert launch.main([*words]) == 0


@pytest.mark.slow
def test_killed_collection_leaves_no_file_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, parts = tmp_path / "d.hdf5", tmp_path / "d.hdf5.parts"
    words = ["collect", "env=toy", "episodes=20", "noise=0.1", f"out={path}", "quiet=true"]
    killed([*words, "+env.sim.step_ms=5"], lambda: len(list(parts.glob("demo_*.hdf5"))) >= 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.hdf5.parts"]
    text = said(capsys, "pretrain", "policy=gaussian", f"demos={path}", f"out={tmp_path / 'run'}")
    assert "its collection was not finished: run the same 'collect' again" in text
    stored = {p.name: p.stat().st_mtime_ns for p in parts.glob("demo_*.hdf5")}
    assert said(capsys, *words).count("choose another 'out'") == 1  # without step_ms it is not the same collection
    assert {p.name: p.stat().st_mtime_ns for p in parts.glob("demo_*.hdf5")} == stored
    done(*words, "+env.sim.step_ms=5")
    manifest = json.loads(path.with_suffix(".json").read_text())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.hdf5", "d.json"]
    assert manifest["demos"] == 20


@pytest.mark.slow
def test_killed_imitation_leaves_whole_checkpoints_and_goes_on(tmp_path: Path) -> None:
    demos, run = tmp_path / "d.hdf5", tmp_path / "run"
    done("collect", "env=toy", "episodes=4", f"out={demos}", "quiet=true", "workers=2")
    words = ["pretrain", "policy=gaussian", "policy.width=32", f"demos={demos}", f"out={run}", "batch_size=8",
             "save_every=5", "log_every=1", "quiet=true", "device=cpu"]  # fmt: skip
    killed([*words, "steps=100000"], lambda: (run / "step_00000010").exists())
    last = checkpoints.newest(run)
    assert last is not None
    for folder in checkpoints.steps(run):  # whatever bears the name of a checkpoint is one
        checkpoints.verify(folder)
        checkpoints.load_policy(folder)
    step = int(last.name[5:])
    done(*words, f"steps={step + 5}")
    assert checkpoints.find(run).name == f"step_{step + 5:08d}"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "train/loss" in line]
    assert steps == list(range(1, step + 6))  # neither lost nor counted twice
    assert not [p.name for p in run.iterdir() if p.name.startswith(".")]


SAVING = """
import itertools, sys
from pathlib import Path
from pretrained.checkpoint import save
from tests import toy_parts
policy, spec = toy_parts.make_policy("flow"), toy_parts.toy_spec()
for i in itertools.count():
    save(Path(sys.argv[1]), policy, node=toy_parts.policy_node("flow"), env=spec, metrics={"save": i})
"""


@pytest.mark.slow
def test_killed_save_leaves_the_old_or_the_new_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "step_000001"
    for delay in (0.0, 0.003, 0.011, 0.029):
        process = subprocess.Popen([sys.executable, "-c", SAVING, str(folder)], cwd=ROOT, stderr=subprocess.DEVNULL)
        ends = time.monotonic() + 100
        old = folder.stat().st_ino if folder.exists() else -1
        while not folder.exists() or folder.stat().st_ino == old:  # until it saves
            assert process.poll() is None
            assert time.monotonic() < ends
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        process.wait()
        toy_parts.make_policy("flow").load_state_dict(checkpoints.load_policy(folder).state_dict())  # type: ignore[attr-defined]
    toy_parts.checkpoint(folder, "flow")  # the next save removes what the killed ones left
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


@pytest.mark.slow
def test_killed_evaluation_is_not_an_evaluation(tmp_path: Path) -> None:
    start, out = toy_parts.checkpoint(tmp_path / "start"), tmp_path / "eval"
    words = ["evaluate", "env=toy", "+env.sim.size=[16,16]", "+env.sim.max_steps=10", f"checkpoint={start}",
             f"out={out}", "episodes=40", "workers=2", "videos=0", "quiet=true"]  # fmt: skip
    killed([*words, "+env.sim.step_ms=20"], lambda: out.exists())
    assert not (out / "summary.json").exists()
    done(*words)
    assert json.loads((out / "summary.json").read_text())["episodes"] == 40
    assert not list(out.glob("*.part"))
