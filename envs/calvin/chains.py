"""Chains of five tasks and the states they start from: the benchmark's list of 1000, and others for training.

A symbolic state says where each block is and how doors and lights stand. 192 of them are initial states. A chain is
kept if each of its tasks can be begun where the one before has led, in exactly one way, and all are of different
kinds. The benchmark draws chains with numpy's legacy streams, seeded by the number of the initial state.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
from typing import Dict, Iterator, List, Sequence, Tuple, Union

import numpy as np

from envs.cache import cache_root, write_whole
from envs.calvin.oracle import TASKS
from envs.calvin.scenes import BLOCKS

Value = Union[int, str]
State = Dict[str, Value]
Chain = Tuple[State, List[str]]
Way = Tuple[Dict[str, Tuple[Value, ...]], State]  # what must hold (one of these values each), what holds afterwards

LENGTH = 5  # tasks of a chain
OFFICIAL = 1000  # chains of the benchmark's evaluation
OPTIONS: Dict[str, Tuple[Value, ...]] = {
    "led": (0, 1),
    "lightbulb": (0, 1),
    "slider": ("right", "left"),
    "drawer": ("closed", "open"),
    "red_block": ("table", "slider_right", "slider_left"),
    "blue_block": ("table", "slider_right", "slider_left"),
    "pink_block": ("table", "slider_right", "slider_left"),
    "grasped": (0,),
}
SHELVES = ("slider_right", "slider_left")
# Kinds of task that a chain has at most one of; lifts are told apart by where the block was.
KINDS = {"rotate": 1, "push": 1, "move": 2, "open": 3, "close": 3, "lift": 4, "place": 7, "turn": 8}
SPECIAL_KINDS = {"push_into_drawer": 9, "stack_block": 10, "unstack_block": 11}
LIFT_KINDS = {"table": 4, "slider": 5, "drawer": 6}


def initial_states() -> List[State]:
    """The 192 symbolic states that chains start from, in the benchmark's order."""
    return [
        dict(zip(OPTIONS, values))
        for values in itertools.product(*OPTIONS.values())
        if 1 <= values.count("table") <= 2 and all(values.count(shelf) <= 1 for shelf in SHELVES)
    ]


def kind(task: str) -> int:
    """The category of a task; a chain has no two of the same."""
    if task in SPECIAL_KINDS:
        return SPECIAL_KINDS[task]
    first, last = task.split("_")[0], task.split("_")[-1]
    return LIFT_KINDS[last] if first == "lift" else KINDS[first]


def ways(task: str) -> List[Way]:
    """The ways in which a task can be done: condition and effect on the symbolic state."""
    return _WAYS[task]


def applicable(task: str, state: State) -> List[State]:
    """The states that a task leads to from `state`, one for each way that is open."""
    return [
        {**state, **effect}
        for condition, effect in _WAYS[task]
        if all(state[key] in values for key, values in condition.items())
    ]


def is_chain(state: State, tasks: Sequence[str]) -> bool:
    """Whether these tasks can be done one after the other, in one way each, and are of different kinds."""
    if len({kind(task) for task in tasks}) < len(tasks):
        return False
    for task in tasks:
        after = applicable(task, state)
        if len(after) != 1:
            return False
        state = after[0]
    return True


def official_chain(index: int, count: int = OFFICIAL) -> Chain:
    """Chain `index` of the benchmark's list of `count`; a shorter list is not the beginning of a longer one."""
    if not 0 <= index < count:
        raise ValueError(f"there is no official chain {index}; expected a number from 0 to {count - 1}")
    state, place = _order(count)[index]
    return initial_states()[state], _drawn(state, 1 + place)[place]


def official_chains(count: int = OFFICIAL) -> List[Chain]:
    """The benchmark's whole list. All 1000 take one to three minutes the first time."""
    return [official_chain(index, count) for index in range(count)]


def chains_hash(chains: Sequence[Sequence[object]]) -> str:
    """SHA-256 of the list as compact JSON with sorted keys."""
    pairs = [[state, tasks] for state, tasks in chains]
    return hashlib.sha256(json.dumps(pairs, separators=(",", ":"), sort_keys=True).encode()).hexdigest()


def training_chain(seed: int) -> Chain:
    """A chain drawn like the benchmark's, from a stream that its list never uses. `seed` must not be below 1000."""
    if seed < OFFICIAL:
        raise ValueError(f"seed {seed} is an official chain; training chains have seeds from {OFFICIAL} on")
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    states = initial_states()
    state = states[random.randint(len(states))]
    return state, next(_chains_from(state, random))


