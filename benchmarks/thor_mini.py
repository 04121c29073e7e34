"""Speed of the AI2-THOR stand-in: `python -m benchmarks.thor_mini [--rounds N] [--steps N] [--no-write]`.

Two cameras at every step of a made house, at two sizes with their object pictures, and at the smaller one in colours
alone, which is what `env=ai2thor` asks for:

    alone   the world in one process: an action, the metadata and the bytes of all pictures
    one     the same behind ai2thor's own Controller, over pipes: two processes
    two, four, eight    as many such Controllers at once, each with its own stand-in

A round is one turn of each, in this order; a rate is agent steps per second of wall time, all Controllers together, and
a ratio is the median over the rounds of the ratio of rates within the round. Besides, the processor time of a step in
milliseconds, of the process alone, and of one Controller and its stand-in together, medians too: it counts only what
these processes used. Starting up and resetting are not timed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venvs" / "ai2thor" / "bin" / "python"
SIZES = {"396x224": (396, 224), "112x64": (112, 64), "112x64 colours": (112, 64)}
GOALS = {"396x224": 200.0, "112x64": 1000.0, "112x64 colours": 1000.0}  # agent steps per second of one process
TEAMS = {"alone": 1, "one": 1, "two": 2, "four": 4, "eight": 8}
RATIOS = (("one", "alone"), ("two", "one"), ("four", "one"), ("eight", "one"))
TIMED = ("alone", "one")  # whose processor time is told
HOUSE_SEED = 3
SETTINGS: dict[str, Any] = {
    "agentMode": "stretch",
    "fieldOfView": 59,
    "renderInstanceSegmentation": True,
    "cameraNearPlane": 0.01,
    "fastActionEmit": True,
}
ACTIONS: tuple[dict[str, Any], ...] = (
    {"action": "MoveAheadQuick", "moveMagnitude": 0.2},
    {"action": "RotateRightQuick", "degrees": 30},
    {"action": "MoveAheadQuick", "moveMagnitude": 0.2},
    {"action": "MoveArm", "position": {"x": 0, "y": 0.5, "z": 0.1}, "returnToStart": True},
    {"action": "RotateLeftQuick", "degrees": 6},
    {"action": "MoveArm", "position": {"x": 0, "y": 0.4, "z": 0.0}, "returnToStart": True},
    {"action": "MoveBackQuick", "moveMagnitude": 0.2},
    {"action": "RotateWristRelative", "yaw": 10},
)


# --- in ai2thor's interpreter -----------------------------------------------------------------------------------------


def work(kind: str, size: str) -> None:
    """Take numbers of steps from stdin, one a line, and write the processor time of each step in ms to stdout."""
    from envs.thor_mini import data, generate

    house = generate.house(HOUSE_SEED, data.databases())
    make = _alone if kind == "alone" else _controller
    step, other = make(house, *SIZES[size], {**SETTINGS, "renderInstanceSegmentation": "colours" not in size})
    step({"action": "SetObjectFilter", "objectIds": []})
    print("ready", flush=True)
    at = 0
    for line in sys.stdin:
        began = processor_s(os.getpid(), other)
        for _ in range(int(line)):
            step(ACTIONS[at % len(ACTIONS)])
            at += 1
        print(1e3 * (processor_s(os.getpid(), other) - began) / int(line), flush=True)


def processor_s(*processes: int) -> float:
    """Processor time of these processes so far, in seconds; 0 is none."""
    total = 0.0
    for process in filter(None, processes):
        for thread in Path(f"/proc/{process}/task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0]) / 1e9
    return total


Step = Callable[[dict[str, Any]], Any]


def _alone(house: dict[str, Any], width: int, height: int, settings: dict[str, Any]) -> tuple[Step, int]:
    """How to take a step, and the process id of the stand-in, here 0."""
    from envs.thor_mini import data, render
    from envs.thor_mini.__main__ import answer
    from envs.thor_mini.house import load
    from envs.thor_mini.reply import Painter
    from envs.thor_mini.world import Parts, World

    known, painter = data.databases(), Painter()
    world = World(Parts(lambda file: load(file, known), render.Renderer), width, height)
    for action in ({"action": "Initialize", **settings}, {"action": "CreateHouse", "house": house}):
        answer(world, painter, action, patches=True)
    return lambda action: answer(world, painter, action, patches=True), 0


def _controller(house: dict[str, Any], width: int, height: int, settings: dict[str, Any]) -> tuple[Step, int]:
    from ai2thor.controller import Controller

    controller = Controller(
        local_executable_path=f"{sys.executable} -u -m envs.thor_mini", x_display=":0", scene=house, width=width,
        height=height, server_timeout=None, **settings,
    )  # fmt: skip
    return lambda action: controller.step(action), int(controller.server.unity_proc.pid)


# --- the measurement --------------------------------------------------------------------------------------------------


class Worker:
    """A process that takes steps when told."""

    def __init__(self, kind: str, size: str, home: str) -> None:
        """Start it; `ready` waits until it can work."""
        self.kind = kind
        self.process = subprocess.Popen(
            [str(PYTHON), "-W", "ignore", "-m", "benchmarks.thor_mini", "--worker", kind, size],
            cwd=ROOT, env={**os.environ, "HOME": home}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ready(self) -> None:
        """Wait until it has built its house."""
        if self.read() != "ready":
            raise RuntimeError(f"the {self.kind} worker ended before it was ready; its output above says why")

    def tell(self, steps: int) -> None:
        """Let it go."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()

    def read(self) -> str:
        """Its next line; "" when it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        """End it, and with it its stand-in."""
        self.process.kill()
        self.process.wait()


def rate(team: Sequence[Worker], steps: int) -> tuple[float, float]:
    """Steps per second of a team that works at the same time, and the processor time of one step in ms."""
    began, spent = time.perf_counter(), []
    for worker in team:
        worker.tell(steps)
    for worker in team:
        said = worker.read()
        if not said:
            raise RuntimeError(f"a {worker.kind} worker ended in the middle of a turn")
        spent.append(float(said))
    return len(team) * steps / (time.perf_counter() - began), statistics.mean(spent)


def measure(size: str, rounds: int, steps: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Medians for one picture size: {"rates": {team: }, "ratios": {"one/alone": , ...}, "processor_ms": {team: }}."""
    seen: dict[str, list[float]] = {name: [] for name in TEAMS}
    spent: dict[str, list[float]] = {name: [] for name in TEAMS}
    with tempfile.TemporaryDirectory() as home:
        alone = Worker("alone", size, home)
        others = [Worker("controller", size, home) for _ in range(max(TEAMS.values()))]
        try:
            for worker in (alone, *others):
                worker.ready()
            for number in range(rounds + 1):  # the first warms caches up
                for name, count in TEAMS.items():
                    found, used = rate([alone] if name == "alone" else others[:count], steps)
                    seen[name] += [found] if number else []
                    spent[name] += [used] if number else []
                say(f"{size}: " + ", ".join(f"{name} {v[-1]:.0f}/s" for name, v in seen.items() if v))
        finally:
            for worker in (alone, *others):
                worker.close()
    ratios = {f"{a}/{b}": statistics.median(x / y for x, y in zip(seen[a], seen[b], strict=True)) for a, b in RATIOS}
    rates = {name: statistics.median(v) for name, v in seen.items()}
    used_ms = {name: statistics.median(spent[name]) for name in TIMED}
    return {"rates": rates, "ratios": ratios, "processor_ms": used_ms, "rounds": rounds}


