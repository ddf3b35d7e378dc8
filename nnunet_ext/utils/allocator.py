"""glibc's allocator on the CPU, told to keep freed memory for the next training step."""

import ctypes
import os
import platform
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Parameters of mallopt, from malloc.h."""
_NEVER = -1
_PAD_BYTES = 64 * 2**20


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees, and returns whether that is possible here.

    By default glibc takes every large tensor from the system and returns it at once. The kernel must then clear all its
    pages at their first use, in every step again, which took 14 to 28% of a training step where it was measured. Kept
    memory comes from one heap that grows in steps of 64 MB and does not shrink before the process ends. Whoever has
    set MALLOC_... variables has decided otherwise.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    if any(name.startswith("MALLOC_") for name in os.environ) or "LD_PRELOAD" in os.environ:
        return False
    set_option = ctypes.CDLL(None).mallopt
    wanted = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _PAD_BYTES))
    return all(set_option(*option) for option in wanted)
