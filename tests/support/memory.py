"""Memory of the processes below the test's own."""

import contextlib

import psutil


def children_pss_bytes() -> int:
    """Proportional set size: pages shared by several processes count once, split among them."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        # It may end while it is read.
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total
