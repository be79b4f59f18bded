"""An engine that takes its weights from the node's snapshots, and makes the snapshot on a model's first start.

Covers: which snapshot a model needs, having it staged and leased, building it, weights from remote checkpoints. Does
not cover: the engine itself (``vllm_engine``), tiers and budgets (``storage``).
"""

import asyncio
import logging
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from deployments.adapters import AdapterPlaces
from deployments.engine import Engine
from deployments.errors import (
    EngineArgumentError,
    EngineDiedError,
    EngineStartError,
    SleepUnsupportedError,
    WakeError,
)
from deployments.forked_engine import PoolAddress
from deployments.nodes import NodeClient
from deployments.pooled_start import recipe_of
from deployments.recipe import remember
from deployments.snapshot_builder import Building, building, origin_of, with_loader
from deployments.start_metrics import StartMetrics
from deployments.start_times import one_after_the_other
from deployments.types import (
    NOT_STARTED,
    AdapterRef,
    AdapterSpec,
    Embedding,
    EmbedRequest,
    GenerateRequest,
    ModelSpec,
    StartReport,
)
from deployments.wire import TokenDelta
from storage.checkpoint import LocalSource, SourceCache
from storage.errors import ManifestError, NotKeptError, SnapshotMissingError, StorageError
from storage.lease import Lease
from storage.manifest import Origin
from storage.names import write_name
from storage.partial import DirectoryLock
from storage.pins import write_pin
from storage.tier import LocalTier, Place

logger = logging.getLogger(__name__)

_BUILDERS_NAME = ".builders"
_PLACES_NAME = ".places"
# vLLM's front end waits for its engine for ten minutes.
_BESIDE_S = 300.0
_LOOK_AGAIN_S = 0.5
# A snapshot has the size of its checkpoint; the small files and the manifest come on top.
_ROOM_BESIDES_BYTES = 64 * 1024 * 1024


