"""What objects of each type look like: a few boxes, prisms and balls inside their true bounding box.

Coordinates of a part run from 0 to 1 along the object's x (right), y (up) and z (its front is at 1). Where a top can
carry things is said by `surface`, so that what generates houses, what drops things and what draws them agree.
"""

from __future__ import annotations

from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

from envs.thor_mini import furniture, small
from envs.thor_mini.parts import MAIN, SECOND, Part, Size, box


class Surface(NamedTuple):
    """Where things can stand: a height above the object's bottom in metres, and a rectangle in parts of its x and z."""

    height: float
    x0: float
    x1: float
    z0: float
    z1: float


def _plain(size: Size) -> List[Part]:
    return [box(0, 1, 0, 0.7, 0, 1, MAIN), box(0.1, 0.9, 0.7, 1, 0.1, 0.9, SECOND)]


_FAMILIES: Dict[Callable[[Size], List[Part]], Tuple[str, ...]] = {
    furniture.table: ("DiningTable",),
    furniture.coffee_table: ("CoffeeTable",),
    furniture.desk: ("Desk",),
    furniture.chair: ("Chair", "OfficeChair"),
    furniture.stool: ("Stool", "Footstool", "Ottoman"),
    furniture.sofa: ("Sofa", "ArmChair"),
    furniture.bed: ("Bed",),
    furniture.drawers: ("Dresser", "TVStand"),
    furniture.side_table: ("SideTable",),
    furniture.shelves: ("ShelvingUnit", "Cart"),
    furniture.counter: ("CounterTop",),
    furniture.fridge: ("Fridge", "Safe"),
    furniture.washer: ("WashingMachine", "ClothesDryer"),
    small.television: ("Television", "Desktop"),
    small.laptop: ("Laptop",),
    small.microwave: ("Microwave",),
    small.toaster: ("Toaster",),
    small.coffee_machine: ("CoffeeMachine",),
    furniture.toilet: ("Toilet",),
    furniture.sink: ("Sink",),
    small.plant: ("HousePlant",),
    furniture.floor_lamp: ("FloorLamp", "RoomDecor"),
    small.desk_lamp: ("DeskLamp",),
    small.bottle: ("Bottle", "WineBottle", "SoapBottle", "Kettle", "PepperShaker", "SaltShaker", "Candle"),
    small.spray: ("SprayBottle", "WateringCan", "VacuumCleaner"),
    small.cup: ("Cup",),
    small.mug: ("Mug",),
    small.bowl: ("Bowl", "DogBed"),
    small.plate: ("Plate", "CD"),
    small.pot: ("Pot",),
    small.pan: ("Pan",),
    small.ball: ("Egg", "Potato", "BasketBall", "GarbageBag"),
    small.fruit: ("Apple", "Tomato"),
    small.lettuce: ("Lettuce",),
    small.bread: ("Bread",),
    small.book: ("Book", "Newspaper"),
    small.clock: ("AlarmClock",),
    small.slab: ("RemoteControl", "CreditCard", "DishSponge", "SoapBar"),
    small.phone: ("CellPhone", "Watch"),
    small.pillow: ("Pillow",),
    small.carton: ("Box", "TissueBox"),
    small.bin: ("GarbageCan", "LaundryHamper"),
    small.picture: ("Painting", "Window"),
    small.vase: ("Vase",),
    small.statue: ("Statue", "TableTopDecor"),
    small.teddy: ("TeddyBear",),
    small.roll: ("ToiletPaper", "PaperTowelRoll"),
    small.sheet: ("Towel", "HandTowel", "Cloth", "ShowerCurtain", "Blinds"),
    small.stick: ("ButterKnife", "Fork", "Knife", "Ladle", "Pen", "Pencil", "Spatula", "Spoon"),
    small.pole: ("BaseballBat", "Plunger", "ScrubBrush", "ShowerHead"),
    furniture.door: ("Doorway",),
}
_BY_TYPE = {name: family for family, names in _FAMILIES.items() for name in names}


def parts(object_type: str, size: Size) -> List[Part]:
    """The parts of an object; a block with a smaller block on top for a type without a shape of its own."""
    return _BY_TYPE.get(object_type, _plain)(size)


def surface(object_type: str, size: Size) -> Optional[Surface]:
    """Where things stand on an object, or None: not a receptacle, or one that holds things inside."""
    if object_type in (
        "DiningTable",
        "CoffeeTable",
        "SideTable",
        "Dresser",
        "TVStand",
        "CounterTop",
        "ClothesDryer",
        "WashingMachine",
    ):
        return Surface(size[1], 0.04, 0.96, 0.04, 0.96)
    if object_type in ("Stool", "Footstool", "Ottoman"):
        return Surface(size[1], 0.15, 0.85, 0.15, 0.85)
    if object_type == "Desk":
        return Surface(furniture.desk_height(size), 0.04, 0.96, 0.1 if size[1] < 1.1 else 0.5, 0.96)
    if object_type in ("Sofa", "ArmChair"):
        arm = min(0.2, 0.16 / size[0])
        return Surface(furniture.seat_height(size), arm + 0.02, 0.98 - arm, 0.28, 0.95)
    if object_type == "Chair":
        return Surface(furniture.seat_height(size), 0.05, 0.95, 0.15, 0.95)
    if object_type == "Bed":
        return Surface(furniture.bed_height(size), 0.05, 0.95, 0.05, 0.95)
    if object_type == "ShelvingUnit":  # its second board from the top, or the top of a low one
        rows, thick = furniture.shelf_rows(size), 0.025
        board = rows if size[1] < 1.0 else max(1, rows // 2)
        return Surface((size[1] - thick) * board / rows + thick, 0.06, 0.94, 0.08, 0.95)
    if object_type == "Toilet":
        return Surface(size[1], 0.06, 0.94, 0.01, 0.27)
    return None
