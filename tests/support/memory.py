"""Memory of the processes below the test's own."""

import contextlib
import re
from pathlib import Path

import psutil

# What is not mapped from a file on disk: such a page counts as private once the last other process with it has gone.
_OWN = re.compile(r"^(?:Anonymous|Pss_Shmem): +(\d+) kB$", re.MULTILINE)


def children_pss_bytes() -> int:
    """Proportional set size: pages shared by several processes count once, split among them."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        # It may end while it is read.
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total


def engines_own_bytes() -> int:
    """What engines' processes have written themselves: it does not change when others with the same libraries go.

    Compilers' helper processes are left out: they end when they have been idle for a while.
    """
    total = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
            if "VLLM::" in " ".join(process.cmdline()):
                told = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
                total += 1024 * sum(map(int, _OWN.findall(told)))
    return total
