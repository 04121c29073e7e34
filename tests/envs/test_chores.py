"""Tasks of SPOC and FLaRe: success and reward terms against recorded figures, written tasks, houses, drawn tasks."""

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from envs import stretch
from envs.chores.houses import HouseFile, check_house, make_houses, room_at, rooms_of, to_enter
from envs.chores.judge import SUCCESS, Judge, View
from envs.chores.plan import TARGET, Plan
from envs.chores.route import Leg, count_actions
from envs.chores.route import plan as find_way
from envs.chores.sample import Place, Thing, read_things, sample
from envs.chores.tasks import SAMPLED, TYPES, Chore, TaskFile, check_type, horizon, read_spec
from envs.chores.words import noun
from envs.thor_robot import DONE, PICKUP, SUB_DONE
from envs.types import EnvError
from tests.golden_files import golden_json

SQUARE = [(0.0, 0.0), (4.0, 0.0), (4.0, 4.0), (0.0, 4.0)]
NEXT = [(4.0, 0.0), (8.0, 0.0), (8.0, 4.0), (4.0, 4.0)]


def recorded() -> list[dict[str, Any]]:
    return golden_json("flare_eval/rewards.json")["cases"]


class World:
    """A scripted world of the recordings."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.state = dict(case["initial_state"])
        self.rooms = {k: [tuple(p) for p in v] for k, v in (case["rooms"] or {}).items()}
        info = case["task_info"]
        kind = case["task_type"]
        targets: tuple[str, ...] = ()
        rooms: tuple[str, ...] = ()
        if "synsets" in info:
            targets = tuple(info["broad_synset_to_object_ids"][info["synsets"][0]])
        if "room_ids" in info:
            rooms = tuple(info["room_ids"][info["room_types"][0]])
        self.chore = Chore(kind, "do it", targets, rooms)

    def view(self) -> View:
        s = self.state
        x, y, z = s["agent"]
        objects = [s["objects"][t] for t in self.chore.targets if t in s.get("objects", {})]
        distance = min((math.dist(o, s["agent"]) for o in objects), default=math.inf)
        if self.chore.rooms:
            middles = [np.mean(self.rooms[r], axis=0) for r in self.chore.rooms]
            distance = min(math.dist(m, (x, z)) for m in middles)
        hand = min((v for k, v in s.get("arm_dist", {}).items() if k in self.chore.targets), default=math.inf)
        return View(
            (x, y, z),
            room_at(self.rooms, x, z),
            distance,
            hand,
            frozenset(s.get("visible_within_2m", ())),
            frozenset(s.get("held", ())),
            frozenset(s.get("hand_sphere", ())),
        )


@pytest.mark.parametrize("case", recorded(), ids=lambda c: c["name"])
def test_recorded_rewards(case: dict[str, Any]) -> None:
    """The terms with the recorded weights add up to the recorded rewards, step by step."""
    world, config = World(case), case["reward_config"]
    kind, shaped = case["task_type"], case["reward_config"]["shaping_weight"]
    judge = Judge(world.chore, num_rooms=len(world.rooms), first=world.view())
    success = False
    for number, step in enumerate(case["steps"]):
        before = dict(judge.totals)
        world.state.update(step["state_after"] or {})
        verdict = judge.after(step["action_index"], step["env_success"], world.view())
        change = {k: v - before[k] for k, v in judge.totals.items()}
        late = not verdict.ended and number + 1 >= case["max_steps"]
        reward = verdict.reward + config["step_penalty"] + config["failed_stop_reward"] * change["gave_up"]
        reward += config["reached_horizon_reward"] * late
        reward += shaped * (change["reached"] if kind in ("PickupType", "FetchType") else change["approached"])
        reward += shaped * change["explored"]
        if shaped and kind in ("ObjectNavType", "RoomNav"):  # the original's terms hang together, ours do not
            reward += config["failed_action_penalty"] * change["collisions"]
        assert reward == pytest.approx(case["expected"]["rewards"][number], abs=1e-9), f"step {number}: {step}"
        assert (verdict.ended or late) == case["expected"]["done"][number]
        assert verdict.worked == case["expected"]["last_action_success"][number]
        success = verdict.success
    assert success == case["expected"]["successful"]
    if "rooms_marked" in case["expected"]:
        assert sorted(judge.marked) == case["expected"]["rooms_marked"]
        assert judge.marks == case["expected"]["metrics_at_end"]["num_sub_done"]


def test_a_pickup_is_no_collision_and_a_blocked_arm_is_one() -> None:
    view = View((0.0, 0.0, 0.0))
    judge = Judge(Chore("FetchType", "", ("Mug|1",)), num_rooms=1, first=view)
    judge.after(PICKUP, False, view)
    assert judge.totals["collisions"] == 0
    judge.after(stretch.action_index("yp"), False, view)
    judge.after(stretch.action_index("m"), False, view)
    assert judge.totals["collisions"] == 2


def test_rooms_are_marked_once_and_never_outside() -> None:
    judge = Judge(Chore("RoomVisit", ""), num_rooms=2, first=View((0.0, 0.0, 0.0)))
    rooms = ["a", "a", None, "b"]
    assert [judge.after(SUB_DONE, True, View((0.0, 0.0, 0.0), r)).worked for r in rooms] == [True, False, False, True]
    end = judge.after(DONE, True, View((0.0, 0.0, 0.0), "b"))
    assert (end.success, end.reward) == (True, SUCCESS)


# --- written tasks ---


def written(**changes: Any) -> dict[str, Any]:
    spec = {
        "task_type": "PickupType",
        "house_index": 3,
        "natural_language_spec": "Grab a Mug",
        "agent_starting_position": [1.0, 0.9, 2.0],
        "agent_y_rotation": 90.0,
        "synsets": ["mug.n.04"],
        "broad_synset_to_object_ids": {"mug.n.04": ["Mug|1", "Cup|2"]},
        "expert_length": 17,
    }
    return {**spec, **changes}


def test_a_written_task_is_read() -> None:
    chore = read_spec(written())
    assert chore == Chore("PickupType", "grab a mug", ("Mug|1", "Cup|2"), (), "mug.n.04", (1.0, 0.9, 2.0, 90.0), 17)
    assert read_spec(written(task_type="SimpleExploreHouse")).task_type == "RoomVisit"
    rooms = {"room_types": ["Bedroom"], "room_ids": {"Bedroom": ["room|1"]}, "task_type": "RoomNav"}
    assert read_spec(written(**rooms)).rooms == ("room|1",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task_type": "ObjectNavTyp"}, "task type 'ObjectNavTyp' is unknown; expected one of ObjectNavType"),
        ({"synsets": []}, "not whole"),
        ({"agent_starting_position": [1, 2]}, "not whole"),
    ],
)
def test_a_broken_task_is_named(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text(json.dumps(written()) + "\n" + json.dumps(written(**changes)) + "\n")
    with pytest.raises(EnvError, match=f"tasks.jsonl, line 2.*{words}"):
        TaskFile(str(tmp_path / "tasks.jsonl"))


def test_a_task_file_deals_by_seed_and_type(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "tasks.jsonl.gz", "wt") as file:
        for house in (3, 7):
            file.write(json.dumps(written(house_index=house)) + "\n")
    file_ = TaskFile(str(tmp_path / "tasks.jsonl.gz"))
    assert [file_.pick("PickupType", seed)[0] for seed in (0, 1, 2)] == [3, 7, 3]
    with pytest.raises(EnvError, match="has no RoomNav, only .'PickupType'"):
        file_.pick("RoomNav", 0)
    with pytest.raises(EnvError, match="does not exist"):
        TaskFile(str(tmp_path / "none.jsonl"))


def test_horizons_and_legacy_names() -> None:
    assert [horizon(t) for t in ("RoomVisit", "FetchType", "ObjectNavRoom")] == [1000, 600, 600]
    assert check_type("ObjectNavOpenVocab") == "ObjectNavDescription"


# --- houses ---


def house(number: int = 0, schema: str = "1.0.0") -> dict[str, Any]:
    polygon = [{"x": x, "y": 0.0, "z": z} for x, z in SQUARE]
    rooms = [{"id": "room|1", "roomType": "Kitchen", "floorPolygon": polygon}]
    return {"rooms": rooms, "objects": [], "doors": [], "walls": [], "number": number, "metadata": {"schema": schema}}


def test_houses_of_a_file_are_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path / "cache"))
    with gzip.open(tmp_path / "all.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(house(i)) + "\n" for i in range(25))
    houses = HouseFile(str(tmp_path / "all.jsonl.gz"))
    members = {s: {houses.get(s, i)["number"] for i in range(houses.count(s))} for s in ("train", "val", "test")}
    assert members["val"] == {0, 10, 20}
    assert sum(len(m) for m in members.values()) == 25 == len(set.union(*members.values()))
    assert houses.get("val", houses.number(20, "val"))["number"] == 20
    assert houses.index(houses.number(20, "val"), "val") == 20
    with pytest.raises(EnvError, match="house 5 is not in split 'val'"):
        houses.number(5, "val")


def test_houses_of_a_folder_and_of_one_file(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 2)):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(house(i)) + "\n" for i in range(count)))
    houses = HouseFile(str(tmp_path))
    assert (houses.count("train"), houses.count("val")) == (3, 2)
    with pytest.raises(EnvError, match="has no split 'test', only"):
        houses.count("test")
    (tmp_path / "one.json").write_text(json.dumps(house(9), indent=1))
    assert HouseFile(str(tmp_path / "one.json")).get("val", 0)["number"] == 9


def test_made_houses_have_the_rooms_asked_for() -> None:
    houses = make_houses("generated", rooms=1)
    assert [len(houses.get(split, 5)["rooms"]) for split in ("train", "val")] == [1, 1]
    assert houses.get("train", 5)["id"] != houses.get("val", 5)["id"]
    with pytest.raises(EnvError, match="rooms=7; expected 1 to 6"):
        make_houses("generated", rooms=7)
    with pytest.raises(EnvError, match="houses is 'mine.jsonl'; leave rooms null"):
        make_houses("mine.jsonl", rooms=2)


def test_bad_houses_are_named(tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="there are no houses at .*train.jsonl.gz"):
        HouseFile(str(tmp_path / "nowhere"))
    (tmp_path / "old.jsonl").write_text(json.dumps(house(schema="0.9.0")) + "\nnot json\n")
    houses = HouseFile(str(tmp_path / "old.jsonl"))
    with pytest.raises(EnvError, match="old.jsonl, house 0: its schema is 0.9.0, expected 1.0.0"):
        houses.get("train", 0)
    with pytest.raises(EnvError, match="old.jsonl, house 1: not JSON"):
        houses.get("train", 1)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 500)[:30])
    with pytest.raises(EnvError, match="cut.jsonl.gz cannot be unpacked"):
        HouseFile(str(tmp_path / "cut.jsonl.gz"))
    with pytest.raises(EnvError, match="this is no ProcTHOR house"):
        check_house([1], "x.json")


def test_rooms_by_position() -> None:
    rooms = rooms_of(house())
    assert room_at(rooms, 1.0, 3.0) == "room|1"
    assert room_at(rooms, 5.0, 3.0) is None


# --- drawn tasks ---


def thing(name: str, x: float, z: float, y: float = 0.8, size: float = 0.2, *, on: tuple[str, ...] = ()) -> Thing:
    room = "room|0" if x < 4 else "room|1"
    return Thing(name, name.split("|")[0], np.array([x, y, z]), np.full(3, size), True, on, room)


def place(*things: Thing, blocked: tuple[str, ...] = ()) -> Place:
    grid = np.array([[x, 0.9, z] for x in np.arange(0.25, 8, 0.25) for z in np.arange(0.25, 4, 0.25)])
    known = {t.object_id: t for t in things}
    return Place(
        known,
        {"room|0": SQUARE, "room|1": NEXT},
        {"room|0": "Kitchen", "room|1": "Bedroom"},
        grid,
        lambda start, name: (
            None if name in blocked else [(start[0], start[2]), (known[name].centre[0], known[name].centre[2])]
        ),
    )


FULL = (
    thing("Mug|1", 1, 1, on=("Table|1",)),
    thing("Mug|2", 6, 1, size=0.3),
    thing("Mug|3", 7, 3, size=0.1),
    thing("Bowl|1", 6.5, 1.2),
    thing("Apple|1", 6.2, 1.5),
    thing("Table|1", 1, 1, y=0.4, size=1.0),
)


@pytest.mark.parametrize("kind", SAMPLED)
def test_every_kind_of_task_can_be_drawn_and_repeats(kind: str) -> None:
    chores = [sample(kind, place(*FULL), np.random.default_rng(seed)) for seed in range(12)]
    again = [sample(kind, place(*FULL), np.random.default_rng(seed)) for seed in range(12)]
    assert chores == again
    assert len({c.start for c in chores}) > 6
    for chore in chores:
        assert chore.task_type == kind
        assert "{" not in chore.instruction
        assert chore.instruction == chore.instruction.lower()
        assert chore.start is not None
        if chore.targets:
            names = {noun(t.split("|")[0]) for t in chore.targets}
            assert kind == "ObjectNavAffordance" or any(n in chore.instruction for n in names)


def test_neighbouring_episodes_do_not_end_in_the_same_house() -> None:
    endless = [to_enter(number, 2**30) for number in range(50)]
    assert [houses[0] for houses in endless] == list(range(50))
    assert len({h for houses in endless for h in houses}) == sum(len(houses) for houses in endless)
    assert sorted(to_enter(3, 20)) == list(range(20))  # of few, each is tried
    assert set(to_enter(7, 1)) == {0}


def test_starts_are_far_from_what_is_sought_and_near_what_is_picked_up() -> None:
    rng = np.random.default_rng(0)
    here = place(thing("Mug|1", 1, 1))
    away = [sample("ObjectNavType", here, rng).start for _ in range(20)]
    near = [sample("PickupType", here, rng).start for _ in range(20)]
    assert min(math.dist((s[0], s[2]), (1, 1)) for s in away if s) > 2
    assert max(math.dist((s[0], s[2]), (1, 1)) for s in near if s) <= 1.3
    chosen = [sample("PickupType", here, rng, pickup_start=(0.7, 0.8)).start for _ in range(20)]
    assert all(s and 0.7 <= math.dist((s[0], s[2]), (1, 1)) <= 0.8 for s in chosen)


def test_what_is_picked_up_lies_to_the_side_that_a_recipe_asks_for() -> None:
    rng = np.random.default_rng(0)
    here = place(thing("Mug|1", 1, 1))

    def sides(**options: Any) -> list[float]:
        """Degrees to the right of straight ahead at which the mug lies."""
        starts = [sample("PickupType", here, rng, **options).start for _ in range(30)]
        return [
            (math.degrees(math.atan2(1 - s[0], 1 - s[2])) - s[3] + 180) % 360 - 180 for s in starts if s is not None
        ]

    usual, right = sides(), sides(pickup_facing=(50.0, 130.0))
    assert len(usual) == len(right) == 30
    assert -64 < min(usual) < 0 < max(usual) < 64  # yaws are multiples of 6 degrees
    assert 46 < min(right) < 70 < 110 < max(right) < 134


def test_what_cannot_be_reached_is_not_asked() -> None:
    rng = np.random.default_rng(0)
    two = place(thing("Mug|1", 1, 1), thing("Bowl|1", 7, 3), blocked=("Mug|1",))
    assert {sample("ObjectNavType", two, rng).category for _ in range(10)} == {"Bowl"}
    with pytest.raises(EnvError, match="none of .'Mug'. can be reached in this house; choose another"):
        sample("FetchType", place(thing("Mug|1", 1, 1), blocked=("Mug|1",)), rng)
    with pytest.raises(EnvError, match="can be reached"):
        sample("PickupType", place(thing("Mug|1", 1, 1, y=2.0)), rng)  # above the arm's range
    with pytest.raises(EnvError, match="bring them in a task file"):
        sample("ObjectNavDescription", place(*FULL), rng)
    assert set(TYPES) - set(SAMPLED) == {"ObjectNavDescription"}


def test_things_are_read_from_metadata() -> None:
    entry = {
        "objectId": "Mug|1",
        "objectType": "Mug",
        "position": {"x": 1, "y": 1, "z": 1},
        "axisAlignedBoundingBox": {"center": {"x": 1, "y": 0.8, "z": 1}, "size": {"x": 0.1, "y": 0.2, "z": 0.3}},
        "pickupable": True,
        "parentReceptacles": None,
    }
    mug = read_things([entry], {"room|0": SQUARE})["Mug|1"]
    assert (mug.room, mug.pickupable, mug.on) == ("room|0", True, ())
    assert mug.centre.tolist() == [1, 0.8, 1]


def test_a_route_is_counted_in_actions() -> None:
    # 1 m ahead: five moves; a quarter turn: three turns; 0.5 m: two or three moves; done.
    leg = Leg([(0.0, 0.0), (0.0, 1.0), (0.5, 1.0)])
    assert count_actions([leg], 0.0) == 5 + 3 + 2 + 1
    assert count_actions([leg], 180.0) == 6 + 5 + 3 + 2 + 1


def test_what_is_at_hand_is_picked_up_without_a_step() -> None:
    class Straight:
        def ask(self, action: str, *, position: Any, target: Any, **_: Any) -> dict[str, Any]:
            return {"corners": [position, target]}

    here, link = place(thing("Mug|1", 1, 1)), cast("Any", Straight())
    chore = Chore("PickupType", "pick up a mug", ("Mug|1",), start=(1.0, 0.9, 1.5, 180.0))
    assert find_way(chore, here, link).legs == [Leg([(1.0, 1.5)])]
    (leg,) = find_way(replace(chore, start=(1.0, 0.9, 2.5, 180.0)), here, link).legs
    assert leg.corners[0] == (1.0, 2.5)
    assert 0.45 <= math.dist(leg.corners[1], (1, 1)) <= 0.75


def test_the_plan_shows_target_and_way() -> None:
    plan = Plan((64, 96), {"room|0": SQUARE, "room|1": NEXT}, FULL, ["Mug|2"])
    assert (plan.base == TARGET).all(-1).any()
    image = plan.draw([np.array([1.0, 0.9, 3.0]), np.array([7.0, 0.9, 3.0])], 90.0)
    assert image.shape == (64, 96, 3)
    assert 40 < (image != plan.base).any(-1).sum() < 400
