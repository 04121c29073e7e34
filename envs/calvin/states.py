"""From a symbolic state to the numbers that a reset takes, and which states a task can be begun in."""

from __future__ import annotations

from typing import Dict, List, Sequence, Tuple

import numpy as np

from envs.calvin.chains import State, initial_states, is_chain, ways
from envs.calvin.oracle import TASKS
from envs.calvin.scenes import BLOCKS, DRAWER_RANGE, SCENES, SWITCH_RANGE
from envs.types import EnvError

Values = Tuple[np.ndarray, np.ndarray]  # robot_obs [15], scene_obs [24]
Place = Tuple[float, float, float]

ROBOT_START = (
    0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963, -1.21779124, 1.03987629,
    2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928, 1.0,
)  # fmt: skip
# The benchmark's places for blocks; they are right for scene D only.
TABLE_SLOTS: Tuple[Place, Place] = ((0.0500000896, -0.120000177, 0.459990009), (0.229995412, -0.11999514, 0.45999001))
SHELF_SLOTS: Dict[str, Place] = {
    "slider_left": (-0.240851662, 0.0924044687, 0.460990009),
    "slider_right": (0.070341633, 0.0924044687, 0.460990009),
}
YAW = (3 * np.pi / 8, 5 * np.pi / 8)
IN_DRAWER: Place = (0.14, -0.3, 0.362)  # of an open drawer
BLOCK_HEIGHT = 0.04
JITTER = (0.015, 0.01)  # metres along x and y, of starts that are not the benchmark's
FNV_PRIME = 0x01000193


def text_seed(state: State) -> int:
    """The benchmark's seed of a state: 32-bit FNV-1, started at 0, of the UTF-16 text of the values."""
    seed = 0
    for byte in str(state.values()).encode("utf-16-le"):
        seed = (seed * FNV_PRIME & 0xFFFFFFFF) ^ byte
    return seed


def official_start(state: State) -> Values:
    """The benchmark's start for one of the 192 initial states, in scene D."""
    return _values(state, "D", np.random.RandomState(text_seed(state)), jitter=False)


def varied_start(state: State, scene: str, seed: int) -> Values:
    """A start for any scene, also with a block in the drawer or on another one; places and turns follow the seed."""
    return _values(state, scene, stream(seed), jitter=True)


def single_tasks() -> Tuple[str, ...]:
    """The tasks that can be begun with an empty hand: all but placing and stacking."""
    return tuple(task for task in TASKS if any(0 in condition.get("grasped", (0,)) for condition, _ in ways(task)))


def task_start(task: str, scene: str, seed: int) -> Values:
    """A start for one task: a fitting symbolic state, then places and turns, all by the seed."""
    return chain_start([task], scene, seed)


def chain_start(tasks: Sequence[str], scene: str, seed: int) -> Values:
    """A start from which tasks can be done one after the other: a fitting symbolic state, then places and turns."""
    states = [state for state in _candidates(tasks[0]) if is_chain(state, tasks)]
    if not states:
        raise EnvError(_no_start(tasks))
    random = stream(seed)
    return varied_start(states[random.randint(len(states))], scene, seed + 1)


def _no_start(tasks: Sequence[str]) -> str:
    if len(tasks) == 1:
        return f"{tasks[0]} begins with a block in the hand; it has no start of its own, only one inside a chain"
    return (
        f"the chain {', '.join(tasks)} can be begun nowhere: each task must lead to where the next one begins, in one "
        "way only, and all must be of different kinds (envs/calvin/chains.py)"
    )


def stream(seed: int) -> np.random.RandomState:
    """A stream of the legacy kind that also takes seeds of more than 32 bits."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))


def _candidates(task: str) -> List[State]:
    states = initial_states()
    if task == "unstack_block":
        pairs = [(top, bottom) for top in BLOCKS for bottom in BLOCKS if top != bottom]
        return [
            {**state, f"{top}_block": "stacked_top", f"{bottom}_block": "stacked_bottom"}
            for state in states
            for top, bottom in pairs
            if state[f"{top}_block"] == state[f"{bottom}_block"] == "table"
        ]
    if task.endswith("_drawer") and task.startswith("lift"):
        block = task[len("lift_") : -len("_drawer")]
        return [{**state, block: "drawer", "drawer": "open"} for state in states if state[block] == "table"]
    return states


def _values(state: State, scene: str, random: np.random.RandomState, *, jitter: bool) -> Values:
    layout = SCENES[scene]
    tables, shelves = _slots(scene)
    random.shuffle(tables)
    yaws = {colour: random.uniform(*YAW) for colour in BLOCKS}
    places: Dict[str, Sequence[float]] = {}
    for i, colour in enumerate(BLOCKS):
        where = str(state[f"{colour}_block"])
        if where == "drawer":
            places[colour] = IN_DRAWER
        elif where in shelves:
            places[colour] = shelves[where]
        else:  # red takes the first slot, pink the second, blue the one that red has left
            second = i == 2 or (i == 1 and state["red_block"] not in shelves and state["red_block"] != "drawer")
            places[colour] = tables[int(second)]
    if jitter:
        places = {name: _moved(place, random) for name, place in places.items()}
    _stack(state, places)
    on = [float(state["lightbulb"]), float(state["led"])]
    doors = [layout.slide_range * (state["slider"] == "left"), DRAWER_RANGE * (state["drawer"] == "open")]
    poses = [[*places[colour], 0.0, 0.0, yaws[colour]] for colour, _ in layout.blocks]
    scene_obs = [*doors, 0.0, SWITCH_RANGE * on[0], *on, *np.ravel(poses)]
    return np.array(ROBOT_START), np.array(scene_obs, dtype=np.float64)


def _stack(state: State, places: Dict[str, Sequence[float]]) -> None:
    """Put the upper block, if there is a tower, onto the lower one."""
    below = [colour for colour in BLOCKS if state[f"{colour}_block"] == "stacked_bottom"]
    for colour in BLOCKS:
        if below and state[f"{colour}_block"] == "stacked_top":
            x, y, z = places[below[0]]
            places[colour] = (x, y, z + BLOCK_HEIGHT)


def _slots(scene: str) -> Tuple[List[Place], Dict[str, Place]]:
    """Two places on the table and one on each side of the shelf."""
    if scene == "D":
        return list(TABLE_SLOTS), dict(SHELF_SLOTS)
    boxes = SCENES[scene].surfaces
    (x0, _, z), (x1, _, _) = boxes["table"]
    tables: List[Place] = [(x0 + share * (x1 - x0), TABLE_SLOTS[0][1], z) for share in (0.2, 0.8)]
    shelves: Dict[str, Place] = {}
    for name in SHELF_SLOTS:
        low, high = boxes[name]
        shelves[name] = ((low[0] + high[0]) / 2, SHELF_SLOTS[name][1], SHELF_SLOTS[name][2])
    return tables, shelves


def _moved(place: Sequence[float], random: np.random.RandomState) -> Place:
    x, y, z = place
    return (x + random.uniform(-JITTER[0], JITTER[0]), y + random.uniform(-JITTER[1], JITTER[1]), z)
