"""What `launch.py doctor` checks of this machine; envs/doctor.py tries a simulator."""

import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

from envs import install

SMALL_SHM = 256 * 2**20  # bytes; Docker gives 64 MiB unless told otherwise
Row = tuple[str, str, str]  # name, value, verdict: ok or BAD


def machine() -> list[Row]:
    """(name, value, verdict) of what everything else stands on."""
    version = sys.version.split()[0]
    rows = [("python", version, "ok" if sys.version_info[:2] == (3, 11) else "BAD")]
    for package in ("torch", "ray", "gymnasium", "mujoco", "robosuite", "transformers"):
        try:
            rows.append((package, metadata.version(package), "ok"))
        except metadata.PackageNotFoundError:
            rows.append((package, "not installed; type: make setup", "BAD"))
    backend = os.environ.get("MUJOCO_GL", "osmesa")
    missing = install.check_gl(backend)
    rows.append((f"rendering ({backend})", f"missing {missing}; type: {install.gl_command()}" if missing else "loads",
                 "BAD" if missing else "ok"))  # fmt: skip
    rows.append(("cores", str(len(os.sched_getaffinity(0))), "ok"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rows.append(("memory", f"{memory / 2**30:.1f} GiB", "ok" if memory > 4 * 2**30 else "BAD"))
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    text = f"{shared / 2**20:.0f} MiB free" + ("" if shared >= SMALL_SHM else "; in Docker: --shm-size=2g")
    rows.append(("/dev/shm", text, "ok" if shared >= SMALL_SHM else "BAD"))
    return rows
