"""Which node of a cluster does what, by what a fine-tuning run asks of Ray.

    rollout worker      a core and `worker_resources`: nodes of simulators, which may come and go
    learner             a bundle of its own in one placement group: a core, a GPU if it uses one, `learner_resources`
    judge of a reward   an actor in its learner's bundle, so on its node, with a share of its GPU

A learner that lives in the driver has no bundle; its judges go to the driver's node if that can hold them. Proposals
are part of rollout workers: every decision waits for them.
"""

import math
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from rl.run import FinetuneRun


def judges_gpus(run: FinetuneRun) -> float:
    """GPUs that the judges of one learner share."""
    terms = [v["term"] for v in run.rewards.values() if v["weight"]]
    return sum(float(t.get("num_gpus", 0.0)) for t in terms if t.get("remote"))


def learner_gpus(run: FinetuneRun) -> float:
    """GPUs of one learner: one, of which a single learner leaves its judges their share."""
    if not (run.num_learners and run.device.startswith("cuda")):
        return 0.0
    share = judges_gpus(run)
    return 1.0 - share if run.num_learners == 1 and share < 1.0 else 1.0


def bundle(run: FinetuneRun) -> dict[str, float]:
    """What is kept for one learner and its judges."""
    gpus = learner_gpus(run) + judges_gpus(run)
    return {"CPU": 1.0, **({"GPU": gpus} if gpus else {}), **run.learner_resources}


def reserve(run: FinetuneRun) -> PlacementGroup:
    """Room for all learners; waits for nodes that are still to come. Raises ValueError if there is none in time."""
    wanted = bundle(run)
    group = placement_group([dict(wanted) for _ in range(run.num_learners)], strategy="PACK")
    if not group.wait(run.sample_timeout_s):
        remove_placement_group(group)
        raise ValueError(
            f"no node had room for {run.num_learners} learners of {wanted} within sample_timeout_s = "
            f"{run.sample_timeout_s:g} s; the cluster has {_plain(ray.cluster_resources())}, of which "
            f"{_plain(ray.available_resources())} are free: change num_learners, device or learner_resources"
        )
    return group


def beside() -> Any:
    """Where Ray shall put an actor that belongs to this process: in its bundle, or on its node."""
    node, group = ray.get_runtime_context().get_node_id(), get_current_placement_group()
    if group is None:
        return NodeAffinitySchedulingStrategy(node, soft=True)
    places = placement_group_table(group)["bundles_to_node_id"]
    here = min(index for index, where in places.items() if where == node)
    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=here)


def seats(run: FinetuneRun) -> int:
    """Rollout workers for which the cluster has room at present."""
    asked, there = {"CPU": 1.0, **run.worker_resources}, ray.cluster_resources()
    return min(math.floor(there.get(name, 0.0) / amount) for name, amount in asked.items() if amount > 0)


def _plain(resources: Mapping[str, float]) -> dict[str, float]:
    """Without those that only name a node or a group."""
    return {k: v for k, v in sorted(resources.items()) if not k.startswith("node:") and "_group_" not in k}
