"""The collector against an independent simulation in this process; repeatability; lost episodes; memory; hints."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from envs.toy import Toy
from envs.types import EnvConfig
from envs.vector import SimVector
from pretrained.types import ObsBatch
from rl.collect import TRAINING_SEEDS, Collector
from rl.proposals.constant import Constant
from rl.types import Segment
from tests.toy_parts import make_policy, toy, toy_spec

GAMMA = 0.9
Make = Callable[..., Collector]


@pytest.fixture
def collector() -> Iterator[Make]:
    """Makes collectors and stops their simulators."""
    made: list[SimVector] = []

    def make(
        policy: Any = None, *, n: int = 2, decisions: int = 8, config: EnvConfig | None = None, **kwargs: Any
    ) -> Any:
        policy = policy or make_policy("gaussian", execute=3)
        made.append(SimVector([config or toy()] * n, max_chunk=4))
        return Collector(made[-1], policy, decisions=decisions, gamma=GAMMA, **{"lockstep": True, **kwargs})

    yield make
    for vector in made:
        vector.close()


def batch_of(obs: Any) -> ObsBatch:
    images = {c: v[None, None] for c, v in obs.images.items()}
    return ObsBatch(images, obs.proprio[None, None], [obs.instruction])


def replay(one: Collector, segments: list[Segment], i: int, *, scores: bool = True) -> None:
    """Simulate row i again here, with the chunks that the segments say were executed, and compare everything."""
    policy, episodes = one.policy, _row_episodes(one, i)
    env, obs, memory = Toy(**_settings(one)), None, policy.initial_memory(1)
    seen = [e for s in segments for e in s.episodes]
    for segment in segments:
        for t in range(segment.shape[1]):
            fresh = obs is None
            if obs is None:
                task, seed = next(episodes)
                obs, memory, length, total = env.reset(task, seed), policy.initial_memory(1), 0, 0.0
            assert bool(segment.starts[i, t]) == fresh
            assert segment.texts[segment.text_id[i, t]] == obs.instruction
            before, pictures, x = obs.privileged, obs.images, policy.encode(batch_of(obs))
            for k, v in x.items():
                torch.testing.assert_close(segment.features[k][i, t], v[0])
            trace = segment.trace[i : i + 1, t : t + 1]
            scored = policy.evaluate({k: v[:, None] for k, v in x.items()}, trace, torch.tensor([[fresh]]), memory)
            if scores:
                torch.testing.assert_close(segment.log_prob[i, t], scored.log_prob[0, 0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(segment.value[i, t], scored.value[0, 0], atol=1e-5, rtol=1e-5)
            memory = policy.act(x, memory, torch.Generator())[1]
            chunk = policy.actions.decode(trace[:, 0, -1])[0, : policy.spec.execute].double().numpy()
            reward, j = 0.0, 0
            for j, action in enumerate(chunk):
                step = env.step(action)
                reward, length, total = reward + GAMMA**j * step.reward, length + 1, total + step.reward
                if step.terminated or step.truncated:
                    break
            assert segment.duration[i, t] == j + 1
            assert float(segment.env_reward[i, t]) == pytest.approx(reward)
            assert (bool(segment.terminated[i, t]), bool(segment.truncated[i, t])) == (step.terminated, step.truncated)
            for k in before:
                np.testing.assert_array_equal(
                    segment.privileged[k][i, t], np.stack([before[k], step.obs.privileged[k]])
                )
            for k in segment.frames:
                np.testing.assert_array_equal(segment.frames[k][i, t], np.stack([pictures[k], step.obs.images[k]]))
            behind = policy.value(policy.encode(batch_of(step.obs)), memory)[0]
            if not step.terminated:  # of the true final observation, where the clock ended it
                torch.testing.assert_close(segment.next_value[i, t], behind, atol=1e-5, rtol=1e-5)
            obs = step.obs
            if step.terminated or step.truncated:
                record = next(e for e in seen if (e.task, e.seed) == (task, seed))
                assert (record.success, record.length, record.reward) == (step.success, length, total)
                assert record.valid
                obs = None


def _settings(one: Collector) -> dict[str, Any]:
    sim = one.vector._rows[0].child.config.sim
    return {k: v for k, v in sim.items() if k != "_target_"}


def _row_episodes(one: Collector, i: int) -> Iterator[tuple[str, int]]:
    k, started = 0, one.started[i]
    while True:
        one.started[i] = k
        episode = one._next_episode(i)
        one.started[i] = started
        yield episode.task, episode.seed
        k += 1


@pytest.mark.parametrize("memory", ["none", "gru"])
def test_segments_agree_with_a_simulation_of_the_same_episodes(collector: Make, memory: str) -> None:
    policy = make_policy("flow", execute=3, memory=memory)
    one = collector(policy, needs=frozenset({"privileged", "frames"}))
    segments = [one.collect(version) for version in range(3)]
    assert sum(int(s.truncated.sum()) for s in segments) >= 4
    for i in range(2):
        replay(one, segments, i)


def test_frames_alone_and_a_need_that_nobody_can_fill(collector: Make) -> None:
    s = collector(needs=frozenset({"frames"})).collect(0)
    assert s.frames["top"].dtype == torch.uint8
    assert s.privileged == {}
    inside = ~s.starts[:, 1:]  # what a chunk led to is what the next decision is made on
    torch.testing.assert_close(s.frames["top"][:, :-1, 1][inside], s.frames["top"][:, 1:, 0][inside])
    torch.testing.assert_close(s.frames["top"][:, :, 0], s.features["image/top"][:, :, -1])
    with pytest.raises(ValueError, match=r"needs \['pictures'\]"):
        collector(needs=frozenset({"pictures"}))


class Seeker:
    """A policy whose chunk is replaced by the way to the red disc, as seen in the picture."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def act(self, x: Any, memory: Any, rng: Any) -> Any:
        decision, memory = self.policy.act(x, memory, rng)
        image = x["image/top"][:, -1].float()
        red = ((image[..., 0] - image[..., 2]) > 60).float()
        size = red.shape[1]
        at = torch.arange(size).float() / size * 2 - 1 + 1 / size
        weight = red.sum((1, 2)).clamp(min=1)
        disc = torch.stack([(red.sum(1) * at).sum(1) / weight, (red.sum(2) * -at).sum(1) / weight], 1)
        way = (disc - x["proprio"][:, -1])[:, None] / (0.15 * self.policy.spec.execute)
        trace = decision.trace.clone()
        trace[:, -1] = self.policy.actions.encode(way.clamp(-1, 1).expand_as(decision.chunk))
        return decision._replace(chunk=self.policy.actions.decode(trace[:, -1]), trace=trace), memory


