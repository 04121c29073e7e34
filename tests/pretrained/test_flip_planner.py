"""FLIP's planner: the recorded choices of the original, and its laws."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrained.flip.planner import Future, Planner, grid
from pretrained.flip.quirks import FAITHFUL
from tests.golden_files import golden_json, golden_tensors


class RecordedWorld:
    """The toy world of the recording: what happens follows from the segment and the row alone."""

    def __init__(self, case: dict[str, Any], io: dict[str, Tensor]) -> None:
        self.case, self.segment, self.sums = case, 0, []
        self.actions = io[f"{case['case']}.action_table"]
        self.weight = io[f"{case['case']}.reward_weight"]

    def __call__(self, history: Tensor, rngs: Sequence[torch.Generator]) -> Future:
        action, x, y = self.actions[self.segment], history[:, -1], history[:, -2]
        self.sums.append(history[:: self.case["candidates"], -1].flatten(1).sum(1))
        frames = []
        for _ in range(self.case["flow_horizon"] - 1):
            x = 0.9 * x + 0.1 * y + 0.3 * action
            frames.append(x)
        points = grid(self.case["image"][1:], self.case["grid_points"], quirks=FAITHFUL)
        time = torch.arange(self.case["flow_horizon"]).float()
        moved = time[None, None, :, None] * action.flatten(1).mean(1)[:, None, None, None]
        self.segment += 1
        scores = torch.asinh(0.2 * (frames[-1] * self.weight).flatten(1).sum(1))
        return Future(points[None, :, None] + moved, torch.stack(frames, 1), scores)


@pytest.mark.parametrize("number", range(4))
def test_choices_are_the_recorded_ones(number: int) -> None:
    meta, io = golden_json("planner/meta.json"), golden_tensors("planner/io.safetensors")
    case, near = meta["cases"][number], meta["suggested_tolerance"]
    world = RecordedWorld(case, io)
    planner = Planner(beams=case["beams"], candidates=case["candidates"], segments=case["segments"],
                      replace_every=case["replace_every"], keep_first=False, quirks=FAITHFUL)  # fmt: skip
    first = io[f"{case['case']}.first_image"]
    plan = planner.plan(first, world, history=case["obs_history"])
    for h, step in enumerate(case["steps"]):
        torch.testing.assert_close(plan.record.scores[h], torch.tensor(step["rewards"]), **near)
        torch.testing.assert_close(world.sums[h], torch.tensor(step["history_last_frame_sum"]), **near)
        assert plan.record.chosen[h] == step["chosen_candidate_per_beam"]
    expected = [(r["after_segment"], r["worst_beam"], r["best_beam"]) for r in case["replacements"]]
    assert plan.record.replaced == expected
    assert plan.record.best in case["acceptable_best_beams"]
    torch.testing.assert_close(torch.tensor(plan.record.values), torch.tensor(case["totals_final"]), **near)
    for ours, theirs in (
        (plan.flow, "flow_plans"),
        (plan.video, "video_plans"),
        (plan.scores[:, None], "reward_plans"),
    ):
        torch.testing.assert_close(ours, io[f"{case['case']}.{theirs}"][:, plan.record.best], **near)


@pytest.mark.parametrize("name", ["128x128_529", "64x32_9"])
def test_grids_are_the_recorded_ones(name: str) -> None:
    size, count = name.split("_")
    recorded = golden_tensors("planner/query_points.safetensors")[name]
    found = grid([int(s) for s in size.split("x")], int(count), quirks=FAITHFUL)
    torch.testing.assert_close(found, recorded, rtol=1e-6, atol=1e-4)


def test_repaired_grid_lies_in_the_picture() -> None:
    points = grid((64, 32), 529)
    assert points.min() == 0
    assert float(points[:, 0].max()) == 31
    assert float(points[:, 1].max()) == 63


class Random:
    """Futures that are drawn: the last frame of the history drifts, and its mean is the score."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, history: Tensor, rngs: Sequence[torch.Generator]) -> Future:
        self.calls += 1
        step = torch.stack([torch.randn(3, generator=g) for g in rngs])
        frames = [history[:, -1] + 0.2 * (k + 1) * step[:, :, None, None] for k in range(2)]
        video = torch.stack(frames, 1)
        return Future(torch.zeros(len(rngs), 4, 3, 2), video, video[:, -1].flatten(1).mean(1))


START = torch.zeros(3, 4, 4)


@pytest.mark.parametrize("seed", range(12))
def test_never_less_than_the_first_candidate(seed: int) -> None:
    search = Planner(segments=6, replace_every=2).plan(START, Random(), history=3, seed=seed)
    first = Planner(segments=6, beams=1, candidates=1, keep_first=False).plan(START, Random(), history=3, seed=seed)
    assert search.value >= first.value - 1e-6
    assert search.record.values[-1] == pytest.approx(first.value, abs=1e-5)


def test_search_pays() -> None:
    values = [
        [Planner(segments=4, beams=b, candidates=a, keep_first=False).plan(START, Random(), history=3, seed=s).value
         for s in range(20)]
        for b, a in ((1, 1), (2, 4))
    ]  # fmt: skip
    assert sum(values[1]) > sum(values[0]) + 10


