"""The real AI2-THOR Controller, with a watch kept over the simulator process behind it.

Over named pipes the Controller does not notice that its simulator is dead, and waits for ever for one that never
connects. Here a timer looks at the process ten times a second while a call is under way: a process that died, or a call
that takes longer than its deadline, ends in BadState, upon which the supervisor replaces this child.

Needs the standard library and, inside functions, ai2thor; Python 3.8 syntax. Main thread only, because of the timer.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Tuple

from envs.types import BadState, EnvError

ROOT = Path(__file__).resolve().parent.parent
TICK_S = 0.1  # between two looks at the process
MINI = "envs.thor_mini"  # the module that stands in for the Unity build
INITIALIZE: Dict[str, Any] = {  # what SPOC asks of the simulator, arXiv:2312.02976
    "gridSize": 0.15,
    "visibilityDistance": 0.8673349051766235,
    "visibilityScheme": "Distance",
    "fieldOfView": 59,
    "agentMode": "stretch",
    "renderInstanceSegmentation": False,
    "renderDepthImage": False,
    "cameraNearPlane": 0.01,
    "snapToGrid": False,
    "fastActionEmit": True,
    "autoSimulation": False,
    "autoSyncTransforms": True,
    "useMassThreshold": True,
    "massThreshold": 10,
}


@dataclass(frozen=True)
class Start:
    """Which simulator to start, how to talk to it, and how long it may take."""

    backend: str = "mini"  # mini: the embedded one; unity: a build of AI2-THOR
    transport: str = "FIFO"  # or WSGI
    executable: str = ""  # unity: a build on this machine, instead of the one that `commit_id` names
    commit_id: str = ""  # unity: the build to take (and download, if it is not there)
    platform: str = ""  # unity: Linux64 (needs X) or CloudRendering (needs Vulkan); "" lets ai2thor choose
    gpu: Optional[int] = None
    mini_arguments: str = ""  # of the embedded simulator's command line
    start_deadline_s: float = 120.0  # until it answers for the first time
    house_deadline_s: float = 120.0  # for building a house
    action_deadline_s: float = 30.0  # for anything else

    def __post_init__(self) -> None:
        if self.backend not in ("mini", "unity"):
            raise EnvError(f"ai2thor: backend '{self.backend}' is unknown; expected mini or unity")
        if self.transport not in ("FIFO", "WSGI"):
            raise EnvError(f"ai2thor: transport '{self.transport}' is unknown; expected FIFO or WSGI")
        if self.backend == "mini" and (self.executable or self.commit_id or self.platform):
            raise EnvError("ai2thor: executable, commit_id and platform are for backend=unity; remove them")
        if self.executable and not Path(shlex.split(self.executable)[0]).exists():
            raise EnvError(f"ai2thor: executable '{self.executable}' does not exist; expected a build of AI2-THOR")


class _Alarm(BaseException):
    """Raised by the timer into the Controller's waiting. Not an Exception, so that nothing in between keeps it."""


