"""THE sweep: checkpoints x tasks x perturbations x seeds, every cell measured once, whatever is killed in between.

    plan ─► cells that results.sqlite lacks ─► rl.evaluate, one Ray task each ─► results.sqlite ─► report.html

With `validation`, one checkpoint is chosen on validation seeds, and only it and the first one see the test seeds: the
best of many on the seeds it was chosen by looks better than it is. With `stop`, the test seeds come in blocks, and a
comparison with the first checkpoint that has been decided takes no more of them.
"""

import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from envs.types import EnvConfig
from pretrained.progress import Bar
from rl.cells import Cell, Checkpoint, checkpoints, perturbed, plan
from rl.evaluate import EvaluateRun, evaluate
from rl.ledger import alone, read
from rl.sequential import PairTest, pair_test
from rl.stats import best
from rl.store import Store

RESULTS, CELLS = "results.sqlite", "cells"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepRun:
    """What to measure; the `sweep` configuration. The first checkpoint is the one that others are compared with."""

    checkpoints: Sequence[str]  # folders of checkpoints or runs; `*` takes all that match
    env: EnvConfig
    out: str
    tasks: Sequence[str] = ()  # (): those of env.tasks, or else all
    perturbations: Mapping[str, Sequence[str]] = field(default_factory=lambda: {"none": ()})  # name -> overrides of env
    episodes: int = 50  # of each checkpoint, perturbation and task, on test seeds
    validation: int = 0  # likewise, on seeds of their own, to choose a checkpoint by
    seed_start: int = 0
    block: int = 0  # seeds of a cell; 0: all of them
    stop: Mapping[str, float] = field(default_factory=dict)  # of rl.sequential.pair_test; {}: no early end
    workers: int = 2  # simulators of a cell
    videos: int = 1  # of each cell
    greedy: bool = True
    policy_overrides: Mapping[str, Any] = field(default_factory=dict)
    proposal: Mapping[str, Any] | None = None  # node
    engine: Literal["ray", "local"] = "ray"
    parallel: int = 2  # cells at a time on a Ray of our own; a cluster runs as many as fit
    cpus: float = 1.0  # that Ray reserves for a cell
    resources: Mapping[str, float] = field(default_factory=dict)  # likewise, of its custom ones
    attempts: int = 2  # at a cell that fails as a whole
    threads: int = 1  # of torch
    ray_address: str = ""  # "" starts Ray here
    command: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    quiet: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.checkpoints, str) or not self.checkpoints:
            raise ValueError(
                f"checkpoints = {self.checkpoints!r}: expected a list, such as checkpoints=[runs/a,runs/b]"
            )
        if not self.perturbations:
            raise ValueError("perturbations is empty: expected at least {none: []}")
        if self.episodes < 1 or min(self.validation, self.block, self.seed_start) < 0 or self.attempts < 1:
            raise ValueError("episodes and attempts must be at least 1; validation, block and seed_start at least 0")
        self.test()

    def test(self) -> PairTest | None:
        """What ends comparisons early, if anything does."""
        if unknown := set(self.stop) - {"share", "alpha", "beta"}:
            raise ValueError(f"stop has {sorted(unknown)}; expected share, alpha and beta")
        if not self.stop:
            return None
        if not self.block:
            raise ValueError("stop needs block: seeds that are taken between two looks, for example block=10")
        return pair_test(**{k: float(v) for k, v in self.stop.items()})

    def environments(self) -> dict[str, EnvConfig]:
        """Perturbation -> environment."""
        return {name: perturbed(self.env, list(o), name=name) for name, o in self.perturbations.items()}

    def cells(self, chosen: Sequence[Checkpoint], tasks: Sequence[str], split: str) -> list[Cell]:
        """The cells of one split; validation seeds come first, test seeds follow, and none is in both."""
        options = {"greedy": self.greedy, "policy_overrides": dict(self.policy_overrides), "proposal": self.proposal}
        seeds, block = (self.seed_start + self.validation, self.episodes), self.block
        if split == "validation":
            seeds, block = (self.seed_start, self.validation), 0
        return plan(chosen, self.environments(), tasks, seeds, block=block, split=split, options=options)


@dataclass(frozen=True)
class Result:
    """What one cell comes back with."""

    records: list[dict[str, Any]]
    summary: Mapping[str, Any]
    files: Mapping[str, bytes]
    wall_s: float
    error: str = ""


