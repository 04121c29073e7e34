"""LIBERO's stored initial states, kept as one .npz file a suite in the user's cache."""

from __future__ import annotations

import hashlib
import io
import logging
import zipfile
from pathlib import Path
from typing import Dict

import numpy as np

from envs.cache import cache_root, write_whole
from envs.libero_assets import package_folder, read_init_states, suite_tasks

_log = logging.getLogger(__name__)


def suite_states(suite: str) -> Dict[str, np.ndarray]:
    """The benchmark's initial states of every task of a suite: float64 [states, time + qpos + qvel].

    The cached file is found by the content of the package's own files, and made again if it is damaged.
    """
    folder = package_folder() / "init_files" / suite
    files = {task: folder / f"{task}.pruned_init" for task in suite_tasks(suite)}
    digest = hashlib.sha256()
    for task, file in files.items():
        digest.update(f"{task}\n".encode() + (file.read_bytes() if file.is_file() else b""))
    path = cache_root() / "libero-states" / f"{suite}-{digest.hexdigest()[:16]}.npz"
    try:
        states = _read(path)
        if states.keys() == files.keys():
            return states
        _log.warning("the initial states in %s are incomplete; they are made again", path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, zipfile.BadZipFile) as e:
        _log.warning("the initial states in %s are damaged (%s); they are made again", path, e)
    states = {task: read_init_states(file) for task, file in files.items()}
    content = io.BytesIO()
    np.savez(content, **states)  # type: ignore[arg-type]
    try:
        write_whole(path, content.getvalue())
    except OSError as e:
        _log.warning("initial states cannot be kept in %s (%s)", path.parent, e)
    return states


def _read(path: Path) -> Dict[str, np.ndarray]:
    with np.load(str(path), allow_pickle=False) as stored:
        return {task: stored[task] for task in stored.files}
