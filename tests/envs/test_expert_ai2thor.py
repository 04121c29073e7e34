"""The household expert's decisions, on states made up for them."""

import numpy as np
import pytest

from envs import stretch
from envs.experts.ai2thor import FUMBLING, Ai2thorExpert, towards
from envs.experts.grasp import Grasp
from envs.types import EnvError, Observation


def state(**changes: object) -> dict[str, np.ndarray]:
    plain = {
        "agent": [0.0, 0.9, 0.0, 0.0], "worked": 1.0, "target": [0.6, 0.8, -0.05, 0.1, 0.1, 0.1],
        "target_visible": 0.0, "target_held": 0.0, "target_graspable": 0.0, "hand": [0.36, 0.15, -0.05],
        "arm": [0.1, 0.0, 0.0, 0.0],
    }  # fmt: skip
    return {k: np.asarray(v, dtype=float) for k, v in {**plain, **changes}.items()}


def observe(notes: dict | None = None, **changes: object) -> Observation:
    return Observation({}, np.zeros(1, np.float32), "go", state(**changes), notes or {})


def name(action: np.ndarray) -> str:
    return stretch.ACTIONS[int(action[0])][0]


def test_it_turns_then_walks_then_faces_what_it_sees_and_says_so() -> None:
    expert = Ai2thorExpert(task="ObjectNavType")
    with pytest.raises(EnvError, match="call reset"):
        expert.act(observe())
    expert.reset(observe({"route": [{"corners": [[0.0, 0.0], [2.0, 0.0]], "room": ""}]}))
    far = [3.0, 0.8, 0.0, 0.1, 0.1, 0.1]
    assert name(expert.act(observe(target=far))) == "rotate_right"
    assert name(expert.act(observe(target=far, agent=[0, 0.9, 0, 90.0]))) == "move_ahead"
    seen = {"target": far, "target_visible": 1.0}
    assert name(expert.act(observe(agent=[1.7, 0.9, 0, 60.0], **seen))) == "rotate_right"
    assert name(expert.act(observe(agent=[1.7, 0.9, 0, 84.0], **seen))) == "done"


def test_it_marks_rooms_at_the_end_of_each_leg() -> None:
    expert = Ai2thorExpert(task="RoomVisit")
    legs = [{"corners": [[0.0, 0.0]], "room": "room|1"}, {"corners": [[0.0, 0.05]], "room": "room|2"}]
    expert.reset(observe({"route": legs}))
    assert [name(expert.act(observe())) for _ in range(3)] == ["sub_done", "sub_done", "done"]


def test_it_goes_round_what_stops_it() -> None:
    expert = Ai2thorExpert(task="ObjectNavType")
    expert.reset(observe({"route": [{"corners": [[0.0, 0.0], [0.0, 2.0]], "room": ""}]}))
    assert name(expert.act(observe())) == "move_ahead"
    after = [name(expert.act(observe(worked=0.0))) for _ in range(3)]
    assert after[0].startswith("rotate")
    assert after[2] == "move_ahead"


def test_noise_is_a_chance_of_other_steps_and_repeats() -> None:
    def walk(noise: float, seed: int) -> list[str]:
        expert = Ai2thorExpert(noise=noise, seed=seed)
        expert.reset(observe({"route": [{"corners": [[0.0, 0.0], [0.0, 9.0]], "room": ""}]}))
        return [name(expert.act(observe(agent=[0, 0.9, 0.1 * i, 0.0]))) for i in range(40)]

    assert set(walk(0.0, 0)) == {"move_ahead"}
    assert 5 < sum(n != "move_ahead" for n in walk(0.5, 0)) < 30
    assert walk(0.5, 0) == walk(0.5, 0) != walk(0.5, 1)


def test_noise_while_it_grasps_is_a_pickup_too_soon_or_a_small_shift() -> None:
    """The right pickup, and `done`, are never replaced, so that an episode still ends well."""
    over = {"arm": [0.75, 0.24, 0, 0], "hand": [0.6, 0.95, -0.05]}
    expert = Ai2thorExpert(task="PickupType", noise=0.5, seed=0)
    expert.reset(observe({"route": []}))
    done = [name(expert.act(observe(**over))) for _ in range(60)]
    assert set(done) - {"move_arm_down", "move_arm_down_small"} == set(FUMBLING)
    assert 15 < sum(n in FUMBLING for n in done) < 45
    for state, wanted in (({"target_graspable": 1.0}, "pickup"), ({"target_held": 1.0}, "done")):
        asked = Ai2thorExpert(task="PickupType", noise=1.0, seed=0)
        asked.reset(observe({"route": []}))
        asked.act(observe(**over))
        assert name(asked.act(observe(None, **over, **state))) == wanted


def test_headings_may_miss_by_little() -> None:
    agent = np.array([0.0, 0.9, 0.0, 4.0])
    assert towards(agent, (0.0, 0.5), 0.5) == "move_ahead"  # 4 degrees miss half a metre by 3 cm
    assert towards(agent, (0.0, 5.0), 5.0) == "rotate_left_small"


def test_the_hand_is_raised_first_and_goes_elsewhere_if_it_cannot() -> None:
    grasp = Grasp()
    assert grasp.lift_first(state()) == "move_arm_up"
    assert grasp.lift_first(state(worked=0.0)) == ""
    assert Grasp().lift_first(state(hand=[0.36, 0.9, -0.05])) == ""
    below = Grasp()
    assert below.act(state(agent=[0, 0.9, 0, 30.0])) == "move_arm_up"
    assert below.act(state(agent=[0, 0.9, 0, 30.0], worked=0.0)) == "rotate_right"


def test_a_grasp_reaches_over_comes_down_and_takes() -> None:
    grasp = Grasp()
    up = {"arm": [0.75, 0.0, 0, 0], "hand": [0.36, 0.9, -0.05]}
    assert grasp.act(state(**up)) == "move_arm_out"
    over = {"arm": [0.75, 0.24, 0, 0], "hand": [0.6, 0.95, -0.05]}
    assert grasp.act(state(**over)).startswith("move_arm_down")
    assert grasp.act(state(target_graspable=1.0, **over)) == "pickup"
    assert grasp.act(state(target_held=1.0, **over)) == "done"
