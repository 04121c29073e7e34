"""The RLlib shell: Ray's actors, learner group, metrics and callbacks around our own collection and learning.

    Temper(Algorithm).training_step:   weights ─► Runner.sample (one call, own deadline) ─► references to segments
                                       ─► LearnerGroup.update ─► new weights

Nothing else in this code base knows RLlib. What it does not do by itself, and is done here: replace a rollout worker
that hangs, carry the policy version in every segment, stop after rounds without data, rebuild a dead learner.
"""

import time
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.exceptions import RayError
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.checkpoints import Checkpointable
from ray.util.metrics import Gauge

from pretrained.checkpoint import load_policy
from pretrained.types import Policy
from rl.finetune import FinetuneRun, Iteration, Start, make_algo, make_learner, needs_of, segment_metrics
from rl.learner import Learner
from rl.ledger import Flights
from rl.plain import start_ray
from rl.rollout import RolloutWorker, Weights, get_weights, put_weights, to_numpy, to_torch
from rl.types import Segment, join

EMPTY_ROUNDS = 3  # rounds without any data before giving up
_SPACE = gym.spaces.Box(-1, 1, (1,), np.float32)  # RLlib wants spaces; our data never meets its connectors


class PolicyModule(TorchRLModule):
    """One of our policies, as RLlib wants to see a module."""

    def setup(self) -> None:
        """Load the policy named in the module configuration."""
        self.policy: Policy = load_policy(self.model_config["checkpoint"], overrides=self.model_config["overrides"])

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """NumPy weights; RLlib's own version cannot express bfloat16."""
        return get_weights(self.policy)

    def set_state(self, state: dict[str, Any]) -> None:
        """Inverse of get_state."""
        put_weights(self.policy, state)


