"""The fine-tuning loop in one process: account, limits, checkpoints, resume, lost episodes."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrained.checkpoint import find, load_learner, load_policy, read_card, save
from rl.finetune import finetune
from rl.invariants import broken
from rl.ledger import account, alone, read, surviving
from rl.report import report
from rl.run import FinetuneRun
from rl.throughput import bottleneck
from rl.types import Segment
from tests.toy_parts import SUCCESS, checkpoint, make_policy, policy_node, seed_of, toy, toy_spec

ALGO = {"epochs": 2, "minibatches": 2, "lr": {"": 1e-3}, "links": "sum", "reduction": "sum", "clip": 0.2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("run") / "step_000001", "flow", execute=3)


def settings(trained: Path, out: Path, **kwargs: Any) -> FinetuneRun:
    fields: dict[str, Any] = {
        "checkpoint": str(trained),
        "env": toy(),
        "out": str(out),
        "algo": ALGO,
        "rewards": SUCCESS,
        "engine": "local",
        "envs_per_worker": 2,
        "decisions": 6,
        "iterations": 3,
        "logger": {"tensorboard": False},
        "quiet": True,
        "lockstep": True,
    }
    return FinetuneRun(**(fields | kwargs))


class _Asked(Exception):
    pass


@pytest.mark.parametrize(("engine", "logger", "told"), [("rllib", {}, True), ("local", {}, False),
                                                        ("rllib", {"prometheus": False}, False)])  # fmt: skip
def test_dashboards_are_told_the_numbers_of_a_cluster(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, logger: dict[str, bool], told: bool
) -> None:
    def asked(out: Path, *, prometheus: bool, **kwargs: Any) -> Any:
        assert prometheus is told
        raise _Asked

    monkeypatch.setattr("rl.finetune.RunLog", asked)
    with pytest.raises(_Asked):
        finetune(settings(trained, tmp_path, engine=engine, logger=logger))


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(path: Path) -> dict[str, torch.Tensor]:
    policy: Any = load_policy(path)
    return policy.state_dict()


def same(a: Path, b: Path) -> bool:
    one, two = weights(a), weights(b)
    return all(torch.equal(v, two[k]) for k, v in one.items())


def test_three_iterations_and_their_account(trained: Path, tmp_path: Path) -> None:
    last = finetune(settings(trained, tmp_path, num_workers=2, save_every=2, command="launch.py finetune"))
    assert last == tmp_path / "step_000003"
    assert [p.name for p in sorted(tmp_path.glob("step_*"))] == ["step_000002", "step_000003"]
    rows = log(tmp_path)
    assert [r["iteration"] for r in rows] == [1, 2, 3]
    assert all({"loss/policy", "reward/success", "rollout/success", "time/collect_s"} <= set(r) for r in rows)
    assert all(r["loss/first_log_ratio"] < 1e-4 for r in rows)
    assert all(r["loss/rollout_log_prob_gap"] < 1e-3 for r in rows)  # every round acted with the learner's weights
    records = list(read(tmp_path / "ledger.jsonl"))
    assert (records[0]["event"], records[0]["command"]) == ("began", "launch.py finetune")
    episodes = [r for r in records if r["event"] == "episode"]
    assert len(episodes) == sum(r["rollout/episodes"] for r in rows) >= 6
    assert len({(e["seed"]) for e in episodes}) == len(episodes)  # workers draw different initial states
    assert {e["task"] for e in episodes} == {"red", "blue"}
    total = account(records)
    assert total.balanced
    assert (total.finished, total.failed, total.in_flight) == (len(episodes), 0, 4)  # every row still has one
    assert total.started == sum(r["count"] for r in records if r["event"] == "started") == len(episodes) + 4
    assert rows[-1]["env_steps"] == sum(r["rollout/env_steps"] for r in rows)
    assert not same(last, trained)
    card = read_card(last)
    assert card.parent == str(trained)
    state = load_learner(last)
    assert state is not None
    assert state["learner"]["iteration"] == 3


def test_secrets_are_neither_written_nor_said(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever a run keeps, the variables of its environment are no part of it."""
    for name in ("WANDB_API_KEY", "RAY_AUTH_TOKEN", "TEMPER_SERVE_TOKEN", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "canary-7c41")
    finetune(settings(trained, tmp_path, iterations=1, logger={"tensorboard": True}, quiet=False))
    page = report(tmp_path)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert {page, tmp_path / "ledger.jsonl"} <= set(files)
    assert [p for p in files if b"canary-7c41" in p.read_bytes()] == []
    assert "canary-7c41" not in "".join(capfd.readouterr())


def test_lockstep_repeats_to_the_bit(trained: Path, tmp_path: Path) -> None:
    a, b = (finetune(settings(trained, tmp_path / name, num_workers=2)) for name in "ab")
    assert same(a, b)


