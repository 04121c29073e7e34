"""From a segment to new weights: rewards, advantages, epochs of minibatches. Shared by all algorithms; no Ray.

    Segment ─► reward terms ─► (return scale) ─► GAE ─► old log-prob, recomputed here ─► epochs x minibatches ─► weights

Old log-probs are computed in the minibatches of the first epoch, with the same arithmetic (`rl.compute`) that learning
uses: so the first ratio is 1 in any precision, although rounding depends on the shape of a batch.

Under torch.distributed the gradients are averaged over learners, and every learner takes the same number of steps.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pretrained.types import Metrics, Policy
from rl.advantage import ReturnScale, gae
from rl.compute import Compute
from rl.losses import explained_variance, lag_weight
from rl.ppo import Ppo, Stage
from rl.reduce import largest, learners, least, moments, total
from rl.rewards import combine
from rl.types import Batch, Segment

RATIO_TOLERANCE = 1e-4  # largest |log-ratio per scored link| allowed before the first step
KL_BAND, KL_FACTOR, KL_RANGE = 1.5, 1.25, 30.0  # of target_kl: tolerated, per iteration, and at most in all
LAG_CAP = 2.0  # largest importance weight of a decision that an older policy took


class Learner:
    """Owns the optimizer and the policy being trained."""

    def __init__(
        self,
        policy: Policy,
        algo: Ppo,
        rewards: Mapping[str, Any],
        *,
        seed: int = 0,
        device: str = "cpu",
        threads: int = 0,
        compute: Compute | None = None,
    ) -> None:
        """`threads` of torch while learning; 0 leaves them as they are. `compute` is plain float32 by default."""
        self.policy, self.algo, self.rewards, self.threads = policy, algo, dict(rewards), threads
        self.device = torch.device(device)
        self.module: torch.nn.Module = policy  # type: ignore[assignment]  # policies are modules (pretrained.types)
        self.module.to(self.device).eval()  # no dropout, no augmentation: log-probs must repeat
        self.rng = torch.Generator().manual_seed(seed)
        self.iteration = 0
        self.env_steps = 0
        self.lr_scale = 1.0  # of the stage
        self.kl_scale = 1.0  # of the target KL
        self.return_scale = ReturnScale(algo.gamma)
        self._names = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        self.compute = compute or Compute()
        self.scorer = self.compute.prepare(policy, self.device)
        fused = self.compute.fused or None  # None lets torch choose between its other two
        self.optimizer = torch.optim.AdamW(self._groups(), weight_decay=algo.weight_decay, fused=fused)

    def update(self, segment: Segment) -> Metrics:
        """One iteration of learning. Raises RuntimeError if the first ratio is not 1."""
        started = time.perf_counter()
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), _threads(self.threads):  # what an algorithm draws repeats after a resume
            torch.manual_seed(int(torch.randint(2**31, (), generator=self.rng)))
            metrics = self._update(segment)
        for p in self._names.values():  # a stage's freezes end here, so that weights are always sent whole
            p.requires_grad_(True)
        self.iteration += 1
        self.env_steps += int(segment.duration[segment.valid].sum())
        metrics["time/learn_s"] = time.perf_counter() - started
        return metrics

    def _update(self, segment: Segment) -> Metrics:
        stage = self.algo.stage(self.iteration, segment.value.numel() * learners())
        self._enter(stage)
        batch, metrics = self.targets(segment)
        first = self._minibatches(batch)
        metrics |= self._rescore(batch, first, segment.version)
        learned: list[Metrics] = []
        stop = False
        for epoch in range(self.algo.epochs):
            for rows in self._minibatches(batch) if epoch else first:
                with self.compute.autocast(self.device):
                    loss, m = self.algo.loss(self.scorer, self._to_device(batch.rows(rows)), stage)
                if not learned and "loss/max_log_ratio" in m:
                    _first_ratio(m["loss/max_log_ratio"])
                    metrics["loss/first_log_ratio"] = m["loss/max_log_ratio"]
                m["loss/grad_norm"] = self._step(loss)
                learned.append(m)
                stop = self._agree_to_stop(m)
                if stop:
                    break
            if stop:
                metrics["loss/stopped_in_epoch"] = float(epoch)
                break
        for key in sorted({k for m in learned for k in m}):
            values = [m[key] for m in learned if key in m]
            metrics[key] = sum(values) / len(values)
        if self.algo.target_kl is not None and "loss/kl" in metrics:
            metrics["loss/lr_scale"] = self.kl_scale
            self._follow_kl(metrics["loss/kl"], self.algo.target_kl)
        return metrics

    def _follow_kl(self, kl: float, target: float) -> None:
        """Choose the next iteration's rates (as RSL-RL does for each minibatch, arXiv:2109.11978)."""
        kl = float(total(torch.tensor(kl))) / learners()
        if kl > KL_BAND * target:
            self.kl_scale = max(self.kl_scale / KL_FACTOR, 1 / KL_RANGE)
        elif kl < target / KL_BAND:
            self.kl_scale = min(self.kl_scale * KL_FACTOR, KL_RANGE)

    def state(self) -> dict[str, Any]:
        """Everything but the weights, for an exact resume."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "return_scale": self.return_scale.state(),
            "kl_scale": self.kl_scale,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.optimizer.load_state_dict(self._fit(state["optimizer"]))
        for p, kept in self.optimizer.state.items():  # a fused step takes for granted that all lie alike in memory
            for k, v in kept.items():
                if v.shape == p.shape and v.stride() != p.stride():
                    kept[k] = torch.empty_like(p).copy_(v)
        self.rng.set_state(state["rng"].to(torch.uint8).cpu())
        self.iteration, self.env_steps = int(state["iteration"]), int(state["env_steps"])
        self.return_scale.load(state["return_scale"])
        self.kl_scale = float(state.get("kl_scale", 1.0))

    # --- inside --------------------------------------------------------------------------------------------------

    def _groups(self) -> list[dict[str, Any]]:
        """Neighbouring parameters that share rate, part of the policy and freezes: few calls of the optimizer."""

        def shared(name: str) -> tuple[Any, ...]:
            freezes = [name.startswith(tuple(s.freeze)) if s.freeze else False for s in self.algo.stages]
            return _by_prefix(self.algo.lr, name), name.startswith("critic"), name.split(".")[:2], freezes

        return [
            {"params": [self._names[n] for n in names], "lr": rate, "base_lr": rate, "steps": 0, "critic": critic}
            for (rate, critic, *_), names in itertools.groupby(self._names, shared)
        ]

    def _fit(self, saved: dict[str, Any]) -> dict[str, Any]:
        """An optimizer's state in our groups: they follow the order of parameters, but may have been cut otherwise."""
        of = {i: group for group in saved["param_groups"] for i in group["params"]}
        own = self.optimizer.state_dict()["param_groups"]
        if sorted(of) != sorted(i for group in own for i in group["params"]):
            raise ValueError(
                f"the saved optimizer has {len(of)} parameters, this policy trains {len(self._names)}; "
                "resume with the configuration of the run that saved it"
            )
        kept = ("params", "fused", "foreach")
        groups = [{**of[g["params"][0]], **{k: g[k] for k in kept}} for g in own]
        return {"state": saved["state"], "param_groups": groups}

    def _enter(self, stage: Stage) -> None:
        """Apply the freezes and learning rates of the stage."""
        for name, p in self._names.items():
            frozen = name.startswith(tuple(stage.freeze)) if stage.freeze else False
            p.requires_grad_(not frozen)
            p.grad = None
        self.lr_scale = stage.lr_scale

    def targets(self, segment: Segment) -> tuple[Batch, Metrics]:
        """Rewards, advantages and returns of a segment, as the batch that learning cuts up."""
        reward, metrics = combine(self.rewards, segment, self.algo.gamma)
        done = segment.terminated | segment.truncated
        if self.algo.return_scale:
            reward = self.return_scale(reward, segment.duration, done, segment.valid)
            metrics["reward/scale"] = self.return_scale.std
        advantage, returns = gae(
            reward,
            segment.value,
            segment.next_value,
            segment.duration,
            segment.terminated,
            segment.truncated,
            segment.valid,
            gamma=self.algo.gamma,
            lam=self.algo.lam,
        )
        metrics["loss/explained_variance"] = explained_variance(segment.value, returns, segment.valid)
        metrics["loss/return"] = float(returns[segment.valid].mean()) if segment.valid.any() else 0.0
        if self.algo.normalize_advantage:
            count, mean, squares = moments(advantage[segment.valid])  # of all learners: they share one gradient
            if count > 1:
                advantage = (advantage - mean) / ((squares / (count - 1)) ** 0.5 + 1e-8)
        batch = Batch(
            features=segment.features,
            trace=segment.trace,
            starts=segment.starts,
            memory=segment.memory,
            active=segment.active,
            old_log_prob=segment.log_prob,
            weight=torch.ones_like(advantage),
            old_value=segment.value,
            advantage=advantage,
            returns=returns,
            valid=segment.valid,
        )
        if self.policy.spec.memoryless:  # N * T streams of length 1: one minibatch path for all policies
            batch = _flatten(batch)
        return batch, metrics

    def _rescore(self, batch: Batch, parts: Iterable[Tensor], version: int) -> Metrics:
        """Replace the rollout's log-probs by the learner's own, and weight decisions of an older policy `version`."""
        then, now = batch.old_log_prob, torch.empty_like(batch.old_log_prob)
        with torch.set_grad_enabled(self.compute.compile):  # compiled graphs with and without gradients round otherwise
            for rows in parts:
                part = self._to_device(batch.rows(rows))
                with self.compute.autocast(self.device):
                    scored = self.scorer.evaluate(part.features, part.trace, part.starts, part.memory)
                now[rows] = scored.log_prob.detach().float().cpu()
                del part, scored  # before the next part is made
        batch.old_log_prob = now
        gap = ((then - now).abs() * (batch.active & batch.valid[..., None])).max()
        metrics = {"loss/rollout_log_prob_gap": float(gap)}
        if version != self.iteration:
            batch.weight = lag_weight(now, then, batch.active, LAG_CAP)
            metrics["loss/lag_weight"] = float(batch.weight[batch.valid].mean()) if batch.valid.any() else 1.0
        return metrics

    def _minibatches(self, batch: Batch) -> list[Tensor]:
        n = batch.valid.shape[0]
        count = int(least(torch.tensor(min(self.algo.minibatches, n))))  # uneven rollouts: no learner waits for ever
        parts = torch.randperm(n, generator=self.rng).tensor_split(count)
        return [part.sort().values for part in parts]  # rows are read in the order in which they lie

    def _step(self, loss: Tensor) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for p in self._names.values() if p.grad is not None]
        if learners() > 1:
            _average_gradients(parameters)
        # Clipped apart: a steep policy gradient must not shrink the critic's.
        critic = [p for n, p in self._names.items() if p.grad is not None and n.startswith("critic")]
        actor = [p for n, p in self._names.items() if p.grad is not None and not n.startswith("critic")]
        norms = [float(torch.nn.utils.clip_grad_norm_(part, self.algo.max_grad_norm)) for part in (actor, critic)]
        norm = norms[0] if actor else norms[1]
        if not all(map(math.isfinite, norms)):
            raise RuntimeError(
                f"gradient norm is {norm} at iteration {self.iteration}; nothing was changed. "
                "Lower algo.lr, or check rewards and observations for values that are not finite"
            )
        for group in self.optimizer.param_groups:
            if any(p.grad is not None for p in group["params"]):
                group["steps"] += 1
                warm = min(1.0, group["steps"] / max(1, self.algo.lr_warmup))
                scale = self.lr_scale if group["critic"] else self.lr_scale * self.kl_scale
                group["lr"] = group["base_lr"] * scale * warm
        self.optimizer.step()
        return norm

    def _agree_to_stop(self, m: Metrics) -> bool:
        """Target-KL stop; one learner over the limit stops all."""
        if self.algo.max_kl is None:
            return False
        return bool(largest(torch.tensor(float(m.get("loss/kl", 0.0) > self.algo.max_kl))))

    def _to_device(self, batch: Batch) -> Batch:
        if self.device.type == "cpu":
            return batch
        return Batch(**{k: _move(v, self.device) for k, v in vars(batch).items()})


