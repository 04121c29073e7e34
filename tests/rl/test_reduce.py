"""Several learners: together they take the step that one learner with all the data would take."""

import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rl.learner import Learner
from rl.ppo import Ppo
from rl.reduce import largest, learners, least, moments, total
from rl.rewards import build_terms
from rl.types import Segment
from tests.toy_parts import SUCCESS, make_policy, make_segment

TOGETHER = Ppo(lr=1e-3, epochs=2, minibatches=1, links="sum", reduction="sum", clip=0.2, return_scale=True)
DATA = torch.arange(10, dtype=torch.float64) ** 2


def half(segment: Segment, rank: int) -> Segment:
    def cut(v: Any) -> Any:
        return {k: cut(x) for k, x in v.items()} if isinstance(v, dict) else v[2 * rank : 2 * rank + 2]

    keep = {"texts", "version", "episodes", "stats", "frames", "privileged"}
    return replace(segment, **{f.name: cut(getattr(segment, f.name)) for f in fields(Segment) if f.name not in keep})


def learn(segment: Segment) -> dict[str, Any]:
    policy = make_policy("gaussian")
    learner = Learner(policy, TOGETHER, build_terms(SUCCESS))
    learner.update(segment)
    return {"weights": policy.state_dict(), "scale": learner.return_scale.std}


def child(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mine = DATA[:3] if rank == 0 else DATA[3:]
    found = {
        "learners": learners(),
        "total": total(torch.tensor([1.0, rank])).tolist(),
        "bounds": (float(least(torch.tensor(rank + 1.0))), float(largest(torch.tensor(rank + 1.0)))),
        "moments": moments(mine),
        "one_is_empty": moments(mine[:0] if rank else mine),
        "nothing": moments(mine[:0]),
        **learn(half(make_segment(make_policy("gaussian")), rank)),
    }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("learners")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(child, args=(str(folder),), nprocs=2)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_sums_and_bounds(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one["learners"] == 2
        assert one["total"] == [2.0, 1.0]
        assert one["bounds"] == (1.0, 2.0)


def test_moments_are_of_all_data(found: list[dict[str, Any]]) -> None:
    expected = (10.0, float(DATA.mean()), float(((DATA - DATA.mean()) ** 2).sum()))
    assert moments(DATA) == pytest.approx(expected)
    for one in found:
        assert one["moments"] == pytest.approx(expected)
        assert one["one_is_empty"] == pytest.approx(moments(DATA[:3]))
        assert one["nothing"] == (0.0, 0.0, 0.0)


def test_two_learners_step_like_one_with_all_the_data(found: list[dict[str, Any]]) -> None:
    alone = learn(make_segment(make_policy("gaussian")))
    start = make_policy("gaussian").state_dict()
    assert found[0]["scale"] == found[1]["scale"] == pytest.approx(alone["scale"])
    for name, value in alone["weights"].items():
        assert torch.equal(found[0]["weights"][name], found[1]["weights"][name])
        torch.testing.assert_close(found[0]["weights"][name], value, atol=2e-5, rtol=1e-4)
    assert any(not torch.equal(v, start[k]) for k, v in alone["weights"].items())


def test_alone_nothing_is_sent() -> None:
    x = torch.tensor([1.0, 2.0])
    assert learners() == 1
    assert total(x) is x
