"""The RLlib shell: Ray's actors, learner group, metrics and callbacks around our own collection and learning.

    Temper(Algorithm).training_step:   weights ─► Runner.sample (one call, own deadline) ─► references to segments
                                       ─► LearnerGroup.update ─► new weights

Nothing else in this code base knows RLlib, but its actors in `rl.shells`. What it does not do by itself, and is done
here: replace a rollout worker or a learner that hangs, carry the policy version in every segment, stop after rounds
without data, rebuild a dead learner.
"""

import time
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from ray.exceptions import ObjectLostError, RayError
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from pretrained.checkpoint import load_policy
from rl.border import Border
from rl.ledger import Flights
from rl.placement import learner_gpus, reserve
from rl.plain import collected, start_ray
from rl.rollout import Weights, get_weights, put_weights
from rl.run import FinetuneRun, Iteration, Start, make_algo, needs_of
from rl.scorer import longest
from rl.shells import SPACE, Held, PolicyModule, Runner, ShellLearner
from rl.throughput import segment_metrics

EMPTY_ROUNDS = 3  # rounds without any data before giving up


class Temper(Algorithm):
    """The algorithm that RLlib, Tune and the dashboard see."""

    config: Any  # RLlib's own say that these may be missing; they are there as soon as it is set up
    env_runner_group: Any
    learner_group: Any
    last: Iteration
    flights: Flights
    empty = 0
    cause = "all rollout workers are still starting"  # of the last loss of a worker
    current: Weights | None = None  # the learner's weights after the last update
    version = 0
    backup: dict[str, Any] | None = None  # learner state to rebuild from, if the learner lives elsewhere
    broken = 0  # learners, in a row
    learned: list[str]  # names of the segments of the last update
    ahead: "_Pending | None" = None  # with max_lag: what is being collected while the learner learns

    def training_step(self) -> None:
        """Sample, learn, remember the weights for the next round."""
        run: FinetuneRun = self.config.env_config["run"]
        if self.current is None:
            self.flights = Flights()
            start: Start = self.config.env_config["start"].get()
            self.version = int((start.learner or {}).get("iteration", 0))
            self.current = get_weights(load_policy(start.checkpoint, overrides=dict(start.overrides)))
            for i, border in enumerate(start.borders):
                if border is not None:
                    self.flights.carry(i + 1, len(border["episodes"]))
        reports, segments, events = self._gather(run, self.ahead or self._ask(run))
        self.ahead = self._ask(run) if run.max_lag else None
        self.empty = 0 if segments else self.empty + 1
        self.cause = events[-1]["cause"] if events else self.cause
        if self.empty >= EMPTY_ROUNDS:
            raise RuntimeError(f"no rollout worker delivered for {EMPTY_ROUNDS} rounds; last cause: {self.cause}")
        metrics, self.learned = {}, []
        if segments:
            metrics = segment_metrics([_Stats(r) for r in reports])
            metrics |= self._learn(run, segments, events, steps=int(metrics["rollout/env_steps"]))
        started = sum(int(r["stats"]["started"]) for r in reports)
        self.last = Iteration(metrics, [e for r in reports for e in r["episodes"]], events, started, self.learned)
        self.last.busy_s, self.last.lost = self._seconds(run, reports, events, metrics.get("time/learn_s", 0.0))
        self.metrics.log_dict({k.replace("/", "_"): v for k, v in metrics.items()}, window=1)

    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """Ask restarted workers whether they are back; never wait long for one that is not."""
        restored = env_runner_group._worker_manager.probe_unhealthy_actors(timeout_seconds=0.5, mark_healthy=True)
        return list(restored)

    def _ask(self, run: FinetuneRun) -> "_Pending":
        """Let all healthy workers collect with the present weights; waits for one if there is none."""
        manager = self.env_runner_group._worker_manager
        deadline = time.monotonic() + run.env.open_deadline_s + run.sample_timeout_s
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
                found: Any = ray.get(report, timeout=max(0.1, deadline - time.monotonic()))
                reports.append({**found, "worker": i})
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
        if len(segments) < run.num_learners:  # each of them needs something to learn from
            events.append({"kind": "skipped", "cause": "fewer segments than learners", "unlearned_steps": steps})
            return {}
        try:
            results = self._update(run, segments)
        except ObjectLostError as e:  # a node took its segments along
            events.append({"kind": "skipped", "cause": type(e).__name__, "unlearned_steps": steps})
            return {}
        except RayError as e:
            self.broken += 1
            if not self.learner_group.is_remote or self.broken >= EMPTY_ROUNDS:
                raise
            cause = f"{type(e).__name__}: {(str(e).strip().splitlines() or [''])[-1][:300]}"
            events.append({"kind": "learner_restart", "cause": cause, "unlearned_steps": steps})
            self._rebuild_learners()
            return {}
        self.broken, self.backup = 0, results[0]["state"]
        self.current, self.version = results[0]["weights"], results[0]["version"]
        self.learned = [name for r in results for name in r["learned"]]
        keys = results[0]["metrics"]
        return {k: float(np.mean([r["metrics"][k] for r in results if k in r["metrics"]])) for k in keys}

    def _update(self, run: FinetuneRun, segments: list[Any]) -> list[dict[str, Any]]:
        """The learners' answers. RLlib's own call would wait for ever for one that hangs.

        One that waits for a judge does not hang: it gives the judge up by itself."""
        group = self.learner_group
        if not group.is_remote:
            return group.update(batch_refs=segments, timesteps={})
        actors = list(group._worker_manager.actors().values())
        if len(actors) < run.num_learners:
            raise RayError(f"{run.num_learners - len(actors)} of {run.num_learners} learners are gone")
        shards = TrainingData(batch_refs=segments).shard(num_shards=len(actors))
        asked = [
            actor.update.remote(training_data=shard, timesteps={}, keep=not i, **kwargs)
            for i, (actor, (shard, kwargs)) in enumerate(zip(actors, shards, strict=True))
        ]
        return ray.get(asked, timeout=run.learn_timeout_s + longest(run.rewards))

    def _seconds(
        self, run: FinetuneRun, reports: list[dict[str, Any]], events: list[dict[str, Any]], learn_s: float
    ) -> tuple[dict[str, float], set[str]]:
        """What each device worked in this round, and which were gone."""
        delivered = {r["worker"]: float(r["stats"]["collect_s"]) for r in reports}
        workers = self.env_runner_group._worker_manager.actors()
        busy = {f"worker {i}": delivered.get(i, 0.0) for i in workers}
        learners = [f"learner {i}" for i in range(run.num_learners)] or ["driver"]
        lost = {f"worker {i}" for i in workers if i not in delivered}
        if any(e["kind"] == "learner_restart" for e in events):
            lost |= set(learners)
        return busy | dict.fromkeys(learners, learn_s), lost

    def _rebuild_learners(self) -> None:
        """New learner actors with the last weights and optimizer; the round that died is lost."""
        for actor in self.learner_group._worker_manager.actors().values():
            ray.kill(actor)  # one that hangs would not leave when asked
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
        start = replace(start, checkpoint=start.checkpoint.resolve())
        seed = run.seed + int((start.learner or {}).get("iteration", 0))
        plan = run.plan(str(start.checkpoint), needs_of(run), make_algo(run).gamma, seed)
        self.algorithm: Temper = _config(run, start, plan).build_algo()  # type: ignore[assignment]

    def iterate(self) -> Iteration:
        """One call of `train`."""
        self.algorithm.train()
        return self.algorithm.last

    def weights(self) -> Weights:
        assert self.algorithm.current is not None
        return self.algorithm.current

    def learner_state(self) -> dict[str, Any]:
        group = self.algorithm.learner_group
        # Remote learners may be gone by now; what they were after the last update is here.
        return self.algorithm.backup or _first(group.foreach_learner(lambda learner: learner.inner_state()))

    def borders(self) -> list[Border | None]:
        """None of workers that are ahead, starting, or do not answer."""
        run: FinetuneRun = self.algorithm.config.env_config["run"]
        if run.max_lag:
            return []
        manager = self.algorithm.env_runner_group._worker_manager
        healthy, actors = manager.healthy_actor_ids(), manager.actors()
        asked = [actors[i].border.remote() if i in healthy else None for i in sorted(actors)]
        return collected(asked, run.sample_timeout_s)

    def stop(self) -> None:
        """Stop actors without waiting for one that hangs."""
        manager = self.algorithm.env_runner_group._worker_manager
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

    def build_learner_group(self, **kwargs: Any) -> Any:  # also after a loss, when the bundles are gone, too
        run: FinetuneRun = self.env_config["run"]
        group = reserve(run) if run.num_learners else None
        return super().build_learner_group(**{**kwargs, "placement_group": group})


def _config(run: FinetuneRun, start: Start, plan: Any) -> AlgorithmConfig:
    module = RLModuleSpec(
        module_class=PolicyModule,
        observation_space=SPACE,
        action_space=SPACE,
        model_config={"checkpoint": str(start.checkpoint), "overrides": dict(start.overrides)},
    )
    config = (
        _Config(algo_class=Temper)
        .api_stack(enable_rl_module_and_learner=True, enable_env_runner_and_connector_v2=True)
        .framework("torch")
        .environment(
            env=None,
            observation_space=SPACE,
            action_space=SPACE,
            env_config={"run": run, "start": Held(start), "plan": plan},
        )
        .env_runners(
            env_runner_cls=Runner,
            num_env_runners=run.num_workers,
            create_local_env_runner=False,
            sample_timeout_s=run.sample_timeout_s,
            custom_resources_per_env_runner=dict(run.worker_resources),
        )
        .learners(
            learner_class=ShellLearner,
            num_learners=run.num_learners,
            num_cpus_per_learner=1,
            num_gpus_per_learner=learner_gpus(run),
            custom_resources_per_learner=dict(run.learner_resources),
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
