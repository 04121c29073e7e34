"""A policy behind a WebSocket: a robot sends observations and gets chunks of actions.

After the handshake the server says what the policy sees and returns. Then each message is an observation,

    {"images": {camera: uint8 [Y, X, 3]}, "proprio": float [P], "instruction": str, "reset": bool}

and each answer {"actions": float32 [E, A] in env units, "chunk": [H, A], "value": float, "seconds": float}, or, if the
message is no good, {"error": what is wrong}, after which the connection goes on. `reset` begins an episode: memory and
history are forgotten. Messages beyond the limit close their connection, and no other. Every connection is a robot of
its own; decisions are made one at a time.

Robots on other machines show a token, `Authorization: Bearer ...` in the handshake, which both sides take from the
variable TEMPER_SERVE_TOKEN; without one the server listens to this machine only. The line itself is not encrypted.
"""

import hmac
import ipaddress
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np
import torch

from pretrained import checkpoint
from pretrained.types import Memory, ObsBatch, Policy
from pretrained.wire import pack, unpack

KEYS = {"images", "proprio", "instruction", "reset"}
TOKEN = "TEMPER_SERVE_TOKEN"  # of the environment

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeRun:
    """Settings of a policy server."""

    checkpoint: str
    host: str = "127.0.0.1"
    port: int = 8765  # 0 takes a free one
    greedy: bool = True
    seed: int = 0
    max_megabytes: float = 32.0  # of one message
    device: str = ""  # "" takes CUDA if it is there
    policy_overrides: Mapping[str, Any] | None = None  # merged into what the policy was built with
    threads: int = 0  # of torch; 0 leaves them


class Robot:
    """One connection: its history, its memory, and its random numbers."""

    def __init__(self, policy: Policy, *, greedy: bool, seed: int) -> None:
        self.policy, self.greedy, self.seed, self.episode = policy, greedy, seed, -1
        self.memory: Memory = {}
        self.seen: deque[tuple[dict[str, np.ndarray], np.ndarray]] = deque(maxlen=policy.spec.history)
        self.reset()

    def reset(self) -> None:
        """Begin an episode."""
        self.episode += 1
        self.memory = self.policy.initial_memory(1)
        self.rng = torch.Generator().manual_seed(self.seed * 7919 + self.episode)
        self.seen.clear()

    @torch.no_grad()
    def answer(self, message: Any) -> dict[str, Any]:
        """What to send back. Raises ValueError if the message is no observation of this policy."""
        began = time.perf_counter()
        images, proprio, text = self._read(message)
        if message.get("reset"):
            self.reset()
        kept = list(self.seen)
        self.seen.append((images, proprio))
        while len(self.seen) < self.policy.spec.history:  # the first observation fills the history
            self.seen.append((images, proprio))
        obs = ObsBatch(
            {c: np.stack([frame[c] for frame, _ in self.seen])[None] for c in images},
            np.stack([p for _, p in self.seen])[None],
            [text],
        )
        try:
            decision, self.memory = self.policy.act(self.policy.encode(obs), self.memory, self.rng, self.greedy)
        except ValueError:
            self.seen.clear()
            self.seen.extend(kept)  # as if it had not been sent
            raise
        chunk = decision.chunk[0].cpu().numpy()
        value = float(decision.value[0])
        return {
            "actions": chunk[: self.policy.spec.execute],
            "chunk": chunk,
            "value": value,
            "seconds": time.perf_counter() - began,
        }

    def _read(self, message: Any) -> tuple[dict[str, np.ndarray], np.ndarray, str]:
        spec = self.policy.spec
        if not isinstance(message, dict):
            raise ValueError(f"expected a map with {sorted(KEYS)}, got a {type(message).__name__}")
        if unknown := sorted(str(k) for k in message if k not in KEYS):
            raise ValueError(f"unknown entries {unknown[:5]}; expected some of {sorted(KEYS)}")
        images, text = message.get("images", {}), message.get("instruction", "")
        if not isinstance(images, dict) or set(images) != set(spec.cameras):
            got = sorted(map(str, images)) if isinstance(images, dict) else type(images).__name__
            raise ValueError(f"images: expected the cameras {list(spec.cameras)}, got {got}")
        for camera, size in spec.cameras.items():
            image = images[camera]
            if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != (*size, 3):
                got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
                raise ValueError(
                    f"camera '{camera}': expected an array uint8 {(*size, 3)}, RGB, row 0 on top, got {got}"
                )
        if not isinstance(text, str) or not isinstance(message.get("reset", False), bool):
            raise ValueError("expected 'instruction' to be a string and 'reset' true or false")
        try:
            proprio = np.asarray(message.get("proprio", []), dtype=np.float32)
        except (ValueError, TypeError) as e:
            raise ValueError(f"proprio: expected {len(spec.proprio)} numbers ({e})") from e
        if proprio.shape != (len(spec.proprio),) or not np.isfinite(proprio).all():
            names = list(spec.proprio)
            raise ValueError(f"proprio: expected {len(names)} finite numbers, {names}, got shape {proprio.shape}")
        return images, proprio, text