def as_results(size: str, found: dict[str, Any]) -> dict[str, Any]:
    """name -> ratio, goal and the figures behind it; the first is the rate of one process over its goal."""
    rates = {f"{name}_steps_per_s": round(value, 1) for name, value in found["rates"].items()}
    rates |= {f"{name}_processor_ms": round(value, 3) for name, value in found["processor_ms"].items()}
    named = {"alone/goal": found["rates"]["alone"] / GOALS[size], **found["ratios"]}
    return {
        f"thor_mini/{size}/{name}": {
            "ratio": round(value, 3), "goal": 1.0 if name == "alone/goal" else None, "rounds": found["rounds"], **rates,
        }
        for name, value in named.items()
    }  # fmt: skip


def as_table(found: dict[str, dict[str, Any]]) -> str:
    """One row a size: rates, then ratios, then processor time."""
    from benchmarks.tables import table

    head = ["pictures", *(f"{name} /s" for name in TEAMS), *(f"{a}/{b}" for a, b in RATIOS),
            *(f"{name}, ms" for name in TIMED), "goal for alone"]  # fmt: skip
    rows = [
        [
            size,
            *(f"{f['rates'][name]:.0f}" for name in TEAMS),
            *(f"{f['ratios'][f'{a}/{b}']:.2f}" for a, b in RATIOS),
            *(f"{f['processor_ms'][name]:.2f}" for name in TIMED),
            f"{GOALS[size]:.0f}{' (missed)' if f['rates']['alone'] < GOALS[size] else ''}",
        ]
        for size, f in found.items()
    ]
    return table(head, rows)


def main() -> None:
    """Measure, print the table, and write results.json and RESULTS.md."""
    parser = argparse.ArgumentParser(description="Speed of the AI2-THOR stand-in.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=200, help="of each process in each turn")
    parser.add_argument("--size", choices=list(SIZES), help="only this one")
    parser.add_argument("--no-write", action="store_true", help="only print")
    parser.add_argument("--worker", nargs=2, metavar=("KIND", "SIZE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(*args.worker)
        return
    if not PYTHON.exists():
        sys.exit(f"{PYTHON} is missing; run `python launch.py install ai2thor`")
    from benchmarks.tables import hardware, write_results, write_section

    found = {}
    for size in [args.size] if args.size else SIZES:
        found[size] = measure(size, args.rounds, args.steps, lambda line: print(line, file=sys.stderr))
    print(text := f"## AI2-THOR stand-in\n\n{hardware()}; {args.rounds} rounds.\n\n{as_table(found)}")
    if not args.no_write:
        for size, figures in found.items():
            write_results(as_results(size, figures))
        write_section("thor_mini", text)


if __name__ == "__main__":
    main()
