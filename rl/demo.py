"""The main job from nothing to a page: demonstrations, imitation, evaluation, PPO, evaluation again, report.

Both evaluations use the same initial states and the same policy noise, so they can be compared episode by episode.
Every stage continues or skips what an earlier, interrupted call has finished.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pretrained.checkpoint import revision
from pretrained.demos.collect import CollectRun, collect
from pretrained.imitate import ImitateRun, imitate
from rl.evaluate import EvaluateRun, evaluate
from rl.finetune import finetune
from rl.report import report
from rl.run import FinetuneRun


@dataclass(frozen=True)
class DemoRun:
    """The stages of the job; paths and seeds of the stages follow from `out` and `seed`."""

    collect: CollectRun
    pretrain: ImitateRun
    evaluate: EvaluateRun
    finetune: FinetuneRun
    out: str
    seed: int = 0
    command: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    quiet: bool = False


def demo(run: DemoRun) -> Path:
    """Run all stages; returns the path of the HTML report. `summary.json` beside it is written last."""
    out = Path(run.out)
    out.mkdir(parents=True, exist_ok=True)
    stages = _Stages(out)
    demos = stages.timed(
        "collect", lambda: collect(replace(run.collect, out=str(out / "demos.hdf5"), seed=run.seed, quiet=run.quiet))
    )
    # The simulators are the work of all other stages; imitation is the one that can use every core by itself.
    threads = torch.get_num_threads()
    imitated = stages.timed(
        "pretrain",
        lambda: imitate(
            replace(run.pretrain, demos=str(demos), out=str(out / "imitation"), seed=run.seed, quiet=run.quiet)
        ),
    )
    before = stages.timed("evaluate_before", lambda: _evaluate(run, out, "evaluate_before", imitated))
    tuned = stages.timed(
        "finetune",
        lambda: finetune(replace(run.finetune, checkpoint=str(imitated), out=str(out), seed=run.seed, quiet=run.quiet)),
    )
    torch.set_num_threads(threads)
    after = stages.timed("evaluate_after", lambda: _evaluate(run, out, "evaluate_after", tuned))
    summary = {
        "task": f"{before['env']}:{','.join(before['tasks'])}",
        "seed": run.seed,
        "before": {k: before[k] for k in ("success", "low", "high", "episodes")},
        "after": {k: after[k] for k in ("success", "low", "high", "episodes")},
        "env_steps": _env_steps(out),
        "wall_s": round(sum(stages.seconds.values()), 1),
        "command": run.command,
        "stages_s": {k: round(v, 1) for k, v in stages.seconds.items()},
        "revision": revision(),
        "checkpoints": {"before": str(imitated), "after": str(tuned)},
    }
    _write(out / "summary.json", summary)
    return report(out)


class _Stages:
    """Seconds of each stage, added up over interrupted calls."""

    def __init__(self, out: Path) -> None:
        self.path = out / "stages.json"
        self.seconds: dict[str, float] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def timed(self, name: str, work: Any) -> Any:
        started = time.monotonic()
        try:
            return work()
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
            _write(self.path, self.seconds)


def _evaluate(run: DemoRun, out: Path, name: str, checkpoint: Path) -> dict[str, Any]:
    finished = out / name / "summary.json"
    if finished.exists():
        earlier = json.loads(finished.read_text())
        if earlier["checkpoint"] == str(checkpoint):
            return earlier
    settings = replace(run.evaluate, checkpoint=str(checkpoint), out=str(out / name), quiet=run.quiet)
    return evaluate(replace(settings, command=run.command))


def _env_steps(out: Path) -> int:
    last = (out / "metrics.jsonl").read_text().splitlines()[-1]
    return int(json.loads(last)["env_steps"])


def _write(path: Path, content: Mapping[str, Any]) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(content, indent=2))
    temporary.replace(path)


def show(page: Path) -> None:
    """The table that ends the main job."""
    from rich.console import Console
    from rich.table import Table

    summary = json.loads((page.parent / "summary.json").read_text())
    table = Table(title=f"{summary['task']}, seed {summary['seed']}: success and its 95 % interval")
    for heading in ("", "success", "episodes"):
        table.add_column(heading)
    for name in ("before", "after"):
        part = summary[name]
        interval = f"{part['success']:.1%} [{part['low']:.1%}, {part['high']:.1%}]"
        table.add_row(name, interval, str(part["episodes"]))
    table.caption = f"{summary['env_steps']} environment steps, {summary['wall_s'] / 60:.1f} minutes"
    Console().print(table)
    Console().print(f"report: {page}", soft_wrap=True, highlight=False)
