"""Misbehaviour on command, to test those who supervise a simulator. Standard library alone; Python 3.8 syntax."""

from __future__ import annotations

import argparse
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Optional

FOREVER = 3600.0  # seconds


@dataclass
class Faults:
    """What goes wrong, and when. Actions are counted from 1 since the program started; 0 is the first message."""

    crash_at: Optional[int] = None
    crash_how: str = "exit"  # exit | segv | abort | kill
    exit_code: int = 3
    hang_at: Optional[int] = None
    truncate_at: Optional[int] = None  # the last picture is half as long as it should be
    cut_at: Optional[int] = None  # the message ends in the middle, and the program with it
    slow: float = 0.0  # seconds before every answer
    never_connect: bool = False
    only: str = ""  # count actions of this name alone
    once: str = ""  # a file: nothing goes wrong if it exists, and it is made when something does
    count: int = 0

    def before_connecting(self) -> None:
        """Never come back, if so asked."""
        if self.never_connect and self._strikes():
            _hang()

    def before_answer(self, action: Optional[Mapping[str, Any]]) -> None:
        """Count an action (None: the first message), then be slow, hang or die."""
        if action is not None and self.only in ("", action.get("action")):
            self.count += 1
        if self.slow:
            time.sleep(self.slow)
        if not self._counted(action):
            return
        if self.count == self.hang_at and self._strikes():
            _hang()
        if self.count == self.crash_at and self._strikes():
            _die(self.crash_how, self.exit_code)

    def truncates(self, action: Optional[Mapping[str, Any]]) -> bool:
        """Whether this answer's last picture is to be too short."""
        return self._counted(action) and self.count == self.truncate_at and self._strikes()

    def cuts(self, action: Optional[Mapping[str, Any]]) -> bool:
        """Whether this answer is to end in the middle."""
        return self._counted(action) and self.count == self.cut_at and self._strikes()

    def _counted(self, action: Optional[Mapping[str, Any]]) -> bool:
        return action is None or self.only in ("", action.get("action"))

    def _strikes(self) -> bool:
        if not self.once:
            return True
        mark = Path(self.once)
        if mark.exists():
            return False
        mark.touch()
        return True


def _hang() -> None:
    while True:
        time.sleep(FOREVER)


def _die(how: str, code: int) -> None:
    if how == "exit":
        os._exit(code)
    os.kill(os.getpid(), {"segv": signal.SIGSEGV, "abort": signal.SIGABRT, "kill": signal.SIGKILL}[how])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The switches of the command line."""
    group = parser.add_argument_group("faults", "N counts actions since the start; 0 is the first message")
    group.add_argument("--crash-at", type=int, metavar="N", help="die instead of answering")
    group.add_argument("--crash-how", choices=("exit", "segv", "abort", "kill"), default="exit")
    group.add_argument("--exit-code", type=int, default=3)
    group.add_argument("--hang-at", type=int, metavar="N", help="never answer")
    group.add_argument("--truncate-at", type=int, metavar="N", help="send a picture that is too short")
    group.add_argument("--cut-at", type=int, metavar="N", help="end in the middle of the answer")
    group.add_argument("--slow", type=float, default=0.0, metavar="SECONDS", help="wait before every answer")
    group.add_argument("--never-connect", action="store_true", help="start, and do nothing")
    group.add_argument("--fault-only", default="", metavar="ACTION", help="count actions of this name alone")
    group.add_argument("--fault-once", default="", metavar="FILE", help="not if FILE exists; make it")


def from_arguments(given: argparse.Namespace) -> Faults:
    """The faults that the command line asks for."""
    return Faults(
        crash_at=given.crash_at,
        crash_how=given.crash_how,
        exit_code=given.exit_code,
        hang_at=given.hang_at,
        truncate_at=given.truncate_at,
        cut_at=given.cut_at,
        slow=given.slow,
        never_connect=given.never_connect,
        only=given.fault_only,
        once=given.fault_once,
    )