def sweep(run: SweepRun) -> Path:
    """Measure what is missing and write `results.sqlite`, `summary.json` and `report.html`; returns the page."""
    from rl.sweep_report import sweep_report

    out, chosen = Path(run.out), checkpoints(run.checkpoints)
    tasks = list(run.tasks) or list(run.env.tasks) or _all_tasks(run.env)
    out.mkdir(parents=True, exist_ok=True)
    with alone(out), Store(out / RESULTS) as store:
        store.remember(command=run.command, config=json.dumps(dict(run.config)), first=chosen[0].name, chosen="")
        store.remember(stop=json.dumps(dict(run.stop)), decisions="{}")
        planned: list[Cell] = []
        if run.validation:
            planned = run.cells(chosen, tasks, "validation")
            _remember(store, planned)
            _measure(run, store, planned)
            winner = choose(store, planned)
            store.remember(chosen=winner)
            chosen = [c for k, c in enumerate(chosen) if k == 0 or c.name == winner]
        tests = run.cells(chosen, tasks, "test")
        _remember(store, planned + tests)
        if (test := run.test()) is None:
            _measure(run, store, tests)
        else:
            _race(run, store, tests, test)
    return sweep_report(out)


def choose(store: Store, cells: Sequence[Cell]) -> str:
    """The name of the checkpoint with the best success rate over all of these cells; the earlier of equals."""
    outcomes: dict[str, list[bool]] = {}
    for cell in cells:
        good = [e["success"] for e in store.episodes([cell.key]) if e["valid"]]
        outcomes.setdefault(cell.checkpoint.name, []).extend(good)
    return best(outcomes)


def _race(run: SweepRun, store: Store, cells: Sequence[Cell], test: PairTest) -> None:
    """Take blocks of seeds until every comparison with the first checkpoint is decided or out of seeds."""
    first = cells[0].checkpoint.name
    open_ = {(c.checkpoint.name, c.perturbation) for c in cells if c.checkpoint.name != first}
    decisions: dict[str, str] = {}
    for start in sorted({c.seed_start for c in cells}):
        wanted = {*open_, *((first, name) for _, name in open_)}
        _measure(
            run, store, [c for c in cells if c.seed_start == start and (c.checkpoint.name, c.perturbation) in wanted]
        )
        seen = [c for c in cells if c.seed_start <= start]
        for name, perturbation in sorted(open_):
            pairs = paired(*(_outcomes(store, seen, n, perturbation) for n in (first, name)))
            if said := test.decide(*pairs):
                decisions[f"{name} / {perturbation}"] = said
                open_.discard((name, perturbation))
        store.remember(decisions=json.dumps(decisions))
        if not open_:
            break


def paired(
    before: Mapping[tuple[int, str], bool], after: Mapping[tuple[int, str], bool]
) -> tuple[list[bool], list[bool]]:
    """Outcomes of the episodes (seed, task) that both have, in the order of their seeds."""
    shared = sorted(set(before) & set(after))
    return [before[k] for k in shared], [after[k] for k in shared]


def _outcomes(store: Store, cells: Sequence[Cell], name: str, perturbation: str) -> dict[tuple[int, str], bool]:
    keys = [c.key for c in cells if (c.checkpoint.name, c.perturbation) == (name, perturbation)]
    return {(e["seed"], e["task"]): e["success"] for e in store.episodes(keys) if e["valid"]}


def _remember(store: Store, cells: Sequence[Cell]) -> None:
    rows = [
        {"checkpoint": c.checkpoint.name, "path": c.checkpoint.path, "perturbation": c.perturbation, "task": c.task,
         "split": c.split, "seed_start": c.seed_start, "episodes": c.episodes, "key": c.key}
        for c in cells
    ]  # fmt: skip
    store.remember(plan=json.dumps(rows))


def _measure(run: SweepRun, store: Store, cells: Sequence[Cell]) -> None:
    """Run the cells that the store lacks, and put them there as they come."""
    done = store.finished()
    missing = list({c.key: c for c in cells if c.key not in done}.values())
    out, total = Path(run.out), sum(c.episodes for c in cells)
    have = total - sum(c.episodes for c in missing)
    with Bar("sweep", total=total, done=have, quiet=run.quiet) as bar:
        for cell, result in (_by_ray if run.engine == "ray" else _here)(run, missing):
            folder = out / CELLS / cell.key
            for name, content in result.files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            if result.error:
                _log.warning("%s on %s (%s): %s", cell.checkpoint.name, cell.task, cell.perturbation, result.error)
            store.put(cell.key, cell.content, result.records, wall_s=result.wall_s, summary=result.summary,
                      error=result.error)  # fmt: skip
            bar.advance(cell.episodes)


