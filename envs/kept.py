"""Compiled tasks that stay in memory: as many as fit, the one unused for longest makes room."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
from collections import OrderedDict
from typing import Callable, Generic, Optional, TypeVar

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
Item = TypeVar("Item")


class Kept(Generic[Item]):
    """Items by name, while the process stays below a size.

    What an item takes is measured, not guessed: by how much the process has grown from before the last one was made to
    when the next is wanted, its pictures' buffers included.
    """

    def __init__(self, *, memory_mb: float, close: Callable[[Item], None]) -> None:
        self._limit, self._close = memory_mb, close
        self._items: OrderedDict[str, Item] = OrderedDict()
        self._before = 0.0  # MB, before the last item was made
        _map_large_blocks()

    def get(self, name: str) -> Optional[Item]:
        """The item, which then counts as the last used; None if it is not kept."""
        if name in self._items:
            self._items.move_to_end(name)
        return self._items.get(name)

    def make_room(self) -> None:
        """Drop items until one more of the last one's size fits, or none is left."""
        now = resident_mb()
        size = max(now - self._before, 0.0)
        while self._items and now + size > self._limit:
            self._close(self._items.popitem(last=False)[1])
            now = release()
        self._before = now

    def add(self, name: str, item: Item) -> None:
        """Keep a new item; `make_room` comes before it is made."""
        self._items[name] = item

    def __len__(self) -> int:
        return len(self._items)

    def clear(self) -> None:
        """Drop everything."""
        while self._items:
            self._close(self._items.popitem()[1])


def resident_mb() -> float:
    """Memory that this process occupies now, in MB of 2**20 bytes; its highest where the system tells no more."""
    try:
        with open("/proc/self/statm", encoding="ascii") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def release() -> float:
    """Give memory that nobody needs back to the system, and return what the process occupies then."""
    gc.collect()  # simulators are full of circles
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps what was freed in small pieces
    if trim is not None:
        trim(0)
    return resident_mb()


def _map_large_blocks() -> None:
    """Have the system, not the heap, hold blocks of 1 MB and more, so that they can be given back one by one.

    glibc does so at first, but raises the size to 32 MB when such blocks are freed; the holes that meshes and textures
    then leave in the heap were 60 to 90 MB.
    """
    choose = getattr(ctypes.CDLL(None), "mallopt", None)
    if choose is not None:
        choose(M_MMAP_THRESHOLD, 1 << 20)
