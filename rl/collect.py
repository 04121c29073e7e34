"""Collection: simulators x policy x proposal -> Segment. No Ray.

    row i:  send_reset ─► observation ─► decide ─► send_step (a chunk) ─► arrival ─► decide ─► ... T decisions

Rows run at their own pace: whoever has an observation is decided for, in batches of at least `min_ready` rows, while
the others' simulators go on. Where simulators are faster than the policy, such a batch waits a moment for more rows.
With `lockstep` every batch holds all rows, which makes a run repeatable to the bit.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from envs.types import Observation
from envs.vector import Arrival, SimVector
from pretrained.types import Decision, Features, ObsBatch, Policy
from rl.history import History
from rl.types import EpisodeRecord, Guide, Proposal, Segment

# Initial states are named by seeds. Evaluation uses [0, 1,000,000), training the two thousand million behind them.
TRAINING_SEEDS = 1_000_000
NEEDS = ("privileged", "frames")  # what reward terms may ask to have stored
PATIENCE = 0.5  # of the time that a decision takes; more rows in a batch hardly cost more
Kept = dict[str, dict[str, np.ndarray]]  # need -> name -> array of one observation


@dataclass
class Episode:
    """What is counted of the running episode of one row."""

    task: str
    seed: int
    name: str = ""  # each episode of a run has its own
    length: int = 0
    reward: float = 0.0
    first: int = 0  # its first decision in this segment
    lead: int = 0  # decisions that the proposal's guide takes before the policy does
    guided: int = 0  # of those, how many it has taken

    def record(self, env: str, version: int, *, success: bool, cause: str = "") -> EpisodeRecord:
        return EpisodeRecord(env, self.task, self.seed, success, self.length, self.reward, not cause, cause, version,
                             self.name, self.guided)  # fmt: skip


def training_seed(seed: int, row: int, episode: int, block: int) -> int:
    """Of an episode of a row, counted from 0, of the collector of this seed. They come in blocks within which episodes
    share what is slow to build."""
    draw = int(np.random.SeedSequence([seed, row, episode // block]).generate_state(1)[0])
    first = TRAINING_SEEDS + draw % 2_000_000_000
    return first + -first % block + episode % block


class Collector:
    """Keeps simulators, histories and memories between segments."""

    def __init__(
        self,
        vector: SimVector,
        policy: Policy,
        *,
        decisions: int,
        gamma: float,
        seed: int = 0,
        needs: frozenset[str] = frozenset(),
        proposal: Proposal | None = None,
        lockstep: bool = False,
        min_ready: int | None = None,
        begin: bool = True,
    ) -> None:
        """`begin=False` asks nothing of the simulators yet: `rl.border.go_back` does."""
        if unknown := sorted(needs - set(NEEDS)):
            raise ValueError(f"a reward needs {unknown}, which no segment has; expected some of {list(NEEDS)}")
        self.vector, self.policy, self.decisions, self.gamma = vector, policy, decisions, gamma
        self.needs, self.proposal = needs, proposal
        self.guide = proposal if isinstance(proposal, Guide) else None
        n = vector.num_envs
        self.min_ready = n if lockstep else (min_ready or max(1, n // 2))
        self.patient = min_ready is None and not lockstep
        self.decide_s = self.wait_s = 0.0  # of a batch, and before one; running means
        self.seed = seed
        self.history = History(vector, policy.spec.history)
        self.memory = policy.initial_memory(n)
        self.rng = [torch.Generator().manual_seed(seed * 9973 + i) for i in range(n)]
        self.hint_rng = torch.Generator().manual_seed(seed)
        self.hints: dict[str, Tensor] = {}
        self.decided = [0] * n  # decisions since the last hint
        self.before: list[Kept] = [{} for _ in range(n)]  # what rewards need of the last observation
        self.started = [0] * n  # episodes of each row
        self.version = 0  # of the policy that acts
        self.told = 0  # of those, how many earlier segments have reported
        self.segments = 0  # collected
        self.acted: list[list[np.ndarray]] = [[] for _ in range(n)]  # chunks executed in the running episode
        self.sent: list[np.ndarray] = [np.zeros((0, 0))] * n  # the chunk under way
        self.late: list[tuple[int, int, EpisodeRecord]] = []  # lost between segments, for the next one to report
        self.episodes = [self._next_episode(i) for i in range(n)] if begin else []
        self.ready = [False] * n  # has an observation to decide on
        self.fresh = [True] * n  # that observation is the first of its episode
        for i in range(n if begin else 0):
            self.begin(i)

    @torch.no_grad()
    def collect(self, version: int) -> Segment:
        """T decisions of every row with the present weights."""
        started, waited, self.version = time.perf_counter(), 0.0, version
        n, t_end = self.vector.num_envs, self.decisions
        renew = getattr(self.policy, "between_segments", None)  # of policies whose cache ends with a segment
        if renew is not None:
            self.memory = renew(self.memory)
        fill = _Buffers(n, t_end)
        fill.episodes, self.late = self.late, []
        fill.memory = {k: v.clone() for k, v in self.memory.items()}
        for episode in self.episodes:
            episode.first = 0
        t, patience, idle = [0] * n, 0.0, 0.0
        while min(t) < t_end:
            rows = [i for i in range(n) if self.ready[i] and t[i] < t_end]
            unfinished = sum(1 for x in t if x < t_end)
            enough = len(rows) >= min(self.min_ready, unfinished)
            if enough and (len(rows) == unfinished or patience <= 0):
                self._decide(rows, t, fill)
                self.wait_s, idle = _mean(self.wait_s, idle), 0.0
                patience = PATIENCE * self.decide_s if self.patient and self.wait_s < PATIENCE * self.decide_s else 0.0
                continue
            before = time.perf_counter()
            arrived = self.vector.wait(patience if enough else math.inf)
            spent = time.perf_counter() - before
            waited, idle = waited + spent, idle + spent
            patience -= spent if enough else 0.0
            for i in arrived:
                self._arrive(i, t, fill, version)
        self._bootstrap(t, fill)
        total = time.perf_counter() - started
        stats = {"collect_s": total, "wait_s": waited, "policy_s": fill.policy_s, "restarts": self.vector.restarts}
        # Every row always has an episode under way; those begun since the last segment are news.
        begun = sum(self.started)
        stats |= {"started": begun - self.told, "carried": n if self.told else 0, "in_flight": n}
        self.told = begun
        self.segments += 1
        return fill.segment(version, stats, f"{self.seed}:{self.segments}")

    def begin(self, i: int) -> None:
        """Ask row i for the first observation of its present episode."""
        self.ready[i], self.acted[i] = False, []
        self.vector.send_reset(i, self.episodes[i].task, self.episodes[i].seed)

    def lose(self, i: int, cause: str) -> None:
        """End the episode of row i between two segments, as one that its simulator lost."""
        record = self.episodes[i].record(self.vector.env_spec.env_id, -1, success=False, cause=cause)
        self.late.append((0, i, record))
        self.episodes[i], self.fresh[i] = self._next_episode(i), True

    # --- inside --------------------------------------------------------------------------------------------------

    def _next_episode(self, i: int) -> Episode:
        """Numbered per row, so that the order in which rows finish changes nothing; tasks take turns."""
        tasks, k = self.vector.tasks, self.started[i]
        self.started[i] += 1
        seed = training_seed(self.seed, i, k, self.vector.env_spec.seed_block)
        lead = self.guide.lead(seed, self.version) if self.guide else 0
        return Episode(tasks[(i + k) % len(tasks)], seed, f"{self.seed}:{i}:{k}", lead=lead)

    def _decide(self, rows: list[int], t: list[int], fill: "_Buffers") -> None:
        if led := [i for i in rows if self.episodes[i].lead]:
            self._follow_guide(led)
            rows = [i for i in rows if i not in led]
            if not rows:
                return
        before = time.perf_counter()
        obs = self.history.batch(rows)
        self._attach_hints(rows, obs)
        features = self.policy.encode(obs)
        index = torch.tensor(rows)
        for i in rows:
            if self.fresh[i]:
                self._forget(i)
        memory = {k: v[index] for k, v in self.memory.items()}
        decision, memory = self.policy.act(features, memory, [self.rng[i] for i in rows])
        for k, v in memory.items():
            self.memory[k][index] = v
        fill.decide(rows, [t[i] for i in rows], features, obs.texts, decision, [self.fresh[i] for i in rows])
        chunk = decision.chunk.double().numpy()
        spent = time.perf_counter() - before
        fill.policy_s += spent
        self.decide_s = _mean(self.decide_s, spent)
        for row, i in enumerate(rows):
            self.ready[i], self.fresh[i] = False, False
            self.sent[i] = chunk[row, : self.policy.spec.execute]
            self.vector.send_step(i, self.sent[i])

    def _follow_guide(self, rows: list[int]) -> None:
        """What the guide does is executed and not learned from: the policy's episode begins where it ends."""
        assert self.guide is not None
        for i, chunk in zip(rows, self.guide.guide(self.history.batch(rows)), strict=True):
            self.ready[i], self.sent[i] = False, chunk[: self.policy.spec.execute]
            self.episodes[i].lead -= 1
            self.episodes[i].guided += 1
            self.vector.send_step(i, self.sent[i])

    def _attach_hints(self, rows: list[int], obs: ObsBatch) -> None:
        if self.proposal is None:
            return
        due = [i for i in rows if self.fresh[i] or self.decided[i] >= self.proposal.every]
        if due:
            new = self.proposal(self.history.batch(due), self.hint_rng)
            for k, v in new.items():
                store = self.hints.setdefault(k, torch.zeros(self.vector.num_envs, *v.shape[1:], dtype=v.dtype))
                store[due] = v
            for i in due:
                self.decided[i] = 0
        for i in rows:
            self.decided[i] += 1
        obs.hints = {k: v[rows] for k, v in self.hints.items()}

    def _forget(self, i: int) -> None:
        for k, v in self.policy.initial_memory(1).items():
            self.memory[k][i] = v[0]

    def _arrive(self, i: int, t: list[int], fill: "_Buffers", version: int) -> None:
        arrival = self.vector.take(i)
        episode = self.episodes[i]
        if arrival.kind == "failed":
            assert arrival.failure is not None
            cause = f"{arrival.failure.cause}: {arrival.failure.detail}"
            record = episode.record(self.vector.env_spec.env_id, version, success=False, cause=cause)
            fill.episodes.append((t[i], i, record))
            if fill.running[i]:  # a decision was under way: it and the rest of its episode are not learned from
                fill.lose(i, episode.first, t[i], self.before[i])
                t[i] += 1
            self._start_next(i, t)
            return
        assert arrival.obs is not None
        if arrival.kind == "reset":
            self.history.push(i, arrival.obs, first=True)
            self.before[i] = self._kept(arrival.obs)
            self.ready[i], self.fresh[i] = True, True
            return
        self.history.push(i, arrival.obs, first=arrival.renewed)
        led = not fill.running[i]
        self.fresh[i] = arrival.renewed or led  # another task: neither history nor memory of the one before
        self.acted[i].append(self.sent[i][: arrival.executed].copy())
        episode.length += arrival.executed
        episode.reward += float(arrival.rewards.sum())
        after = self._kept(arrival.obs)
        if led:
            fill.guided_steps += arrival.executed
        else:
            fill.arrive(i, t[i], arrival, self.gamma, self.before[i], after)
        self.before[i] = after
        if not (arrival.terminated or arrival.truncated):
            self.ready[i] = True
            t[i] += not led
            return
        if arrival.truncated and not arrival.terminated and not led:
            fill.next_value[i, t[i]] = self._value([i])[0]
        env_id = self.vector.env_spec.env_id
        fill.episodes.append((t[i], i, episode.record(env_id, version, success=arrival.success)))
        t[i] += not led
        self._start_next(i, t)

    def _start_next(self, i: int, t: list[int]) -> None:
        self.episodes[i] = self._next_episode(i)
        self.episodes[i].first = t[i]
        self.begin(i)

    def _kept(self, obs: Observation) -> Kept:
        """Copies of what the rewards need, and of nothing else."""
        stores = {"privileged": obs.privileged, "frames": obs.images}
        return {need: {k: v.copy() for k, v in stores[need].items()} for need in self.needs}

    def _value(self, rows: list[int]) -> Tensor:
        obs = self.history.batch(rows)
        if self.proposal is not None:
            obs.hints = {k: v[rows] for k, v in self.hints.items()}
        index = torch.tensor(rows)
        return self.policy.value(self.policy.encode(obs), {k: v[index] for k, v in self.memory.items()}).float()

    def _bootstrap(self, t: list[int], fill: "_Buffers") -> None:
        """Values of the observations behind each decision: the next decision's value, or a new one at the end."""
        fill.next_value[:, :-1] = torch.where(fill.done[:, :-1], fill.next_value[:, :-1], fill.value[:, 1:])
        rows = [i for i in range(self.vector.num_envs) if not fill.done[i, -1]]
        if rows:
            fill.next_value[rows, -1] = self._value(rows)