def measure(job: EvaluateRun) -> Result:
    """Evaluate one cell in a folder of its own, which comes back as bytes: a cluster need not share a disk for it."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="temper_cell_") as name:
        folder, summary, error = Path(name), {}, ""
        try:
            summary = evaluate(replace(job, out=name))
        except (
            RuntimeError,
            OSError,
        ) as e:  # the simulator's doing; a wrong setting is a ValueError and ends the sweep
            error = f"{type(e).__name__}: {e}"
        records = list(read(folder / "episodes.jsonl"))
        files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return Result(records, summary, files, time.monotonic() - started, error)


def job_of(run: SweepRun, cell: Cell) -> EvaluateRun:
    """The evaluation that a cell stands for."""
    return EvaluateRun(
        cell.checkpoint.path,
        replace(cell.env, tasks=(cell.task,)),
        "",
        episodes=cell.episodes,
        seed_start=cell.seed_start,
        workers=run.workers,
        videos=run.videos,
        greedy=run.greedy,
        policy_overrides=run.policy_overrides,
        proposal=run.proposal,
        threads=run.threads,
        command=run.command,
        quiet=True,
    )


def _here(run: SweepRun, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Result]]:
    for cell in cells:
        for attempt in range(run.attempts):
            result = measure(job_of(run, cell))
            if not result.error or attempt + 1 == run.attempts:
                yield cell, result
                break


@dataclass(frozen=True)
class _Ray:
    """What starting Ray needs to know."""

    ray_address: str
    num_workers: int
    num_learners: int = 0
    dashboard: bool = False


def _by_ray(run: SweepRun, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Result]]:
    """One Ray task per cell. A task whose process or node dies is given again; so is a cell that fails as a whole."""
    if not cells:
        return
    import ray
    from ray.exceptions import RayError, RayTaskError

    from rl.plain import start_ray

    settings: Any = _Ray(run.ray_address, run.parallel)
    start_ray(settings)
    task: Any = ray.remote(num_cpus=run.cpus, resources=dict(run.resources), max_retries=0)(measure)
    waiting = [(cell, 1) for cell in reversed(cells)]
    running: dict[Any, tuple[Cell, int]] = {}
    limit = len(cells) if run.ray_address else max(1, run.parallel)
    while waiting or running:
        while waiting and len(running) < limit:
            cell, attempt = waiting.pop()
            running[task.remote(job_of(run, cell))] = (cell, attempt)
        (reference, *_), _rest = ray.wait(list(running), num_returns=1)
        cell, attempt = running.pop(reference)
        try:
            result = ray.get(reference)
        except RayTaskError as e:
            raise e.as_instanceof_cause() from e  # a wrong setting, or a bug
        except RayError as e:
            result = Result([], {}, {}, 0.0, f"{type(e).__name__}: {str(e).splitlines()[0][:300]}")
        if result.error and attempt < run.attempts:
            waiting.append((cell, attempt + 1))
        else:
            yield cell, result


def _all_tasks(config: EnvConfig) -> list[str]:
    from envs.vector import SimVector

    vector = SimVector([config])
    try:
        return list(vector.tasks)
    finally:
        vector.close()


def describe(run: SweepRun) -> list[str]:
    """What a sweep would do, for `--dry`; nothing is started."""
    try:
        chosen, tasks = checkpoints(run.checkpoints), list(run.tasks) or list(run.env.tasks)
    except ValueError as e:
        return [f"cells: not counted, because {e}"]
    if not tasks:
        return [f"{len(chosen)} checkpoints x all tasks of the environment x {len(run.perturbations)} perturbations"]
    cells = run.cells(chosen, tasks, "validation") if run.validation else run.cells(chosen, tasks, "test")
    path, have = Path(run.out) / RESULTS, 0
    if path.exists():
        with Store(path) as store:
            have = len({c.key for c in cells} & store.finished())
    distinct = len({c.key for c in cells})
    which = "validation" if run.validation else "test"
    return [
        f"{len(chosen)} checkpoints x {len(tasks)} tasks x {len(run.perturbations)} perturbations, {which} seeds: "
        f"{distinct} cells of {sum(c.episodes for c in cells)} episodes, {have} are there already"
    ]
