"""The model of docs/scaling.md in numbers: what many cores and GPUs would give, from constants of this machine.

Called by `benchmarks.scaling`, which also measures the driver; the rest is measured here: the policy's decisions and
the learner's lessons on one core, the bytes of a decision. The simulator's step and the GPU's speed are taken from
results.json where benchmarks.sims and benchmarks.learner_gpu have written them, else they are assumed, and said to be.
"""

import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.learner import ALGO, make_learner
from benchmarks.synthetic import CASES, make_policy, make_segment, observations
from benchmarks.tables import HERE, hardware, table, write_section
from rl.planning import ACCELERATOR

PAGE = HERE.parent / "docs" / "scaling.md"
STEP = ("sims/libero_object/quick of 8/untouched", "quick of 8")  # of results.json: LIBERO, two cameras every 8th step
ASSUMED_STEP_MS = 5.0


@dataclass(frozen=True)
class Constants:
    """Of one core unless said otherwise; times in seconds."""

    step: float  # a simulator's control step
    step_from: str
    decide: float  # per decision of `steps` steps, eight at a time
    steps: int
    learn: float  # per decision, all epochs
    gpu: float  # how many cores one GPU is worth to the learner
    gpu_from: str
    decision: float  # bytes
    weights: float  # bytes
    driver_step: float  # driver, per environment step
    put: float  # bytes per second into an object store


def constants(driver: Mapping[str, Any], results: Path = HERE / "results.json", *, case: str = "flow") -> Constants:
    """Measure, and read what others have measured; `driver` is what benchmarks.scaling found."""
    known = json.loads(results.read_text()) if results.exists() else {}
    policy = make_policy(CASES[case])
    segment = make_segment(policy, CASES[case])
    obs, rng = observations(policy, 8, np.random.default_rng(0)), torch.Generator().manual_seed(0)
    learner, before = make_learner(policy, threads=1), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        decide = _median(lambda: policy.act(policy.encode(obs), {}, rng)) / 8
        learn = _median(lambda: _learn(learner, segment)) / segment.value.numel()
    finally:
        torch.set_num_threads(before)
    step = known.get(STEP[0], {}).get("ms", {}).get(STEP[1])
    gpu = _gpu_speed(known)
    weights = [*policy.parameters(), *policy.buffers()]
    return Constants(
        step=(step or ASSUMED_STEP_MS) / 1e3,
        step_from="benchmarks.sims" if step else "assumed",
        decide=decide,
        steps=policy.spec.execute,
        learn=learn,
        gpu=gpu or ACCELERATOR,
        gpu_from="benchmarks.learner_gpu" if gpu else "assumed",
        decision=sum(v.numel() * v.element_size() for v in segment.features.values()) / segment.value.numel(),
        weights=float(sum(v.numel() * v.element_size() for v in weights)),
        driver_step=driver["us_per_step"][max(driver["us_per_step"])] / 1e6,
        put=driver["broadcast"]["mib"] * 2**20 / driver["broadcast"]["put_s"],
    )


def _gpu_speed(known: Mapping[str, Any]) -> float | None:
    """Samples per second on a GPU over those on one core, where both were measured for one policy."""
    on_gpu = known.get("learner_cuda/flow/bf16 compiled") or known.get("learner_cuda/flow/float32")
    on_core = known.get("learner/flow/bare")
    if not (on_gpu and on_core):
        return None
    decisions = CASES["flow"].streams * CASES["flow"].decisions
    return on_gpu["samples_per_s"] / (decisions * ALGO.epochs / on_core["ours_s"])


def predict(c: Constants, cores: int, gpus: int, *, nodes: int = 1, decisions: int = 32) -> dict[str, float]:
    """Rates of a fleet: synchronous, each core has two simulators and 32 decisions of both make an iteration."""
    share = c.step / (c.step + c.decide / c.steps)
    collected = cores * share / c.step  # environment steps per second while collecting
    taught = gpus * c.gpu / c.learn * c.steps  # and while learning
    batch = 2 * cores * decisions * c.steps  # environment steps of an iteration
    collect, learn = batch / collected, batch / taught
    rate = batch / (collect + learn)
    overlapped = batch / max(collect, learn)  # max_lag=1
    return {
        "sim_share": share,
        "steps_per_s": rate,
        "steps_per_s_overlapped": overlapped,
        "learner_share": learn / (collect + learn),
        "iteration_s": collect + learn,
        "gib_per_s": overlapped / c.steps * c.decision / 2**30,
        "weights_gib_per_s": nodes * c.weights / (collect + learn) / 2**30,
        "driver_share": overlapped * c.driver_step,
        "batch_gib": batch / c.steps * c.decision / 2**30,
    }


def page(c: Constants) -> str:
    """Constants and predictions as Markdown."""
    measured = table(
        ["constant", "value", "from"],
        [
            ["simulator, step", f"{1e3 * c.step:.2f} ms", c.step_from],
            ["policy, decision", f"{1e3 * c.decide:.2f} ms for {c.steps} steps", "flow of 4 links, 8 rows, one core"],
            ["learner, decision", f"{1e3 * c.learn:.2f} ms for {ALGO.epochs} epochs", "the same policy, one core"],
            ["GPU, in cores", f"{c.gpu:.0f}", c.gpu_from],
            ["decision", f"{c.decision / 1024:.0f} KiB", "two cameras of 64 px"],
            ["weights", f"{c.weights / 2**20:.1f} MiB", "the same policy"],
            ["driver, step", f"{1e6 * c.driver_step:.2f} us", "benchmarks.scaling"],
            ["object store, put", f"{c.put / 2**30:.1f} GiB/s", "benchmarks.scaling"],
        ],
    )
    rows = []
    for cores, gpus, nodes in ((16, 1, 1), (128, 1, 2), (1000, 8, 16)):
        p = predict(c, cores, gpus, nodes=nodes)
        rows.append([f"{cores} + {gpus}", f"{p['steps_per_s']:.0f}", f"{p['steps_per_s_overlapped']:.0f}",
                     f"{100 * p['sim_share']:.0f} %", f"{100 * p['learner_share']:.0f} %", f"{p['iteration_s']:.1f} s",
                     f"{p['gib_per_s']:.2f}", f"{100 * p['driver_share']:.0f} %", f"{p['batch_gib']:.1f}"])  # fmt: skip
    head = ["cores + GPUs", "steps/s", "with max_lag=1", "cores stepping", "time learning", "iteration",
            "GiB/s to learners", "driver core", "batch GiB"]  # fmt: skip
    would = "What that would give, by the formulas above; not measured:"
    return f"{hardware()}\n\n{measured}\n\n{would}\n\n{table(head, rows)}"


def write(c: Constants) -> None:
    """Put them into docs/scaling.md."""
    write_section("constants", page(c), PAGE)


def _learn(learner: Any, segment: Any) -> None:
    segment.version = learner.iteration
    learner.update(segment)


def _median(work: Any, rounds: int = 5) -> float:
    times = []
    for _ in range(rounds + 1):  # the first is a warm-up
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])
