"""How the C library keeps memory that was freed."""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc


def keep_freed() -> None:
    """Ask glibc to keep freed memory for the next allocation.

    By default it gives buffers of some megabytes back at once, and the kernel maps and clears every page again for the next one. A
    network takes and frees the same buffers at every step: where page faults are dear, as in virtual machines, that costs more than
    its arithmetic. Nothing happens with another C library, or where the user has set MALLOC_ variables.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
