"""THE fine-tuning loop.

    engine.iterate():  rollout workers ─► segments ─► learner ─► weights ─► rollout workers

The loop logs, keeps the ledger, evaluates, saves, and stops at the first limit it reaches. Run again with the same
command, it continues from the newest valid checkpoint, with the very episodes that were under way there. The engine
decides in which processes the work is done.
"""

import errno
import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from pretrained.checkpoint import find, load_learner, load_policy, merge, newest, read_card, save
from pretrained.progress import Bar
from pretrained.types import Metrics
from rl.audit import Watch
from rl.border import fits
from rl.ledger import Ledger, alone, read
from rl.log import RunLog
from rl.rollout import put_weights
from rl.run import Engine, FinetuneRun, Iteration, Start
from rl.stats import wilson
from rl.throughput import bottleneck

WINDOW = 100  # episodes in the running success rate
_log = logging.getLogger(__name__)


def finetune(run: FinetuneRun) -> Path:
    """Run (or continue) to the first limit; returns the last checkpoint."""
    torch.set_num_threads(run.threads)
    out = Path(run.out)
    out.mkdir(parents=True, exist_ok=True)
    logger = {"prometheus": run.engine == "rllib", **run.logger}  # where the dashboard's numbers come from
    try:
        with alone(out), Ledger(out / "ledger.jsonl") as ledger, RunLog(out, config=run.config, **logger) as log:
            start = _start(run, out)
            run = replace(run, policy_overrides=start.overrides)
            _begin(ledger, start, run.command)
            began = time.monotonic()
            engine = _engine(run, start)
            try:
                return _Loop(run, out, start, engine, ledger, log, began).run_to_the_end()
            finally:
                engine.stop()
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            e.errno,
            f"the disk of {out} is full ({e}); free some of it and give the same command again: the run goes on "
            "from its newest checkpoint",
        ) from e


def _begin(ledger: Ledger, start: Start, command: str) -> None:
    """Tell the ledger that a run begins, or where it goes on."""
    told = list(read(ledger.path))
    if not told:
        ledger.write("began", command=command)
        return
    steps = [int(r["env_steps"]) for r in told if "env_steps" in r]
    known = int(start.loop.get("env_steps", 0))
    ledger.write(
        "resumed",
        command=command,
        iteration=int(start.loop.get("iteration", 0)),
        env_steps=known,
        checkpoint=start.checkpoint.name if start.loop else "",
        carried=sum(len(b["episodes"]) for b in start.borders if b is not None),
        unlearned_steps=max(0, steps[-1] - known) if steps else 0,  # after the checkpoint
    )


