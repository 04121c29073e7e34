"""The user's cache folder: where it is, and how several processes share it. Standard library only."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Iterator


def cache_root() -> Path:
    """The user's cache folder: $TEMPER_CACHE, else ~/.cache/temper."""
    chosen = os.environ.get("TEMPER_CACHE", "")
    return Path(chosen) if chosen else Path.home() / ".cache" / "temper"


def sha256_of(path: Path) -> str:
    """Checksum of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Let one process at a time work on `target`: a run starts many environments at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that others see all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=str(path.parent))
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.chmod(partial, 0o644)
        os.replace(partial, str(path))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