class StagedEngine:
    """Fulfils ``Engine``; ``make_engine`` makes the engine for a model whose engine arguments say how weights come."""

    def __init__(
        self,
        spec: ModelSpec,
        node: NodeClient,
        make_engine: Callable[[ModelSpec, PoolAddress | None], Engine],
        metrics: StartMetrics,
    ) -> None:
        self._metrics = metrics
        self._spec = spec
        self._node = node
        self._make_engine = make_engine
        self._sources = SourceCache(node.config.disk_dir, node.config.s3_endpoint_url)
        self._engine: Engine | None = None
        self._lease: Lease | None = None
        self._finishing: asyncio.Task[None] | None = None
        self._stages_s: dict[str, float] = {}
        # When each began, since the start did.
        self._begins_s: dict[str, float] = {}
        self._began_s = 0.0
        self._brought_near_s: float | None = None
        self._weights_from = ""
        self._found_in = ""
        self._owner = f"{spec.id} in process {os.getpid()}"
        # Where the engine can be woken from; none while there is no snapshot of it.
        self._snapshot_id: str | None = None
        self._published: str | None = None
        self._pool: PoolAddress | None = None
        # How it is started once there is a snapshot of it; and the telling of that.
        self._restored: ModelSpec | None = None
        self._telling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """See ``Engine.start``."""
        self._stages_s.clear()
        self._begins_s.clear()
        begin_s = self._began_s = time.monotonic()
        try:
            with self._timed("identify"):
                source, origin = await asyncio.to_thread(self._identify)
            self._published = source.url if source.published() else None
            if not await self._restore(source, origin):
                await self._first_start(source, origin)
        except (StorageError, EngineArgumentError) as error:
            await self.stop()
            raise EngineStartError(self._spec.id, str(error)) from error
        except BaseException:
            await self.stop()
            raise
        self._metrics.started(self._spec.id, self.start_report(), time.monotonic() - begin_s)
        self._telling = asyncio.create_task(self._tell_recipe())

    def _identify(self) -> tuple[LocalSource, Origin]:
        source = self._sources.localize(self._spec.source or self._spec.path)
        published = source.published()
        origin = origin_of(replace(self._spec, path=str(source.directory)), self._sources.digest(source))
        if published is not None and published.origin != origin:
            raise ManifestError(source.url, f"it was made for {published.origin}, and {origin} is needed")
        try:
            write_name(self._node.config.disk_dir, self._spec.model_id, origin.snapshot_id)
        except NotKeptError as error:
            # It is for whoever types the name.
            logger.warning("the snapshot of %s may go by another name only: %s", self._spec.id, error)
        return source, origin

    async def _restore(self, source: LocalSource, origin: Origin) -> bool:
        """Start from the snapshot; false when there is none."""
        spec = replace(self._spec, path=str(source.directory), cache_dir=self._cache_dir(origin))
        self._restored = self._equipped(spec)
        found_in = self._node.tier_of(origin.snapshot_id)
        holding = asyncio.ensure_future(self._staged(origin.snapshot_id))
        try:
            if found_in == "disk" or (found_in == "remote" and self._published is not None):
                await self._run_beside(holding, spec)
            if self._engine is None:
                await self._run(with_loader(spec, snapshot=Path((await holding).path)))
        except SnapshotMissingError:
            if self._published is not None:
                raise
            return False
        finally:
            await _ended(holding)
        return True

    async def _run_beside(self, holding: "asyncio.Future[Place]", spec: ModelSpec) -> None:
        """Start the engine while its snapshot is staged; without an engine if that takes longer than vLLM waits."""
        directory = self._node.config.disk_dir / _PLACES_NAME
        directory.mkdir(exist_ok=True)
        place_file = directory / secrets.token_hex(8)
        starting = asyncio.ensure_future(self._run(with_loader(spec, snapshot_in=place_file)))
        try:
            either: list[asyncio.Future[Any]] = [holding, starting]
            await asyncio.wait(either, timeout=_BESIDE_S, return_when=asyncio.FIRST_COMPLETED)
            if holding.done() and not starting.done():
                # Appears whole: the engine may look at any time.
                part = place_file.with_suffix(".part")
                part.write_text((await holding).path)
                part.rename(place_file)
            if holding.done() or starting.done():
                await starting
        finally:
            await _ended(starting)
            place_file.unlink(missing_ok=True)
            if starting.cancelled() or starting.exception() is not None:
                await self._end_engine()

    async def _staged(self, snapshot_id: str) -> Place:
        with self._timed("stage"):
            return await self._hold(snapshot_id)

    async def _first_start(self, source: LocalSource, origin: Origin) -> None:
        config = self._node.config
        with ExitStack() as until_started:
            await self._only_builder(origin, until_started)
            # Another engine on this node may have built it meanwhile.
            if await self._restore(source, origin):
                return
            self._weights_from = self._found_in = "checkpoint"
            with self._timed("fetch"):
                checkpoint = self._sources.checkpoint(source)
                directory = await asyncio.to_thread(until_started.enter_context, checkpoint)
            spec = replace(self._spec, path=str(directory), cache_dir=self._cache_dir(origin))
            needed_bytes = _weights_bytes(directory) + _ROOM_BESIDES_BYTES
            if needed_bytes > min(config.disk_bytes, shutil.disk_usage(config.disk_dir).free):
                logger.warning("%s: no room on disk for a snapshot of %d bytes", self._spec.id, needed_bytes)
                await self._run(spec)
                return
            being_built = until_started.enter_context(building(spec, origin, LocalTier("disk", config.disk_dir)))
            await self._run(being_built.engine_spec)
            # The engine serves already.
            self._finishing = asyncio.create_task(self._finish(being_built, origin, until_started.pop_all()))

    def _cache_dir(self, origin: Origin) -> str:
        """Return where to keep what an engine compiles and measures: it goes with the snapshot, and may be lost."""
        return str(LocalTier("disk", self._node.config.disk_dir).beside(origin.snapshot_id))

    async def _only_builder(self, origin: Origin, held: ExitStack) -> None:
        directory = self._node.config.disk_dir / _BUILDERS_NAME / origin.snapshot_id
        directory.mkdir(parents=True, exist_ok=True)
        with self._timed("wait for another's build"):
            while True:
                lock = DirectoryLock(directory)
                lock.__enter__()
                if lock.taken:
                    held.push(lock)
                    return
                lock.__exit__()
                await asyncio.sleep(_LOOK_AGAIN_S)

    async def _finish(self, being_built: Building, origin: Origin, held: ExitStack) -> None:
        """Complete the snapshot and stage it, for the next start."""
        try:
            with held:
                await asyncio.to_thread(being_built.finish)
            lease, place = await self._node.hold(origin.snapshot_id, self._owner)
            lease.release()
            self._snapshot_id = origin.snapshot_id
        except StorageError:
            logger.exception("the snapshot of %s could not be made; its next start reads the checkpoint", self._spec.id)
        else:
            logger.info("the snapshot of %s is in %s", self._spec.id, place.path)

    async def _hold(self, snapshot_id: str) -> Place:
        found_in = self._node.tier_of(snapshot_id)
        self._lease, place = await self._node.hold(snapshot_id, self._owner, self._published)
        self._snapshot_id = snapshot_id
        self._weights_from, self._found_in = place.tier, found_in
        if self._spec.pin in {"dram", "disk"}:
            await asyncio.to_thread(write_pin, self._node.config.disk_dir, snapshot_id, self._spec.pin)
        return place

    def _equipped(self, spec: ModelSpec) -> ModelSpec:
        config = self._node.config
        return replace(spec, adapters_in=str(config.adapters_in), adapters_bytes=config.adapter_dram_bytes)

    async def _tell_recipe(self) -> None:
        """Tell the node how the engine starts from its snapshot, so that it can do that ahead of another replica."""
        if self._finishing is not None:
            await asyncio.wait([self._finishing])
        if self._pool is not None and self._restored is not None and self._snapshot_id is not None:
            spec = with_loader(self._restored, snapshot=Path())
            await remember(self._pool, await asyncio.to_thread(recipe_of, spec, self._pool, self._snapshot_id))

    async def _run(self, spec: ModelSpec) -> None:
        with self._timed("wait for the process pool"):
            self._pool = await self._node.pool_address()
        self._engine = self._make_engine(self._equipped(spec), self._pool)
        with self._timed("engine"):
            await self._engine.start()

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        begin_s = time.monotonic()
        self._begins_s[stage] = begin_s - self._began_s
        try:
            yield
        finally:
            self._stages_s[stage] = time.monotonic() - begin_s

    def generate(self, request: GenerateRequest) -> AsyncIterator[TokenDelta]:
        """See ``Engine.generate``."""
        return self._running().generate(request)

    async def embed(self, request: EmbedRequest) -> Embedding:
        """See ``Engine.embed``."""
        return await self._running().embed(request)

    def check(self) -> None:
        """See ``Engine.check``."""
        self._running().check()

    def supported_tasks(self) -> list[str]:
        """See ``Engine.supported_tasks``."""
        return self._engine.supported_tasks() if self._engine else []

    def unfinished(self) -> int:
        """See ``Engine.unfinished``."""
        return self._engine.unfinished() if self._engine else 0

    def keep_adapters(self, adapters: Sequence[AdapterSpec]) -> None:
        """See ``Engine.keep_adapters``."""
        if self._engine is not None:
            self._engine.keep_adapters(adapters)

    async def adapters(self) -> list[str]:
        """See ``Engine.adapters``."""
        return await self._running().adapters()

    async def adapter_places(self) -> AdapterPlaces:
        """See ``Engine.adapter_places``."""
        return await self._running().adapter_places()

    async def preload_adapter(self, adapter: AdapterRef) -> None:
        """See ``Engine.preload_adapter``."""
        await self._running().preload_adapter(adapter)

    async def memory_bytes(self) -> int:
        """See ``Engine.memory_bytes``."""
        return await self._running().memory_bytes()

    async def sleep(self) -> None:
        """See ``Engine.sleep``; what could not be woken is not put to sleep."""
        if self._finishing is not None:
            await asyncio.wait([self._finishing])
        if self._snapshot_id is None:
            raise SleepUnsupportedError(self._spec.id, "there is no snapshot to wake it from")
        await self._running().sleep()
        if self._spec.device == "gpu":
            # Locked for the device while nobody waits; and what is locked can't go, so it stays held.
            try:
                await self.prepare_wake(await self._staged_for_wake())
            except WakeError as error:
                logger.warning("the next wake will take longer: %s", error)
            return
        # It no longer maps the snapshot, which may now go to make room; then the wake brings it back.
        self._release()

    async def prepare_wake(self, snapshot: Path) -> None:
        """See ``Engine.prepare_wake``."""
        await self._running().prepare_wake(snapshot)

    async def wake(self, snapshot: Path | None = None) -> None:
        """See ``Engine.wake``; without ``snapshot`` it is brought to the fastest tier there is room in."""
        engine = self._running()
        engine.check()
        begin_s = time.monotonic()
        if snapshot is None:
            snapshot = await self._staged_for_wake()
            self._brought_near_s = time.monotonic() - begin_s
        await engine.wake(snapshot)
        self._metrics.woke(self._spec.id, self._weights_from, time.monotonic() - begin_s)

    async def _staged_for_wake(self) -> Path:
        if self._snapshot_id is None:
            raise WakeError(self._spec.id, "there is no snapshot to wake it from")
        self._release()
        try:
            return Path((await self._hold(self._snapshot_id)).path)
        except StorageError as error:
            raise WakeError(self._spec.id, str(error)) from error

    def start_report(self) -> StartReport:
        """See ``Engine.start_report``."""
        inside = NOT_STARTED if self._engine is None else self._engine.start_report()
        begins_s = one_after_the_other(inside["stages_s"], self._begins_s.get("engine", 0.0))
        near_s = {} if self._brought_near_s is None else {"stage": self._brought_near_s}
        return {
            "weights_from": self._weights_from,
            "found_in": self._found_in,
            "snapshot_id": self._snapshot_id or "",
            "stages_s": self._stages_s | inside["stages_s"],
            "begins_s": self._begins_s | begins_s,
            "wake_stages_s": near_s | inside["wake_stages_s"],
        }

    async def stop(self) -> None:
        """See ``Engine.stop``."""
        for task in (self._finishing, self._telling):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._end_engine()
        self._release()

    async def _end_engine(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.stop()

    def _release(self) -> None:
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def _running(self) -> Engine:
        if self._engine is None:
            raise EngineDiedError(self._spec.id, had_begun=False)
        return self._engine

    def __repr__(self) -> str:
        return f"<StagedEngine {self._spec.id} from {self._weights_from or 'nothing yet'}, {self._engine!r}>"


async def _ended(task: "asyncio.Future[Any]") -> None:
    """Cancel what hasn't ended, and wait until it has; what it raised is its owner's business."""
    task.cancel()
    await asyncio.wait([task])


def _weights_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))
