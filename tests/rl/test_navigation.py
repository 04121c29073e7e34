"""Navigation metrics: equal to the recorded numbers of the original, and sound where it is not."""

from typing import Any

import numpy as np
import pytest

from rl.navigation import (
    Walked,
    aggregate,
    efficiency,
    episode_metrics,
    inside,
    marking,
    path_length,
    rooms_visited,
)
from tests.golden_files import golden_json

L_SHAPE = [(0, 0), (4, 0), (4, 1), (1, 1), (1, 3), (0, 3)]
EPSILON = 2e-8  # the original adds 1e-8 to success and 1e-9 to denominators


def test_golden_sel_and_spl() -> None:
    tables = golden_json("flare_eval/sel_spl.json")
    assert tables["sel"]
    assert tables["spl"]
    for case in tables["sel"]:
        assert efficiency(case["success"], case["optimal"], case["actual"]) == case["sel"], case
    for case in tables["spl"]:
        assert efficiency(case["success"], case["optimal_distance"], case["travelled_distance"]) == case["spl"], case


def test_golden_episodes() -> None:
    recorded = golden_json("flare_eval/sel_spl.json")["episode_metrics"]
    for case in recorded["cases"]:
        worked = [bool(v) for v in case["last_action_success"][1:]]
        assert len(worked) == case["n_actions"]
        positions = np.array(case["trajectory_xyz"])
        walked = Walked(case["task_type"], case["success"], positions, worked, recorded["rooms"], case["expert_length"])
        figures = episode_metrics(walked, outside_counts=True)
        expected = {k: v for k, v in case["expected"].items() if k != "num_eps"}
        assert figures == pytest.approx(expected, abs=EPSILON)
        fixed = episode_metrics(walked)["total_rooms_visited"]
        outside = any(not any(inside(x, z, c) for c in recorded["rooms"].values()) for x, _, z in positions)
        assert fixed == figures["total_rooms_visited"] - outside
        assert episode_metrics(walked)["percentage_rooms_visited"] <= 1


def test_golden_scripted_tasks() -> None:
    """SEL, SPL, coverage and marks at the end of 30 scripted tasks."""
    cases = golden_json("flare_eval/rewards.json")["cases"]
    for case in cases:
        expected, info = case["expected"]["metrics_at_end"], case["task_info"]
        state: dict[str, Any] = dict(case["initial_state"])
        path, marks = [state["agent"]], []
        for step in case["steps"]:
            if step["action"] == "sub_done":
                marks.append(_room(path[-1], case["rooms"]))
            state |= step["state_after"] or {}
            path.append(state["agent"])
        success = case["expected"]["successful"]
        if "sel" in expected:
            assert efficiency(success, info.get("expert_length", -1), len(case["steps"])) == expected["sel"], case[
                "name"
            ]
        if "spl" in expected:
            best = _best(case)
            assert efficiency(success, best, path_length(np.array(path))) == pytest.approx(expected["spl"]), case[
                "name"
            ]
        if "coverage" in expected:
            coverage, share = marking(marks, info["num_rooms_in_house"])
            assert (coverage, share) == pytest.approx((expected["coverage"], expected["sub_done_acc"]))


def _room(position: list[float], rooms: dict[str, Any]) -> str | None:
    return next((name for name, corners in rooms.items() if inside(position[0], position[2], corners)), None)


def _best(case: dict[str, Any]) -> float:
    """Geodesic for ObjectNav and RoomNav; straight to the nearest target, in three dimensions, for Fetch and Pickup."""
    if case["task_type"] in ("PickupType", "FetchType"):
        start, objects = np.array(case["initial_state"]["agent"]), case["initial_state"]["objects"]
        targets = [i for ids in case["task_info"]["broad_synset_to_object_ids"].values() for i in ids]
        return min(float(np.linalg.norm(start - np.array(objects[i]))) for i in targets)
    return case["initial_state"]["geodesic"]


def test_points_in_a_room_with_a_corner() -> None:
    assert inside(0.5, 2.5, L_SHAPE)
    assert inside(3.5, 0.5, L_SHAPE)
    assert not inside(2.0, 2.0, L_SHAPE)
    assert not inside(-0.1, 0.5, L_SHAPE)


def test_height_does_not_count() -> None:
    assert path_length(np.array([[0, 0, 0], [3, 5, 4], [3, 9, 4]])) == 5.0
    assert path_length(np.zeros((1, 3))) == 0.0


def test_outside_is_a_room_only_if_asked_for() -> None:
    rooms = {"a": L_SHAPE}
    there = np.array([[0.5, 0, 0.5], [9, 0, 9], [3, 0, 0.5]])
    assert rooms_visited(there, rooms) == 1
    assert rooms_visited(there, rooms, outside_counts=True) == 2


def test_marks() -> None:
    assert marking([], 3) == (0.0, None)
    assert marking(["a", "a", None, "b"], 4) == (0.5, 0.5)


def walked(task: str, success: bool, steps: int, category: str = "", expert: int | None = 2) -> Walked:
    return Walked(task, success, np.zeros((steps + 1, 3)), [True] * steps, {"a": L_SHAPE}, expert, category=category)


def test_tables() -> None:
    table = aggregate([walked("Fetch", True, 4, "mug"), walked("Fetch", False, 6, "cup"), walked("RoomNav", True, 2)])
    assert set(table) == {"all", "Fetch", "Fetch/mug", "Fetch/cup", "RoomNav"}
    assert table["Fetch"]["episodes"] == 2
    assert table["Fetch"]["success"] == 0.5
    assert table["Fetch"]["sel"] == 0.25
    assert table["Fetch"]["eps_len"] == 5
    assert (table["Fetch"]["eps_len_succ"], table["Fetch"]["eps_len_fail"]) == (4, 6)
    assert table["all"]["sel"] == pytest.approx(0.5)
    assert table["Fetch/mug"]["success_low"] < 1 == table["Fetch/mug"]["success_high"]
    unknown = aggregate([walked("Fetch", True, 4, expert=None), walked("Fetch", True, 4)])
    assert unknown["Fetch"]["sel"] == 0.5  # of the one that has it


def test_lengths_must_fit() -> None:
    with pytest.raises(ValueError, match="3 positions for 3 actions; expected one more"):
        Walked("Fetch", True, np.zeros((3, 3)), [True] * 3, {})
