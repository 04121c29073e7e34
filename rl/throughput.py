"""How fast a round of collection and learning was, and what held it up."""

from typing import Any

from pretrained.types import Metrics


def segment_metrics(segments: list[Any]) -> Metrics:
    """Throughput of a round of collection; seconds are summed over workers."""
    totals: Metrics = {}
    for s in segments:
        for k, v in s.stats.items():
            totals[k] = totals.get(k, 0.0) + v
    collect = totals.get("collect_s", 0.0)
    return {
        "rollout/workers": float(len(segments)),
        "rollout/env_steps": totals.get("env_steps", 0.0),
        "rollout/restarts": totals.get("restarts", 0.0),
        "rollout/env_reward": float(sum(float(s.env_reward.sum()) for s in segments)),
        "time/collect_s": collect,
        "time/policy_s": totals.get("policy_s", 0.0),
        "time/sim_fraction": totals.get("wait_s", 0.0) / collect if collect else 0.0,
    }


def bottleneck(metrics: Metrics) -> str:
    """What most of a round's time went to: simulators, policy or learner; "" if nothing was collected."""
    workers = metrics.get("rollout/workers", 0.0)
    if not workers:
        return ""
    spent = {
        "simulators": metrics["time/sim_fraction"] * metrics["time/collect_s"] / workers,
        "policy": metrics["time/policy_s"] / workers,
        "learner": metrics.get("time/learn_s", 0.0),
    }
    return max(spent, key=lambda name: spent[name])
