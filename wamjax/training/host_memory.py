"""Host memory: keep what was freed.

On processors a training step's temporary buffers are hundreds of megabytes. glibc gives blocks of that size back to the
kernel at once, which then clears every page again at the next step: a third of the step's time where page faults are
dear (virtual machines).
"""

from __future__ import annotations

import ctypes

# Parameters of mallopt(3), glibc.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Tells glibc to reuse large freed blocks instead of returning them; False where the C library is another.

    Call it before the first large allocation. The process then keeps its peak memory until it ends.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all(
        mallopt(option, value) for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_ARENA_MAX, 1))
    )
