"""Learned rewards: shaping telescopes whatever a judge says, pictures are judged once, a lost judge is survived."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl.finetune import finetune
from rl.ledger import read
from rl.rewards import build_terms, combine, needs
from rl.rewards.learned import Learned
from rl.run import FinetuneRun
from tests.rl.test_rewards import GAMMA, make_segment
from tests.toy_parts import SUCCESS, checkpoint, toy, toy_spec

NODE = {"_target_": "tests.rl.test_learned.Brightness"}
calls: list[int] = []


class Brightness:
    """A judge: bright pictures show the goal. Green ones break it."""

    def __call__(self, frames: np.ndarray, texts: list[str]) -> np.ndarray:
        calls.append(len(frames))
        if (frames[..., 1] > frames[..., 0]).any():
            raise RuntimeError("a green picture")
        return frames.reshape(len(frames), -1).mean(1) / 255


def term(**options: Any) -> Learned:
    calls.clear()
    made = Learned(**{"judge": NODE, "camera": "eye", "truth": "", **options})
    made._scorer.judging.judge = Brightness()  # type: ignore[attr-defined]  # tests have no place among allowed targets
    return made


def walk(levels: list[int], **changes: Any) -> Any:
    """A segment of one stream that sees grey pictures of these levels, one more than decisions."""
    t = len(levels) - 1
    grey = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 4, 4, 3)
    frames = {"eye": torch.stack([grey[:-1], grey[1:]], 1)[None]}
    return make_segment(1, t, frames=frames, **changes)


@pytest.mark.parametrize("ended", ["terminated", "truncated"])
def test_potentials_telescope(ended: str) -> None:
    last = torch.zeros(1, 5, dtype=torch.bool)
    last[0, -1] = True
    levels = [10, 200, 30, 90, 250, 160]
    segment = walk(levels, **{ended: last})
    paid = term()(segment, GAMMA)[0]
    elapsed = torch.cat([torch.zeros(1, dtype=torch.int64), segment.duration[0].cumsum(0)])
    total = (GAMMA ** elapsed[:-1].float() * paid).sum()
    kept = 0.0 if ended == "terminated" else GAMMA ** float(elapsed[-1]) * levels[-1] / 255
    assert float(total) == pytest.approx(kept - levels[0] / 255, abs=1e-6)


def test_the_best_policy_of_a_small_world_stays_the_best() -> None:
    """Five places in a row, the goal at the right end; the judge prefers the left end, where nothing is to be had."""
    levels, steps = [250, 180, 90, 40, 5], 7
    shaping, dense = term(), term(mode="dense")

    def value(plan: tuple[int, ...], reward: Any) -> float:
        place, seen, paid = 1, [levels[1]], []
        for move in plan:
            place = min(4, max(0, place + move))
            seen.append(levels[place])
            paid.append(float(place == 4))
            if place == 4:
                break
        ends = torch.zeros(1, len(paid), dtype=torch.bool)
        ends[0, -1] = True
        flags = {"terminated": ends} if place == 4 else {"truncated": ends}
        segment = walk(seen, duration=torch.ones(1, len(paid), dtype=torch.int64), **flags)
        # Truncation is no end: the value behind it is that of standing still, which shaping gives Phi less of.
        rest = 0.0 if place == 4 else -(GAMMA ** len(paid)) * levels[place] / 255
        extra = reward(segment, GAMMA)[0] if reward else torch.zeros(len(paid))
        total = sum(GAMMA**i * (p + float(e)) for i, (p, e) in enumerate(zip(paid, extra, strict=True)))
        return total + (rest if reward is shaping else 0.0)

    plans = list(itertools.product((-1, 1), repeat=steps))
    plain = [value(p, None) for p in plans]
    shaped = [value(p, shaping) for p in plans]
    constant = levels[1] / 255  # all plans lose the same
    np.testing.assert_allclose(np.array(shaped) + constant, plain, atol=1e-6)
    assert plans[int(np.argmax(shaped))][:3] == (1, 1, 1)
    assert plans[int(np.argmax([value(p, dense) for p in plans]))][:3] != (1, 1, 1)  # which plain payment does not keep


def test_modes_pay_as_they_say() -> None:
    last = torch.tensor([[False, False, True]])
    segment = walk([0, 51, 102, 204], truncated=last)
    assert torch.allclose(term(mode="dense")(segment, GAMMA), torch.tensor([[0.2, 0.4, 0.8]]))
    segment.version = 3
    assert torch.allclose(term(mode="dense", anneal=4)(segment, GAMMA), torch.tensor([[0.05, 0.1, 0.2]]))
    segment.version = 9
    assert not term(mode="dense", anneal=4)(segment, GAMMA).any()
    assert term(mode="sparse", threshold=0.7)(segment, GAMMA).tolist() == [[0, 0, 1]]
    assert term(mode="sparse", threshold=0.9)(segment, GAMMA).tolist() == [[0, 0, 0]]


class Clips:
    """A judge of clips: the grey of the oldest picture counts ten times as much as that of the one after it, ..."""

    def __call__(self, frames: np.ndarray, texts: list[str]) -> np.ndarray:
        levels = frames[..., 0, 0, 0].astype(float) / 255
        return (levels * 10.0 ** -np.arange(1, levels.shape[1] + 1)).sum(1)


def test_judges_of_clips_see_the_pictures_of_this_episode_alone() -> None:
    starts = torch.tensor([[False, False, True, False]])
    segment = walk([10, 20, 30, 40, 50], starts=starts, duration=torch.ones(1, 4, dtype=torch.int64))
    segment.frames["eye"][0, 1, 1] = 25  # the last picture of the first episode
    made = term(pictures=3, mode="dense")
    made._scorer.judging.judge = Clips()  # type: ignore[attr-defined]
    phi = made._potential(segment) if made._asked else (made.begin(segment), made._potential(segment))[1]

    def of(*levels: int) -> float:
        return float(Clips()(np.array(levels, np.uint8).reshape(1, 3, 1, 1, 1), [""])[0])

    before = [of(10, 10, 10), of(10, 10, 20), of(30, 30, 30), of(30, 30, 40)]
    after = [of(10, 10, 20), of(10, 20, 25), of(30, 30, 40), of(30, 40, 50)]
    np.testing.assert_allclose(phi[0].numpy(), np.stack([before, after], 1), atol=1e-6)
    frames = np.stack([np.full((4, 4, 3), g, np.uint8) for g in (30, 40, 50)])
    np.testing.assert_allclose(made.potential(frames, [""] * 3), [before[2], after[2], after[3]])
    last = torch.tensor([[False, False, False, True]])
    shaped = term(pictures=3)
    shaped._scorer.judging.judge = Clips()  # type: ignore[attr-defined]
    paid = shaped(walk([10, 20, 30, 40, 50], truncated=last, duration=torch.ones(1, 4, dtype=torch.int64)), GAMMA)[0]
    total = sum(GAMMA**t * float(p) for t, p in enumerate(paid))
    assert total == pytest.approx(GAMMA**4 * of(30, 40, 50) - of(10, 10, 10), abs=1e-6)
    with pytest.raises(ValueError, match="pictures = 0"):
        term(pictures=0)


def test_each_picture_is_judged_once() -> None:
    made = term(batch=2)
    segment = walk([0, 10, 20, 10, 30])
    made(segment, GAMMA)
    assert calls == [2, 2]  # 0, 10, 20 and 30
    made(segment, GAMMA)
    assert calls == [2, 2]
    made(walk([30, 40]), GAMMA)
    assert calls == [2, 2, 1]


def test_a_lost_judge_leaves_the_sparse_reward_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    terms = {
        "sparse": {"weight": 1.0, "term": {"_target_": "rl.rewards.sparse.Sparse"}},
        "seen": {"weight": 1.0, "term": term()},
    }
    built = build_terms(terms)
    assert needs(built) == {"frames"}
    segment = walk([10, 20, 30])
    total, metrics = combine(built, segment, GAMMA)
    assert not torch.equal(total, segment.env_reward)
    assert metrics["audit/seen_lost"] == 0.0
    assert metrics["audit/seen_potential"] == pytest.approx(25 / 255)
    green = walk([10, 20, 30])
    green.frames["eye"] = green.frames["eye"].clone()
    green.frames["eye"][..., 1] = 255
    total, metrics = combine(built, green, GAMMA)
    assert torch.equal(total, green.env_reward)
    assert metrics["audit/seen_lost"] == 1.0
    assert "a green picture" in caplog.text
    assert combine(built, segment, GAMMA)[1]["audit/seen_lost"] == 0.0  # and it recovers


def test_training_goes_on_without_its_judge(tmp_path: Path) -> None:
    judge = {"_target_": "pretrained.flip.judge.LivJudge", "checkpoint_path": str(tmp_path / "gone")}
    node = {"_target_": "rl.rewards.learned.Learned", "judge": judge, "camera": "front"}
    camera = next(iter(toy_spec().cameras))
    rewards = {**SUCCESS, "seen": {"weight": 1.0, "term": {**node, "camera": camera}}}
    out = tmp_path / "out"
    run = FinetuneRun(checkpoint=str(checkpoint(tmp_path / "step_000001")), env=toy(), out=str(out), rewards=rewards,
                      algo={"epochs": 1, "minibatches": 1, "lr": 1e-3}, engine="local", envs_per_worker=2, decisions=4,
                      iterations=2, logger={"tensorboard": False}, quiet=True, lockstep=True)  # fmt: skip
    assert finetune(run).name == "step_000002"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["audit/seen_lost"] for line in lines] == [1.0, 1.0]
    assert [line["reward/seen"] for line in lines] == [0.0, 0.0]
    lost = [r for r in read(out / "ledger.jsonl") if r["event"] == "reward_lost"]
    assert [(r["reward"], r["iteration"]) for r in lost] == [("seen", 1), ("seen", 2)]


def test_what_is_not_valid_is_not_judged() -> None:
    segment = walk([10, 20, 30], valid=torch.tensor([[False, True]]))
    paid = term(mode="dense")(segment, GAMMA)
    assert sum(calls) == 2
    assert paid[0, 0] == 0
    assert float(paid[0, 1]) == pytest.approx(30 / 255)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="mode 'often' is not known"):
        term(mode="often")
    with pytest.raises(ValueError, match="anneal = 3 with mode 'pbrs'"):
        term(anneal=3)
    with pytest.raises(ValueError, match=r"no pictures of 'ear', only of \['eye'\]"):
        term(camera="ear")(walk([1, 2]), GAMMA)
