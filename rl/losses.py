"""Pure loss functions of PPO over chains. Shapes: [N, T] per decision, [N, T, M] per scored link."""

import math

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` where `mask` (broadcast to x) is true; 0 if nowhere."""
    mask = mask.expand_as(x)
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def log_ratio(new: Tensor, old: Tensor, active: Tensor, *, links: str, divisor: float) -> Tensor:
    """Log-ratio [N, T, M], or [N, T, 1] if the links are summed first.

    `new` and `old` [N, T, M] are sums over executed elements; `divisor` turns them into means (1 keeps the sum).
    Links that were not drawn from their density (`active` false) carry no probability.
    """
    delta = torch.where(active, new - old, torch.zeros_like(new)) / divisor
    if links == "sum":
        return delta.sum(-1, keepdim=True)
    return delta


def lag_weight(now: Tensor, then: Tensor, active: Tensor, cap: float) -> Tensor:
    """Importance weight [N, T] of decisions taken by an older policy, at most `cap`.

    `now` and `then` [N, T, K] are the log-probs under the policy that learning starts from and under the one that
    acted. PPO around the first, weighted so, is decoupled PPO (Hilton et al. 2022, arXiv:2110.00641, section 3).
    """
    return torch.where(active, now - then, 0.0).sum(-1).exp().clamp(max=cap)


def clip_range(num_links: int, clip: float, clip_base: float | None) -> Tensor:
    """Clip range per link [K], growing from clip_base at the noisiest link to clip at the last (DPPO, 2409.00588).

    eps(i) = base + (clip - base) (e^{3u} - 1) / (e^3 - 1), u = i / (K - 1); a single link uses `clip`.
    """
    if clip_base is None or num_links == 1:
        return torch.full((num_links,), clip)
    u = torch.arange(num_links, dtype=torch.float32) / (num_links - 1)
    return clip_base + (clip - clip_base) * (torch.exp(3 * u) - 1) / (math.e**3 - 1)


def policy_loss(
    delta: Tensor, advantage: Tensor, mask: Tensor, clip: Tensor, *, dual_clip: float | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, eq. 7) of log-ratios `delta` [N, T, M].

    `advantage` and `mask` broadcast to delta; `clip` [M] or scalar. `dual_clip` c bounds the loss of negative
    advantages at -c A (Ye et al. 2020, arXiv:1912.09729).
    """
    ratio = delta.exp()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    if dual_clip is not None:
        surrogate = torch.where(advantage < 0, torch.maximum(surrogate, dual_clip * advantage), surrogate)
    with torch.no_grad():
        stats = {
            "kl": masked_mean(ratio - 1 - delta, mask),
            "clip_fraction": masked_mean(((ratio - 1).abs() > clip).float(), mask),
            "max_log_ratio": torch.where(mask, delta.abs(), 0.0).max(),
        }
    return -masked_mean(surrogate, mask), stats


def value_loss(
    value: Tensor, old_value: Tensor, returns: Tensor, mask: Tensor, *, clip: float | None, huber: float | None = None
) -> Tensor:
    """Half the squared error (or Huber) of values [N, T]; with `clip`, the worse of clipped and unclipped (PPO2)."""

    def error(v: Tensor) -> Tensor:
        if huber is not None:
            return torch.nn.functional.huber_loss(v, returns, reduction="none", delta=huber)
        return 0.5 * (v - returns) ** 2

    loss = error(value)
    if clip is not None:
        loss = torch.maximum(loss, error(old_value + (value - old_value).clamp(-clip, clip)))
    return masked_mean(loss, mask)


def explained_variance(value: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var[returns - value] / Var[returns] over the masked decisions; 0 if the returns do not vary."""
    y, v = returns[mask], value[mask]
    if len(y) < 2 or float(y.var()) < 1e-12:
        return 0.0
    return float(1 - (y - v).var() / y.var())
