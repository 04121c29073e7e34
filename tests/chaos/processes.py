"""Which processes a run consists of, from /proc; and the signals that harm them."""

import os
import signal
import time
from pathlib import Path

KINDS = {  # kind -> what its title or command line holds
    "environment": ("envs.worker",),
    "worker": ("ray::_Worker", "ray::Runner"),
    "learner": ("ray::_RayTrainWorker", "ray::_WrappedExecutable"),
    "judge": ("ray::Judging",),
}


def table() -> dict[int, tuple[int, str, str]]:
    """pid -> (parent, state, command line) of every process."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            head, _, tail = (folder / "stat").read_text().rpartition(")")
            state, parent = tail.split()[:2]
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (OSError, ValueError):  # it ended while we looked
            continue
        found[int(folder.name)] = (int(parent), state, command or head)
    return found


def family(root: int) -> dict[int, tuple[int, str, str]]:
    """The living descendants of a process."""
    everyone = table()
    inside, grown = {root}, True
    while grown:
        more = {p for p, (parent, _, _) in everyone.items() if parent in inside} - inside
        inside, grown = inside | more, bool(more)
    return {p: everyone[p] for p in inside - {root} if p in everyone and everyone[p][1] != "Z"}


def members(root: int, kind: str) -> dict[int, int]:
    """pid -> parent of the processes of a kind that are at work (not stopped) for the run of driver `root`."""
    marks = KINDS[kind]
    return {p: parent for p, (parent, state, command) in family(root).items()
            if state != "T" and any(m in command for m in marks)}  # fmt: skip


def commands(root: int) -> dict[int, str]:
    """pid -> command line of the living descendants of a process."""
    return {p: command for p, (_, _, command) in family(root).items()}


def gone(those: dict[int, str], within_s: float) -> list[str]:
    """Command lines of those of these processes that are still there after so many seconds."""
    deadline = time.monotonic() + within_s
    while True:
        now = table()
        left = [f"{now[p][1]} {command}" for p, command in those.items()
                if p in now and now[p][1] != "Z" and now[p][2] == command]  # fmt: skip
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.2)


def harm(pid: int, how: str) -> bool:
    """Kill or stop a process; False if it was gone already."""
    try:
        os.kill(pid, signal.SIGKILL if how == "kill" else signal.SIGSTOP)
    except ProcessLookupError:
        return False
    return True
