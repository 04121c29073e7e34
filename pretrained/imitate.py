"""The imitation loop: demonstrations in, checkpoint of the averaged (EMA) policy out.

Every random draw of step s comes from a generator seeded by (seed, s, rank), and batches follow from s alone, so a run
that is killed and resumed ends bit for bit like one that was not (on one processor type), and no generator needs
saving. Under torchrun the batch is divided among the processes; rank 0 writes.
"""

import contextlib
import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from envs.build import build
from envs.types import EnvConfig, EnvSpec
from envs.vector import SimVector
from pretrained import checkpoint
from pretrained.demos import Demos, resolve, stored_spec
from pretrained.demos.collect import env_config
from pretrained.metrics import MetricsLog
from pretrained.processes import processes
from pretrained.progress import Bar
from pretrained.rectified_flow import Reflow
from pretrained.schedule import SCHEDULES, learning_rate
from pretrained.stages import staged
from pretrained.start import first_policy
from pretrained.types import DemoBatch, Features, Metrics, ObsBatch

# Settings that may differ between a run and its resumption.
FREE = {"out", "steps", "save_every", "log_every", "keep", "threads", "quiet", "resume", "env", "demos", "device"}
ADDED = {"schedule": "cosine", "stage": "", "beta2": 0.999}  # what runs from before these were settings had
VALIDATION_BATCHES = 16
EMA_WARMUP = 10  # the average follows faster during roughly this many times the first steps

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImitateRun:
    """Settings of an imitation run."""

    policy: Mapping[str, Any]  # node
    demos: str | Sequence[str]
    out: str  # run folder; checkpoints are its step_* folders and `best`
    reader: Mapping[str, Any] | None = None  # node that reads another layout than LIBERO's, such as Chores
    stage: str = ""  # of a policy that is trained in several, such as VPP's "video"; "" trains the policy itself
    init: str = ""  # checkpoint to start from; its normalisers are kept
    refit: bool = False  # take its weights alone, which may be of another environment, and fit normalisers anew
    reflow: int | None = None  # straighten the paths of the flow `init`: its sampler's steps per pair, 10 to 50
    env: EnvConfig | Mapping[str, Any] | None = None  # only needed if the demonstrations do not say what they are of
    steps: int = 2000
    batch_size: int = 64  # over all processes
    lr: float = 3e-4
    weight_decay: float = 1e-4
    beta2: float = 0.999  # of AdamW
    warmup: int = 100  # steps
    schedule: str = "cosine"  # of lr after the warm-up: cosine, to zero, or constant; or tri_stage, all of it
    grad_clip: float = 1.0
    ema: float = 0.999
    bf16: bool = False
    seed: int = 0
    val_fraction: float = 0.1  # of the episodes; 0: none are held out, and the best is by training loss
    save_every: int = 500
    log_every: int = 50
    keep: int = 2  # newest step_* folders to keep
    max_demos: int | None = None
    align: str = "as_stored"
    drop_noops: bool = False
    in_memory: bool = True
    names: Mapping[str, str] | None = None  # LeRobot datasets: what we call a camera or a number -> their feature
    device: str = ""  # "" takes CUDA if it is there
    threads: int = 0  # of torch; 0 leaves them
    resume: bool = True
    quiet: bool = False


def imitate(run: ImitateRun) -> Path:
    """Train, or go on training; the folder of the last checkpoint, which holds the averaged weights.

    The checkpoint of lowest validation loss is `best` beside it: closed-loop success often still grows after that.
    """
    if run.threads:
        torch.set_num_threads(run.threads)
    with processes(run.device) as (rank, world, device):
        return _Imitation(run, rank=rank, world=world, device=device).train()


class _Lesson(NamedTuple):
    demo: DemoBatch
    features: Features | None  # if they were computed beforehand


