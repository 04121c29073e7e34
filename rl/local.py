"""Everything in one process, without Ray: for debugging and for tests."""

from typing import Any

from rl.border import Border
from rl.rollout import RolloutWorker, Weights, get_weights
from rl.run import FinetuneRun, Iteration, Start, make_algo, make_learner, needs_of
from rl.throughput import segment_metrics
from rl.types import join


class LocalEngine:
    """Rollout workers take turns; the learner shares the first worker's process and nothing else."""

    def __init__(self, run: FinetuneRun, start: Start) -> None:
        self.learner = make_learner(run, start)
        seed = run.seed + self.learner.iteration  # a continued run draws new initial states
        plan = run.plan(str(start.checkpoint), needs_of(run), make_algo(run).gamma, seed)
        self.workers: list[RolloutWorker] = []
        try:
            for i in range(run.num_workers):
                self.workers.append(RolloutWorker(plan, i, border=start.border(i)))
        except BaseException:
            self.stop()
            raise

    def iterate(self) -> Iteration:
        """Collect, learn."""
        weights = get_weights(self.learner.policy)
        for worker in self.workers:
            worker.set_weights(weights, self.learner.iteration)
        segments = [worker.sample() for worker in self.workers]
        segment = join(segments)
        metrics = segment_metrics(segments) | self.learner.update(segment)
        started = sum(int(s.stats["started"]) for s in segments)
        busy = metrics["time/collect_s"] + metrics["time/learn_s"]
        return Iteration(metrics, segment.episodes, started=started, learned=segment.names, busy_s={"driver": busy})

    def weights(self) -> Weights:
        return get_weights(self.learner.policy)

    def learner_state(self) -> dict[str, Any]:
        return self.learner.state()

    def borders(self) -> list[Border | None]:
        return [worker.border() for worker in self.workers]

    def stop(self) -> None:
        """Stop the simulators; safe to call twice."""
        for worker in self.workers:
            worker.stop()