def test_terminations_agree_too(collector: Make) -> None:
    config = toy(size=[32, 32], max_steps=20, tasks=["red"])
    policy = make_policy("gaussian", toy_spec(size=[32, 32]), execute=3)
    one = collector(Seeker(policy), config=config, decisions=20, needs=frozenset({"privileged"}))
    segment = one.collect(0)
    wins = [e for e in segment.episodes if e.success]
    assert len(wins) == int(segment.terminated.sum()) >= 4
    assert len(segment.episodes) == int((segment.terminated | segment.truncated).sum())
    assert not (segment.terminated & segment.truncated).any()
    short = segment.duration[segment.terminated] < 3
    assert short.any()
    for i in range(2):
        replay(one, [segment], i, scores=False)


def test_shapes_and_types(collector: Make) -> None:
    one = collector(make_policy("flow", execute=3), n=3, decisions=5)
    s = one.collect(7)
    spec = one.policy.spec
    assert s.shape == (3, 5)
    assert s.version == 7
    assert s.trace.shape == (3, 5, spec.links + 1, 4, 2)
    assert s.log_prob.shape == s.active.shape == (3, 5, spec.links)
    assert s.features["image/top"].shape == (3, 5, 1, 16, 16, 3)
    assert s.features["image/top"].dtype == torch.uint8
    for name, dtype in (("duration", torch.int64), ("env_reward", torch.float32), ("next_value", torch.float32)):
        assert getattr(s, name).dtype == dtype
    for name in ("terminated", "truncated", "starts", "valid", "active"):
        assert getattr(s, name).dtype == torch.bool
    assert s.valid.all()
    assert s.starts[:, 0].all()
    assert s.privileged == s.frames == {}  # nobody asked for them
    assert s.stats["env_steps"] == int(s.duration.sum())
    assert sorted(set(s.texts)) == ["reach the blue target", "reach the red target"]
    assert all(e.seed >= TRAINING_SEEDS for e in s.episodes)


def flat(segment: Segment) -> dict[str, Any]:
    out = {k: v for k, v in vars(segment).items() if k not in ("stats", "features", "memory", "privileged", "frames")}
    return out | {f"features/{k}": v for k, v in segment.features.items()} | segment.memory


