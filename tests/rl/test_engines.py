"""The three engines: the same segments and numbers, resume, and every way a worker can be lost. One Ray for all."""

import inspect
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import rl.rollout
from pretrained.checkpoint import find, load_learner
from rl.finetune import finetune
from rl.invariants import broken
from rl.ledger import account, read
from rl.run import FinetuneRun, Start
from tests.toy_parts import SUCCESS, checkpoint, seed_of, toy

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.slow]

from rl.engine import RllibEngine, Temper  # noqa: E402
from rl.plain import EMPTY_ROUNDS, PlainEngine, start_ray  # noqa: E402
from rl.scorer import START_S  # noqa: E402
from rl.shells import Runner, ShellLearner  # noqa: E402

ALGO = {"epochs": 2, "minibatches": 2, "lr": {"": 1e-2}, "links": "sum", "reduction": "sum", "clip": 0.2}
ENGINES = ["local", "ray", "rllib"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("run") / "step_000100", "flow", execute=3)


def settings(trained: Path, out: Path, **kwargs: Any) -> FinetuneRun:
    fields: dict[str, Any] = {
        "checkpoint": str(trained),
        "env": toy(),
        "out": str(out),
        "algo": ALGO,
        "rewards": SUCCESS,
        "num_workers": 2,
        "envs_per_worker": 2,
        "decisions": 6,
        "iterations": 2,
        "lockstep": True,
        "logger": {"tensorboard": False},
        "quiet": True,
    }
    return FinetuneRun(**(fields | kwargs))


@pytest.fixture(scope="module", autouse=True)
def cluster(trained: Path) -> Iterator[None]:
    """Engines shut Ray down when they stop; here it outlives them."""
    start_ray(settings(trained, trained, num_workers=3, num_learners=2))
    shutdown, ray.shutdown = ray.shutdown, lambda: None
    yield
    ray.shutdown = shutdown
    ray.shutdown()
    assert not ray.is_initialized()


@pytest.fixture
def make(trained: Path, tmp_path: Path) -> Iterator[Any]:
    """Makes engines without the loop around them."""
    made: list[Any] = []

    def build(engine: str, **kwargs: Any) -> Any:
        kind = {"ray": PlainEngine, "rllib": RllibEngine}[engine]
        made.append(kind(settings(trained, tmp_path, **kwargs), Start(trained, {}, None, {})))
        return made[-1]

    yield build
    for engine in made:
        engine.stop()


def workers(engine: Any) -> list[Any]:
    if isinstance(engine, PlainEngine):
        return list(engine.workers)
    manager = engine.algorithm.env_runner_group._worker_manager
    return [manager.actors()[i] for i in sorted(manager.actors())]


def pid_of(actor: Any) -> int:
    return ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))


def children_of(actor: Any) -> list[int]:
    return ray.get(actor.__ray_call__.remote(lambda self: self.worker.vector.pids()))


def gone(pid: int) -> bool:
    try:
        return "zombie" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# --- the same numbers, whatever the engine ---


