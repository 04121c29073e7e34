"""The proposal of a run's size: its arithmetic on made-up machines, and the words of the command line."""

from dataclasses import replace

import pytest

import launch
from envs.types import EnvConfig
from rl.memory import MIB
from rl.planning import FIGURES, Costs, Machine, advise, complete, machine, measure, propose, split
from tests.toy_parts import SUCCESS, policy_node, toy

GIB = 1024 * MIB
COSTS = Costs(step_s=5e-3, decide_s=4e-3, learn_s=12e-3, steps=8, simulator=300 * MIB, decision=100 * 1024,
              worker=400 * MIB)  # fmt: skip
GIVEN = ["step_ms=5", "decide_ms=4", "learn_ms=12", "steps=8", "sim_mib=300", "decision_kib=100", "worker_mib=400"]


def test_cores_decide_when_there_is_memory() -> None:
    plan = propose(Machine(cores=16, memory=256 * GIB), COSTS)
    assert plan.limit == "cores"
    assert plan.num_workers * plan.envs_per_worker == 32
    assert plan.envs_per_worker <= 8
    assert plan.decisions * 32 >= 1024
    # a step takes 5 ms, an eighth of a decision's 4 ms and an eighth of its lesson's 12 ms: 7 ms of 16 cores
    assert plan.steps_per_s == pytest.approx(16 / 7e-3)
    assert plan.shares == pytest.approx({"simulators": 5 / 7, "policy": 0.5 / 7, "learner": 1.5 / 7})


def test_memory_decides_when_there_is_little() -> None:
    plan = propose(Machine(cores=16, memory=8 * GIB), COSTS)
    assert plan.limit == "memory"
    assert 1 <= plan.num_workers * plan.envs_per_worker < 32
    assert plan.memory <= 0.85 * 8 * GIB
    with pytest.raises(ValueError, match="hold no simulator of 300 MiB beside Ray and the policy; use a machine with"):
        propose(Machine(cores=2, memory=1 * GIB), COSTS)


def test_large_decisions_make_shorter_segments() -> None:
    small, large = (propose(Machine(2, 4 * GIB), replace(COSTS, decision=size * MIB)) for size in (1, 8))
    assert large.decisions < small.decisions
    assert large.memory <= 0.85 * 4 * GIB


def test_accelerators_take_the_learner_off_the_cores() -> None:
    without, with_one = (propose(Machine(16, 256 * GIB, gpus=n), COSTS) for n in (0, 1))
    assert with_one.steps_per_s > without.steps_per_s
    assert set(with_one.shares) == {"simulators", "policy"}


def test_words_become_figures() -> None:
    figures, address, rest = split(["env=toy", "cores=64", "memory_gib=256", "gpus=2", *GIVEN, "ray_address=h:1"])
    assert (address, rest) == ("h:1", ["env=toy"])
    assert complete(figures)
    assert not complete({"step_ms": 1.0})
    there = machine(figures)
    assert there == Machine(64, 256 * GIB, 2)
    lines = advise(there, None, figures)
    assert lines[0] == "64 cores, 256.0 GiB of memory, 2 GPUs"
    assert lines[2].startswith("num_workers=16 envs_per_worker=8 ")
    assert advise(there, replace(COSTS, step_s=1.0), figures) == lines  # what is given goes over what was measured
    with pytest.raises(ValueError, match="'step_ms=fast': expected a number"):
        split(["step_ms=fast"])


def test_this_machine_is_seen() -> None:
    there = machine({})
    assert there.cores >= 1
    assert there.memory > GIB


def test_plan_without_a_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["doctor", "--plan", "cores=2", "memory_gib=24", "gpus=0", *GIVEN]) == 0
    text = capsys.readouterr().out
    assert "num_workers=1 envs_per_worker=4" in text
    assert launch.main(["doctor", "--plan", "step_ms=x"]) == 2
    assert launch.main(["collect", "--plan"]) == 2
    assert "has no flag --plan, only 'doctor' has" in capsys.readouterr().err


def test_costs_are_measured_on_a_simulator() -> None:
    env: EnvConfig = toy(step_ms=2.0)
    node = policy_node("gaussian", execute=2)
    algo = {"epochs": 1, "minibatches": 1, "stages": [{"iterations": 5, "losses": ["value"]}, {}]}
    costs = measure(env, node, {"algo": algo, "rewards": SUCCESS}, seconds=0.2)
    assert costs.step_s > 1.9e-3  # the toy uses up two milliseconds of processor time
    assert costs.steps == 2
    assert 16 * 16 * 3 < costs.decision < 16 * 16 * 3 + 1024
    assert costs.decide_s > 0
    assert costs.learn_s > 0
    assert costs.simulator > 5 * MIB < costs.worker
    assert {name for name, _ in FIGURES.values()} == set(vars(costs))
