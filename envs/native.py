"""Compile a C file of ours once and keep the library in the user's cache. Standard library only, Python 3.8 syntax."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import List, Sequence

from envs.libero_assets import cache_root
from envs.types import EnvError

FLAGS = ("-std=c99", "-ffp-contract=off", "-shared", "-fPIC")


def compiler(who: str, otherwise: str = "") -> List[str]:
    """The C compiler's command: $CC or the first of cc, gcc, clang. EnvError if there is none."""
    named = os.environ.get("CC", "").split()
    found = named or [path for path in (shutil.which(name) for name in ("cc", "gcc", "clang")) if path][:1]
    if not found or shutil.which(found[0]) is None:
        raise EnvError(
            f"{who} needs a C compiler once, and there is none ({'CC=' + named[0] if named else 'cc, gcc, clang'})"
            f"; on Debian and Ubuntu: apt-get install gcc libc6-dev.{otherwise}"
        )
    return found


def compiled(
    source: Path, *, name: str, who: str, flags: Sequence[str] = (), facts: Sequence[str] = (), otherwise: str = ""
) -> Path:
    """The shared library of `source` in the user's cache; built, under another name first, if it is not there.

    Its name holds all that it depends on: the source, the flags, the kind of machine and `facts`. `who` and `otherwise`
    begin and end the messages of EnvError.
    """
    known = [source.read_text(encoding="utf-8"), *facts, platform.machine(), *FLAGS, *flags]
    folder = cache_root() / "core"
    target = folder / f"{name}-{hashlib.sha256(chr(0).join(known).encode()).hexdigest()[:16]}.so"
    if target.exists():
        return target
    command = compiler(who, otherwise)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(suffix=".so", dir=str(folder))
    except OSError as e:
        raise EnvError(f"{who} cannot write its library to {folder} ({e}); set TEMPER_CACHE to a folder") from e
    os.close(handle)
    try:
        done = subprocess.run(
            [*command, *FLAGS, str(source), *flags, "-lm", "-o", partial],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise EnvError(f"{who} could not be compiled by {command[0]}: {done.stderr[-800:].strip()}")
        os.chmod(partial, 0o755)
        os.replace(partial, str(target))
    finally:
        Path(partial).unlink(missing_ok=True)
    return target
