"""Tell glibc how much freed memory a process keeps, and to give it back now."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Final

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # mallopt's names
_KEPT: Final = 32 << 20
_LARGEST: Final = 8 << 20  # the log-mels of a clip; arrays of batches leave no holes in the heap
_ARENAS: Final = 2  # each keeps what was freed in it; by default there are eight a core


def keep_freed_memory() -> None:
    """For processes that make arrays of megabytes again and again, as decoders and networks do.

    By default glibc returns each to the kernel, and getting its pages back takes as long as
    decoding a clip, and a sixth of embedding it. Without glibc, nothing changes.
    """
    with suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)
        libc.mallopt(_ARENA_MAX, _ARENAS)


def return_freed_memory() -> None:
    """Give all pages that hold nothing back to the kernel, from the middle of the heap as well.

    glibc by itself returns only the top of its heaps: a long-lived process of many sizes of arrays
    keeps a tenth of its memory in holes. Takes milliseconds; the next large arrays take a little
    longer. Without glibc, nothing happens.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
