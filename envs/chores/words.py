"""How tasks are put into words: the sentence forms of SPOC, lower case, with the nouns of AI2-THOR's object types.

Standard library only; Python 3.8 syntax.
"""

from __future__ import annotations

import re
from typing import Any, Dict

GO = ("go to", "locate", "find", "search for", "navigate to")
TAKE = ("pick up", "take", "grab", "grasp", "clutch", "hold")
NOUNS: Dict[str, str] = {  # where the type's own words would not be English
    "BasketBall": "basketball",
    "CD": "compact disc",
    "CellPhone": "phone",
    "GarbageCan": "trash can",
    "HousePlant": "houseplant",
    "TVStand": "tv stand",
    "TeddyBear": "teddy bear",
}
USES: Dict[str, str] = {  # affordances
    "AlarmClock": "being woken up in the morning",
    "Apple": "a healthy snack",
    "BasketBall": "playing a game with a hoop",
    "Bed": "sleeping at night",
    "Book": "reading",
    "Chair": "sitting at a table",
    "GarbageCan": "throwing something away",
    "HousePlant": "making a room greener",
    "Laptop": "writing an email",
    "Mug": "drinking coffee",
    "Sofa": "sitting together",
    "Television": "watching films",
    "Toilet": "relieving oneself",
    "Vase": "holding flowers",
}
FORMS: Dict[str, str] = {
    "ObjectNavType": "{go} {x}",
    "ObjectNavRoom": "{go} {x} in the {room}",
    "ObjectNavRelAttribute": "{go} the {relation}",
    "ObjectNavLocalRef": "{go} {x} {place}",
    "ObjectNavAffordance": "{go} something that can best be used for {use}",
    "PickupType": "{take} {x}",
    "FetchType": "{go} {x} and {take} that {bare}",
    "RoomVisit": "go to all {count} rooms in the house. indicate when you have seen a new room and when you are done",
    "RoomNav": "{go} a {room}",
}


def noun(object_type: str) -> str:
    """English for an object or room type: "AlarmClock" -> "alarm clock"."""
    return NOUNS.get(object_type) or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", object_type).lower()


def a(word: str) -> str:
    """With the indefinite article."""
    return f"{'an' if word[:1] in 'aeiou' else 'a'} {word}"


def sentence(task_type: str, rng: Any, **names: str) -> str:
    """The instruction of a task; `names` has what its form needs (x, bare, room, relation, place, use, count)."""
    go, take = str(rng.choice(GO)), str(rng.choice(TAKE))
    return FORMS[task_type].format(go=go, take=take, **names)