def _first_ratio(delta: float) -> None:
    if not delta < RATIO_TOLERANCE:
        raise RuntimeError(
            f"before the first update the log-ratio is {delta:.3g}, expected 0 within {RATIO_TOLERANCE:g}: "
            "the policy does not score what it sampled (dropout, augmentation, a chain whose sampler and scorer differ)"
        )


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """One message for all of them."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    shared = total(torch.cat([g.flatten() for g in gradients])) / learners()
    for gradient, part in zip(gradients, shared.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _by_prefix(lr: Mapping[str, float] | float, name: str) -> float:
    """Learning rate of the longest prefix of `name`."""
    if isinstance(lr, int | float):
        return float(lr)
    matches = [p for p in lr if name.startswith(p)]
    if not matches:
        raise ValueError(f"algo.lr has no entry for parameter '{name}'; add a default under the key ''")
    return float(lr[max(matches, key=len)])


def _flatten(batch: Batch) -> Batch:
    """[N, T, ...] to [N * T, 1, ...]; memory is empty."""

    def flat(v: Any) -> Any:
        if isinstance(v, dict):
            return {k: flat(x) for k, x in v.items()}
        return v.reshape(v.shape[0] * v.shape[1], 1, *v.shape[2:])

    parts = {k: flat(v) for k, v in vars(batch).items() if k != "memory"}
    return Batch(**parts, memory={})


def _move(v: Any, device: torch.device) -> Any:
    return {k: _move(x, device) for k, x in v.items()} if isinstance(v, dict) else v.to(device)
