"""Short real runs on the toy, and how each is attacked. `scale` 1.0 is the full set."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from envs.build import build
from pretrained.checkpoint import save
from rl.ledger import read
from tests.chaos.harness import PATIENCE_S, Chaos
from tests.chaos.processes import commands, family, harm, members
from tests.toy_parts import SUCCESS, checkpoint, toy_spec

ALGO = {"epochs": 1, "minibatches": 2, "lr": {"": 1e-3}, "links": "sum", "reduction": "sum", "clip": 0.2}
QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def settings(base: Path, name: str, *, wait_ms: float = 10.0, **fields: Any) -> dict[str, Any]:
    """A run without an end, in rounds of about half a second."""
    trained = base / "trained"
    if not trained.exists():
        checkpoint(trained, "flow", execute=3)
    sim = {"_target_": "envs.toy.Toy", "size": [16, 16], "max_steps": 24, "wait_ms": wait_ms}
    return {
        "checkpoint": str(trained),
        "env": {"sim": sim, "step_deadline_s": 5.0, "open_deadline_s": 120.0},
        "out": str(base / name),
        "algo": ALGO,
        "rewards": SUCCESS,
        "engine": "local",
        "envs_per_worker": 4,
        "decisions": 12,
        "iterations": 10**6,
        "save_every": 3,
        "sample_timeout_s": 10.0,
        "learn_timeout_s": 15.0,
        "logger": {"tensorboard": False},
        "quiet": True,
    } | fields


def begin(base: Path, name: str, seed: int, **fields: Any) -> Chaos:
    """A run that has finished its first round."""
    chaos = Chaos(settings(base, name, **fields), seed, base, dict(QUIET))
    chaos.start()
    chaos.ready()
    return chaos


def simulators(base: Path, seed: int, times: int) -> Chaos:
    """One process: environments are killed and stopped, one to three at once."""
    chaos = begin(base, f"simulators_{seed}", seed, envs_per_worker=8)
    for _ in chaos.turns(times):
        chaos.environments(chaos.random.choice([1, 1, 2, 3]))
    return chaos


def drivers(base: Path, seed: int, times: int) -> Chaos:
    """One process: the driver is killed, at work and while it starts, also with a simulator that hangs."""
    chaos = begin(base, f"drivers_{seed}", seed)
    for i in chaos.turns(times):
        if i % 4 == 3:
            for pid in sorted(members(chaos.driver.pid, "environment"))[:1]:
                harm(pid, "stop")
        chaos.kill_driver("stop" if i % 5 == 4 else "kill")
    return chaos


def fleets(base: Path, seed: int, times: int, engine: str) -> Chaos:
    """Ray: rollout workers, simulators and now and then the driver."""
    chaos = begin(base, f"{engine}_{seed}", seed, engine=engine, num_workers=2, envs_per_worker=2)
    for i in chaos.turns(times):
        if i % 6 == 5:
            chaos.kill_driver("kill")
        elif i % 3 == 2:
            chaos.environments(2)
        else:
            chaos.workers(chaos.random.choice([1, 2]))
    return chaos


def learners(base: Path, seed: int, times: int) -> Chaos:
    """RLlib: the learner in a process of its own."""
    chaos = begin(base, f"learner_{seed}", seed, engine="rllib", num_workers=1, num_learners=1)
    for _ in chaos.turns(times):
        chaos.learner()
    return chaos


def judges(base: Path, seed: int, times: int) -> Chaos:
    """Ray: what a learned reward asks, in a process of its own beside the learner."""
    chaos = begin(base, f"judge_{seed}", seed, engine="ray", num_workers=1, rewards=judged(base))
    for _ in chaos.turns(times):
        chaos.judge()
    return chaos


def judged(base: Path) -> dict[str, Any]:
    """The toy's own reward, and a small untrained model of pictures that is asked in every round."""
    value = {"_target_": "pretrained.flip.value.ValueModel", "clip": "tiny", "tokenizer": "bytes"}
    node = {"_target_": "pretrained.flip.stage.ValueStage", "value": value}
    folder = base / "value"
    if not folder.exists():
        save(folder, build(node, env=toy_spec()), node=node, env=toy_spec())
    judge = {"_target_": "pretrained.flip.judge.LivJudge", "checkpoint_path": str(folder), "calibration": [2.0, 0.0],
             "device": "cpu"}  # fmt: skip
    term = {"_target_": "rl.rewards.learned.Learned", "judge": judge, "camera": "top", "truth": "", "remote": True,
            "restarts": 10**6, "timeout_s": 30.0}  # fmt: skip
    return {**SUCCESS, "seen": {"weight": 0.1, "term": term}}


