"""The program that AI2-THOR's Controller starts in place of a Unity build: `python -u -m envs.thor_mini`.

Give this command as `local_executable_path`; the Controller adds its own arguments. Python 3.8 syntax.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import threading
import time
from typing import Any, Dict, List, Mapping, Optional, Union

from envs.thor_mini.dispatch import perform
from envs.thor_mini.faults import Faults, add_arguments, from_arguments
from envs.thor_mini.reply import Painter, Reply, full_reply, patch_reply
from envs.thor_mini.wire import Fifo, Wsgi, connect
from envs.thor_mini.world import Outcome, Parts, World

log = logging.getLogger("thor_mini")


def main(arguments: Optional[List[str]] = None) -> int:
    """Connect, speak first, then answer one action after the other until the Controller is gone."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s thor_mini %(process)d: %(message)s", stream=sys.stderr)
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    faults = from_arguments(given)
    faults.before_connecting()
    wire = connect(os.environ)
    world = World(_parts(given.parts), given.width, given.height)
    try:
        serve(world, wire, faults, Painter(given.channels))
    except (BrokenPipeError, ConnectionError) as e:
        log.info("the Controller is gone: %s", e)
    return 0


def serve(world: World, wire: Union[Fifo, Wsgi], faults: Faults, painter: Painter) -> None:
    """Answer until the Controller hangs up."""
    faults.before_answer(None)
    _send(wire, full_reply(world, painter, "", Outcome(), 0), faults, None)
    while True:
        action = wire.receive()
        if action is None:
            return
        faults.before_answer(action)
        _send(wire, answer(world, painter, action, patches=wire.patches), faults, action)


def answer(world: World, painter: Painter, action: Mapping[str, Any], *, patches: bool) -> Reply:
    """Do one action and say what came of it; a question gets a patch if the Controller wants patches."""
    outcome, asked = perform(world, action)
    name, sequence = str(action.get("action")), int(action.get("sequenceId", 0))
    if asked and patches and world.settings.patches:
        return patch_reply(name, outcome)
    return full_reply(world, painter if action.get("renderImage", True) else None, name, outcome, sequence)


def _send(wire: Union[Fifo, Wsgi], reply: Reply, faults: Faults, action: Optional[Dict[str, Any]]) -> None:
    if faults.truncates(action) and reply.pictures:
        kind, picture = reply.pictures[-1]
        reply.pictures[-1] = (kind, picture[: picture.nbytes // 2 - 1])  # an odd size: half would fit two channels
    if faults.cuts(action):
        wire.send(reply, cut=0.5)
        os._exit(0)
    wire.send(reply)


def _leave_with_parent(parent: int) -> None:
    """End this process soon after the one that started it, whatever it is doing or waiting for."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


def _parts(module: str) -> Parts:
    """Where houses and pictures come from: two functions or classes of a module."""
    if module:
        found = importlib.import_module(module)
        return Parts(found.load, found.Renderer)
    from envs.thor_mini import data, house, render

    known = data.databases()
    return Parts(lambda file: house.load(file, known), render.Renderer)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m envs.thor_mini", description=__doc__, allow_abbrev=False)
    parser.add_argument("--channels", type=int, choices=(3, 4), default=3, help="of colour pictures")
    parser.add_argument("--parts", default="", metavar="MODULE", help="a module with its own `load` and `Renderer`")
    add_arguments(parser)
    unity = parser.add_argument_group("added by the Controller")
    unity.add_argument("-screen-width", dest="width", type=int, default=300)
    unity.add_argument("-screen-height", dest="height", type=int, default=300)
    unity.add_argument("-screen-fullscreen", type=int)
    unity.add_argument("-screen-quality", type=int)
    unity.add_argument("-force-device-index", type=int)
    unity.add_argument("-batchmode", action="store_true")
    unity.add_argument("-nographics", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