def alike(a: Path, b: Path) -> None:
    """Two runs are the same: weights, optimizer, generators, borders, episodes and figures, all but clocks."""
    one, two = (find(p) for p in (a, b))
    assert one.name == two.name
    for name in ("policy.safetensors", "learner.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    trees = [json.loads((p / "learner.json").read_text()) for p in (one, two)]
    for tree in trees:
        tree["loop"].pop("wall_s")
    assert trees[0] == trees[1]
    clocks = ("time", "wall_s")
    rows = [{r["iteration"]: {k: v for k, v in r.items() if k[:5] != "time/" and k not in clocks} for r in log(p)}
            for p in (a, b)]  # fmt: skip
    assert rows[0] == rows[1]
    ended = [
        [{k: v for k, v in r.items() if k != "time"} for r, counts in surviving(read(p / "ledger.jsonl"))
         if counts and r["event"] == "episode"] for p in (a, b)
    ]  # fmt: skip
    assert ended[0] == ended[1]
    assert len(ended[0]) > 0


@pytest.mark.parametrize("family", ["flow", "spoc"])
def test_a_resumed_run_equals_one_of_one_piece_to_the_bit(tmp_path: Path, family: str) -> None:
    """Episodes go over the borders; spoc has memory, and in the toy the instruction changes inside an episode."""
    kwargs = {"execute": 3} if family == "flow" else {}
    trained = checkpoint(tmp_path / "step_000001", family, **kwargs)
    env = toy(max_steps=40 if family == "flow" else 10, relay=True, discrete=family == "spoc")
    fields: dict[str, Any] = {"env": env, "num_workers": 2 if family == "flow" else 1, "decisions": 4, "save_every": 2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finetune(settings(trained, whole, iterations=4, **fields))
    finetune(settings(trained, parts, iterations=3, **fields))
    shutil.rmtree(parts / "step_000003")  # as if it had been killed after round 3: this goes on from 2
    finetune(settings(trained, parts, iterations=4, **fields))
    alike(whole, parts)
    assert broken(whole) == broken(parts) == []
    total = account(read(parts / "ledger.jsonl"))
    assert (total.abandoned, total.in_flight) == (1, 2 * fields["num_workers"])


def test_episodes_that_do_not_repeat_are_lost_and_nothing_else(trained: Path, tmp_path: Path) -> None:
    """A resume with another simulator: its states differ, so no episode is carried on as if they did not."""
    finetune(settings(trained, tmp_path, iterations=2, env=toy(max_steps=40)))
    total = account(read(tmp_path / "ledger.jsonl"))
    assert total.in_flight == 2
    finetune(settings(trained, tmp_path, iterations=3, env=toy(max_steps=40, hold=1, crash_at=2)))
    failed = [r for r in read(tmp_path / "ledger.jsonl") if r["event"] == "episode" and not r["valid"]]
    assert {r["cause"].split(":")[0] for r in failed[:2]} == {"crashed"}
    assert broken(tmp_path) == []


def test_a_diverged_replay_is_noticed(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finetune(settings(trained, tmp_path, iterations=2, env=toy(max_steps=40)))
    monkeypatch.setattr("rl.border._digest", lambda obs: -1)
    finetune(settings(trained, tmp_path, iterations=3, env=toy(max_steps=40)))
    failed = [r for r in read(tmp_path / "ledger.jsonl") if r["event"] == "episode" and not r["valid"]]
    assert [r["cause"].split(":")[0] for r in failed] == ["diverged", "diverged"]
    assert broken(tmp_path) == []


def test_one_process_at_a_time(trained: Path, tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(ValueError, match=rf"process {os.getpid()} is at work on .*kill -9"):
        finetune(settings(trained, tmp_path))
    finetune(settings(trained, tmp_path, iterations=1))


def test_a_full_disk_ends_the_run_with_one_message_and_the_same_command_goes_on(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = [2]
    write = os.write

    def full(fd: int, data: bytes) -> int:
        room[0] -= b'"iteration"' in data
        if room[0] < 0:
            write(fd, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr("rl.ledger.os.write", full)
    with pytest.raises(OSError, match="the disk of .* is full.*free some of it and give the same command again"):
        finetune(settings(trained, tmp_path, save_every=1))
    monkeypatch.undo()
    finetune(settings(trained, tmp_path, save_every=1))
    assert broken(tmp_path) == []
    assert [r["iteration"] for r, counts in surviving(read(tmp_path / "ledger.jsonl"))
            if counts and r["event"] == "iteration"] == [1, 2, 3]  # fmt: skip


def test_without_a_learning_rate_the_policy_stays(trained: Path, tmp_path: Path) -> None:
    assert same(finetune(settings(trained, tmp_path, algo=ALGO | {"lr": {"": 0.0}}, iterations=2)), trained)


def test_resume_continues_numbers_weights_and_stages(trained: Path, tmp_path: Path) -> None:
    algo = ALGO | {"stages": [{"iterations": 3, "losses": ["value"]}, {"losses": ["policy", "value"]}]}
    first = finetune(settings(trained, tmp_path, algo=algo, iterations=2))
    before = log(tmp_path)
    middle = weights(first)
    assert finetune(settings(trained, tmp_path, algo=algo, iterations=2)) == first  # there is nothing left to do
    assert len(log(tmp_path)) == 2
    last = finetune(settings(trained, tmp_path, algo=algo, iterations=4))
    rows = log(tmp_path)
    assert [r["iteration"] for r in rows] == [1, 2, 3, 4]
    assert ["loss/policy" in r for r in rows] == [False, False, False, True]
    assert rows[2]["env_steps"] == before[-1]["env_steps"] + rows[2]["rollout/env_steps"]
    assert rows[2]["loss/rollout_log_prob_gap"] < 1e-3
    assert rows[2]["wall_s"] > rows[1]["wall_s"]
    state = load_learner(last)
    assert state is not None
    assert (state["learner"]["iteration"], state["loop"]["iteration"]) == (4, 4)
    assert read_card(last).parent == str(trained)
    now = weights(last)
    assert any(not torch.equal(v, middle[k]) for k, v in now.items() if k.startswith("actor"))
    seeds = [r["seed"] for r in read(tmp_path / "ledger.jsonl") if r["event"] == "episode"]
    assert len(set(seeds)) == len(seeds)  # a continued run draws new initial states
    total = account(read(tmp_path / "ledger.jsonl"))
    assert total.balanced
    assert (total.finished, total.failed, total.in_flight) == (len(seeds), 0, 2)  # those of the first part went on
    assert total.unlearned_steps == 0


def test_steps_after_the_last_checkpoint_of_a_killed_run_are_counted_as_lost(trained: Path, tmp_path: Path) -> None:
    finetune(settings(trained, tmp_path, iterations=3, save_every=1))
    steps = [r["rollout/env_steps"] for r in log(tmp_path)]
    shutil.rmtree(tmp_path / "step_000003")  # as if it had been killed before
    shutil.rmtree(tmp_path / "step_000002")
    finetune(settings(trained, tmp_path, iterations=2, save_every=5))
    finetune(settings(trained, tmp_path, iterations=2))  # nothing more is lost
    total = account(read(tmp_path / "ledger.jsonl"))
    assert total.unlearned_steps == steps[1] + steps[2] > 0
    assert total.balanced


def test_a_torn_checkpoint_is_passed_over(trained: Path, tmp_path: Path) -> None:
    finetune(settings(trained, tmp_path, iterations=2, save_every=1))
    (tmp_path / "step_000002" / "manifest.json").unlink()
    last = finetune(settings(trained, tmp_path, iterations=3))
    assert last.name == "step_000003"
    assert [r["iteration"] for r in log(tmp_path)][-2:] == [2, 3]
    assert find(tmp_path) == last


def test_limits(trained: Path, tmp_path: Path) -> None:
    finetune(settings(trained, tmp_path / "steps", iterations=None, max_env_steps=40))
    rows = log(tmp_path / "steps")
    assert rows[-1]["env_steps"] >= 40 > rows[-2]["env_steps"]
    finetune(settings(trained, tmp_path / "wall", iterations=10**6, max_wall_s=2.0))
    assert 1 <= len(log(tmp_path / "wall")) < 10**6
    with pytest.raises(ValueError, match="nothing would end this run"):
        settings(trained, tmp_path, iterations=None)
    with pytest.raises(ValueError, match="at least 1"):
        settings(trained, tmp_path, decisions=0)


def test_a_device_that_is_not_there(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device = 'cuda', but this machine has no CUDA device; set device=cpu"):
        settings(trained, tmp_path, device="cuda")


def test_a_broken_simulator_is_in_the_ledger_and_in_no_success_rate(trained: Path, tmp_path: Path) -> None:
    finetune(settings(trained, tmp_path, env=toy(crash_at=5, fault_seed=seed_of(row=1, episode=1))))
    episodes = [r for r in read(tmp_path / "ledger.jsonl") if r["event"] == "episode"]
    lost = [e for e in episodes if not e["valid"]]
    assert len(lost) == 1
    assert lost[0]["cause"].startswith("crashed: ")
    assert lost[0]["seed"] == seed_of(row=1, episode=1)
    rows = log(tmp_path)
    assert [r["rollout/lost_episodes"] for r in rows].count(1) == 1
    assert sum(r["rollout/episodes"] for r in rows) == len(episodes) - 1
    sums = account(read(tmp_path / "ledger.jsonl"))
    assert (sums.failed, sums.restarts) == (1, {"crashed": 1})


def test_rewards_from_privileged_state(trained: Path, tmp_path: Path) -> None:
    progress = {"progress": {"weight": 0.5, "term": {"_target_": "rl.rewards.progress.Progress"}}}
    finetune(settings(trained, tmp_path, rewards=SUCCESS | progress, iterations=1))
    row = log(tmp_path)[0]
    assert row["reward/progress"] != 0.0
    assert row["reward/total"] == pytest.approx(row["reward/success"] + row["reward/progress"], abs=1e-6)


class Motion:
    """How much of the picture a chunk changed."""

    needs = frozenset({"frames"})

    def __call__(self, segment: Segment, gamma: float) -> torch.Tensor:
        before, after = segment.frames["top"].float().unbind(2)
        assert before.shape[2:] == (16, 16, 3)
        return (after - before).abs().mean((2, 3, 4))


def test_rewards_from_frames(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Motion, "__module__", "rl.rewards.sparse")
    monkeypatch.setattr("rl.rewards.sparse.Motion", Motion, raising=False)
    motion = {"motion": {"weight": 2.0, "term": {"_target_": "rl.rewards.sparse.Motion"}}}
    finetune(settings(trained, tmp_path, rewards=SUCCESS | motion, iterations=1))
    (row,) = log(tmp_path)
    assert row["reward/motion"] > 0.1
    assert row["reward/total"] == pytest.approx(row["reward/motion"] + row["reward/success"])


def test_overrides_of_the_policy_last_through_checkpoints(trained: Path, tmp_path: Path) -> None:
    overrides = {"kernel": {"max_std": 0.3}}
    last = finetune(settings(trained, tmp_path, policy_overrides=overrides, iterations=2))
    node = read_card(last).node
    assert node["kernel"]["max_std"] == 0.3
    assert node["kernel"]["_target_"] == policy_node("flow")["kernel"]["_target_"]
    policy: Any = load_policy(last)
    assert policy.kernel.max_std == 0.3
    finetune(settings(trained, tmp_path, policy_overrides=overrides, iterations=3))


def test_the_last_links_alone_are_tuned_and_the_copy_stays_what_imitation_made(trained: Path, tmp_path: Path) -> None:
    for iterations in (1, 2):  # the second call continues the first
        last = finetune(settings(trained, tmp_path, iterations=iterations, policy_overrides={"tuned_links": 2}))
    assert read_card(last).policy.frozen_links == 2
    before, now = weights(trained), weights(last)
    actor = [k for k in before if k.startswith("actor.")]
    assert all(torch.equal(now[f"base.{k}"], before[k]) for k in actor)
    assert any(not torch.equal(now[k], before[k]) for k in actor)
    assert all(r["loss/rollout_log_prob_gap"] < 1e-3 for r in log(tmp_path))


def test_the_last_checkpoint_is_saved_even_if_its_number_is_that_of_the_parent(trained: Path, tmp_path: Path) -> None:
    assert finetune(settings(trained, tmp_path, iterations=int(trained.name[5:]))) == tmp_path / trained.name


def test_a_run_without_learner_state_is_not_continued_silently(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "step_000005")
    with pytest.raises(ValueError, match="holds no learner state"):
        finetune(settings(trained, tmp_path))


def test_an_imitation_checkpoint_brings_no_optimizer_along(tmp_path: Path) -> None:
    """Its learner state belongs to another loop."""
    policy = make_policy("flow", execute=3)
    folder = tmp_path / "imitation" / "step_000100"
    save(folder, policy, node=policy_node("flow", execute=3), env=toy_spec(), learner={"optimizer": {"other": 1}})
    finetune(settings(folder.parent, tmp_path / "out", iterations=1))
    assert log(tmp_path / "out")[0]["iteration"] == 1


def test_unknown_engine(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected rllib, ray or local"):
        finetune(settings(trained, tmp_path, engine="spark"))


def test_the_slowest_part_is_named() -> None:
    round_ = {"rollout/workers": 2.0, "time/collect_s": 20.0, "time/sim_fraction": 0.7, "time/policy_s": 4.0}
    assert bottleneck(round_ | {"time/learn_s": 6.0}) == "simulators"  # 7 s of each worker
    assert bottleneck(round_ | {"time/learn_s": 8.0}) == "learner"
    assert bottleneck(round_ | {"time/sim_fraction": 0.1, "time/policy_s": 17.0}) == "policy"
    assert bottleneck({}) == ""  # nobody delivered