@pytest.mark.parametrize("memory", ["none", "gru"])
def test_lockstep_repeats_to_the_bit(collector: Make, memory: str) -> None:
    runs = []
    for _ in range(2):
        one = collector(make_policy("flow", execute=3, memory=memory), n=4, seed=3)
        runs.append([flat(one.collect(v)) for v in range(2)])
    for a, b in zip(*runs, strict=True):
        for k in a:
            assert torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k], k
    other = collector(make_policy("flow", execute=3, memory=memory), n=4, seed=4).collect(0)
    assert not torch.equal(other.features["image/top"], runs[0][0]["features/image/top"])


def test_rows_may_run_at_their_own_pace(collector: Make) -> None:
    one = collector(n=3, lockstep=False, min_ready=1)
    segments = [one.collect(v) for v in range(2)]
    assert all(s.valid.all() for s in segments)
    done = segments[0].terminated[:, -1] | segments[0].truncated[:, -1]
    assert torch.equal(segments[1].starts[:, 0], done)
    inside = segments[0].starts[:, 1:]
    assert torch.equal(inside, (segments[0].terminated | segments[0].truncated)[:, :-1])


@pytest.mark.parametrize("patient", [True, False])
def test_a_policy_slower_than_its_simulators_decides_for_all_at_once(
    collector: Make, patient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = collector(n=4, decisions=8, lockstep=False, min_ready=None if patient else 2)
    act, batches = one.policy.act, []

    def slow(features: Any, memory: Any, rng: Any) -> Any:
        batches.append(len(rng))
        time.sleep(0.2)
        return act(features, memory, rng)

    monkeypatch.setattr(one.policy, "act", slow)
    one.collect(0)
    assert sum(batches) == 32
    assert (len(batches) <= 10) == patient  # of 8 to 16


def test_segments_tell_of_every_episode_once(collector: Make) -> None:
    """Begun = ended + one under way in every row."""
    one = collector(n=3, lockstep=False, min_ready=1)
    segments = [one.collect(v) for v in range(4)]
    assert [(s.stats["carried"], s.stats["in_flight"]) for s in segments] == [(0, 3), (3, 3), (3, 3), (3, 3)]
    for k in range(1, 5):
        ended = sum(len(s.episodes) for s in segments[:k])
        assert sum(s.stats["started"] for s in segments[:k]) == ended + 3
    assert sum(len(s.episodes) for s in segments) > 3


# --- lost episodes ---


class Saboteur:
    """A policy that does something terrible at its nth decision."""

    def __init__(self, policy: Any, when: int, deed: Callable[[], None]) -> None:
        self.policy, self.when, self.deed, self.count = policy, when, deed, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def act(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        if self.count == self.when:
            self.deed()
        return self.policy.act(*args, **kwargs)


def kill(vector: SimVector, i: int) -> None:
    pid = vector.pids()[i]
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def check_one_lost(segment: Segment, row: int, cause: str, *, decisions: int) -> None:
    lost = [e for e in segment.episodes if not e.valid]
    assert len(lost) == 1
    assert lost[0].cause.startswith(cause)
    assert not lost[0].success
    assert int((~segment.valid).sum()) == decisions
    assert segment.valid[1 - row].all()
    assert all(e.valid for e in segment.episodes if e is not lost[0])
    bad = torch.nonzero(~segment.valid[row])[:, 0]
    assert bad.tolist() == list(range(int(bad[0]), int(bad[0]) + decisions))  # one stretch
    assert segment.starts[row, bad[0]]
    assert segment.truncated[row, bad[-1]]
    assert bool(segment.starts[row, bad[-1] + 1])  # and on it goes
    assert segment.stats["env_steps"] == int(segment.duration[segment.valid].sum())


def test_a_killed_child_loses_one_episode(collector: Make) -> None:
    """Killed while the policy decides; episodes have 4 decisions, so it is the second of the second episode."""
    policy = Saboteur(make_policy("gaussian", execute=3), 6, lambda: kill(one.vector, 1))
    one = collector(policy, decisions=10)
    segment = one.collect(0)
    check_one_lost(segment, 1, "crashed", decisions=2)
    assert "SIGKILL" in next(e.cause for e in segment.episodes if not e.valid)
    assert one.vector.restarts == 1
    assert one.collect(1).valid.all()


def test_a_child_found_dead_between_segments_loses_one_episode(collector: Make) -> None:
    one = collector(decisions=6, lockstep=False, min_ready=1)
    one.collect(0)
    kill(one.vector, 0)
    while one.vector._rows[0].child.failure is None:  # the vector notices while it waits for somebody else
        one.vector._receive(0)
    segment = one.collect(1)
    assert [e.valid for e in segment.episodes].count(False) == 1
    assert int((~segment.valid).sum()) == 1
    assert not segment.valid[0, 0]


@pytest.mark.parametrize(
    ("fault", "cause"), [("crash", "crashed"), ("nan", "bad_state"), ("black", "bad_frame"), ("hang", "hung")]
)
def test_a_broken_simulator_loses_one_episode(collector: Make, fault: str, cause: str) -> None:
    probe = collector()
    task, seed = list(zip(range(3), _row_episodes(probe, 1), strict=False))[1][1]
    del task
    config = toy(**{f"{fault}_at": 5}, fault_seed=seed, step_deadline_s=1.0 if fault == "hang" else 10.0)
    segment = collector(config=config, decisions=10, needs=frozenset({"privileged", "frames"})).collect(0)
    check_one_lost(segment, 1, cause, decisions=2)  # steps 4 to 6, the second decision
    assert torch.isfinite(segment.next_value).all()
    assert torch.isfinite(segment.features["proprio"]).all()
    assert segment.privileged["state"].shape == (2, 10, 2, 6)
    assert segment.frames["top"].shape == (2, 10, 2, 16, 16, 3)


def test_a_simulator_that_dies_in_reset_loses_an_episode_but_no_decision(collector: Make) -> None:
    seed = [e for _, e in zip(range(2), _row_episodes(collector(), 0), strict=False)][1][1]
    segment = collector(config=toy(crash_at=0, fault_seed=seed)).collect(0)
    assert [e.seed for e in segment.episodes if not e.valid] == [seed]
    assert segment.valid.all()


# --- memory and hints ---


def test_memory_is_forgotten_where_an_episode_starts(collector: Make) -> None:
    policy = make_policy("gaussian", execute=3, memory="gru")
    one = collector(policy, decisions=9)
    for version in range(2):
        s = one.collect(version)
        scored = policy.evaluate(s.features, s.trace, s.starts, s.memory)
        torch.testing.assert_close(scored.log_prob, s.log_prob, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(scored.value, s.value, atol=1e-5, rtol=1e-5)
    assert s.memory["h"].abs().sum() > 0
    never = policy.evaluate(s.features, s.trace, torch.zeros_like(s.starts), s.memory)
    assert not torch.allclose(never.value, s.value, atol=1e-4)


def test_hints_of_a_proposal_are_stored_and_renewed(collector: Make) -> None:
    proposal = Constant(value=[1.0, 2.0], noise=1.0, every=2)
    s = collector(decisions=8, proposal=proposal).collect(0)
    hint = s.features["hint/plan"]
    assert hint.shape == (2, 8, 2)
    for i in range(2):
        since = 0
        for t in range(1, 8):
            since = 0 if s.starts[i, t] else since + 1
            assert torch.equal(hint[i, t], hint[i, t - 1]) == (not s.starts[i, t] and since % 2 == 1)


def test_a_task_inside_an_episode_starts_without_history_or_memory(collector: Make) -> None:
    """Where the instruction changes, a decision is marked as a start, but nothing ended: values flow across."""
    policy = make_policy("gaussian", execute=3, memory="gru", history=2)
    config = toy(relay=True, hold=1, max_steps=150)
    one = collector(policy, decisions=250, config=config)
    act, noise = policy.act, torch.Generator().manual_seed(1)

    def wander(*args: Any, **kwargs: Any) -> Any:
        decision, memory = act(*args, **kwargs)
        move = 2 * torch.rand(decision.chunk[:, :1].shape, generator=noise) - 1
        return decision._replace(chunk=move.expand_as(decision.chunk)), memory

    policy.act = wander
    remembered: list[bool] = []
    forget = one._forget
    one._forget = lambda i: (remembered.append(bool(next(iter(one.memory.values()))[i].any())), forget(i))
    renewed = 0
    segment = one.collect(0)
    for i in range(2):
        for t in range(1, 250):
            ended = bool(segment.terminated[i, t - 1] or segment.truncated[i, t - 1])
            changed = segment.text_id[i, t] != segment.text_id[i, t - 1]
            if changed and not ended:
                renewed += 1
                assert segment.starts[i, t]
                assert segment.env_reward[i, t - 1] > 0
                assert segment.next_value[i, t - 1] == segment.value[i, t]
                assert segment.duration[i, t - 1] <= 3
            else:
                assert bool(segment.starts[i, t]) == ended
    assert renewed > 0
    assert any(remembered)  # else forgetting would prove nothing