def disks(base: Path, seed: int, times: int) -> Chaos | None:
    """The run's folder on a small disk that fills up; None where none can be mounted."""
    with small_disk(base / "disk", "64m") as disk:
        if disk is None:
            return None
        chaos = begin(base, f"disk_{seed}", seed, out=str(disk / "run"))
        for _ in chaos.turns(times):
            for _ in range(chaos.random.choice([1, 4])):  # also with a checkpoint, or in the middle of one
                chaos.ready()
            chaos.fill_disk()
            for old in sorted(chaos.out.glob("step_*"))[:-2]:  # as a person would, so that there is room for more
                shutil.rmtree(old)
        chaos.finished = chaos.finish()
        return chaos


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path | None]:
    """A file system of so many bytes, if this user may mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def nodes(base: Path, seed: int, times: int) -> tuple[Chaos, list[dict[str, float]]]:
    """Two nodes of a Ray cluster: one is killed or stopped and another joins; the fleet halves and doubles."""
    os.environ.update(QUIET)
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 2, "include_dashboard": False}
    cluster = _patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
    fleet = []
    try:
        node = _patiently(lambda: cluster.add_node(num_cpus=2))
        fields: dict[str, Any] = {
            "engine": "ray",
            "num_workers": 4,
            "envs_per_worker": 2,
            "ray_address": cluster.address,
            "wait_ms": 40.0,
        }
        chaos = begin(base, f"nodes_{seed}", seed, **fields)
        for i in chaos.turns(times):
            _until(chaos, 4, PATIENCE_S)
            full = _rate(chaos)
            chaos.pause()
            began, mark, how = chaos.now(), len(chaos.ledger), "stop" if i % 2 else "kill"
            machine = _processes(node)
            for pid in machine:
                harm(pid, how)
            came = chaos.wait(lambda m=mark: _told(chaos, m), PATIENCE_S)
            half_after = _until(chaos, 2, PATIENCE_S)
            chaos._note("node", [how], began, came and half_after is not None)
            half = _rate(chaos)
            for pid in machine:  # somebody switches it off at last
                harm(pid, "kill")
            cluster.remove_node(node, allow_graceful=False)
            node = _patiently(lambda: cluster.add_node(num_cpus=2))
            joined = _until(chaos, 4, PATIENCE_S)
            row = {"full_steps_per_s": full, "half_steps_per_s": half, "again_steps_per_s": _rate(chaos)}
            fleet.append(row | {"halved_after_s": half_after or -1.0, "doubled_after_s": joined or -1.0})
        chaos.finished = chaos.finish()
    finally:
        cluster.shutdown()
    return chaos, fleet


def _patiently(start: Callable[[], Any]) -> Any:
    """Ray gives its own processes 30 s, which is too little on a loaded machine; what it then leaves is ended."""
    for tries_left in (2, 1, 0):
        before = _own()
        try:
            return start()
        except Exception as e:
            if "timed out" not in str(e).lower() or not tries_left:
                raise
            for pid in _own() - before:
                harm(pid, "kill")
    return None


def _own() -> set[int]:
    """What this process has started itself."""
    return {pid for pid, (parent, _, _) in family(os.getpid()).items() if parent == os.getpid()}


def _processes(node: Any) -> list[int]:
    """All of a node: its raylet first, then its workers and their simulators."""
    own = [p.process.pid for parts in node.all_processes.values() for p in parts]
    return [*own, *(pid for root in own for pid in commands(root) if pid not in own)]


def _told(chaos: Chaos, mark: int) -> bool:
    return any(r["event"] == "worker_restart" for r in chaos.ledger[mark:])


def _rows(chaos: Chaos) -> list[dict[str, Any]]:
    return list(read(chaos.out / "metrics.jsonl"))


def _until(chaos: Chaos, workers: int, within_s: float) -> float | None:
    """Seconds until a new round is collected by exactly so many workers."""
    began, mark = chaos.now(), len(_rows(chaos))
    came = chaos.wait(lambda: any(m.get("rollout/workers") == workers for m in _rows(chaos)[mark:]), within_s)
    return round(chaos.now() - began, 2) if came else None


def _rate(chaos: Chaos, rounds: int = 6) -> float:
    """Environment steps per second over the next rounds."""
    mark = len(_rows(chaos))  # the rounds that follow
    assert chaos.wait(lambda: len(_rows(chaos)) > mark + rounds, PATIENCE_S), chaos.last_words()
    rows = _rows(chaos)[mark : mark + rounds + 1]
    return round((rows[-1]["env_steps"] - rows[0]["env_steps"]) / (rows[-1]["time"] - rows[0]["time"]), 1)
