"""What processes take of the host's memory."""

import contextlib
from collections.abc import Iterable

import psutil


def process_memory_bytes(process_ids: Iterable[int]) -> int:
    """Return the proportional set size of processes and everything below them; shared pages count by their share."""
    found: dict[int, psutil.Process] = {}
    for process_id in process_ids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(process_id)
            found |= {each.pid: each for each in (process, *process.children(recursive=True))}
    return sum(_pss_bytes(process) for process in found.values())


def _pss_bytes(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return int(process.memory_full_info().pss)
    return 0
