"""Asking the process pool for an engine, and holding on to it.

Covers: the request, the answers, the life line. Does not cover: the engine's front end (``vllm_engine``), what the
forked process does (``engine_launch``), the pool itself (``process_pool``).
"""

import asyncio
import logging
import os
import pickle
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from typing import Any, BinaryIO

from deployments.batch_record import open_record, read_record, record_path
from deployments.errors import EngineStartError, PoolUnavailableError
from deployments.pool_wire import EngineRequest, Report, Surroundings, pack_frame, pack_surroundings, parse_report

FORK_TIMEOUT_S = 10.0
END_TIMEOUT_S = 10.0

logger = logging.getLogger(__name__)

# The moment a part of the start ends, and the part's name.
_STAGES = {
    "forked": "fork",
    "asked": "receive the configuration",
    "core_began": "start the engine core",
    "device_ready": "start the worker and its device",
    "weights_loaded": "make the model and load weights",
    "model_ready": "finish the model",
    "memory_known": "compile and profile",
    "engine_ready": "make the KV cache and warm up",
    "ready": "connect",
}


@dataclass(frozen=True)
class PoolAddress:
    """Where a pool listens, and where its engines' logs go; ``log_directory`` must exist."""

    socket_path: str
    log_directory: str


class ForkedEngine:
    """The processes of one engine that was forked from the pool; ``ask`` makes it, one event loop."""

    def __init__(self, model_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.model_id = model_id
        # How long each part of the start took, in seconds, in order; empty until it has started.
        self.stages_s: dict[str, float] = {}
        # The process that the others of the engine are below.
        self.process_id = 0
        # Of vLLM's front end, for requests and for outputs; once it is launching.
        self.addresses: tuple[str, str] = ("", "")
        self._asked_s = time.monotonic()
        self._writer = writer
        # Beside the socket: it goes with the pool.
        self._directory = Path(writer.get_extra_info("peername")).parent
        self._record: BinaryIO | None = None
        self._is_given_away = False
        self._computed_last: frozenset[str] | None = None
        self._reports: asyncio.Queue[Report | None] = asyncio.Queue()
        self._listening = asyncio.get_running_loop().create_task(self._listen(reader))

    @classmethod
    async def ask(cls, pool: PoolAddress, model_id: str, surroundings: Surroundings | None = None) -> "ForkedEngine":
        """Have the pool fork a process for an engine of a model, in these surroundings or in this process's own.

        Raises:
            PoolUnavailableError: nobody answers, or the environment doesn't suit the pool.
        """
        try:
            async with asyncio.timeout(FORK_TIMEOUT_S):
                engine = cls(model_id, *await asyncio.open_unix_connection(pool.socket_path))
                try:
                    engine._writer.write(pack_surroundings(surroundings or surroundings_of(pool, model_id)))
                    report = await engine._report()
                except BaseException:
                    engine.hang_up()
                    raise
        except (OSError, TimeoutError, EOFError) as error:
            raise PoolUnavailableError(pool.socket_path, str(error) or type(error).__name__) from error
        if report.state == "refused":
            engine.hang_up()
            raise PoolUnavailableError(pool.socket_path, report.reason)
        engine._is_below(report.process_id)
        return engine

    @classmethod
    async def adopt(cls, line: socket, model_id: str, process_id: int, addresses: tuple[str, str]) -> "ForkedEngine":
        """Return an engine that serves, which was another process's until now; ``line`` is its life line."""
        engine = cls(model_id, *await asyncio.open_unix_connection(sock=line))
        engine._is_below(process_id)
        engine.addresses = addresses
        return engine

    async def launch(self, request: EngineRequest) -> None:
        """Have the engine start; return when its addresses are known.

        Raises:
            EngineStartError: it failed; nothing of it keeps running.
        """
        self.addresses = _two((await self._next("launching", pack_frame(pickle.dumps(request)))).addresses)

    async def serves(self) -> None:
        """Return when the engine serves. Raises as ``launch``."""
        self.stages_s = stages_s(self._asked_s, (await self._next("ready")).marks_s)

    async def _next(self, state: str, frame: bytes = b"") -> Report:
        try:
            if frame:
                self._writer.write(frame)
            report = await self._report()
        except (OSError, EOFError) as error:
            raise EngineStartError(self.model_id, "its processes ended while it started; see its log") from error
        if report.state != state:
            raise EngineStartError(self.model_id, report.reason)
        return report

    async def outlives(self, work: asyncio.Future[Any]) -> None:
        """Return when ``work`` is done. Raises EngineStartError if none of the engine's processes is left before."""
        await asyncio.wait([work, self._listening], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise EngineStartError(self.model_id, "its processes ended before it was connected; see its log")

    def line(self) -> int:
        """Return the descriptor of the life line: who has a copy of it keeps the engine alive."""
        return int(self._writer.get_extra_info("socket").fileno())

    def gone(self) -> bool:
        """Return whether none of the engine's processes is left."""
        return self._listening.done()

    def computing(self) -> frozenset[str] | None:
        """Return what it is computing, or was when it ended; see ``batch_record``."""
        return self._computed_last if self.gone() else read_record(self._record)

    def _is_below(self, process_id: int) -> None:
        self.process_id = process_id
        if not self.gone():
            self._record = open_record(record_path(self._directory, process_id))

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called in the event loop once none of the engine's processes is left."""
        self._listening.add_done_callback(lambda _: callback())

    def hang_up(self) -> None:
        """Kill the engine's processes, whatever they are doing, unless somebody else has its life line too."""
        self._writer.close()

    def let_go(self) -> None:
        """Hang up and leave what belongs to the engine to who has its life line now; if nobody has, it ends."""
        self._is_given_away = True
        self.hang_up()

    async def stop(self) -> None:
        """Kill the engine's processes and return when none is left; harmless when they have ended."""
        if not self.gone():
            # One direction only: the other tells when they are gone.
            self._writer.write_eof()
            await asyncio.wait([self._listening], timeout=END_TIMEOUT_S)
        self._writer.close()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._reports.put_nowait(parse_report(line))
        except OSError as error:
            logger.info("life line of the engine of %s broke: %s", self.model_id, error)
        finally:
            self._computed_last = read_record(self._record)
            if self._record is not None:
                self._record.close()
            if not self._is_given_away:
                record_path(self._directory, self.process_id).unlink(missing_ok=True)
            self._reports.put_nowait(None)

    async def _report(self) -> Report:
        report = await self._reports.get()
        if report is None:
            raise EOFError
        return report

    def __repr__(self) -> str:
        return f"<ForkedEngine {self.model_id} {'gone' if self.gone() else 'running'}>"


def log_path(pool: PoolAddress, model_id: str) -> Path:
    """Return the file that gets the output of the model's engine."""
    return Path(pool.log_directory, f"flashserve-engine-{re.sub(r'[^A-Za-z0-9._-]', '_', model_id)}.log")


def stages_s(asked_s: float, marks_s: dict[str, float]) -> dict[str, float]:
    """Return how long each part of a start took, from the moments at which the parts ended.

    A part that vLLM left out, such as loading without a file to load, is part of the next one.
    """
    stages: dict[str, float] = {}
    begin_s = asked_s
    for mark, stage in _STAGES.items():
        if mark in marks_s:
            stages[stage] = marks_s[mark] - begin_s
            begin_s = marks_s[mark]
    return stages


def surroundings_of(pool: PoolAddress, model_id: str, cache_dir: str = "") -> Surroundings:
    """Return what an engine forked for this process takes over from it; ``cache_dir`` as in ``Surroundings``."""
    # A killed engine leaves its sockets behind; there they go with the pool.
    environment = dict(os.environ) | {"VLLM_RPC_BASE_PATH": str(Path(pool.socket_path).parent)}
    return Surroundings(environment, str(Path.cwd()), str(log_path(pool, model_id)), cache_dir)


def _two(addresses: list[str]) -> tuple[str, str]:
    inputs, outputs = addresses
    return inputs, outputs
