"""The processes below one supervisor: their processor time, by role, and freezing them.

The engine's compute is recognised by the process titles that vLLM sets: `VLLM::Worker…` where an engine has a worker
process of its own, else `VLLM::EngineCore…`, in which case the scheduler's time counts as compute too.
"""

import contextlib
import time
from dataclasses import dataclass

import psutil

WORKER_TITLE = "VLLM::Worker"
ENGINE_TITLE = "VLLM::EngineCore"
ProcessKey = tuple[int, float]


@dataclass(frozen=True)
class CpuSnapshot:
    """Processor seconds (user and system) so far, by process id and start time, and the title of each process."""

    cpu_s: dict[ProcessKey, float]
    titles: dict[ProcessKey, str]


@dataclass(frozen=True)
class CpuUse:
    """Processor seconds between two snapshots; `compute_title` says which processes count as compute."""

    compute_s: float
    outside_s: float
    compute_title: str


def read_cpu(root_pid: int) -> CpuSnapshot:
    """Processor times of all processes below `root_pid`, itself not included."""
    cpu_s: dict[ProcessKey, float] = {}
    titles: dict[ProcessKey, str] = {}
    for process in psutil.Process(root_pid).children(recursive=True):
        # A process may end while it is read, or be a zombie, which has no command line.
        with contextlib.suppress(psutil.NoSuchProcess):
            key = (process.pid, process.create_time())
            times = process.cpu_times()
            titles[key] = " ".join(process.cmdline()) or process.name()
            cpu_s[key] = times.user + times.system
    return CpuSnapshot(cpu_s, titles)


def cpu_between(before: CpuSnapshot, after: CpuSnapshot) -> CpuUse:
    """What was used in between; a process that ended in between is left out, one that started counts whole."""
    has_worker = any(title.startswith(WORKER_TITLE) for title in after.titles.values())
    compute_title = WORKER_TITLE if has_worker else ENGINE_TITLE
    compute_s = outside_s = 0.0
    for key, now_s in after.cpu_s.items():
        used_s = now_s - before.cpu_s.get(key, 0.0)
        if after.titles[key].startswith(compute_title):
            compute_s += used_s
        else:
            outside_s += used_s
    return CpuUse(compute_s, outside_s, compute_title)


def idle_cores(root_pid: int, period_s: float) -> float:
    """How many cores the processes below `root_pid` keep busy, over `period_s` seconds in which nobody asks them."""
    before = read_cpu(root_pid)
    time.sleep(period_s)
    use = cpu_between(before, read_cpu(root_pid))
    return (use.compute_s + use.outside_s) / period_s


def freeze(root_pid: int) -> None:
    """Stops (SIGSTOP) everything below `root_pid`, parents first, so that none starts another meanwhile."""
    for process in psutil.Process(root_pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()


def thaw(root_pid: int) -> None:
    """Lets everything below `root_pid` go on (SIGCONT)."""
    for process in psutil.Process(root_pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()
