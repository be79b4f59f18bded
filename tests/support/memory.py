"""Memory of the processes below the test's own."""

import contextlib

import psutil


def children_pss_bytes() -> int:
    """Proportional set size: pages shared by several processes count once, split among them."""
    return _sum("pss")


def engines_private_bytes() -> int:
    """What engines' processes have for themselves alone: it does not change when others with the same libraries go.

    Compilers' helper processes are left out: they end when they have been idle for a while.
    """
    return _sum("uss", "VLLM::")


def _sum(name: str, title: str = "") -> int:
    total = 0
    for process in psutil.Process().children(recursive=True):
        # It may end while it is read.
        with contextlib.suppress(psutil.NoSuchProcess):
            if title in " ".join(process.cmdline()):
                total += getattr(process.memory_full_info(), name)
    return total