def _mean(old: float, new: float) -> float:
    """Of a running mean that starts with its first number."""
    return old + 0.1 * (new - old) if old else new


def _write(store: Tensor, rows: list[int], times: list[int], values: Tensor) -> None:
    """values [len(rows), ...] to store [N, T, ...] on the CPU."""
    if values.dtype == torch.bfloat16:  # which NumPy does not know
        store[rows, times] = values.cpu()
    else:
        store.numpy()[rows, times] = values.cpu().numpy()


class _Buffers:
    """The segment being filled. Single numbers are written through NumPy: torch takes ten times as long for one."""

    def __init__(self, n: int, t: int) -> None:
        self.n, self.t = n, t
        self.features: Features = {}
        self.stored: dict[str, Tensor] = {}  # trace, log_prob, active
        self.memory: dict[str, Tensor] = {}
        self.texts: dict[str, int] = {}
        self.text_id = torch.zeros(n, t, dtype=torch.int64)
        self.value, self.next_value, self.env_reward = torch.zeros(3, n, t)
        self.duration = torch.zeros(n, t, dtype=torch.int64)
        self.terminated, self.truncated, self.starts = torch.zeros(3, n, t, dtype=torch.bool)
        self.valid = torch.ones(n, t, dtype=torch.bool)
        self.running = [False] * n  # a chunk of this row is under way
        self.kept: dict[str, dict[str, Tensor]] = {need: {} for need in NEEDS}
        self.episodes: list[tuple[int, int, EpisodeRecord]] = []  # (decision, row, record)
        self.policy_s, self.guided_steps = 0.0, 0

    @property
    def done(self) -> Tensor:
        return self.terminated | self.truncated

    def decide(
        self, rows: list[int], times: list[int], features: Features, texts: list[str], decision: Decision,
        fresh: list[bool],
    ) -> None:  # fmt: skip
        for k, v in features.items():
            if k not in self.features:
                self.features[k] = torch.zeros(self.n, self.t, *v.shape[1:], dtype=v.dtype)
            _write(self.features[k], rows, times, v)
        for k in ("trace", "log_prob", "active"):
            v = getattr(decision, k)
            if k not in self.stored:
                self.stored[k] = torch.zeros(self.n, self.t, *v.shape[1:], dtype=v.dtype)
            _write(self.stored[k], rows, times, v)
        _write(self.value, rows, times, decision.value.float())
        self.starts.numpy()[rows, times] = fresh
        self.text_id.numpy()[rows, times] = [self.texts.setdefault(x, len(self.texts)) for x in texts]
        for i in rows:
            self.running[i] = True

    def arrive(self, i: int, t: int, arrival: Arrival, gamma: float, before: Kept, after: Kept) -> None:
        self.running[i] = False
        self.env_reward.numpy()[i, t] = (arrival.rewards * gamma ** np.arange(arrival.executed)).sum()
        self.duration.numpy()[i, t] = arrival.executed
        self.terminated.numpy()[i, t] = arrival.terminated
        self.truncated.numpy()[i, t] = arrival.truncated and not arrival.terminated
        self._keep(i, t, before, after)

    def _keep(self, i: int, t: int, before: Kept, after: Kept) -> None:
        """[..., 0] is what the decision was made on, [..., 1] what its chunk led to, the true final one at an end."""
        for need, values in after.items():
            for k, v in values.items():
                now = torch.from_numpy(np.asarray(v))
                if k not in self.kept[need]:
                    self.kept[need][k] = torch.zeros(self.n, self.t, 2, *now.shape, dtype=now.dtype)
                self.kept[need][k][i, t, 0] = torch.from_numpy(np.asarray(before[need][k]))
                self.kept[need][k][i, t, 1] = now

    def lose(self, i: int, first: int, t: int, before: Kept) -> None:
        """The simulator of row i died at decision t: its episode, from `first` on, is not valid."""
        self.running[i] = False
        self.valid[i, first : t + 1] = False
        self.truncated[i, t] = True
        self.duration[i, t] = 1
        self._keep(i, t, before, before)  # so that the segment has these arrays even if all rows are lost

    def segment(self, version: int, stats: dict[str, float], name: str) -> Segment:
        stats["env_steps"] = float(self.duration[self.valid].sum()) + self.guided_steps
        return Segment(
            features=self.features,
            texts=list(self.texts),
            text_id=self.text_id,
            value=self.value,
            next_value=self.next_value,
            env_reward=self.env_reward,
            duration=self.duration,
            terminated=self.terminated,
            truncated=self.truncated,
            starts=self.starts,
            valid=self.valid,
            memory=self.memory,
            version=version,
            privileged=self.kept["privileged"],
            frames=self.kept["frames"],
            episodes=[record for _, _, record in sorted(self.episodes, key=lambda e: e[:2])],
            stats=stats,
            names=[name],
            **self.stored,
        )
