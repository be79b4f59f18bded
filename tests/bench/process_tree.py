"""The processes below one supervisor: their processor time, by role, and freezing them.

Roles are recognised by the titles that vLLM gives its processes: `VLLM::Worker…` computes, `VLLM::EngineCore…`
schedules; all else serves. An engine without a worker process of its own computes in its EngineCore, which then counts
as worker. On a CPU the EngineCore spins while it waits for its worker, so its time says little about a server.
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
    """Processor seconds between two snapshots, by role; `worker_title` says which processes were the worker."""

    worker_s: float
    scheduler_s: float
    serving_s: float
    worker_title: str

    @property
    def outside_worker_s(self) -> float:
        """All that was not spent on computing."""
        return self.scheduler_s + self.serving_s


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
    worker_title = WORKER_TITLE if has_worker else ENGINE_TITLE
    used_by_role_s = {worker_title: 0.0, ENGINE_TITLE: 0.0, "": 0.0}
    for key, now_s in after.cpu_s.items():
        role = next(role for role in used_by_role_s if after.titles[key].startswith(role))
        used_by_role_s[role] += now_s - before.cpu_s.get(key, 0.0)
    scheduler_s = used_by_role_s[ENGINE_TITLE] if has_worker else 0.0
    return CpuUse(used_by_role_s[worker_title], scheduler_s, used_by_role_s[""], worker_title)


def idle_cores(root_pid: int, period_s: float) -> float:
    """How many cores the processes below `root_pid` keep busy, over `period_s` seconds in which nobody asks them."""
    before = read_cpu(root_pid)
    time.sleep(period_s)
    use = cpu_between(before, read_cpu(root_pid))
    return (use.worker_s + use.outside_worker_s) / period_s


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