@functools.lru_cache(maxsize=None)
def _order(count: int) -> List[Tuple[int, int]]:
    """(initial state, which of its chains) of each chain of the list."""
    shares = [len(part) for part in np.array_split(range(count), len(initial_states()))]
    pairs = [(state, place) for state, share in enumerate(shares) for place in range(share)]
    order = np.arange(len(pairs))
    np.random.RandomState(0).shuffle(order)
    return [pairs[i] for i in order]


@functools.lru_cache(maxsize=None)
def _drawn(index: int, count: int) -> List[List[str]]:
    """The first chains of an initial state; kept in the user's cache, because a draw in ten thousand is a chain."""
    path, state = cache_root() / "calvin-chains" / f"{index}.json", initial_states()[index]
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if len(stored) >= count and all(len(tasks) == LENGTH and is_chain(state, tasks) for tasks in stored):
            return stored[:count]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing or damaged: drawn again
    draws = _chains_from(state, np.random.RandomState(index))
    chains = [next(draws) for _ in range(max(count, -(-OFFICIAL // len(initial_states()))))]
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
        write_whole(path, json.dumps(chains).encode())
    return chains[:count]


def _chains_from(state: State, random: np.random.RandomState) -> Iterator[List[str]]:
    names, kinds = list(TASKS), [kind(task) for task in TASKS]
    first = {i for i, name in enumerate(names) if len(applicable(name, state)) == 1}
    while True:
        drawn = random.permutation(len(names))[:LENGTH].tolist()  # as `choice` without replacement draws
        if drawn[0] in first and len({kinds[i] for i in drawn}) == LENGTH:
            tasks = [names[i] for i in drawn]
            if is_chain(state, tasks):
                yield tasks


# --- conditions and effects -------------------------------------------------------------------------------------------


def _block_ways(colour: str) -> Dict[str, List[Way]]:
    """The tasks that name a block."""
    block = f"{colour}_block"

    def lift(**where: Tuple[Value, ...]) -> Way:
        return {"grasped": (0,), **where}, {block: "grasped", "grasped": 1}

    stays: Way = ({block: ("table",), "grasped": (0,)}, {block: "table"})
    turns = {f"{verb}_{block}_{side}": [stays] for verb in ("rotate", "push") for side in ("right", "left")}
    return {
        **turns,
        f"lift_{block}_table": [lift(**{block: ("table",)})],
        f"lift_{block}_slider": [
            lift(**{block: (f"slider_{side}",), "slider": (door,)})  # the door covers the other side
            for side, door in (("left", "right"), ("right", "left"))
        ],
        f"lift_{block}_drawer": [lift(**{block: ("drawer",), "drawer": ("open",)})],
    }


def _all_ways() -> Dict[str, List[Way]]:
    found: Dict[str, List[Way]] = {name: [] for name in TASKS}
    for colour in BLOCKS:
        found.update(_block_ways(colour))
    toggles = {
        "move_slider_left": ("slider", "right", "left"),
        "move_slider_right": ("slider", "left", "right"),
        "open_drawer": ("drawer", "closed", "open"),
        "close_drawer": ("drawer", "open", "closed"),
        **{f"turn_on_{light}": (light, 0, 1) for light in ("lightbulb", "led")},
        **{f"turn_off_{light}": (light, 1, 0) for light in ("lightbulb", "led")},
    }
    for task, (key, before, after) in toggles.items():
        found[task] = [({key: (before,), "grasped": (0,)}, {key: after})]
    for colour in BLOCKS:
        block, others = f"{colour}_block", [f"{other}_block" for other in BLOCKS if other != colour]
        holding: Dict[str, Tuple[Value, ...]] = {block: ("grasped",), "grasped": (1,)}
        for door in ("right", "left"):
            found["place_in_slider"].append(({**holding, "slider": (door,)}, {block: f"slider_{door}", "grasped": 0}))
        found["place_in_drawer"].append(({**holding, "drawer": ("open",)}, {block: "drawer", "grasped": 0}))
        for other in others:
            stacked = {block: "stacked_top", other: "stacked_bottom"}
            found["stack_block"].append(({**holding, other: ("table",)}, {**stacked, "grasped": 0}))
            tower: Dict[str, Tuple[Value, ...]] = {block: ("stacked_top",), other: ("stacked_bottom",), "grasped": (0,)}
            found["unstack_block"].append((tower, {block: "table", other: "table"}))
        alone: Dict[str, Tuple[Value, ...]] = {other: SHELVES for other in others}
        found["push_into_drawer"].append(
            ({block: ("table",), **alone, "drawer": ("open",), "grasped": (0,)}, {block: "drawer", "grasped": 0})
        )
    return found


_WAYS = _all_ways()
