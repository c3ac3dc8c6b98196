"""Memory of the process: huge pages for what is large, and when freed memory stays or goes."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import mmap

import torch
from torch import Tensor

HUGE_PAGE = 1 << 21
KEPT_BYTES = 1 << 28  # freed memory that stays with the process
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _MMAP_THRESHOLD_MAX = -1, -3, 1 << 25


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep up to 256 MiB that it freed, for its next allocations (``mallopt``; once per process).

    By default glibc gives arrays of a few MiB back to the system when they are freed, and each page of the next one is
    faulted in and zeroed again, in every training step.

    Returns:
        Whether the C library took the settings; one other than glibc does not, and nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_MAX) and mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))


def return_freed_memory() -> None:
    """Give back what this process freed and glibc still holds, for other libraries' allocators cannot use it."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # as above
        ctypes.CDLL(None).malloc_trim(0)


def empty_pages(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory in huge pages where it is large and the system offers them: random rows then miss the TLB less."""
    size = math.prod(shape) * dtype.itemsize
    if size < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory is not huge by default
    pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).reshape(shape)