class _Loss(nn.Module):
    """The imitation loss as a `forward`, which is what DistributedDataParallel wants to wrap."""

    def __init__(self, policy: Any, reflow: Reflow | None) -> None:
        super().__init__()
        self.policy, self.reflow = policy, reflow

    def forward(self, lesson: _Lesson, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        demo = lesson.demo
        if self.reflow is not None:
            x = self.policy.encode_augmented(demo.obs, rng) if lesson.features is None else lesson.features
            return self.reflow.loss(self.policy, x, demo.is_pad, rng)
        if lesson.features is not None:
            return self.policy.imitation_loss_of(lesson.features, demo.actions, demo.is_pad, rng)
        return self.policy.imitation_loss(demo, rng)


class _Imitation:
    def __init__(self, run: ImitateRun, *, rank: int, world: int, device: torch.device) -> None:
        if run.batch_size % world:
            raise ValueError(f"batch_size = {run.batch_size} cannot be divided among {world} processes; change it")
        run = replace(run, policy=staged(run.policy, run.stage))
        self.run, self.rank, self.world, self.device, self.out = run, rank, world, device, Path(run.out)
        if run.schedule not in SCHEDULES:
            raise ValueError(f"schedule '{run.schedule}' is unknown; expected {', '.join(SCHEDULES)}")
        demos: Any = build(run.reader, paths=run.demos, max_demos=run.max_demos) if run.reader else None
        self.env: EnvSpec = demo_spec(run) if demos is None else demos.env
        torch.manual_seed(run.seed)
        start = checkpoint.find(run.init) if run.init else None
        self.policy: Any = first_policy(run.policy, self.env, start, refit=run.refit)
        spec = self.policy.spec
        if demos is None:
            demos = Demos(run.demos, env=self.env, horizon=spec.horizon, history=spec.history, align=run.align,
                          drop_noops=run.drop_noops, max_demos=run.max_demos, in_memory=run.in_memory,
                          names=run.names, ahead=getattr(self.policy, "looks_ahead", False))  # fmt: skip
        self.train_set, self.val_set = demos.split(run.val_fraction, run.seed)
        if start is None or run.refit:
            self.policy.fit_normalizers(self.train_set.all_actions(), self.train_set.all_proprio())
        if hasattr(self.policy, "learn_by_imitation"):
            self.policy.learn_by_imitation()
        self.policy.to(device)
        self.named = {k: p for k, p in self.policy.named_parameters() if p.requires_grad}
        if not self.named:
            raise ValueError(f"policy {run.policy.get('_target_')} has no trainable parameter; unfreeze some")
        self.optimizer = torch.optim.AdamW(
            self.named.values(), lr=run.lr, betas=(0.9, run.beta2), weight_decay=run.weight_decay
        )
        self.average = {k: p.detach().clone() for k, p in self.named.items()}
        self.step, self.best = 0, math.inf
        self.loss: nn.Module = _Loss(self.policy, self._reflow(start))
        self.plain_loss = self.loss  # never wrapped: ranks may validate different numbers of batches
        self.last: Path | None = None
        self._resume()
        self.features = {id(d): self._encoded(d) for d in (self.train_set, self.val_set) if d is not None}
        if world > 1:  # critics and noise heads get no gradient from imitation
            self.loss = nn.parallel.DistributedDataParallel(
                self.loss, find_unused_parameters=True, broadcast_buffers=False
            )

    def _reflow(self, start: Path | None) -> Reflow | None:
        if self.run.reflow is None:
            return None
        if start is None:
            raise ValueError("reflow needs the flow whose paths it straightens; name its checkpoint with init=...")
        teacher: Any = checkpoint.load_policy(start, env=self.env, overrides=self.run.policy)
        return Reflow(teacher.to(self.device), steps=self.run.reflow)

    def train(self) -> Path:
        """All steps that are left."""
        run = self.run
        writer = MetricsLog(self.out, self.step) if self.rank == 0 else None
        if writer and self.step == 0:
            writer.write(0, {"episodes": self.train_set.num_episodes, "windows": len(self.train_set)})
        prefetch = ThreadPoolExecutor(1)
        bar = Bar("imitate", total=run.steps, done=self.step, quiet=run.quiet or self.rank > 0)
        try:
            with bar:
                ahead = self._fetch(prefetch, self.step)
                recent: list[Metrics] = []  # since the last line of the log
                while self.step < run.steps:
                    lesson = ahead.result()
                    ahead = self._fetch(prefetch, self.step + 1)
                    recent.append(self._update(lesson))
                    bar.advance(1, loss=_mean(recent, "loss"))
                    if self.step % run.log_every == 0 or self.step == run.steps:
                        if writer:
                            writer.write(self.step, {f"train/{k}": _mean(recent, k) for k in recent[-1]})
                        recent = []
                    if self.step % run.save_every == 0 or self.step == run.steps:
                        self._save(writer)
        finally:
            prefetch.shutdown(cancel_futures=True)
            if writer:
                writer.close()
        assert self.last is not None
        return self.last

    def _update(self, lesson: _Lesson) -> Metrics:
        """One step of the optimiser and of the average."""
        run = self.run
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(run, self.step)
        torch.manual_seed(_mix(run.seed, self.step, self.rank, 1))  # for dropout and the like
        rng = torch.Generator().manual_seed(_mix(run.seed, self.step, self.rank, 2))
        self.loss.train()
        with self._autocast():
            loss, metrics = self.loss(lesson, rng)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.named.values(), run.grad_clip)
        value, size = torch.stack([loss.detach().float(), norm.float()]).tolist()
        if not (math.isfinite(value) and math.isfinite(size)):
            raise FloatingPointError(
                f"imitation loss is {value} and its gradient {size} at step {self.step}; the last checkpoint is "
                f"{self.last or 'none'}: lower lr ({run.lr:g}), turn bf16 off, or check the demonstrations"
            )
        self.optimizer.step()
        self.step += 1
        decay = min(run.ema, (1 + self.step) / (EMA_WARMUP + self.step))
        with torch.no_grad():
            averages = list(self.average.values())
            torch._foreach_lerp_(averages, [p.detach() for p in self.named.values()], 1 - decay)
        return {"loss": value, "grad_norm": size, "lr": self.optimizer.param_groups[0]["lr"],
                **{k: float(v) for k, v in metrics.items() if k != "loss"}}  # fmt: skip

    @torch.no_grad()
    def _validate(self, demos: Demos) -> float:
        """Mean loss of the averaged policy over the same windows and noise every time; ranks share the work."""
        self.policy.eval()
        size = self.run.batch_size
        count = min(VALIDATION_BATCHES, math.ceil(len(demos) / size))
        order = np.random.default_rng(self.run.seed).permutation(len(demos))
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        for i in range(self.rank, count, self.world):
            lesson = self._lesson(demos, np.sort(order[i * size : (i + 1) * size]), i)
            rng = torch.Generator().manual_seed(_mix(self.run.seed, i, 0, 3))
            with self._autocast():
                loss, _ = self.plain_loss(lesson, rng)
            rows = len(lesson.demo.actions)
            total += torch.tensor([float(loss) * rows, rows], device=self.device)
        if self.world > 1:
            dist.all_reduce(total)
        return float(total[0] / total[1])

    def _save(self, writer: MetricsLog | None) -> None:
        """Write a checkpoint of the averaged policy, and `best` if it is."""
        with self._averaged() as raw:
            if hasattr(self.policy, "seed_critic"):
                self.policy.seed_critic()
            demos = self.train_set if self.val_set is None else self.val_set
            name = "train/ema_loss" if self.val_set is None else "val/loss"
            loss = self._validate(demos)
            better, self.best = loss < self.best, min(self.best, loss)
            self.last = self.out / f"step_{self.step:08d}"
            if writer:
                writer.write(self.step, {name: loss})
                learner = {"step": self.step, "best": self.best, "settings": self._settings(), "raw": raw,
                           "optimizer": self.optimizer.state_dict()}  # fmt: skip
                if better:
                    self._write(self.out / "best", {name: loss, "step": self.step}, None)
                self._write(self.last, {name: loss, "step": self.step}, learner)
                for old in checkpoint.steps(self.out)[: -self.run.keep or None]:
                    shutil.rmtree(old)
        if self.world > 1:
            dist.barrier()

    def _write(self, folder: Path, metrics: Mapping[str, Any], learner: Mapping[str, Any] | None) -> None:
        config = {k: asdict(v) if isinstance(v, EnvConfig) else v for k, v in vars(self.run).items()}
        checkpoint.save(folder, self.policy, node=self.run.policy, env=self.env, metrics=metrics,
                        config=json.loads(json.dumps(config)), learner=learner, parent=self.run.init)  # fmt: skip

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[dict[str, Tensor]]:
        """Inside, the policy has the averaged weights; yields the raw ones."""
        raw = {k: p.detach().clone() for k, p in self.named.items()}
        with torch.no_grad():
            for k, p in self.named.items():
                p.copy_(self.average[k])
        try:
            yield raw
        finally:
            with torch.no_grad():
                for k, p in self.named.items():
                    p.copy_(raw[k])

    def _resume(self) -> None:
        last = checkpoint.newest(self.out)
        if last is None:
            return
        if not self.run.resume:
            raise ValueError(f"{self.out} already holds {last.name}; choose another 'out', or set resume: true")
        learner = checkpoint.load_learner(last)
        if learner is None:
            raise ValueError(f"{last} has no learner state, so it cannot be resumed; choose another 'out'")
        theirs, ours = {**ADDED, **learner["settings"]}, self._settings()
        different = [k for k in ours if theirs.get(k) != ours[k]]
        if different:
            k = different[0]
            raise ValueError(
                f"{last} was trained with {k} = {theirs.get(k)}, now {k} = {ours[k]}; choose another 'out'"
            )
        averaged: Any = checkpoint.load_policy(last, env=self.env)
        self.policy.load_state_dict(averaged.state_dict())  # buffers and frozen weights too
        with torch.no_grad():
            for k, p in self.named.items():
                self.average[k].copy_(p)
                p.copy_(learner["raw"][k])
        self.optimizer.load_state_dict(learner["optimizer"])
        self.step, self.best, self.last = learner["step"], learner["best"], last

    def _settings(self) -> dict[str, Any]:
        settings = {k: v for k, v in vars(self.run).items() if k not in FREE}
        return json.loads(json.dumps({**settings, "windows": len(self.train_set)}))

    def _fetch(self, pool: ThreadPoolExecutor, step: int) -> "Future[_Lesson]":
        """The batch of a step, gathered while the step before it is computed."""
        draw = _mix(self.run.seed, step, self.rank, 4)
        return pool.submit(lambda: self._lesson(self.train_set, self._windows(step), draw))

    def _lesson(self, demos: Demos, index: np.ndarray, draw: int) -> _Lesson:
        features = self.features[id(demos)]
        demo = to_device(demos.batch(index, images=features is None, draw=draw), self.device)
        chosen = None if features is None else {k: v[torch.from_numpy(index)] for k, v in features.items()}
        return _Lesson(demo, None if chosen is None else {k: v.to(self.device) for k, v in chosen.items()})

    def _encoded(self, demos: Demos) -> Features | None:
        """What a frozen encoder says about all windows, computed once; None if the encoder learns too."""
        own: Any = getattr(demos, "encode", None)
        if own is not None:  # the reader draws its windows anew each time, from features that it keeps
            if self.run.in_memory and getattr(self.policy, "frozen_encoder", False):
                own(self.policy.eval(), quiet=self.run.quiet or self.rank > 0)
            return None
        if not (getattr(self.policy, "frozen_encoder", False) and hasattr(self.policy, "imitation_loss_of")):
            return None
        size, parts = self.run.batch_size, []
        self.policy.eval()
        with Bar("encode", total=len(demos), quiet=self.run.quiet or self.rank > 0) as bar:
            for first in range(0, len(demos), size):
                index = np.arange(first, min(first + size, len(demos)))
                x = self.policy.encode(to_device(demos.batch(index), self.device).obs)
                parts.append({k: v.cpu() for k, v in x.items()})
                bar.advance(len(index))
        return {k: torch.cat([part[k] for part in parts]) for k in parts[0]}

    def _windows(self, step: int) -> np.ndarray:
        """This process's windows of a step: the next of a permutation drawn anew each epoch."""
        size, count = self.run.batch_size, len(self.train_set)
        places = np.arange(step * size + self.rank, (step + 1) * size, self.world)
        epochs = places // count
        index = np.empty(len(places), dtype=np.int64)
        for epoch in np.unique(epochs):
            order = np.random.default_rng([self.run.seed, int(epoch)]).permutation(count)
            index[epochs == epoch] = order[places[epochs == epoch] % count]
        return index

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.run.bf16)


def demo_spec(run: ImitateRun) -> EnvSpec:
    """The environment as the demonstrations say it, else as the simulator does."""
    spec = stored_spec(run.demos)
    if spec is not None:
        return spec
    if run.env is None:
        raise ValueError(f"{resolve(run.demos)[0]} does not say what it is of; name the environment (env=...)")
    vector = SimVector([env_config(run.env)])
    try:
        return vector.env_spec
    finally:
        vector.close()


def to_device(demo: DemoBatch, device: torch.device) -> DemoBatch:
    """The batch on a device."""

    def move(x: Any) -> Tensor:
        return torch.as_tensor(x).to(device, non_blocking=True)

    hints = {k: move(v) for k, v in demo.obs.hints.items()}
    obs = ObsBatch({k: move(v) for k, v in demo.obs.images.items()}, move(demo.obs.proprio), demo.obs.texts, hints)
    return DemoBatch(obs, move(demo.actions), move(demo.is_pad))


def _mix(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _mean(recent: Sequence[Metrics], name: str) -> float:
    return sum(m[name] for m in recent) / len(recent)
