"""Processes of a run go to the nodes that are meant for them: a Ray cluster of four nodes in this machine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl.run import FinetuneRun, Start
from tests.toy_parts import SUCCESS, checkpoint, toy

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.slow]

from ray.util.placement_group import placement_group_table, remove_placement_group  # noqa: E402
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy  # noqa: E402

from rl.engine import RllibEngine  # noqa: E402
from rl.placement import bundle, learner_gpus, reserve, seats  # noqa: E402
from rl.plain import PlainEngine, start_ray  # noqa: E402
from rl.scorer import RemoteScorer  # noqa: E402

ALGO = {"epochs": 1, "minibatches": 1, "lr": {"": 1e-3}, "links": "sum", "reduction": "sum", "clip": 0.2}
POOL, LEARNER = {"simulators": 1.0}, {"learner": 1.0}
JUDGED = {"liv": {"weight": 1.0, "term": {"_target_": "rl.rewards.learned.Learned", "judge": {}, "camera": "front",
                                          "remote": True, "num_gpus": 0.25}}}  # fmt: skip


@pytest.fixture(scope="module")
def nodes() -> Iterator[dict[str, str]]:
    """Name -> id of a head, simulators, and two nodes with a (pretended) GPU of which one is for learners."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        found = {
            name: cluster.add_node(wait=False, **kinds).node_id
            for name, kinds in {
                "simulators": {"num_cpus": 4, "resources": {"simulators": 2}},
                "learners": {"num_cpus": 2, "num_gpus": 1, "resources": {"learner": 1}},
                "other": {"num_cpus": 4, "num_gpus": 1},
            }.items()
        }
        cluster.wait_for_nodes(120)
        yield {"address": cluster.address, "head": cluster.head_node.node_id, **found}
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def run(nodes: dict[str, str], tmp_path: Path) -> FinetuneRun:
    """Asks for workers on nodes of simulators, and for one learner on a learner's."""
    made = FinetuneRun(
        str(checkpoint(tmp_path / "trained", "flow", execute=3)), toy(), str(tmp_path / "run"), ALGO, SUCCESS,
        num_workers=2, envs_per_worker=1, decisions=2, iterations=1, num_learners=1, worker_resources=POOL,
        learner_resources=LEARNER, ray_address=nodes["address"], sample_timeout_s=120.0, quiet=True,
    )  # fmt: skip
    start_ray(made)
    return made


def node_of(actor: Any) -> str:
    return ray.get(actor.__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id()), timeout=120)


class Learning:
    """Stands in for a learner: it knows where it is, and has a judge."""

    def where(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def judge(self, num_gpus: float) -> str:
        scorer = RemoteScorer({}, num_gpus=num_gpus, restarts=0, timeout_s=60.0, batch=1)
        scorer.ask(np.zeros((1, 2, 2, 3), np.uint8), [""])
        return node_of(scorer.actor)


def test_a_judge_shares_the_gpu_of_its_learner(run: FinetuneRun, nodes: dict[str, str]) -> None:
    """Although another node has all of a GPU to itself."""
    asked = FinetuneRun(**{**vars(run), "device": "cuda", "rewards": JUDGED})
    assert bundle(asked) == {"CPU": 1.0, "GPU": 1.0, "learner": 1.0}
    group = reserve(asked)
    try:
        there = {"num_cpus": 1, "num_gpus": learner_gpus(asked), "resources": LEARNER}
        where = PlacementGroupSchedulingStrategy(group)
        learner: Any = ray.remote(Learning).options(scheduling_strategy=where, **there).remote()
        assert ray.get(learner.where.remote(), timeout=120) == nodes["learners"]
        assert ray.get(learner.judge.remote(0.25), timeout=120) == nodes["learners"]
    finally:
        remove_placement_group(group)


def test_who_cannot_be_placed_says_so(run: FinetuneRun) -> None:
    asked = FinetuneRun(**{**vars(run), "learner_resources": {"lerner": 1.0}, "sample_timeout_s": 0.5})
    with pytest.raises(ValueError, match="no node had room for 1 learners of") as caught:
        reserve(asked)
    wanted, _, there = str(caught.value).partition("the cluster has")
    assert "'lerner': 1.0" in wanted
    assert "'learner': 1.0" in there


def test_workers_and_learner_are_where_they_belong(run: FinetuneRun, nodes: dict[str, str], monkeypatch: Any) -> None:
    """RLlib: also after the learner was lost, and with it what had been kept for it. Then the plain engine."""
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # engines shut Ray down when they stop
    start = Start(Path(run.checkpoint), {}, None, {})
    engine = RllibEngine(run, start)
    try:
        algorithm = engine.algorithm
        assert algorithm.env_runner_group is not None
        workers = algorithm.env_runner_group._worker_manager.actors().values()
        assert {node_of(w) for w in workers} == {nodes["simulators"]}
        for again in (False, True):
            assert engine.iterate().learned
            (learner,) = algorithm.learner_group._worker_manager.actors().values()
            assert node_of(learner) == nodes["learners"]
            judge = learner.__ray_call__.remote(lambda self: Learning().judge(0.0))
            assert ray.get(judge, timeout=120) == nodes["learners"]
            if not again:
                ray.kill(learner)
                assert not engine.iterate().learned
        states = [g["state"] for g in placement_group_table().values()]
        assert states.count("CREATED") == 1
    finally:
        engine.stop()
    assert seats(run) == 2
    plain = PlainEngine(FinetuneRun(**{**vars(run), "num_workers": 3, "num_learners": 0}), start)
    try:
        assert [seat.up for seat in plain.seats] == [True, True, False]  # there is no room for the third
        assert {node_of(w) for w in plain.workers[:2]} == {nodes["simulators"]}
    finally:
        plain.stop()
