"""Sums over the learners of a run, which torch.distributed connects; with one learner they change nothing."""

import torch
import torch.distributed as dist
from torch import Tensor


def learners() -> int:
    """How many learners train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def total(x: Tensor) -> Tensor:
    """`x` of all learners added up. Every learner has to call it, with the same shape."""
    return _reduced(x, dist.ReduceOp.SUM)


def least(x: Tensor) -> Tensor:
    """The smallest `x` of all learners."""
    return _reduced(x, dist.ReduceOp.MIN)


def largest(x: Tensor) -> Tensor:
    """The largest `x` of all learners."""
    return _reduced(x, dist.ReduceOp.MAX)


def moments(x: Tensor) -> tuple[float, float, float]:
    """(count, mean, sum of squared deviations) of the entries of all learners together; (0, 0, 0) if there are none."""
    x = x.double()
    count, mean = total(torch.stack([torch.tensor(float(x.numel()), dtype=torch.float64), x.sum().cpu()])).tolist()
    if not count:
        return 0.0, 0.0, 0.0
    mean /= count
    return count, mean, float(total(((x - mean) ** 2).sum().cpu()))


def _reduced(x: Tensor, how: dist.ReduceOp.RedOpType) -> Tensor:
    if learners() == 1:
        return x
    where = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")  # nccl sees no other memory
    copy = x.detach().to(where, copy=True)
    dist.all_reduce(copy, op=how)
    return copy.to(x.device)
