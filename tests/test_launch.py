"""The command line: quick help, one-line errors, dry runs, and the whole way from words to a run's settings."""

import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import launch
from envs.types import EnvConfig, EnvError

ROOT = Path(launch.__file__).parent
RUNS = ("collect", "pretrain", "finetune", "evaluate")


def shell(*words: str) -> subprocess.CompletedProcess[str]:
    """The command line as a user types it."""
    command = [sys.executable, "launch.py", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_help_is_quick_and_has_an_example_per_verb() -> None:
    began = time.monotonic()
    done = shell("--help")
    assert time.monotonic() - began < 3
    assert done.returncode == 0
    for name, verb in launch.VERBS.items():
        assert name in done.stdout
        assert f"python launch.py {verb.example}" in done.stdout
        assert verb.example.startswith(name)
    assert "robosuite_lift" in done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, launch; launch.main(['help'])\n"
    code += "print(sorted({'torch', 'ray', 'hydra', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_for_one_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["finetune", "--help"]) == 0
    text = capsys.readouterr().out
    assert launch.VERBS["finetune"].example in text
    assert launch.VERBS["install"].example not in text


@pytest.mark.parametrize("verb", RUNS)
def test_dry_prints_the_tree_and_stops(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main([verb, "--dry", "env=toy", "seed=7" if verb != "evaluate" else "episodes=7"]) == 0
    tree = yaml.safe_load(capsys.readouterr().out)
    assert tree["env"]["sim"]["_target_"] == "envs.toy.Toy"
    assert 7 in tree.values()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["finetun"], "unknown verb 'finetun'; did you mean 'finetune'?"),
        (["collect", "env=robosuite_lft"], "did you mean 'robosuite_lift'?"),
        (["collect", "episods=3"], "unknown key 'episods' in 'episods=3'; did you mean 'episodes'?"),
        (["collect", "episodes=few"], "expected int"),
        (["collect", "--dryy"], "unknown flag '--dryy'"),
        (["install", "liber"], "did you mean 'libero'?"),
        (["install"], "name what to install"),
        (["report"], "expected one run folder"),
        (["report", "no/such/run"], "no/such/run holds no metrics.jsonl"),
    ],
)
def test_mistakes_are_one_line_and_status_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(words) == 2
    seen = capsys.readouterr()
    assert seen.out == ""
    assert message in seen.err.splitlines()[0]
    assert "Traceback" not in seen.err


def test_mistake_in_the_shell_has_no_traceback() -> None:
    done = shell("finetune", "algo.clp=0.1", "--dry")
    assert done.returncode == 2
    assert "did you mean 'clip'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_bugs_keep_their_traceback_and_debug_shows_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def library(words: list[str], dry: bool) -> int:
        return int("not a number")  # raised inside this file, hence ours

    def deep(words: list[str], dry: bool) -> int:
        yaml.load(object(), yaml.SafeLoader)  # raised inside a library
        return 0

    monkeypatch.setitem(launch.VERBS, "doctor", launch.VERBS["doctor"]._replace(call=library))
    assert launch.main(["doctor"]) == 2
    with pytest.raises(ValueError, match="not a number"):
        launch.main(["doctor", "--debug"])
    monkeypatch.setitem(launch.VERBS, "doctor", launch.VERBS["doctor"]._replace(call=deep))
    with pytest.raises((ValueError, AttributeError, TypeError)):
        launch.main(["doctor"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_no_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever finds out: here, a library."""
    monkeypatch.setitem(
        launch.VERBS, "doctor", launch.VERBS["doctor"]._replace(call=lambda *_: Path("/dev/full").write_text("x") or 0)
    )
    assert launch.main(["doctor"]) == 2
    assert "doctor: [Errno 28] No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (EnvError("toy: no"), 2)])
def test_exit_status(error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(words: list[str], dry: bool) -> int:
        raise error

    monkeypatch.setitem(launch.VERBS, "doctor", launch.VERBS["doctor"]._replace(call=fail))
    assert launch.main(["doctor"]) == status


def test_words_become_the_settings_of_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list = []
    monkeypatch.setattr("rl.finetune.finetune", lambda run: seen.append(run) or tmp_path)
    words = [
        "env=toy",
        "env.tasks=[red]",
        "algo=ppo",
        "reward=progress",
        "iterations=3",
        "engine=local",
        f"out={tmp_path}",
    ]
    assert launch.main(["finetune", *words]) == 0
    (run,) = seen
    assert isinstance(run.env, EnvConfig)
    assert run.env.tasks == ("red",)
    assert run.env.sim["_target_"] == "envs.toy.Toy"
    assert set(run.rewards) == {"sparse", "progress"}
    assert (run.iterations, run.engine, run.proposal) == (3, "local", None)
    assert run.config["algo"]["clip"] == 0.2


def test_evaluate_prints_its_figures_and_records_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list = []
    summary = {"success": 0.5, "low": 0.4, "high": 0.6, "episodes": 100}
    monkeypatch.setattr("rl.evaluate.evaluate", lambda run: seen.append(run) or summary)
    assert launch.main(["evaluate", "env=toy", "checkpoint=x"]) == 0
    assert "success 50.0% [40.0%, 60.0%] of 100 episodes" in capsys.readouterr().out
    assert seen[0].command == "python launch.py evaluate env=toy checkpoint=x"
    words = ["evaluate", "env=toy", "env.tasks=[red, blue]", "checkpoint=runs/$HOME/a b"]
    assert launch.main(words) == 0
    assert shlex.split(seen[1].command)[2:] == words  # as a shell reads it
    summary["episodes"] = 0
    assert launch.main(["evaluate", "env=toy", "checkpoint=x"]) == 1


def test_doctor_checks_machine_and_simulator(capsys: pytest.CaptureFixture[str]) -> None:
    status = launch.main(["doctor", "env=toy"])
    text = capsys.readouterr().out
    assert "toy/reach: started in" in text
    assert "law: kill -9 loses one episode" in text
    assert "python" in text
    assert status == (1 if "BAD" in text else 0)


def test_doctor_names_too_little_shared_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Usage:
        free = 64 * 2**20

    monkeypatch.setattr("rl.doctor.shutil.disk_usage", lambda path: Usage)
    assert launch.main(["doctor"]) == 1
    assert "--shm-size" in capsys.readouterr().out


def test_missing_gl_library_is_named_with_its_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("envs.install.check_gl", lambda backend="": ["OSMesa"])
    monkeypatch.setattr("envs.install.install_gl", lambda say: "apt-get install libosmesa6")
    assert launch.main(["install", "gl"]) == 2
    assert "missing for offscreen rendering: OSMesa; type: apt-get install libosmesa6" in capsys.readouterr().err
    assert launch.main(["doctor"]) == 1
    assert "OSMesa" in capsys.readouterr().out
