"""Keeps a zygote running on this node, so that engines start by a fork instead of importing vLLM.

Covers: starting the zygote's process, waiting for it, starting it again when it dies, ending it. Does not cover: what
it does (``zygote``) and asking it for engines (``forked_engine``). Engines don't depend on it once they are forked.
"""

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from deployments.forked_engine import PoolAddress
from deployments.pool_directory import PoolDirectory

START_TIMEOUT_S = 180.0
END_TIMEOUT_S = 10.0
MAX_STARTS = 5
# Deaths further apart than this are not one failure that keeps coming back.
FORGIVE_AFTER_S = 600.0

# Libraries that start threads when they are imported are told not to: a process to be forked has one.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}

# Its imports make no garbage, and to look for some meanwhile would take a tenth of their time.
_ZYGOTE = "import gc; gc.disable(); from deployments.zygote import main; main()"

logger = logging.getLogger(__name__)


class ProcessPool:
    """Owner of the zygote: ``run``, then ``ready``, at the end ``stop``. One event loop.

    ``log_directory`` gets the logs of the zygote and its engines, and must exist.
    """

    def __init__(
        self,
        log_directory: Path,
        device: Literal["cpu", "gpu"] = "cpu",
        modules: Sequence[str] = (),
        link: Path | None = None,
    ) -> None:
        """``modules`` are imported beside what engines need; at ``link`` launchers of workers look for the pool."""
        self._device = device
        self._modules = modules
        self._link = link
        self._directory = PoolDirectory()
        self._log_directory = log_directory
        self._process: asyncio.subprocess.Process | None = None
        self._line: asyncio.StreamWriter | None = None
        self._is_ready = asyncio.Event()
        self._failures = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> PoolAddress:
        """Where clients find the pool, whether or not it is up."""
        return PoolAddress(str(self._directory.path / "zygote"), str(self._log_directory))

    def run(self) -> None:
        """Begin to start the zygote and to keep it running, in the background."""
        if self._link is not None:
            try:
                self._directory.show(self._link)
            except OSError as error:
                logger.warning("replicas are not forked, for nobody would find the process pool: %s", error)
        self._task = asyncio.get_running_loop().create_task(self._supervise())

    async def ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return when engines can be forked. Raises ``TimeoutError``."""
        async with asyncio.timeout(timeout_s):
            await self._is_ready.wait()

    def process_id(self) -> int | None:
        """Return the zygote's process id while it runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def stop(self) -> None:
        """End the zygote; running engines go on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._line is not None:
            self._line.close()
            await self._ended()
        self._directory.hide(self._link)
        self._directory.remove()

    async def _supervise(self) -> None:
        while self._failures < MAX_STARTS:
            begin_s = time.monotonic()
            try:
                async with asyncio.timeout(START_TIMEOUT_S):
                    process = await self._start()
            except (TimeoutError, asyncio.IncompleteReadError, OSError) as error:
                logger.error("the process pool did not start (%r); see %s", error, self._log_path)  # noqa: TRY400
                await self._kill()
            else:
                self._is_ready.set()
                logger.info("the process pool was ready after %.1f s", time.monotonic() - begin_s)
                await process.wait()
                self._is_ready.clear()
                logger.error("the process pool ended with %s; see %s", process.returncode, self._log_path)
            long_lived = time.monotonic() - begin_s > FORGIVE_AFTER_S
            self._failures = 1 if long_lived else self._failures + 1
        self._directory.hide(self._link)
        logger.error("the process pool failed %d times; engines start without it", self._failures)

    async def _start(self) -> asyncio.subprocess.Process:
        # Its standard input is the zygote's life line: it says over it that it is ready, and ends with it.
        ours, theirs = socket.socketpair()
        with theirs, self._log_path.open("ab") as log:
            reader, self._line = await asyncio.open_connection(sock=ours)
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-c", _ZYGOTE, self.address.socket_path, *self._modules),
                stdin=theirs.fileno(),
                stdout=log,
                stderr=log,
                cwd=self._directory.path,
                start_new_session=True,
                env=_environment(self._device),
            )
        await reader.readexactly(1)
        return self._process

    async def _ended(self) -> None:
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                if self._process is not None:
                    await self._process.wait()
        except TimeoutError:
            await self._kill()

    async def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    @property
    def _log_path(self) -> Path:
        return self._log_directory / "flashserve-process-pool.log"

    def __repr__(self) -> str:
        return f"<ProcessPool {'ready' if self._is_ready.is_set() else 'not ready'}, {self._failures} failures>"


def _environment(device: Literal["cpu", "gpu"]) -> dict[str, str]:
    """Return this process's environment, with its import path and the libraries vLLM preloads into CPU engines.

    vLLM sets ``LD_PRELOAD`` for the processes it spawns, which is too late for one that is forked.
    """
    import_path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    environment = dict(os.environ) | _ONE_THREAD | {"PYTHONPATH": import_path}
    if device == "cpu":
        loaded = environment.get("LD_PRELOAD", "").split(":")
        libraries = [
            *_libraries("vllm", "vllm/libs/libtcmalloc_minimal*.so*"),
            *_libraries("torch", "torch.libs/libgomp*.so*", "torch/lib/libgomp*.so*"),
        ]
        environment["LD_PRELOAD"] = ":".join(filter(None, dict.fromkeys([*loaded, *libraries])))
    return environment


def _libraries(package: str, *patterns: str) -> list[str]:
    """Return the first file there is of ``patterns``, which start where ``package`` lies; at most one."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return []
    root = Path(spec.origin).parents[1]
    return [str(path) for pattern in patterns for path in sorted(root.glob(pattern))][:1]