class Link:
    """One simulator. A failure of it is BadState, a mistake of ours EnvError; after BadState, make a new one."""

    def __init__(self, start: Start, *, size: Tuple[int, int]) -> None:
        """Starts the simulator with pictures of `size` (Y, X)."""
        if threading.current_thread() is not threading.main_thread():
            raise EnvError("ai2thor: the adapter watches its simulator by a timer; use it in the main thread")
        self.start = start
        self.home = tempfile.mkdtemp(prefix="temper_thor_")
        controller_class = _controller_class()
        # Made without its constructor, so that the process it starts can be watched while the constructor waits.
        self.controller: Any = controller_class.__new__(controller_class)
        self.verdict = ""  # what is wrong with the simulator
        try:
            with self._watched("start", start.start_deadline_s), _environment(self._surroundings()):
                self.controller.__init__(**self._options(size))
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The simulator's process id, -1 if there is none."""
        process = self._process()
        return -1 if process is None else int(process.pid)

    def load(self, house: Dict[str, Any]) -> Any:
        """Build a house; returns the event. Raises EnvError with the simulator's reason if it refuses the house."""
        with self._watched("CreateHouse", self.start.house_deadline_s):
            event = self.controller.reset(house)
        if not event.metadata["lastActionSuccess"]:
            raise EnvError(f"ai2thor refuses this house: {event.metadata['errorMessage'] or 'it gives no reason'}")
        return event

    def step(self, action: str, **arguments: Any) -> Any:
        """Perform one action; returns the event, whether or not the action succeeded."""
        with self._watched(action, self.start.action_deadline_s):
            return self.controller.step(action=action, **arguments)

    def ask(self, action: str, **arguments: Any) -> Any:
        """What a query returns, None if it failed."""
        event = self.step(action, **arguments)
        return event.metadata["actionReturn"] if event.metadata["lastActionSuccess"] else None

    def close(self) -> None:
        """End the simulator; calling it again does nothing."""
        process = self._process()
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        server: Any = getattr(self.controller, "server", None)
        with contextlib.suppress(Exception):  # its own clean-up expects a simulator that lives
            server.stop()
        folder: Any = getattr(server, "tmp_dir", None)
        with contextlib.suppress(Exception):
            folder.cleanup()
        shutil.rmtree(self.home, ignore_errors=True)

    # --- inside ---

    def _options(self, size: Tuple[int, int]) -> Dict[str, Any]:
        from ai2thor.fifo_server import FifoServer
        from ai2thor.wsgi_server import WsgiServer

        s = self.start
        longest = max(s.start_deadline_s, s.house_deadline_s, s.action_deadline_s)
        options: Dict[str, Any] = {
            "width": size[1],
            "height": size[0],
            "scene": "Procedural",
            "server_class": FifoServer if s.transport == "FIFO" else WsgiServer,
            # Ours come first; a number is needed, or the pipes block in a way that no timer interrupts.
            "server_timeout": longest + 5.0,
            "server_start_timeout": longest + 5.0,
            **INITIALIZE,
        }
        if s.transport == "WSGI":
            options["fastActionEmit"] = False
        if s.backend == "mini":
            command = f"{shlex.quote(sys.executable)} -u -m {MINI} {s.mini_arguments}"
            return {**options, "local_executable_path": command.strip(), "x_display": ":0"}
        chosen = {"local_executable_path": s.executable, "commit_id": s.commit_id, "platform": s.platform}
        options.update({k: v for k, v in chosen.items() if v})
        return {**options, "gpu_device": s.gpu} if s.gpu is not None else options

    def _surroundings(self) -> Dict[str, str]:
        """Environment variables while the simulator is started."""
        if self.start.backend == "unity":
            return {}
        # At each start the Controller deletes all but three releases in the home folder: keep it away from the user's.
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        return {"HOME": self.home, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}

    def _process(self) -> Any:
        return getattr(getattr(self.controller, "server", None), "unity_proc", None)

    @contextlib.contextmanager
    def _watched(self, what: str, deadline_s: float) -> Iterator[None]:
        """Look at the process while the Controller waits for it."""
        if self.verdict:
            raise BadState(f"ai2thor: {self.verdict}")
        late = time.monotonic() + deadline_s

        def look(signum: int, frame: Any) -> None:
            process = self._process()
            code = None if process is None else process.poll()
            if code is not None:
                self.verdict = f"the simulator {_ended(code)} during '{what}'{self._log()}"
            elif time.monotonic() > late:
                self.verdict = f"the simulator did not answer '{what}' within {deadline_s:g} s{self._log()}"
            if self.verdict:
                raise _Alarm

        before = signal.signal(signal.SIGALRM, look)
        signal.setitimer(signal.ITIMER_REAL, TICK_S, TICK_S)
        try:
            yield
        except _Alarm:
            pass
        except EnvError:
            raise
        except Exception as e:
            self._judge(e, what)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)
        if self.verdict:
            raise BadState(f"ai2thor: {self.verdict}")

    def _judge(self, error: Exception, what: str) -> None:
        """Tell the simulator's complaints about our request from its own breakdown."""
        process = self._process()
        if process is None:
            raise EnvError(f"ai2thor did not start: {type(error).__name__}: {error}; see launch.py doctor") from error
        with contextlib.suppress(Exception):
            process.wait(TICK_S)  # what broke the line may be about to be its end
        code = process.poll()
        if code is None and isinstance(error, ValueError) and self._answers():
            raise EnvError(f"ai2thor refuses '{what}': {error}") from error
        cause = error.__context__ or error
        how = f"sent what cannot be read ({type(cause).__name__}: {cause})"
        if code not in (None, -signal.SIGKILL):  # the Controller itself kills one that it cannot read
            how = _ended(code)
        self.verdict = f"the simulator {how} during '{what}'{self._log()}"

    def _answers(self) -> bool:
        """Whether the last answer is a whole one, so that an error in it is about the request."""
        event = getattr(self.controller, "last_event", None)
        return event is not None and not event.metadata["lastActionSuccess"]

    def _log(self) -> str:
        """The end of what the simulator wrote."""
        path = Path(self.home if self.start.backend == "mini" else Path.home()) / ".ai2thor" / "log" / "unity.log"
        try:
            tail = path.read_text(errors="replace")[-600:].strip()
        except OSError:
            return ""
        return f"; it wrote: {tail}" if tail else ""


def _controller_class() -> Any:
    try:
        from ai2thor.controller import Controller
    except ImportError as e:
        raise EnvError(f"{sys.executable} has no ai2thor ({e}); run `python launch.py install ai2thor`") from e
    return Controller


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


@contextlib.contextmanager
def _environment(values: Dict[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
