"""A Ray head that was started with token authentication, with its job server, and who may talk to it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import launch
from configs.load import place
from rl.access import local
from rl.cluster import made, render

pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.slow]

TOKEN = "0123456789abcdef0123456789abcdef"
FIGURES = ["step_ms=5", "decide_ms=4", "learn_ms=12", "steps=8", "sim_mib=1", "decision_kib=1", "worker_mib=1"]
ROOT = Path(launch.__file__).parent
RAY = [sys.executable, "-m", "ray.scripts.scripts"]  # the command `ray`, wherever its script lies
CLIENT = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
print("in:", ray.get(ray.remote(num_cpus=1)(lambda: 6 * 7).remote(), timeout=120))
"""


def environment(home: Path, **more: str) -> dict[str, str]:
    """Of a user whose only token is what `more` says."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return kept | {"HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", **more}


def own_address() -> str:
    """An address of this machine that is not loopback; loopback if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("192.0.2.1", 9))  # nothing is sent
            return str(s.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("", 0))
        return int(s.getsockname()[1])


@dataclass(frozen=True)
class Head:
    """Where it answers."""

    address: str
    jobs: str


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Demands a token. It was started from an activated environment, so that its jobs find `python`."""
    folder = Path(tempfile.mkdtemp(prefix="ray_head_", dir="/tmp"))  # short: sockets are made in it
    host, port, dashboard = own_address(), free_port(), free_port()
    command = [*RAY, "start", "--head", f"--node-ip-address={host}", f"--port={port}", "--num-cpus=3",
               f"--dashboard-host={host}", f"--dashboard-port={dashboard}", "--disable-usage-stats",
               f"--temp-dir={folder}", "--object-store-memory=100000000", "--block"]  # fmt: skip
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=said, start_new_session=True, cwd=ROOT,
            env=environment(folder, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN, PATH=path),
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 180
            while "Ray runtime started" not in (folder / "said").read_text():
                waiting = process.poll() is None and time.monotonic() < deadline
                assert waiting, (folder / "said").read_text()
                time.sleep(0.2)
            yield Head(f"{host}:{port}", f"http://{host}:{dashboard}")
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def said_by(command: Sequence[str], known: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """What somebody with this environment gets."""
    return subprocess.run(command, env=dict(known), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_only_those_with_the_token_get_in(head: Head, tmp_path: Path) -> None:
    client = [sys.executable, "-c", CLIENT, head.address]
    without = said_by(client, environment(tmp_path))
    assert without.returncode != 0
    assert "in:" not in without.stdout
    wrong = said_by(client, environment(tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN[::-1]))
    assert wrong.returncode != 0
    assert "in:" not in wrong.stdout
    right = said_by(client, environment(tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN))
    assert "in: 42" in right.stdout, right.stderr[-2000:]


def test_the_launcher_shows_the_token_to_other_machines(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without any variable that says so: the token lies where Ray looks for it. Without a token nothing is tried."""
    if local(head.address):
        pytest.skip("LAUNCHING WITH A TOKEN IS NOT TESTED: this machine has no address but loopback")
    words = ["doctor", "--plan", *FIGURES, f"ray_address={head.address}"]
    with monkeypatch.context() as here:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            here.delenv(name)
        here.setenv("HOME", str(tmp_path))
        here.setenv("RAY_AUTH_MODE", "token")  # and taken away again afterwards
        assert launch.main(words) == 2
    assert "there is no token for it" in capsys.readouterr().err
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(TOKEN)
    taken = said_by([sys.executable, "launch.py", *words], environment(tmp_path))
    assert taken.stdout.startswith("3 cores, "), taken.stderr[-2000:]  # those of the head
    assert TOKEN not in taken.stdout + taken.stderr


def test_jobs_are_taken_from_those_with_the_token_alone(head: Head, tmp_path: Path) -> None:
    """The command that `cluster=existing` prints, with the runtime environment that it writes: our files arrive."""
    cluster = made(place("finetune", ["cluster=existing", f"cluster.address={head.jobs}"]))
    _, ((_ray, *submit, python, script, verb, _attached),) = render(
        cluster, verb="help", words=[], out=tmp_path / "run"
    )
    command = [*RAY, *submit, python, script, verb]
    refused = said_by(command, environment(tmp_path))
    assert refused.returncode != 0
    assert "usage: python launch.py" not in refused.stdout
    assert "token" in (refused.stdout + refused.stderr).lower()
    deadline = time.monotonic() + 240
    while True:
        taken = said_by(command, environment(tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN))
        if "No available agent" not in taken.stderr or time.monotonic() > deadline:  # it comes up after the head
            break
        time.sleep(2.0)
    assert taken.returncode == 0, taken.stdout[-2000:] + taken.stderr[-2000:]
    assert "usage: python launch.py" in taken.stdout
