"""A reduced set of the harms of `make chaos`, in one process; and nothing of a killed owner stays in memory."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl.ledger import account
from tests.chaos.harness import ROOT
from tests.chaos.processes import commands, gone, harm
from tests.chaos.scenarios import begin

pytestmark = [pytest.mark.slow]

OWNER = """
import sys, time
from envs.vector import SimVector
from tests.toy_parts import toy
vector = SimVector([toy(), toy()])
vector.send_reset(0, "red", 0)
vector.wait()
print("up", flush=True)
time.sleep(600)
"""


def test_simulators_and_driver_come_back_and_everything_is_accounted_for(tmp_path: Path) -> None:
    chaos = begin(tmp_path, "run", seed=1)
    chaos.environments(2, "kill")
    chaos.environments(1, "stop")
    chaos.kill_driver("kill")
    found = chaos.finish()
    assert found["wrong"] == []
    assert found["orphans"] == []
    assert [(s["kind"], s["how"]) for s in found["strikes"]] == [
        ("environment", "kill"), ("environment", "kill"), ("environment", "stop"), ("driver", "kill"),
    ]  # fmt: skip
    assert all(s["recovery_s"] is not None and s["wrong"] == [] for s in found["strikes"])
    assert found["started"] == found["finished"] + found["failed"] + found["in_flight"]
    total = account(chaos.ledger)
    assert total.restarts["crashed"] + total.restarts.get("hung", 0) >= 1
    assert total.lost_s > 0


def test_nothing_stays_of_an_owner_that_is_killed_even_if_a_simulator_is_stopped() -> None:
    """Shared memory has no name, and the kernel takes the simulators along."""
    before = set(os.listdir("/dev/shm"))
    owner = subprocess.Popen([sys.executable, "-c", OWNER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "up\n"
    simulators = {p: command for p, command in commands(owner.pid).items() if "envs.worker" in command}
    assert len(simulators) == 2
    assert any("temper-slab" in os.readlink(f"/proc/{owner.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{owner.pid}/fd"))
    assert harm(min(simulators), "stop")
    time.sleep(0.1)
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    assert gone(simulators, 10.0) == []
    assert {name for name in set(os.listdir("/dev/shm")) - before if "temper" in name} == set()