class ShellLearner(TorchLearner):
    """RLlib's learner actor with our learner inside; process groups come from RLlib, gradients are averaged by us."""

    inner: Learner

    def build(self) -> None:
        """Build the module through RLlib and the learner around its policy."""
        super().build()
        settings = self.config.env_config
        module = self.module["default_policy"]
        self.inner = make_learner(settings["run"], settings["start"], module.policy)

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """The inner learner owns the optimizer."""

    def compute_loss_for_module(self, **kwargs: Any) -> Any:
        """Part of RLlib's protocol; `update` never comes here."""
        raise NotImplementedError

    def _make_modules_ddp_if_necessary(self) -> None:
        """The inner learner averages gradients itself, so that no wrapper stands between it and the policy."""

    def update(self, training_data: Any = None, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """One iteration on the segments of this learner's shard."""
        training_data.solve_refs()
        parts = training_data.batches or [training_data.batch]
        version, settings = self.inner.iteration, self.config.env_config["run"]
        stale = [p.version for p in parts if not version - settings.max_lag <= p.version <= version]
        if stale:
            raise RuntimeError(f"segments of policy version {stale} reached a learner at version {version}")
        metrics = self.inner.update(join([to_torch(p) for p in parts]))
        return {"metrics": metrics, "weights": get_weights(self.inner.policy), "version": self.inner.iteration}

    def inner_state(self) -> dict[str, Any]:
        """Optimizer, generator and counters."""
        return self.inner.state()


class Runner(EnvRunner, Checkpointable):
    """RLlib's rollout actor with our rollout worker inside."""

    def __init__(self, *, config: AlgorithmConfig, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        again = ray.get_runtime_context().was_current_actor_reconstructed
        incarnation = 1 + int(time.time()) % 999 if again else 0
        self.worker = RolloutWorker(config.env_config["plan"], max(0, self.worker_index - 1), incarnation)

    def sample(self, *, weights: Weights, version: int) -> tuple[dict[str, Any], Segment]:  # type: ignore[override]
        """(a small report for the driver, the segment for the learner); called with two returns."""
        self.worker.set_weights(weights, version)
        segment = to_numpy(self.worker.sample())
        report = {"stats": segment.stats, "episodes": segment.episodes, "reward": float(segment.env_reward.sum())}
        return report, segment

    def assert_healthy(self) -> None:
        """Part of RLlib's protocol."""
        assert self.worker.vector is not None

    def get_spaces(self) -> dict[str, Any]:
        """Stand-ins; see _SPACE."""
        return {name: (_SPACE, _SPACE) for name in ("__env__", "__env_single__", "default_policy")}

    def get_metrics(self) -> dict[str, Any]:
        """Metrics travel with the report of `sample`."""
        return {}

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Weights arrive with every `sample`; there is nothing else to keep."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """See get_state."""

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Part of RLlib's protocol."""
        return (), {"config": self.config}

    def get_checkpointable_components(self) -> list[Any]:
        """Checkpoints are our own."""
        return []

    def stop(self) -> None:
        """Stop the simulators."""
        self.worker.stop()


class Temper(Algorithm):
    """The algorithm that RLlib, Tune and the dashboard see."""

    last: Iteration
    flights: Flights
    empty = 0
    cause = "all rollout workers are still starting"  # of the last loss of a worker
    current: Weights | None = None  # the learner's weights after the last update
    version = 0
    backup: dict[str, Any] | None = None  # learner state to rebuild from, if the learner lives elsewhere
    ahead: "_Pending | None" = None  # with max_lag: what is being collected while the learner learns

    def training_step(self) -> None:
        """Sample, learn, remember the weights for the next round."""
        run: FinetuneRun = self.config.env_config["run"]
        if self.current is None:
            self.flights = Flights()
            start: Start = self.config.env_config["start"]
            self.version = int((start.learner or {}).get("iteration", 0))
            self.current = get_weights(load_policy(start.checkpoint, overrides=dict(start.overrides)))
        reports, segments, events = self._gather(run, self.ahead or self._ask(run))
        self.ahead = self._ask(run) if run.max_lag else None
        self.empty = 0 if segments else self.empty + 1
        self.cause = events[-1]["cause"] if events else self.cause
        if self.empty >= EMPTY_ROUNDS:
            raise RuntimeError(f"no rollout worker delivered for {EMPTY_ROUNDS} rounds; last cause: {self.cause}")
        metrics = {}
        if segments:
            metrics = segment_metrics([_Stats(r) for r in reports])
            metrics |= self._learn(run, segments, events, steps=int(metrics["rollout/env_steps"]))
        started = sum(int(r["stats"]["started"]) for r in reports)
        self.last = Iteration(metrics, [e for r in reports for e in r["episodes"]], events, started)
        self.metrics.log_dict({k.replace("/", "_"): v for k, v in metrics.items()}, window=1)

    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """Ask restarted workers whether they are back; never wait long for one that is not."""
        restored = env_runner_group._worker_manager.probe_unhealthy_actors(timeout_seconds=0.5, mark_healthy=True)
        return list(restored)

    def _ask(self, run: FinetuneRun) -> "_Pending":
        """Let all healthy workers collect with the present weights; waits for one if there is none."""
        manager = self.env_runner_group._worker_manager
        deadline = time.monotonic() + run.sample_timeout_s
        while not manager.healthy_actor_ids() and time.monotonic() < deadline:  # all are restarting: wait for one
            manager.probe_unhealthy_actors(timeout_seconds=1.0, mark_healthy=True)
            time.sleep(0.1)  # a restarting actor refuses the probe at once
        weights = ray.put(self.current)
        actors = {i: manager.actors()[i] for i in manager.healthy_actor_ids()}
        pending = {
            i: a.sample.options(num_returns=2).remote(weights=weights, version=self.version) for i, a in actors.items()
        }
        return _Pending(actors, pending)

    def _gather(
        self, run: FinetuneRun, asked: "_Pending"
    ) -> tuple[list[dict[str, Any]], list[Any], list[dict[str, Any]]]:
        """Reports, references to segments, and what went wrong. A worker over its deadline is killed and restarted."""
        manager = self.env_runner_group._worker_manager
        deadline = time.monotonic() + run.sample_timeout_s
        reports, segments, events = [], [], []
        for i, (report, segment) in asked.references.items():
            try:
                reports.append(ray.get(report, timeout=max(0.1, deadline - time.monotonic())))
                segments.append(segment)
                events += self.flights.landed(i, reports[-1]["stats"])
            except RayError as e:
                cause = f"{type(e).__name__}: {str(e).strip().splitlines()[-1][:300]}"
                lost = self.flights.lost(i)
                events.append({"kind": "worker_restart", "worker": i, "cause": cause, "lost": lost})
                manager.set_actor_state(i, healthy=False)
                ray.kill(asked.actors[i], no_restart=False)
        return reports, segments, events

    def _learn(
        self, run: FinetuneRun, segments: list[Any], events: list[dict[str, Any]], *, steps: int
    ) -> dict[str, float]:
        """One update. A learner that dies costs the round: its `steps` were taken for nothing."""
        try:
            results = self.learner_group.update(batch_refs=segments, timesteps={})
            if len(results) < run.num_learners:
                raise RayError(f"{run.num_learners - len(results)} of {run.num_learners} learners did not answer")
            backup = self.backup
            if self.learner_group.is_remote:
                backup = _first(self.learner_group.foreach_learner(lambda learner: learner.inner_state()))
        except RayError as e:
            if not self.learner_group.is_remote:
                raise
            cause = f"{type(e).__name__}: {(str(e).strip().splitlines() or [''])[-1][:300]}"
            events.append({"kind": "learner_restart", "cause": cause, "unlearned_steps": steps})
            self._rebuild_learners()
            return {}
        self.backup = backup
        self.current, self.version = results[0]["weights"], results[0]["version"]
        keys = results[0]["metrics"]
        return {k: float(np.mean([r["metrics"][k] for r in results if k in r["metrics"]])) for k in keys}

    def _rebuild_learners(self) -> None:
        """New learner actors with the last weights and optimizer; the round that died is lost."""
        self.learner_group.shutdown()
        self.learner_group = self.config.build_learner_group(
            rl_module_spec=self.config.get_multi_rl_module_spec(spaces=self.env_runner_group.get_spaces())
        )
        weights, backup = self.current, self.backup

        def take_over(learner: ShellLearner) -> None:
            put_weights(learner.inner.policy, weights or {})
            if backup is not None:
                learner.inner.load(backup)

        self.learner_group.foreach_learner(take_over)


class RllibEngine:
    """Builds the algorithm for a run and hands its rounds to the fine-tuning loop."""

    def __init__(self, run: FinetuneRun, start: Start) -> None:
        start_ray(run)
        start = Start(start.checkpoint.resolve(), start.overrides, start.learner, start.loop)
        seed = run.seed + int((start.learner or {}).get("iteration", 0))
        plan = run.plan(str(start.checkpoint), needs_of(run), make_algo(run).gamma, seed)
        self.algorithm: Temper = _config(run, start, plan).build_algo()  # type: ignore[assignment]
        self.gauges: dict[str, Gauge] = {}

    def iterate(self) -> Iteration:
        """One call of `train`, mirrored to the Ray dashboard."""
        self.algorithm.train()
        for name, value in self.algorithm.last.metrics.items():
            key = "temper_" + name.replace("/", "_")
            self.gauges.setdefault(key, Gauge(key)).set(value)
        return self.algorithm.last

    def weights(self) -> Weights:
        assert self.algorithm.current is not None
        return self.algorithm.current

    def learner_state(self) -> dict[str, Any]:
        group = self.algorithm.learner_group
        # Remote learners may be gone by now; what they were after the last update is here.
        return self.algorithm.backup or _first(group.foreach_learner(lambda learner: learner.inner_state()))

    def stop(self) -> None:
        """Stop actors without waiting for one that hangs."""
        manager = self.algorithm.env_runner_group._worker_manager  # type: ignore[union-attr]
        pending = [a.stop.remote() for a in manager.actors().values()]
        ray.wait(pending, num_returns=len(pending), timeout=10.0)
        for actor in manager.actors().values():
            ray.kill(actor)
        self.algorithm.learner_group.shutdown()
        ray.shutdown()


class _Pending(NamedTuple):
    """A round of collection under way, by number of the worker."""

    actors: dict[int, Any]
    references: dict[int, Any]  # (report, segment)


class _Config(AlgorithmConfig):
    """RLlib asks the configuration for defaults even where it was told everything."""

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        return RLModuleSpec(module_class=PolicyModule)

    def get_default_learner_class(self) -> type[TorchLearner]:
        return ShellLearner


def _config(run: FinetuneRun, start: Start, plan: Any) -> AlgorithmConfig:
    module = RLModuleSpec(
        module_class=PolicyModule,
        observation_space=_SPACE,
        action_space=_SPACE,
        model_config={"checkpoint": str(start.checkpoint), "overrides": dict(start.overrides)},
    )
    config = (
        _Config(algo_class=Temper)
        .api_stack(enable_rl_module_and_learner=True, enable_env_runner_and_connector_v2=True)
        .framework("torch")
        .environment(
            env=None,
            observation_space=_SPACE,
            action_space=_SPACE,
            env_config={"run": run, "start": start, "plan": plan},
        )
        .env_runners(
            env_runner_cls=Runner,
            num_env_runners=run.num_workers,
            create_local_env_runner=False,
            sample_timeout_s=run.sample_timeout_s,
        )
        .learners(
            learner_class=ShellLearner,
            num_learners=run.num_learners,
            num_gpus_per_learner=int(run.device.startswith("cuda") and run.num_learners > 0),
        )
        .rl_module(rl_module_spec=module)
        .fault_tolerance(restart_failed_env_runners=True, delay_between_env_runner_restarts_s=0)
        .reporting(min_time_s_per_iteration=None, min_sample_timesteps_per_iteration=0)
        .debugging(seed=run.seed, log_level="ERROR")
    )
    config._dont_auto_sync_env_runner_states = True  # weights travel with `sample`, in no other way
    return config


class _Stats:
    """The report of a worker, in the shape that `segment_metrics` reads."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.stats = report["stats"]
        self.env_reward = torch.tensor(report["reward"])


def _first(results: Any) -> dict[str, Any]:
    """The first learner's answer, local or remote."""
    answer = next(iter(results), None)
    if answer is None:
        raise RayError("no learner answered")
    answer = answer.get() if hasattr(answer, "get") and not isinstance(answer, dict) else answer
    if isinstance(answer, Exception):
        raise answer
    return answer
