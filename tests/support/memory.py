"""Memory of the processes below the test's own."""

import contextlib

import psutil


def children_pss_bytes() -> int:
    """Proportional set size: pages shared by several processes count once, split among them."""
    return _sum("pss")


def children_private_bytes() -> int:
    """What only one process has: it does not change when others that use the same libraries come and go."""
    return _sum("uss")


def _sum(name: str) -> int:
    total = 0
    for process in psutil.Process().children(recursive=True):
        # It may end while it is read.
        with contextlib.suppress(psutil.NoSuchProcess):
            total += getattr(process.memory_full_info(), name)
    return total
