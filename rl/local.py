"""Everything in one process, without Ray: for debugging and for tests."""

from typing import Any

from rl.finetune import FinetuneRun, Iteration, Start, make_algo, make_learner, needs_of, segment_metrics
from rl.rollout import RolloutWorker, Weights, get_weights
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
                self.workers.append(RolloutWorker(plan, i))
        except BaseException:
            self.stop()
            raise

    def iterate(self) -> Iteration:
        """Collect, learn."""
        weights = get_weights(self.learner.policy)
        for worker in self.workers:
            worker.set_weights(weights, self.learner.iteration)
        segments = [worker.sample() for worker in self.workers]
        metrics = segment_metrics(segments) | self.learner.update(join(segments))
        started = sum(int(s.stats["started"]) for s in segments)
        return Iteration(metrics, [e for s in segments for e in s.episodes], started=started)

    def weights(self) -> Weights:
        return get_weights(self.learner.policy)

    def learner_state(self) -> dict[str, Any]:
        return self.learner.state()

    def stop(self) -> None:
        """Stop the simulators; safe to call twice."""
        for worker in self.workers:
            worker.stop()
