"""Files and messages that somebody changed: `make fuzz`, or `python -m benchmarks.fuzz [--cases N] [--seed S]`.

Valid checkpoints, demonstration files (HDF5), messages and configurations are mutated and read. Each must be taken or
refused with an error of ours; what crashes, hangs, raises anything else, or runs code is a finding, and is listed with
the number that repeats it. Readers run in processes of their own, so that a crash is seen.
"""

import argparse
import contextlib
import hashlib
import json
import pickle
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import HERE, table, write_results, write_section
from envs.types import EnvError, EnvSpec

SHARES = {"checkpoints": 0.2, "demonstrations": 0.2, "messages": 0.57, "configurations": 0.03}
CLEAR = (ValueError, EnvError)  # what readers promise to raise
BATCH, PATIENCE_S = 200, 300.0  # cases of a process, and how long one may take
ALARMS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
)
CANARY = "canary"
Case = Callable[[random.Random], object]


class _Touch:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, (f"touch {CANARY}",)


TOKENS = (
    b"null", b"[]", b"{}", b"-1", b"1e999", b"NaN", b"99999999999999999999", b'"' + b"x" * 300 + b'"', b"\x00" * 16,
    b"\xff" * 8, b'"os.system"', b"_target_: os.system", b"_target_: subprocess.call", b"__class__", b"../../..",
    f"!!python/object/apply:os.system ['touch {CANARY}']".encode(), pickle.dumps(_Touch()), b"[" * 2000,
    b"${oc.env:HOME}",
)  # fmt: skip


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A few changes: bits, bytes, pieces cut, repeated or exchanged for a token."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1)
        length = min(len(out) - at, rng.choice((1, 2, 4, 16, 256)))
        what = rng.randrange(6)
        if what == 0 and length:
            out[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            out[at : at + length] = rng.randbytes(length)
        elif what == 2:
            del out[at : at + length]
        elif what == 3:
            out[at:at] = out[at : at + length]
        elif what == 4:
            out[at : at + rng.choice((0, length))] = rng.choice(TOKENS)
        else:
            del out[rng.randrange(len(out) // 2, len(out) + 1) :]
    return bytes(out)


# --- readers: each makes its valid sample in a folder, once, and returns what to do for one case ----------------------


def checkpoints(folder: Path) -> Case:
    """One file of a checkpoint is changed; more often than not its manifest is made to agree."""
    from envs.build import build
    from envs.toy import Toy
    from pretrained.checkpoint import MANIFEST, load_learner, load_policy, save

    spec, node = Toy(size=[16, 16]).spec, _policy()
    whole = folder / "whole"
    save(whole, build(node, env=spec), node=node, env=spec, learner={"step": 3, "moments": [np.zeros(3).tolist()]})
    names = sorted(p.name for p in whole.iterdir())

    def case(rng: random.Random) -> object:
        copy = folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        name = rng.choice(names)
        data = mutate((copy / name).read_bytes(), rng)
        (copy / name).write_bytes(data)
        if name != MANIFEST and rng.random() < 0.6:
            listed = json.loads((copy / MANIFEST).read_text())
            listed["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            (copy / MANIFEST).write_text(json.dumps(listed))
        load_policy(copy, env=spec)
        return load_learner(copy)

    return case


def _policy() -> dict[str, Any]:
    import yaml

    node = yaml.safe_load((HERE.parent / "configs" / "policy" / "gaussian.yaml").read_text())
    node |= {"width": 8, "critic_width": 8}
    node["encoder"] |= {"width": 8, "channels": [4, 4, 4]}
    return node


def demonstrations(folder: Path) -> Case:
    """A file of demonstrations is changed and read as imitation would."""
    from envs.toy import Toy
    from pretrained.demos import Demos, DemoWriter, Recorded

    spec, rng = Toy(size=[16, 16]).spec, np.random.default_rng(0)
    rows = np.zeros((5, 2))
    writer = DemoWriter(folder / "whole.hdf5", env=spec, identity={}, compression="gzip")
    images = {"top": rng.integers(0, 255, size=(5, 16, 16, 3), dtype=np.uint8) // 64}
    writer.add(0, Recorded(images, rows.astype(np.float32), rows, rows, rows[:, 0], rows, "go", "red", 0, True))
    data = writer.finish([0], {}).read_bytes()

    def case(rng: random.Random) -> object:
        path = folder / "copy.hdf5"
        path.write_bytes(mutate(data, rng))
        return Demos(path, env=spec, horizon=1).batch([0, 3]).obs.images["top"].sum()

    return case


def messages(folder: Path) -> Case:
    """Bytes on the line to a simulator, to a policy server, and descriptions of environments."""
    from envs.toy import Toy
    from envs.wire import Channel, WireClosed
    from pretrained.wire import pack, unpack

    spec = Toy(size=[16, 16]).spec.to_json()
    packed = pack({"images": {"top": np.zeros((4, 4, 3), np.uint8)}, "proprio": np.zeros(4, np.float32), "text": "go"})
    line = json.dumps({"op": "step", "n": 3, "render": "last"}).encode()
    whole = len(line).to_bytes(4, "little") + line

    def over_a_line(rng: random.Random) -> object:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.sendall(mutate(whole, rng)[:60000])
            ours.shutdown(socket.SHUT_WR)
            try:
                return Channel(theirs).recv()
            except WireClosed as e:
                raise ValueError(str(e)) from e

    def case(rng: random.Random) -> object:
        which = rng.randrange(3)
        if which == 0:
            return over_a_line(rng)
        if which == 1:
            return unpack(mutate(packed, rng))
        data = mutate(json.dumps(spec).encode(), rng)
        try:
            return EnvSpec.from_json(json.loads(data))
        except (
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as e:  # its callers say which file or child it was
            raise ValueError(str(e)) from e

    return case


def configurations(folder: Path) -> Case:
    """A YAML file or a word of the command line is changed."""
    from configs.load import load

    files = {
        "groups.yaml": "defaults: [{env: toy}, {run: null}]",
        "go.yaml": "defaults: [groups, _self_]\n_target_: envs.types.EnvConfig\nstep_deadline_s: 3.0\npython: root",
        "env/toy.yaml": "# @package sim\n_target_: envs.toy.Toy\nname: reach\nmax_steps: 9",
        "run/slow.yaml": "# @package _global_\nopen_deadline_s: 7.0\nsim: {step_ms: 1.5}\ngo: {python: section}",
    }
    words = (
        "run=slow",
        "sim.max_steps=3",
        "step_deadline_s=1.5",
        "sim.size=[8,8]",
        "python=x",
        "sim._target_=envs.toy.Toy",
    )

    def case(rng: random.Random) -> object:
        configs = folder / "configs"
        for name, text in files.items():
            (configs / name).parent.mkdir(parents=True, exist_ok=True)
            (configs / name).write_text(text)
        said = [w for w in words if rng.random() < 0.5]
        if rng.random() < 0.5 and said:
            k = rng.randrange(len(said))
            said[k] = mutate(said[k].encode(), rng).decode(errors="replace").replace("\x00", "")
        else:
            name = rng.choice(list(files))
            (configs / name).write_bytes(mutate(files[name].encode(), rng))
        return load("go", said, configs)

    return case


READERS: dict[str, Callable[[Path], Case]] = {
    "checkpoints": checkpoints, "demonstrations": demonstrations, "messages": messages, "configurations": configurations
}  # fmt: skip


# --- running ----------------------------------------------------------------------------------------------------------


def attack(kind: str, seed: int, first: int, count: int) -> Iterator[tuple[int, str]]:
    """Cases `first` to `first + count`: `taken`, `refused`, or what was found."""
    alarms: list[str] = []
    armed = False
    sys.addaudithook(lambda event, _: alarms.append(event) if armed and event in ALARMS else None)
    with tempfile.TemporaryDirectory(prefix="temper_fuzz_") as name, contextlib.chdir(name):
        case = READERS[kind](Path(name))
        for k in range(first, first + count):
            alarms.clear()
            armed = True
            try:
                case(random.Random(f"{kind} {seed} {k}"))
                verdict = "taken"
            except CLEAR as e:
                verdict = "refused" if str(e).strip() else "no message"
            except Exception as e:
                verdict = f"{type(e).__name__}: {' '.join(str(e).split())[:100]}"
            armed = False
            if alarms or Path(CANARY).exists():
                verdict = f"ran something: {sorted(set(alarms)) or 'the canary'}"
            yield k, verdict


def run(kind: str, seed: int, cases: int) -> tuple[Counter[str], list[str]]:
    """All cases of a kind, in processes; the counts, and what was found."""
    counts: Counter[str] = Counter()
    found: list[str] = []
    at = 0
    while at < cases:
        count = min(BATCH, cases - at)
        command = [sys.executable, "-m", "benchmarks.fuzz", "--inside", kind, str(seed), str(at), str(count)]
        try:
            done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, timeout=PATIENCE_S)
            text, how = done.stdout, f"crashed with status {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired as e:
            text, how = (e.stdout or b"").decode(), "hung"
        rows = [json.loads(row) for row in text.splitlines() if row.startswith("[")]
        for k, verdict in rows:
            clear = verdict in ("taken", "refused")
            counts[verdict if clear else "unclear"] += 1
            found += [] if clear else [f"{kind} {k}: {verdict}"]
        at += len(rows)
        if how and len(rows) < count:
            counts[how.split()[0]] += 1
            found.append(f"{kind} {at}: {how}")
            at += 1
    return counts, found


def main() -> int:
    """Attack, print, write; 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--cases", type=int, default=10400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inside", nargs=4, metavar=("KIND", "SEED", "FIRST", "COUNT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        kind, *numbers = args.inside
        for row in attack(kind, *map(int, numbers)):
            print(json.dumps(row), flush=True)
        return 0
    began, rows, found, total = time.monotonic(), [], [], 0
    for kind, share in SHARES.items():
        counts, bad = run(kind, args.seed, round(share * args.cases))
        total, found = total + sum(counts.values()), found + bad
        rows.append([kind, *(str(counts[c]) for c in ("taken", "refused", "unclear", "crashed", "hung"))])
        print(rows[-1], *bad[:20], sep="\n", flush=True)
    text = table(["changed", "taken", "refused clearly", "unclear error", "crashed", "hung"], rows)
    print(text)
    write_results({"fuzz": {"cases": total, "findings": len(found), "seconds": round(time.monotonic() - began)}})
    listed = "".join(f"\n- `{f}`" for f in found[:20])
    ran = "" if any("ran something" in f for f in found) else "\n\nNothing that was read ran code."
    write_section("fuzz", f"## Changed files and messages\n\n{text}{ran}"
                  f"\n{listed}\n\nCommand: `make fuzz` (seed {args.seed}).")  # fmt: skip
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
