"""How long a robot waits for VPP: `python -m benchmarks.serve [--device cuda] [--case NAME ...]`.

A server on this machine answers a client over its WebSocket: pictures there, video model, Video Former, diffusion
head, chunk back. `float32` and `bfloat16` is the number format of the frozen video model, as a server is told by
`policy_overrides={video: {dtype: bfloat16}}`; `compiled` puts torch.compile around U-Net, Former and head. Ways
alternate; times are milliseconds of wall-clock for one robot, the median and the 95th percentile over all rounds.
Beside them is the processor time of client and server together, the median: on one thread of a processor that nobody
else uses it is the wall-clock time, and other programs hardly change it. Weights are random.
"""

import argparse
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.synthetic import robot
from benchmarks.tables import hardware, table, write_results, write_section
from envs.build import build
from pretrained.serve import Client, PolicyServer, ServeRun

SMALL = {"former": {"latents": 16, "width": 64, "depth": 1}, "width": 64, "encoder_layers": 1, "decoder_layers": 2}
CASES: dict[str, dict[str, Any]] = {  # the video model is the small one: no published one can be had offline
    "small": {**SMALL, "frames": 4, "size": [32, 32]},
    "published Former and head": {"frames": 16, "size": [64, 64]},
}
WARM = 2  # answers before the clock runs; the first compiles


@dataclass(frozen=True)
class Way:
    """How a policy is run."""

    dtype: str = "float32"
    compile: bool = False


WAYS = {
    "float32": Way(),
    "float32 compiled": Way(compile=True),
    "bfloat16": Way("bfloat16"),
    "bfloat16 compiled": Way("bfloat16", compile=True),
}


def make_policy(case: dict[str, Any], way: Way, device: str) -> Any:
    """A VPP with random weights, 10 denoising steps and two cameras of 64 pixels."""
    own = dict(case)
    video = {"_target_": "pretrained.vpp.video.VideoModel", "model": "tiny", "text": "tiny", "dtype": way.dtype,
             "frames": own.pop("frames"), "size": own.pop("size")}  # fmt: skip
    kernel = {"_target_": "pretrained.chain.Edm", "steps": 10, "sigma_min": 1.0, "sigma_max": 80.0}
    node = {"_target_": "pretrained.vpp.policy.Vpp", "video": video, "kernel": kernel, **own}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = build(node, env=robot(64)).to(device).eval()
    if way.compile:
        policy.encoder.video.net.forward = torch.compile(policy.encoder.video.net.forward)
        policy.encoder.former.forward = torch.compile(policy.encoder.former.forward)
        policy.run_network = torch.compile(policy.run_network)
    return policy


class Served:
    """A server in a thread and one client."""

    def __init__(self, policy: Any) -> None:
        self.server = PolicyServer(policy, ServeRun(checkpoint="", port=0))
        self.thread = threading.Thread(target=self.server.forever, daemon=True)
        self.thread.start()
        self.client = Client(f"ws://127.0.0.1:{self.server.port}", timeout=3600.0)  # compiling takes minutes
        rng = np.random.default_rng(0)
        sizes = self.client.policy["cameras"]
        self.images = {c: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for c, size in sizes.items()}
        self.proprio = np.zeros(len(self.client.policy["proprio"]), np.float32)

    def ask(self) -> tuple[float, float]:
        """Milliseconds of one answer: wall-clock, and processor time of this process."""
        start, used = time.perf_counter(), time.process_time()
        self.client.act(self.images, self.proprio, "open the drawer")
        return 1e3 * (time.perf_counter() - start), 1e3 * (time.process_time() - used)

    def close(self) -> None:
        """End both."""
        self.client.close()
        self.server.close()
        self.thread.join()


def measure(
    case: dict[str, Any], ways: Sequence[str], rounds: int, device: str, say: Callable[[str], None] = print
) -> dict[str, dict[str, float]]:
    """Way -> median and 95th percentile in milliseconds, and the median processor time."""
    served = {name: Served(make_policy(case, WAYS[name], device)) for name in ways}
    try:
        for name, one in served.items():
            say(f"{name}: first answer after {one.ask()[0] / 1e3:.1f} s")
            for _ in range(WARM - 1):
                one.ask()
        times = {name: [] for name in ways}
        for _ in range(rounds):
            for name, one in served.items():
                times[name].append(one.ask())
    finally:
        for one in served.values():
            one.close()
    found = {}
    for name, pairs in times.items():
        wall, used = np.array(pairs).T
        found[name] = {"median": float(np.median(wall)), "p95": float(np.percentile(wall, 95)),
                       "processor": float(np.median(used))}  # fmt: skip
    return found


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-write", action="store_true", help="only print")
    args = parser.parse_args()
    rows, results = [], {}
    for case in args.case:
        found = measure(CASES[case], args.ways, args.rounds, args.device)
        figure = "processor" if args.device == "cpu" else "median"
        base = found[args.ways[0]][figure]
        rows += [
            [case, w, f"{t['median']:.1f}", f"{t['p95']:.1f}", f"{t['processor']:.1f}", f"{base / t[figure]:.2f}"]
            for w, t in found.items()
        ]
        results[f"serve/{case}"] = {"ms": {w: round(t[figure], 2) for w, t in found.items()}, "device": args.device}
        text = table(["policy", "way", "median ms", "95 % ms", "processor ms", "times as fast"], rows)
        print(text)
        if not args.no_write:  # after each case: a run that is stopped keeps what it has
            write_results(results)
            write_section("serve", f"## Waiting for VPP\n\n{hardware()}\n\n{text}\n\n{_command(args)}")


def _command(args: argparse.Namespace) -> str:
    threads = f"{torch.get_num_threads()} threads" if args.device == "cpu" else torch.cuda.get_device_name()
    ways = "" if args.ways == list(WAYS) else f" --ways {' '.join(args.ways)}"
    return f"Command: `python -m benchmarks.serve --rounds {args.rounds} --device {args.device}{ways}`, {threads}."


if __name__ == "__main__":
    main()
