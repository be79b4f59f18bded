"""What processes take of the host's memory."""

import contextlib
from collections.abc import Iterable

import psutil


def process_memory_bytes(process_ids: Iterable[int]) -> int:
    """Return what processes and everything below them have for themselves: what is free again once they have gone.

    Pages that they share with the process pool stay when they go. By its share of those (the proportional set size) an
    engine would seem larger the fewer others there are, and a device that holds all would seem too full for some.
    """
    found: dict[int, psutil.Process] = {}
    for process_id in process_ids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(process_id)
            found |= {each.pid: each for each in (process, *process.children(recursive=True))}
    return sum(_own_bytes(process) for process in found.values())


def _own_bytes(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return int(process.memory_full_info().uss)
    return 0