def test_same_seed_same_plan() -> None:
    plans = [Planner(segments=5).plan(START, Random(), history=3, seed=s) for s in (1, 1, 2)]
    assert torch.equal(plans[0].video, plans[1].video)
    assert not torch.equal(plans[0].video, plans[2].video)


@pytest.mark.parametrize("faithful", [False, True])
def test_a_replaced_beam_goes_on_from_what_it_copied(faithful: bool) -> None:
    seen: list[Tensor] = []
    world = Random()

    def imagine(history: Tensor, rngs: Sequence[torch.Generator]) -> Future:
        seen.append(history.clone())
        return world(history, rngs)

    quirks = replace(FAITHFUL, total="discounted") if faithful else Planner().quirks
    planner = Planner(beams=3, candidates=2, segments=3, replace_every=2, keep_first=False, quirks=quirks)
    (_, worst, best), *_ = planner.plan(START, imagine, history=3, seed=0).record.replaced
    assert worst != best
    assert torch.equal(seen[2][2 * worst], seen[2][2 * best]) != faithful


def test_plan_is_the_video_that_its_history_saw() -> None:
    plan = Planner(segments=6, replace_every=2).plan(START, Random(), history=3, seed=5)
    frames = torch.cat([START[None], plan.video.flatten(0, 1)])
    for h in range(6):  # each segment goes on from the end of the one before
        first, second = frames[2 * h + 1] - frames[2 * h], frames[2 * h + 2] - frames[2 * h]
        torch.testing.assert_close(second, 2 * first, rtol=1e-4, atol=1e-5)


def test_stops_when_a_beam_arrives() -> None:
    world = Random()
    plan = Planner(segments=50, stop_at=0.5).plan(START, world, history=3)
    assert world.calls < 50
    assert len(plan.scores) == world.calls
    assert float(plan.scores[-1]) >= 0.5


def test_restarts_are_plans_of_their_own() -> None:
    many = Planner(segments=4, restarts=3, keep_first=False)
    plan = many.plan(START, Random(), history=3, seed=0)
    assert len(plan.record.values) == 6
    assert {(w // 2, b // 2) for _, w, b in plan.record.replaced} <= {(i, i) for i in range(3)}
    alone = Planner(segments=4, keep_first=False).plan(START, Random(), history=3, seed=0)
    assert plan.value >= alone.value - 1e-6


def test_several_pictures_at_once_are_planned_as_alone() -> None:
    starts, seeds, world = [START, START + 0.3, START - 0.4], [1, 2, 3], Random()
    planner, asked = Planner(segments=12, replace_every=2, stop_at=0.7), []

    def imagine(history: Tensor, rngs: Sequence[torch.Generator], owners: Sequence[int]) -> Future:
        asked.append(list(owners))
        return world(history, rngs)

    together = planner.plan_many(starts, imagine, history=3, seeds=seeds)
    for start, seed, plan in zip(starts, seeds, together, strict=True):
        alone = planner.plan(start, Random(), history=3, seed=seed)
        torch.testing.assert_close(plan.video, alone.video)
        assert plan.record.chosen == alone.record.chosen
        assert plan.record.replaced == alone.record.replaced
    lengths = [len(plan.scores) for plan in together]
    assert len(set(lengths)) > 1  # they arrive at different times, and are asked about no longer then
    assert [len(set(owners)) for owners in asked] == [sum(n > i for n in lengths) for i in range(max(lengths))]


def test_discounts() -> None:
    plan = Planner(segments=3, gamma=0.5).plan(START, Random(), history=3)
    assert plan.value == pytest.approx(float((plan.scores * torch.tensor([1, 0.5, 0.25])).sum()), abs=1e-6)


def test_bad_settings_and_imaginations_are_named() -> None:
    with pytest.raises(ValueError, match="beams = 0"):
        Planner(beams=0)
    with pytest.raises(ValueError, match="gamma"):
        Planner(gamma=0.0)
    with pytest.raises(ValueError, match="not square"):
        grid((8, 8), 10)
    with pytest.raises(ValueError, match=r"one picture \[3, Y, X\]"):
        Planner().plan(torch.zeros(1, 3, 4, 4), Random(), history=3)

    def broken(**change: Any) -> Any:
        return lambda history, rngs: replace(Random()(history, rngs), **{k: f(len(rngs)) for k, f in change.items()})

    with pytest.raises(ValueError, match="video model imagines NaN"):
        Planner().plan(START, broken(video=lambda n: torch.full((n, 2, 3, 4, 4), float("nan"))), history=3)
    with pytest.raises(ValueError, match="value model imagines NaN"):
        Planner().plan(START, broken(scores=lambda n: torch.full((n,), float("inf"))), history=3)
    with pytest.raises(ValueError, match="resolution"):
        Planner().plan(START, broken(video=lambda n: torch.zeros(n, 2, 3, 8, 8)), history=3)