class _Loop:
    """The state of the loop; one method per thing it does."""

    def __init__(
        self, run: FinetuneRun, out: Path, start: Start, engine: Engine, ledger: Ledger, log: RunLog, began: float
    ) -> None:
        self.run, self.out, self.start, self.engine, self.ledger, self.log = run, out, start, engine, ledger, log
        self.iteration = int(start.loop.get("iteration", 0))
        self.env_steps = int(start.loop.get("env_steps", 0))
        self.wall_before = float(start.loop.get("wall_s", 0.0))
        self.watch = Watch()
        self.watch.load(start.loop.get("watch", {}))
        self.recent: deque[bool] = deque((bool(x) for x in start.loop.get("recent", [])), maxlen=WINDOW)
        self.started = time.monotonic()
        self.devices: list[str] = []  # of the last round
        self.told = began  # until when the seconds are accounted for
        self.last: Path = start.checkpoint
        self.policy = load_policy(start.checkpoint, overrides=dict(start.overrides))
        self.card = read_card(start.checkpoint)
        self.parent = str(start.loop.get("parent", run.checkpoint))

    @property
    def wall_s(self) -> float:
        return self.wall_before + time.monotonic() - self.started

    def run_to_the_end(self) -> Path:
        total, done = self._progress()
        with Bar("finetune", total=total, done=done, quiet=self.run.quiet) as bar:
            while not self._finished():
                iteration = self.engine.iterate()
                self.iteration += 1
                self._account(iteration)
                metrics = self._metrics(iteration)
                self.log.write(self.iteration, metrics)
                before, done = done, self._progress()[1]
                success, slow = metrics.get("rollout/success", 0.0), bottleneck(metrics)
                bar.advance(done - before, success=success, env_steps=self.env_steps, bottleneck=slow)
                if self.iteration % self.run.save_every == 0:
                    self._save(metrics)
        if self.last != self.out / f"step_{self.iteration:06d}":
            self._save({})
        self.ledger.write("ended", **self._seconds(Iteration({}, [], busy_s=dict.fromkeys(self.devices, 0.0))))
        return self.last

    def _progress(self) -> tuple[int, int]:
        """(total, done) of the limit that will end the run first, in thousandths."""
        r = self.run
        limits = [(self.iteration, r.iterations), (self.env_steps, r.max_env_steps), (self.wall_s, r.max_wall_s)]
        return 1000, int(1000 * min(1.0, max(done / limit for done, limit in limits if limit)))

    def _finished(self) -> bool:
        r = self.run
        return (
            (r.iterations is not None and self.iteration >= r.iterations)
            or (r.max_env_steps is not None and self.env_steps >= r.max_env_steps)
            or (r.max_wall_s is not None and self.wall_s >= r.max_wall_s)
        )

    def _account(self, iteration: Iteration) -> None:
        """All of a round in one write: a killed run leaves it whole or not at all."""
        self.env_steps += int(iteration.metrics.get("rollout/env_steps", 0))
        records: list[dict[str, Any]] = []
        if iteration.started:
            records.append({"event": "started", "count": iteration.started})
        for episode in iteration.episodes:
            records.append({"event": "episode", **asdict(episode)})
            if episode.counts:
                self.recent.append(episode.success)
        self._audit(iteration)
        records += [{"event": e["kind"], **{k: v for k, v in e.items() if k != "kind"}} for e in iteration.events]
        records.append(
            {
                "event": "iteration",
                "env_steps": self.env_steps,
                "wall_s": self.wall_s,
                "learned": iteration.learned,
                "bottleneck": bottleneck(iteration.metrics),
                **self._seconds(iteration),
                **{k: v for k, v in iteration.metrics.items() if k.startswith("time/")},
            }
        )
        self.ledger.write_many({**r, "iteration": self.iteration} for r in records)

    def _seconds(self, iteration: Iteration) -> Mapping[str, float]:
        """What the devices did since the last record. What was collected and not learned from was lost."""
        now = time.monotonic()
        span, self.told, self.devices = now - self.told, now, list(iteration.busy_s)
        busy = sum(iteration.busy_s.values())
        lost = sum(max(0.0, span - iteration.busy_s[d]) for d in iteration.lost & set(self.devices))
        total = span * len(self.devices)
        idle = total - busy - lost
        if not iteration.learned:
            busy, lost = 0.0, lost + busy
        seconds = {"span_s": span, "device_s": total, "busy_s": busy, "idle_s": idle, "lost_s": lost}
        return {k: round(v, 4) for k, v in seconds.items()} | {"devices": len(self.devices)}

    def _audit(self, iteration: Iteration) -> None:
        """Say so if a learned reward had no judge, or if it is being gamed."""
        metrics = iteration.metrics
        for key in [k for k in metrics if k.startswith("audit/") and k.endswith("_lost") and metrics[k]]:
            name = key.removeprefix("audit/").removesuffix("_lost")
            iteration.events.append({"kind": "reward_lost", "reward": name})
        valid = [e for e in iteration.episodes if e.counts]
        alarms = self.watch.look(metrics, sum(e.success for e in valid), len(valid))
        for name, words in alarms.items():
            _log.warning("alarm: reward '%s': %s", name, words)
            iteration.events.append({"kind": "reward_alarm", "reward": name, "cause": words})
            metrics[f"audit/{name}_alarm"] = 1.0

    def _metrics(self, iteration: Iteration) -> Metrics:
        valid = [e for e in iteration.episodes if e.counts]
        low, high = wilson(sum(self.recent), len(self.recent)) if self.recent else (0.0, 1.0)
        return iteration.metrics | {
            "env_steps": self.env_steps,
            "wall_s": round(self.wall_s, 3),
            "rollout/success": sum(self.recent) / max(1, len(self.recent)),
            "rollout/success_low": low,
            "rollout/success_high": high,
            "rollout/episodes": len(valid),
            "rollout/lost_episodes": sum(not e.valid for e in iteration.episodes),
            "rollout/length": sum(e.length for e in valid) / max(1, len(valid)),
        }

    def _save(self, metrics: Metrics) -> None:
        put_weights(self.policy, self.engine.weights())
        loop = {
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "wall_s": self.wall_s,
            "recent": list(self.recent),
            "watch": self.watch.state(),
            "parent": self.parent,
        }
        self.last = self.out / f"step_{self.iteration:06d}"
        self.ledger.sync()  # a checkpoint must not know of rounds that the ledger lost
        save(
            self.last,
            self.policy,
            node=merge(self.card.node, self.start.overrides),
            env=self.card.env,
            metrics=metrics,
            config=dict(self.run.config),
            parent=self.parent,
            learner={"learner": self.engine.learner_state(), "loop": loop, "borders": self.engine.borders()},
        )
        self.ledger.write("checkpoint", iteration=self.iteration, path=self.last.name)


def _start(run: FinetuneRun, out: Path) -> Start:
    own = newest(out, content=True)
    if own is None:
        checkpoint = find(Path(run.checkpoint))
        return Start(checkpoint, run.policy_overrides, None, {})
    state = load_learner(own)
    if state is None:
        raise ValueError(f"{own} holds no learner state; remove it, or give the run another name")
    borders = [b if fits(b, run.envs_per_worker) else None for b in state.get("borders", [])[: run.num_workers]]
    return Start(own, {}, state["learner"], state["loop"], borders)


def _engine(run: FinetuneRun, start: Start) -> Engine:
    if run.engine == "local":
        from rl.local import LocalEngine

        return LocalEngine(run, start)
    if run.engine == "ray":
        from rl.plain import PlainEngine

        return PlainEngine(run, start)
    if run.engine == "rllib":
        from rl.engine import RllibEngine

        return RllibEngine(run, start)
    raise ValueError(f"engine '{run.engine}': expected rllib, ray or local")
