"""The evaluation loop: the same noise twice, simulator failures apart, files and videos."""

import csv
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import pytest
import torch

import rl.records
from envs.build import build
from envs.film import Film, Take
from envs.types import EnvConfig, EnvError
from envs.vector import SimVector
from pretrained.checkpoint import load_policy, save
from rl.collect import TRAINING_SEEDS
from rl.evaluate import ATTEMPTS, Episodes, EvaluateRun, evaluate, summarise
from rl.proposals.constant import Constant
from rl.sequential import rate_test
from rl.types import EpisodeRecord
from tests.toy_parts import checkpoint, make_policy, policy_node, toy, toy_spec

EASY = {"hold": 1, "max_steps": 30}
WALK = {"hold": 1, "max_steps": 60, "discrete": True}  # a drunkard's walk wins some


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("run") / "step_000001", "flow", execute=2)


@pytest.fixture(scope="module")
def drunkard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its output layer starts at zero: all moves are equally likely."""
    folder, node, spec = tmp_path_factory.mktemp("walk") / "step_000001", policy_node("categorical"), toy_spec(**WALK)
    save(folder, build(node, env=spec), node=node, env=spec)
    return folder


def run(trained: Path, out: Path, config: EnvConfig | None = None, **kwargs: Any) -> dict[str, Any]:
    settings = {"episodes": 6, "workers": 2, "videos": 0, "quiet": True, **kwargs}
    return evaluate(EvaluateRun(str(trained), config or toy(**EASY), str(out), **settings))


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]


def test_the_same_checkpoint_twice_gives_the_same_episodes(drunkard: Path, tmp_path: Path) -> None:
    """However many simulators there are."""
    settings: dict[str, Any] = {"greedy": False, "episodes": 48, "seed_start": 40}
    summaries = [run(drunkard, tmp_path / str(n), toy(**WALK), workers=n, **settings) for n in (1, 3)]
    one, three = (records(tmp_path / str(n)) for n in (1, 3))
    assert one == three
    assert [(r["task"], r["seed"]) for r in one] == [(t, 40 + k) for k in range(24) for t in ("red", "blue")]
    assert 0 < summaries[0]["success"] == summaries[1]["success"] < 1
    assert len({r["length"] for r in one}) > 3  # not all the same by accident


def test_an_early_end_leaves_what_it_was_decided_by(drunkard: Path, tmp_path: Path) -> None:
    """Episodes count in the order of the plan, whichever of them is quicker."""
    settings: dict[str, Any] = {"greedy": False, "episodes": 30, "workers": 3}
    run(drunkard, tmp_path / "all", toy(**WALK), **settings)
    summary = run(drunkard, tmp_path / "some", toy(**WALK), stop={"low": 0.1, "high": 0.9}, **settings)
    whole, some = records(tmp_path / "all"), records(tmp_path / "some")
    outcomes, test = [r["success"] for r in whole], rate_test(0.1, 0.9)
    needed = next(n for n in range(1, 31) if test.decide(outcomes[:n]))
    assert 1 < needed < 30
    assert some == whole[:needed]
    stopped = summary["stopped"]
    assert (stopped["decision"], stopped["planned"]) == (test.decide(outcomes), 30)
    assert stopped["low"] <= summary["low"] < summary["high"] < stopped["high"]
    with pytest.raises(ValueError, match="expected low and high"):
        run(drunkard, tmp_path / "none", stop={"low": 0.1})


def test_noise_belongs_to_the_episode(drunkard: Path) -> None:
    vector = SimVector([toy(**WALK)] * 2)
    try:
        policy = load_policy(drunkard)
        plans = [[("red", 1), ("blue", 2), ("red", 3)], [("red", 3), ("red", 1)]]
        a, b = (Episodes(vector, policy, plan, greedy=False).run() for plan in plans)
        assert [b[0], b[1]] == [a[2], a[0]]
    finally:
        vector.close()


def test_hints_belong_to_the_episode_and_are_renewed(drunkard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = SimVector([toy(**WALK)])
    try:
        policy: Any = load_policy(drunkard)
        encode, seen = policy.encode, []
        monkeypatch.setattr(policy, "encode", lambda obs: seen.append(float(obs.hints["plan"][0, 0])) or encode(obs))
        proposal = Constant(value=[0.0], noise=1.0, every=2)
        both = Episodes(vector, policy, [("red", 1), ("blue", 2)], greedy=False, proposal=proposal).run()
        first, seen[:] = list(seen), []
        alone = Episodes(vector, policy, [("blue", 2)], greedy=False, proposal=proposal).run()
        assert alone[0] == both[1]
        assert first[-len(seen) :] == seen
        assert len(seen) >= 3
        assert seen[0] == seen[1] != seen[2]
        assert first[-len(seen) - 1] != seen[0]  # the episode before had others
    finally:
        vector.close()


def test_files_and_summary(trained: Path, tmp_path: Path) -> None:
    summary = run(trained, tmp_path, command="evaluate me")
    rows = records(tmp_path)
    with (tmp_path / "episodes.csv").open() as f:
        table = list(csv.DictReader(f))
    assert [r["seed"] for r in rows] == [int(r["seed"]) for r in table] == [0, 0, 1, 1, 2, 2]
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["episodes"] == 6
    assert summary["success"] == sum(r["success"] for r in rows) / 6
    assert summary["low"] <= summary["success"] <= summary["high"]
    assert {t: v["episodes"] for t, v in summary["tasks"].items()} == {"red": 3, "blue": 3}
    assert (summary["env"], summary["command"], summary["restarts"]) == ("toy/reach", "evaluate me", 0)
    assert not list(tmp_path.glob("*.part"))


def test_the_summary_is_written_last(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(*args: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(rl.records.csv.DictWriter, "writerows", torn)
    with pytest.raises(OSError, match="disk full"):
        run(trained, tmp_path)
    assert (tmp_path / "episodes.jsonl").exists()
    assert not (tmp_path / "summary.json").exists()


def test_videos_of_the_first_episodes(trained: Path, tmp_path: Path) -> None:
    summary = run(trained, tmp_path, videos=2)
    rows, videos = records(tmp_path), sorted((tmp_path / "videos").iterdir())
    words = ["success" if r["success"] else "failure" for r in rows]
    assert [v.name.rsplit(".", 1)[0] for v in videos] == [f"{k:03d}_seed0_{words[k]}" for k in range(2)]
    assert all(v.stat().st_size > 500 for v in videos)
    assert summary["videos"] == {"shown": {"top": [16, 16]}, "missing": {}}


def test_videos_show_a_camera_that_the_policy_does_not_see(trained: Path, tmp_path: Path) -> None:
    """The checkpoint knows one camera of 16x16: that it is accepted shows that it is given nothing else."""
    plain = run(trained, tmp_path / "plain")
    config = replace(toy(**EASY), video={"hand": (96, 64), "top": (48, 48)})
    summary = run(trained, tmp_path / "film", config, videos=1)
    assert (summary["cameras"], summary["videos"]["missing"]) == ({"top": [16, 16]}, {})
    assert summary["videos"]["shown"] == {"hand": [96, 64], "top": [48, 48]}
    assert records(tmp_path / "film") == records(tmp_path / "plain")
    assert summary["success"] == plain["success"]
    (video,) = (tmp_path / "film" / "videos").glob("*.mp4")
    frames = imageio.mimread(video, memtest=False)
    assert len(frames) == records(tmp_path / "film")[0]["length"] + 1
    assert frames[0].shape == (192, 2 * (64 + 4 + 96), 3)  # 48 and 96 rows, enlarged to 192


def test_videos_of_discrete_actions_say_what_was_decided(
    drunkard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[list[str]] = []
    monkeypatch.setattr("rl.videos.write_video", lambda path, frames, *, captions, **_: said.append(captions))
    run(drunkard, tmp_path, toy(**WALK), episodes=1, videos=1)
    (captions,) = said
    (row,) = records(tmp_path)
    assert len(captions) == row["length"] + 1
    assert captions[-1] == ("success" if row["success"] else "failure")
    moves = toy_spec(**WALK).num_actions
    assert all(f"{100 / moves:.0f} %" in caption for caption in captions[:-1])


def test_a_camera_that_is_not_there_is_refused_before_the_first_episode(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="'nose'"):
        run(trained, tmp_path, replace(toy(**EASY), video={"nose": (64, 64)}), videos=1)
    assert not (tmp_path / "episodes.jsonl").exists()


def test_episodes_keep_the_actions_of_their_videos(trained: Path) -> None:
    vector = SimVector([toy(**EASY)])
    try:
        episodes = Episodes(vector, load_policy(trained), [("red", 0), ("red", 1)], videos=1)
        records = episodes.run()
        (take,) = episodes.takes.values()
        assert len(take.actions) == records[0].length
        assert (take.task, take.seed, take.success) == ("red", 0, records[0].success)
    finally:
        vector.close()


def test_a_replay_that_fails_costs_its_video_only(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    honest = Film.play

    def torn(self: Film, take: Take) -> dict[str, Any]:
        return honest(self, replace(take, success=not take.success) if take.task == "red" else take)

    monkeypatch.setattr(Film, "play", torn)
    summary = run(trained, tmp_path, videos=2)
    assert summary["episodes"] == 6
    (missing,) = summary["videos"]["missing"]
    assert missing.startswith("000_")
    assert "expected a simulator that repeats itself" in caplog.text
    assert [v.name[:3] for v in (tmp_path / "videos").iterdir()] == ["001"]


# --- failures of the simulator ---


@pytest.mark.parametrize("fault", ["crash_at", "nan_at"])
def test_a_failed_simulator_is_tried_again_and_counted_apart(trained: Path, tmp_path: Path, fault: str) -> None:
    """Seed 1 always breaks: both of its episodes are given up after three attempts each."""
    summary = run(trained, tmp_path, toy(**EASY, **{fault: 1}, fault_seed=1))
    assert (summary["episodes"], summary["infrastructure_failures"]) == (4, 2)
    rows = records(tmp_path)
    assert [r["valid"] for r in rows] == [True, True, False, False, True, True]
    assert all(r["cause"] and not r["success"] for r in rows if not r["valid"])
    assert summary["success"] == sum(r["success"] for r in rows) / 4
    assert summary["restarts"] >= 2 * ATTEMPTS - 2  # a row that is not needed again stays down


def test_a_failure_that_passes_costs_nothing(drunkard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"config": toy(**WALK), "greedy": False}
    clean = run(drunkard, tmp_path / "clean", **settings)
    sent, honest = [], SimVector.send_step

    def once(self: SimVector, i: int, *args: Any) -> None:
        sent.append(i)
        if len(sent) == 3:
            os.kill(self.pids()[i], signal.SIGKILL)
        honest(self, i, *args)

    monkeypatch.setattr(SimVector, "send_step", once)
    again = run(drunkard, tmp_path / "again", **settings)
    assert (again["infrastructure_failures"], again["restarts"]) == (0, 1)
    assert records(tmp_path / "again") == records(tmp_path / "clean")
    assert again["success"] == clean["success"]


def test_nothing_evaluated_is_an_error(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="nothing was evaluated: all 2 episodes failed.*crashed"):
        run(trained, tmp_path, toy(crash_at=0), episodes=2)
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=lambda c: pytest.fail(c))
    assert (summary["episodes"], summary["success"]) == (0, None)


def test_a_checkpoint_for_another_environment_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cameras"):
        run(trained, tmp_path, toy(size=[24, 24]))
    assert not (tmp_path / "summary.json").exists()
    with pytest.raises(ValueError, match="no checkpoint"):
        run(tmp_path / "nowhere", tmp_path)


def test_seeds_of_training_are_refused() -> None:
    for start, episodes in ((0, 0), (-1, 5), (TRAINING_SEEDS - 1, 2)):
        with pytest.raises(ValueError, match="larger seeds belong to training"):
            EvaluateRun("", toy(), "", seed_start=start, episodes=episodes)


def test_summary_of_records() -> None:
    rows = [EpisodeRecord("e", "a", s, s < 3, 10 + s, 1.0) for s in range(4)]
    rows.append(EpisodeRecord("e", "b", 9, False, 3, 0.0, valid=False, cause="hung: x"))
    s = summarise(rows)
    assert (s["success"], s["episodes"], s["infrastructure_failures"], s["mean_length"]) == (0.75, 4, 1, 11.5)
    assert s["tasks"]["a"]["success"] == 0.75
    assert s["tasks"]["b"]["episodes"] == 0


def test_memory_starts_afresh_in_every_episode() -> None:
    vector = SimVector([toy(**EASY)])
    try:
        policy = make_policy("gaussian", execute=2, memory="gru")
        with torch.no_grad():
            alone = Episodes(vector, policy, [("blue", 5)], greedy=False).run()
            after = Episodes(vector, policy, [("red", 4), ("blue", 5)], greedy=False).run()
        assert after[1] == alone[0]
    finally:
        vector.close()


def test_a_task_inside_an_episode_starts_without_history_or_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the instruction changes, the policy forgets, and the rest of its chunk is not executed."""
    vector = SimVector([toy(relay=True, hold=1, max_steps=60, size=[16, 16])])
    try:
        policy = make_policy("gaussian", execute=4, memory="gru", history=2)
        episodes = Episodes(vector, policy, [("red", s) for s in range(12)], greedy=False, videos=12)
        seen: list[tuple[str, bool, bool]] = []
        decide, act = episodes._decide, policy.act
        noise = torch.Generator().manual_seed(0)

        def wander(*args: Any, **kwargs: Any) -> Any:
            decision, memory = act(*args, **kwargs)
            move = 2 * torch.rand(decision.chunk[:, :1].shape, generator=noise) - 1
            return decision._replace(chunk=move.expand_as(decision.chunk)), memory

        monkeypatch.setattr(policy, "act", wander)

        def note(rows: list[int]) -> None:
            images = episodes.history.images["top"][0]
            fresh = bool((images[0] == images[1]).all()), all(not bool(v[0].any()) for v in episodes.memory.values())
            seen.append((episodes.history.texts[0], *fresh))
            decide(rows)

        monkeypatch.setattr(episodes, "_decide", note)
        with torch.no_grad():
            done = episodes.run()
    finally:
        vector.close()
    changes = [i for i in range(1, len(seen)) if seen[i][0] != seen[i - 1][0]]
    assert any(record.reward >= 1 for record in done)
    assert changes
    for i in changes:
        assert seen[i][1:] == (True, True)
    assert any(not forgot for _, _, forgot in seen)
    for record, take in zip(done, episodes.takes.values(), strict=True):
        assert len(take.actions) == record.length
