"""Process pools for tests, and a look at the processes of their engines."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psutil

from deployments.forked_engine import PoolAddress
from deployments.process_pool import ProcessPool


@asynccontextmanager
async def running_pool(log_directory: Path) -> AsyncIterator[ProcessPool]:
    pool = ProcessPool(log_directory)
    pool.run()
    try:
        await pool.ready()
        yield pool
    finally:
        await pool.stop()


@contextmanager
def background_pool(log_directory: Path) -> Iterator[PoolAddress]:
    """A pool for tests with event loops of their own: it is looked after in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        running = running_pool(log_directory)
        pool = asyncio.run_coroutine_threadsafe(running.__aenter__(), loop).result()
        try:
            yield pool.address
        finally:
            asyncio.run_coroutine_threadsafe(running.__aexit__(None, None, None), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def engine_processes(pool: ProcessPool | PoolAddress, log_end: str = "") -> list[psutil.Process]:
    """The living processes that write to the log of one of the pool's engines: its launcher, core, worker.

    By their standard error, because vLLM has standard output lead nowhere for moments of a worker's start.
    """
    address = pool if isinstance(pool, PoolAddress) else pool.address
    start = f"{address.log_directory}/flashserve-engine-"
    found = []
    for process in psutil.process_iter():
        try:
            file = str(Path(f"/proc/{process.pid}/fd/2").readlink())
            lives = process.status() != psutil.STATUS_ZOMBIE
        except (OSError, psutil.NoSuchProcess):
            continue
        if lives and file.startswith(start) and file.endswith(log_end):
            found.append(process)
    return sorted(found, key=lambda process: process.pid)


def has_a_worker(pool: ProcessPool) -> bool:
    """Whether an engine's worker has come.

    Three processes don't tell: what the core asks the system for is for a moment a process like it.
    """
    try:
        return any(process.cmdline()[:1] == ["VLLM::Worker"] for process in engine_processes(pool))
    except psutil.NoSuchProcess:
        return False


async def until(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait for a condition that announces itself to nobody."""
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "the condition did not come to hold"
        await asyncio.sleep(0.01)