class PolicyServer:
    """Serves until it is closed; every connection has a thread of its own."""

    def __init__(self, policy: Policy, run: ServeRun) -> None:
        """Listens at once. Raises ValueError if the address cannot be had, or would let anybody in."""
        from websockets.sync.server import serve

        self.policy, self.run, self.lock, self.token = policy, run, threading.Lock(), os.environ.get(TOKEN, "")
        if not self.token and not _loopback(run.host):
            raise ValueError(
                f"host = '{run.host}' lets other machines in, and there is no token to know them by; set {TOKEN} here "
                "and on the robot to the same random word (python -c 'import secrets; print(secrets.token_urlsafe())'),"
                " or serve on 127.0.0.1"
            )
        try:
            self.server = serve(
                self._talk, run.host, run.port, max_size=int(run.max_megabytes * 2**20), compression=None,
                process_request=self._admit,
            )  # fmt: skip
        except OSError as e:
            raise ValueError(f"cannot listen on {run.host}:{run.port}: {e}; choose another port, or host") from e
        self.port = int(self.server.socket.getsockname()[1])

    def forever(self) -> None:
        """Answer until `close`."""
        self.server.serve_forever()

    def close(self) -> None:
        """Stop listening."""
        self.server.shutdown()

    def _admit(self, connection: Any, request: Any) -> Any:
        """Before the handshake: GET /healthz is answered without one, and whoever lacks the token is turned away."""
        if request.path == "/healthz":
            return connection.respond(HTTPStatus.OK, "ok\n")
        shown = request.headers.get("Authorization", "")
        if not self.token or hmac.compare_digest(shown.encode(), f"Bearer {self.token}".encode()):
            return None
        return connection.respond(HTTPStatus.UNAUTHORIZED, f"expected the token of {TOKEN}\n")

    def _talk(self, connection: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        robot = Robot(self.policy, greedy=self.run.greedy, seed=self.run.seed)
        try:
            connection.send(pack({"format": 1, "policy": self.policy.spec.to_json()}))
            for data in connection:
                connection.send(pack(self._answer(robot, data)))
        except ConnectionClosed as e:
            log.info("a robot left: %s", e)

    def _answer(self, robot: Robot, data: bytes | str) -> dict[str, Any]:
        try:
            with self.lock:
                return robot.answer(unpack(data))
        except ValueError as e:
            return {"error": str(e)}
        except Exception as e:  # a bug must not stop the robots of other connections; the log has its traceback
            log.exception("a decision failed")
            return {"error": f"the policy failed ({type(e).__name__}: {e}); see the server's log"}


def _loopback(host: str) -> bool:
    """Whether what listens there can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Client:
    """The other side, for robots and tests."""

    def __init__(self, url: str, *, timeout: float = 60.0) -> None:
        """Raises ValueError if the server wants another token than that of TEMPER_SERVE_TOKEN."""
        from websockets.exceptions import InvalidStatus
        from websockets.sync.client import connect

        self.timeout = timeout
        token = os.environ.get(TOKEN, "")
        shown = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            self.connection = connect(url, compression=None, max_size=None, additional_headers=shown)
        except InvalidStatus as e:
            if e.response.status_code != HTTPStatus.UNAUTHORIZED:
                raise
            have = "another one" if token else "none"
            raise ValueError(f"{url} demands a token, and {TOKEN} holds {have}; set it to the server's") from e
        self.policy: dict[str, Any] = unpack(self.connection.recv(timeout))["policy"]

    def act(self, images: Mapping[str, np.ndarray], proprio: Any, instruction: str, *, reset: bool = False) -> Any:
        """The server's answer. Raises ValueError with what the server finds wrong."""
        message = {"images": dict(images), "proprio": np.asarray(proprio, np.float32), "instruction": instruction}
        self.connection.send(pack({**message, "reset": reset}))
        answer = unpack(self.connection.recv(self.timeout))
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer

    def close(self) -> None:
        """Leave."""
        self.connection.close()


def make_server(run: ServeRun) -> PolicyServer:
    """Load the checkpoint and listen. Raises ValueError if there is no such checkpoint, or websockets is missing."""
    try:
        import websockets  # noqa: F401
    except ImportError as e:
        raise ValueError("serve needs the package websockets, which is not installed; run 'make setup'") from e
    if run.threads:
        torch.set_num_threads(run.threads)
    if run.max_megabytes <= 0:
        raise ValueError(f"max_megabytes = {run.max_megabytes:g}; expected a positive size of one message")
    overrides = dict(run.policy_overrides) if run.policy_overrides else None
    policy: Any = checkpoint.load_policy(checkpoint.find(run.checkpoint), overrides=overrides)
    policy.to(run.device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    if not hasattr(policy, "act"):
        raise ValueError(f"{run.checkpoint} holds a {type(policy).__name__}, which decides nothing; serve a policy")
    return PolicyServer(policy, run)