@pytest.fixture(scope="module")
def runs(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two iterations of each engine, then, by a second call, a third."""
    base = tmp_path_factory.mktemp("runs")
    for engine in ENGINES:
        for iterations in (2, 3):
            finetune(settings(trained, base / engine, engine=engine, iterations=iterations))
    finetune(settings(trained, base / "whole", engine="ray", iterations=3))
    return {name: base / name for name in [*ENGINES, "whole"]}


def test_engines_agree(runs: dict[str, Path]) -> None:
    """Same seeds, lockstep: the same episodes, and the same losses up to the order of summation."""
    reference = log(runs["local"])
    for engine in ("ray", "rllib"):
        rows = log(runs[engine])
        assert [r["iteration"] for r in rows] == [1, 2, 3]
        for ours, theirs in zip(reference, rows, strict=True):
            for key in ("env_steps", "rollout/episodes", "rollout/length", "rollout/env_reward"):
                assert ours[key] == theirs[key], (engine, key)
            for key in ("loss/value", "loss/policy", "loss/entropy", "loss/kl", "loss/grad_norm", "reward/total"):
                assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-5), (engine, key)
        names = [
            sorted((r["seed"], r["task"], r["length"], r["version"]) for r in _episodes(runs[e]))
            for e in ("local", engine)
        ]
        assert names[0] == names[1]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_account_balances(runs: dict[str, Path], engine: str) -> None:
    """2 workers with 2 rows; the second call went on with the first one's episodes."""
    total = account(read(runs[engine] / "ledger.jsonl"))
    assert total.balanced
    assert (total.finished, total.failed, total.in_flight) == (len(_episodes(runs[engine])), 0, 4)


def test_a_resumed_run_equals_one_of_one_piece_to_the_bit(runs: dict[str, Path]) -> None:
    parts, whole = (find(runs[name]) for name in ("ray", "whole"))
    for name in ("policy.safetensors", "learner.safetensors"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
    assert [broken(path) for path in runs.values()] == [[], [], [], []]


def _episodes(out: Path) -> list[dict[str, Any]]:
    return [r for r in read(out / "ledger.jsonl") if r["event"] == "episode"]


@pytest.mark.parametrize("engine", ENGINES)
def test_resume_goes_on_with_the_restored_weights(runs: dict[str, Path], engine: str) -> None:
    rows = log(runs[engine])
    state = load_learner(find(runs[engine]))
    assert state is not None
    assert (state["learner"]["iteration"], state["loop"]["iteration"]) == (3, 3)
    # The learner scores what the workers did almost as they did: they acted with its weights, after a resume too.
    assert all(r["loss/rollout_log_prob_gap"] < 1e-2 for r in rows)
    assert {r["version"] for r in _episodes(runs[engine])} == {0, 1, 2}


@pytest.mark.parametrize("engine", ["ray", "rllib"])
def test_with_a_lag_workers_collect_with_the_weights_before(make: Any, engine: str) -> None:
    one = make(engine, num_workers=2, max_lag=1)
    rounds = [one.iterate() for _ in range(3)]
    assert [{e.version for e in r.episodes} for r in rounds] == [{0}, {0}, {1}]
    assert "loss/lag_weight" not in rounds[0].metrics
    assert all(0.3 < r.metrics["loss/lag_weight"] < 2 for r in rounds[1:])
    assert all(r.metrics["loss/first_log_ratio"] < 1e-4 for r in rounds)
    os.kill(pid_of(workers(one)[0]), signal.SIGKILL)
    later = [one.iterate() for _ in range(2)]  # what it had collected before it died still counts
    assert [e["kind"] for r in later for e in r.events] == ["worker_restart"]
    assert all(r.metrics["rollout/env_steps"] > 0 for r in later)


@pytest.mark.parametrize("engine", ["ray", "rllib"])
def test_workers_take_the_weights_they_are_told(make: Any, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measure used above is sensitive: with weights of another round the gap is large."""
    one = make(engine, num_workers=1)
    one.iterate()
    now = one.weights()
    assert one.iterate().metrics["loss/rollout_log_prob_gap"] < 1e-2
    seen = ray.get(workers(one)[0].__ray_call__.remote(lambda self: rl.rollout.get_weights(self.worker.policy)))
    assert all(np.array_equal(v, seen[k]) for k, v in seen.items())
    changed = {k: v + 0.005 for k, v in now.items() if v.dtype == np.float32}
    if engine == "ray":
        monkeypatch.setattr("rl.plain.get_weights", lambda policy: changed)
    else:
        one.algorithm.current = changed
    assert one.iterate().metrics["loss/rollout_log_prob_gap"] > 0.02


# --- losses of workers ---


@pytest.mark.parametrize("engine", ["ray", "rllib"])
def test_a_killed_worker_is_replaced(make: Any, engine: str) -> None:
    one = make(engine)
    rounds = [one.iterate()]
    steps = rounds[0].metrics["rollout/env_steps"]
    victim = workers(one)[0]
    pid, simulators = pid_of(victim), children_of(victim)
    os.kill(pid, signal.SIGKILL)
    hurt = one.iterate()
    assert [e["kind"] for e in hurt.events] == ["worker_restart"]
    assert "Actor" in hurt.events[0]["cause"]
    assert hurt.events[0]["lost"] == 2  # one episode per row
    assert 0 < hurt.metrics["rollout/env_steps"] < steps
    deadline = time.monotonic() + 30
    rounds.append(hurt)
    while True:
        after = one.iterate()
        rounds.append(after)
        assert not after.events
        if after.metrics["rollout/env_steps"] > 0.7 * steps:
            break
        assert time.monotonic() < deadline, "the worker did not come back"
    ended = sum(len(r.episodes) for r in rounds) + 2
    assert sum(r.started for r in rounds) == ended + 4  # every row of both workers has an episode under way
    assert pid_of(workers(one)[0]) != pid
    assert all(gone(p) for p in simulators)  # its simulators left with it
    assert one.learner_state()["iteration"] >= 3


@pytest.mark.parametrize("engine", ["ray", "rllib"])
def test_a_hanging_worker_is_replaced(make: Any, engine: str) -> None:
    """A simulator that hangs under a generous deadline makes its whole worker hang."""
    seed = seed_of(row=0, episode=1)
    one = make(engine, env=toy(hang_at=1, fault_seed=seed, step_deadline_s=600.0), sample_timeout_s=20.0)
    for worker in workers(one):
        pid_of(worker)  # wait until they are up, so that the time-out is for the hang alone
    run = one.run if engine == "ray" else one.algorithm.config.env_config["run"]
    object.__setattr__(run, "sample_timeout_s", 3.0)
    for _ in range(3):
        started = time.monotonic()
        hurt = one.iterate()
        if hurt.events:
            break
    assert 3.0 <= time.monotonic() - started < 10.0
    assert [e["kind"] for e in hurt.events] == ["worker_restart"]
    assert "GetTimeoutError" in hurt.events[0]["cause"]
    assert hurt.metrics["rollout/env_steps"] > 0
    object.__setattr__(run, "sample_timeout_s", 60.0)
    full, deadline = 0.0, time.monotonic() + 60.0
    while full < 1.5 * hurt.metrics["rollout/env_steps"]:
        assert time.monotonic() < deadline, "the worker did not come back"
        after = one.iterate()
        assert not after.events
        full = max(full, after.metrics["rollout/env_steps"])
        time.sleep(0.1)


def test_the_fleet_grows_and_shrinks(make: Any) -> None:
    """A new worker joins when it is up, and nobody waits for it; the episodes of one that leaves are told as lost."""
    one = make("ray", num_workers=1)
    rounds = [one.iterate()]
    one.resize(2)
    deadline = time.monotonic() + 60
    while rounds[-1].metrics["rollout/workers"] < 2:
        assert time.monotonic() < deadline, "the worker did not join"
        rounds.append(one.iterate())
    one.resize(1)
    rounds += [one.iterate(), one.iterate()]
    assert [e["cause"] for r in rounds for e in r.events] == ["dismissed"]
    assert sum(e["lost"] for r in rounds for e in r.events) == 2
    assert rounds[-1].metrics["rollout/workers"] == 1
    ended = sum(len(r.episodes) for r in rounds) + 2
    assert sum(r.started for r in rounds) == ended + 2
    assert len({e.name for r in rounds for e in r.episodes}) == sum(len(r.episodes) for r in rounds)
    assert len({name for r in rounds for name in r.learned}) == sum(len(r.learned) for r in rounds)
    one.resize(2)  # the seat is taken anew, by a worker that draws episodes of its own
    assert one.hired[1] == 2


@pytest.mark.parametrize("engine", ["ray", "rllib"])
def test_workers_that_never_deliver_end_the_run(make: Any, engine: str) -> None:
    one = make(engine, env=toy(crash_at=0), num_workers=1, sample_timeout_s=20.0)
    for _ in range(EMPTY_ROUNDS - 1):
        assert one.iterate().events
    with pytest.raises(RuntimeError, match=f"no rollout worker delivered for {EMPTY_ROUNDS} rounds"):
        one.iterate()


def test_a_broken_simulator_is_in_the_ledger(trained: Path, tmp_path: Path) -> None:
    seed = seed_of(row=1, episode=1)
    finetune(settings(trained, tmp_path, engine="rllib", num_workers=1, env=toy(nan_at=5, fault_seed=seed)))
    lost = [r for r in _episodes(tmp_path) if not r["valid"]]
    assert [r["seed"] for r in lost] == [seed]
    assert lost[0]["cause"].startswith("bad_state: proprioception")
    assert sum(r["rollout/lost_episodes"] for r in log(tmp_path)) == 1


# --- RLlib ---


def test_the_only_worker_comes_back_and_stale_segments_are_refused(make: Any) -> None:
    one = make("rllib", num_workers=1)
    one.iterate()
    os.kill(pid_of(workers(one)[0]), signal.SIGKILL)
    assert [e["kind"] for e in one.iterate().events] == ["worker_restart"]
    after = one.iterate()  # waits for it
    assert after.metrics["rollout/env_steps"] > 0
    assert {e.version for e in after.episodes} == {1}
    one.algorithm.version += 5
    with pytest.raises(RuntimeError, match=r"segments of policy version \[7\] reached a learner at version 2"):
        one.iterate()


def test_two_learners_keep_equal_weights_and_are_rebuilt_when_one_dies(make: Any) -> None:
    one = make("rllib", num_learners=2)

    def ask(question: Any) -> list[Any]:
        return [r.get() for r in one.algorithm.learner_group.foreach_learner(question)]

    def equal() -> bool:
        answers = ask(lambda learner: rl.rollout.get_weights(learner.inner.policy))
        answers.append(one.weights())
        return len(answers) == 3 and all(np.array_equal(v, a[k]) for a in answers for k, v in answers[0].items())

    one.iterate()
    assert equal()
    before = one.weights()
    os.kill(ask(lambda learner: os.getpid())[1], signal.SIGKILL)
    hurt = one.iterate()
    assert [e["kind"] for e in hurt.events] == ["learner_restart"]
    assert hurt.events[0]["unlearned_steps"] == hurt.metrics["rollout/env_steps"] > 0
    assert "loss/policy" not in hurt.metrics
    assert ask(lambda learner: learner.inner.iteration) == [1, 1]
    assert all(np.array_equal(v, before[k]) for k, v in one.weights().items())
    after = one.iterate()
    assert not after.events
    assert after.metrics["loss/rollout_log_prob_gap"] < 1e-2
    assert ask(lambda learner: learner.inner.iteration) == [2, 2]
    assert equal()


def test_a_single_remote_learner_that_died_between_rounds_is_rebuilt(make: Any) -> None:
    one = make("rllib", num_learners=1, num_workers=1)
    one.iterate()
    group = one.algorithm.learner_group
    (pid,) = [r.get() for r in group.foreach_learner(lambda learner: os.getpid())]
    os.kill(pid, signal.SIGKILL)
    group.foreach_learner(lambda learner: None)  # RLlib notices, and would go on without it
    assert one.learner_state()["iteration"] == 1  # it can still be saved
    hurt = one.iterate()
    assert [(e["kind"], e["unlearned_steps"]) for e in hurt.events] == [
        ("learner_restart", hurt.metrics["rollout/env_steps"])
    ]
    assert one.iterate().metrics["loss/rollout_log_prob_gap"] < 1e-2
    assert one.learner_state()["iteration"] == 2


def test_a_learner_that_waits_for_its_judge_does_not_count_as_hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("ray.get", lambda asked, timeout: waited.append(timeout) or [{}])
    learner = SimpleNamespace(update=SimpleNamespace(remote=lambda **_: None))
    group = SimpleNamespace(is_remote=True, _worker_manager=SimpleNamespace(actors=lambda: {0: learner}))
    judge = {"seen": {"weight": 1.0, "term": {"remote": True, "timeout_s": 30.0}}}
    for rewards in ({}, judge):
        run: Any = SimpleNamespace(num_learners=1, learn_timeout_s=15.0, rewards=rewards)
        Temper._update(SimpleNamespace(learner_group=group), run, [object()])  # type: ignore[arg-type]
    assert waited == [15.0, 15.0 + START_S + 30.0]


def test_contract_with_rllib() -> None:
    """Every name of RLlib that the shell leans on, so that an upgrade fails here and not in a run."""
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.rllib.core.learner.learner_group import LearnerGroup
    from ray.rllib.core.learner.torch.torch_learner import TorchLearner
    from ray.rllib.core.learner.training_data import TrainingData
    from ray.rllib.core.rl_module.torch import TorchRLModule
    from ray.rllib.env.env_runner import EnvRunner
    from ray.rllib.utils.actor_manager import FaultTolerantActorManager
    from ray.rllib.utils.checkpoints import Checkpointable

    def takes(function: Any, *names: str) -> None:
        known = inspect.signature(function).parameters
        flexible = any(p.kind is p.VAR_KEYWORD for p in known.values())
        assert flexible or set(names) <= set(known), f"{function.__qualname__} takes {list(known)}"

    manager = FaultTolerantActorManager
    takes(manager.probe_unhealthy_actors, "timeout_seconds", "mark_healthy")
    takes(manager.set_actor_state, "healthy")
    takes(manager.actors)
    takes(manager.healthy_actor_ids)
    takes(LearnerGroup.update, "batch_refs", "timesteps")
    takes(LearnerGroup.foreach_learner, "func")
    takes(LearnerGroup.shutdown)
    takes(TrainingData, "batch_refs")
    takes(TrainingData.shard, "num_shards")
    takes(TorchLearner.update, "training_data", "timesteps", "keep")
    assert isinstance(LearnerGroup.is_remote, property)
    takes(AlgorithmConfig.build_learner_group, "rl_module_spec", "placement_group")
    takes(AlgorithmConfig.learners, "num_cpus_per_learner", "num_gpus_per_learner", "custom_resources_per_learner")
    takes(AlgorithmConfig.env_runners, "custom_resources_per_env_runner")
    takes(AlgorithmConfig.get_multi_rl_module_spec, "spaces")
    takes(AlgorithmConfig.fault_tolerance, "restart_failed_env_runners", "delay_between_env_runner_restarts_s")
    assert hasattr(AlgorithmConfig(), "_dont_auto_sync_env_runner_states")
    takes(
        AlgorithmConfig.env_runners, "env_runner_cls", "num_env_runners", "create_local_env_runner", "sample_timeout_s"
    )
    takes(AlgorithmConfig.learners, "learner_class", "num_learners")
    overridden = {
        Temper: (Algorithm, ["training_step", "restore_env_runners"]),
        ShellLearner: (
            TorchLearner,
            ["build", "configure_optimizers_for_module", "_make_modules_ddp_if_necessary", "update"],
        ),
        Runner: (EnvRunner, ["sample", "assert_healthy", "get_spaces", "get_metrics", "stop"]),
    }
    for ours, (theirs, methods) in overridden.items():
        assert issubclass(ours, theirs)
        for name in methods:
            assert name in vars(ours), f"{ours.__name__}.{name}"
            assert callable(getattr(theirs, name)), f"RLlib lost {theirs.__name__}.{name}"
    for name in ("get_state", "set_state", "get_ctor_args_and_kwargs", "get_checkpointable_components"):
        assert name in vars(Runner)
        assert callable(getattr(Checkpointable, name))
    assert issubclass(TorchRLModule, Checkpointable)


def test_a_judge_that_dies_is_replaced_once_and_then_done_without(tmp_path: Path) -> None:
    from envs.types import EnvSpec
    from pretrained.checkpoint import save
    from pretrained.flip.stage import ValueStage
    from rl.scorer import RemoteScorer, ScorerLost
    from tests.toy_parts import toy_spec

    env: EnvSpec = toy_spec()
    node: dict[str, Any] = {"_target_": "pretrained.flip.stage.ValueStage",
                            "value": {"_target_": "pretrained.flip.value.ValueModel", "clip": "tiny",
                                      "tokenizer": "bytes"}}  # fmt: skip
    save(tmp_path / "value", ValueStage(env=env, value=node["value"]), node=node, env=env)  # type: ignore[arg-type]
    judge = {"_target_": "pretrained.flip.judge.LivJudge", "checkpoint_path": str(tmp_path / "value"),
             "calibration": [2.0, 0.0], "device": "cpu"}  # fmt: skip
    scorer = RemoteScorer(judge, num_gpus=0.0, restarts=1, timeout_s=120.0, batch=2)
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)

    def ask() -> np.ndarray:
        scorer.ask(frames, ["reach"] * 3)
        return scorer.answer()

    def kill() -> None:
        ray.kill(scorer.actor)  # returns before the actor is dead
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                ray.get(scorer.actor.__ray_ready__.remote())
            except ray.exceptions.RayActorError:
                return
            time.sleep(0.05)
        raise AssertionError("the actor does not die")

    first = ask()
    assert ((first > 0) & (first < 1)).all()
    kill()
    with pytest.raises(ScorerLost, match="Actor"):
        ask()
    np.testing.assert_allclose(ask(), first)  # by another actor
    kill()
    with pytest.raises(ScorerLost, match="Actor"):
        ask()
    with pytest.raises(ScorerLost, match="not started again"):
        ask()
