"""An engine's start beside the staging of its snapshot: real tiers, and an engine that needs no model."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from snapshot_samples import safetensors_bytes

from deployments import staged_engine
from deployments.errors import EngineStartError
from deployments.fake_engine import FakeEngine
from deployments.snapshot_builder import origin_of
from deployments.staged_engine import StagedEngine
from deployments.start_metrics import StartMetrics
from deployments.types import ModelSpec
from storage.checkpoint import LocalSource, SourceCache
from storage.errors import RemoteError
from storage.lease import held_leases
from storage.manifest import MANIFEST_NAME
from storage.names import read_names
from storage.snapshot import describe_directory
from storage.store import StoreConfig
from storage.tier import Place
from tests.support.local_node import LocalNode
from tests.support.tiny_models import make_tied

ROOM_BYTES = 10_000_000


class LoadingEngine(FakeEngine):
    """Starts once it knows where its snapshot is, as vLLM's worker does."""

    def __init__(self, spec: ModelSpec, pool: Any, began: asyncio.Event) -> None:  # noqa: ARG002 - as engines are made
        super().__init__(spec)
        self.loader: dict[str, str] = spec.engine["model_loader_extra_config"]
        self.snapshot = ""
        self.is_stopped = False
        self._began = began

    async def start(self) -> None:
        self._began.set()
        if self._spec.engine.get("fail"):
            raise EngineStartError(self._spec.id, "told to fail")
        while not (snapshot := self._named()):  # noqa: ASYNC110 - as the loader does
            await asyncio.sleep(0.001)
        self.snapshot = snapshot
        await super().start()

    def _named(self) -> str | None:
        if "snapshot" in self.loader:
            return self.loader["snapshot"]
        file = Path(self.loader["snapshot_in"])
        return file.read_text() if file.exists() else None

    async def stop(self) -> None:
        self.is_stopped = True
        await super().stop()


class Node(LocalNode):
    """Stages when it may."""

    def __init__(self, config: StoreConfig) -> None:
        super().__init__(config)
        self.may_stage = asyncio.Event()
        self.may_stage.set()
        self.staging_fails = False

    async def acquire(self, snapshot_id: str) -> Place:
        await self.may_stage.wait()
        if self.staging_fails:
            raise RemoteError("disk", "told to fail")
        return await super().acquire(snapshot_id)

    async def pool_address(self) -> None:
        return None


class Setup:
    """A node that has a model's snapshot on disk."""

    def __init__(self, directory: Path) -> None:
        self.node = Node(StoreConfig(directory / "dram", ROOM_BYTES, directory / "disk", ROOM_BYTES))
        self.spec = ModelSpec("tiny", str(make_tied(directory / "model")))
        self.engines: list[LoadingEngine] = []
        self.began = asyncio.Event()
        digest = SourceCache(self.node.config.disk_dir).digest(LocalSource(self.spec.path, Path(self.spec.path)))
        origin = origin_of(self.spec, digest)
        self.on_disk = self.node.config.disk_dir / origin.snapshot_id
        self.in_dram = self.node.config.dram_dir / origin.snapshot_id
        self.on_disk.mkdir()
        (self.on_disk / "rank-00.safetensors").write_bytes(safetensors_bytes({"a": ("U8", [4], b"1234")}))
        manifest = describe_directory(self.spec.id, origin, self.on_disk)
        (self.on_disk / MANIFEST_NAME).write_bytes(manifest.to_json())

    def engine(self, engine_id: str = "tiny", **engine: Any) -> StagedEngine:
        spec = ModelSpec(engine_id, self.spec.path, engine)
        return StagedEngine(spec, self.node, self._make, StartMetrics())  # type: ignore[arg-type]

    def _make(self, spec: ModelSpec, pool: Any) -> LoadingEngine:
        self.engines.append(LoadingEngine(spec, pool, self.began))
        return self.engines[-1]

    def left(self) -> list[Any]:
        """What a failed start may not leave: leases, and files that name places."""
        return [*held_leases(self.node.config.disk_dir), *self.node.config.disk_dir.glob(".places/*")]


@pytest.fixture
async def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    # The fake's arguments are none of vLLM's.
    monkeypatch.setattr(staged_engine, "origin_of", lambda spec, digest: origin_of(replace_engine(spec), digest))
    made = Setup(tmp_path)
    await made.node.store.recover()
    return made


def replace_engine(spec: ModelSpec) -> ModelSpec:
    return ModelSpec(spec.id, spec.path)


async def test_it_begins_while_its_snapshot_is_staged(setup: Setup) -> None:
    setup.node.may_stage.clear()
    engine = setup.engine()
    starting = asyncio.ensure_future(engine.start())
    async with asyncio.timeout(10):
        await setup.began.wait()
    assert not setup.in_dram.exists()
    setup.node.may_stage.set()
    await starting
    assert [made.snapshot for made in setup.engines] == [str(setup.in_dram)]
    report = engine.start_report()
    assert (report["found_in"], report["weights_from"], report["snapshot_id"]) == ("disk", "dram", setup.in_dram.name)
    stages_s, begins_s = report["stages_s"], report["begins_s"]
    assert begins_s.keys() == stages_s.keys() >= {"identify", "stage", "engine"}
    # The engine began before its snapshot was staged, and after it was known which.
    assert stages_s["identify"] <= begins_s["engine"] < begins_s["stage"] + stages_s["stage"]
    await engine.stop()
    assert setup.left() == []


async def test_what_is_in_dram_is_there_at_once(setup: Setup) -> None:
    await setup.node.store.acquire(setup.in_dram.name)
    engine = setup.engine()
    await engine.start()
    assert setup.engines[0].loader == {"snapshot": str(setup.in_dram)}
    assert engine.start_report()["found_in"] == "dram"
    await engine.stop()


async def test_every_model_that_uses_a_snapshot_is_known(setup: Setup) -> None:
    for engine_id in ("tiny", "twin", "third@acme"):
        engine = setup.engine(engine_id)
        await engine.start()
        await engine.stop()
    assert read_names(setup.node.config.disk_dir) == dict.fromkeys(("tiny", "twin", "third"), setup.on_disk.name)


async def test_a_start_does_without_the_name(setup: Setup) -> None:
    (setup.node.config.disk_dir / "names.json").write_text("{")
    engine = setup.engine()
    await engine.start()
    await engine.stop()


async def test_a_snapshot_that_can_not_be_staged_ends_the_start(setup: Setup) -> None:
    setup.node.may_stage.clear()
    setup.node.staging_fails = True
    engine = setup.engine()
    starting = asyncio.ensure_future(engine.start())
    await setup.began.wait()
    setup.node.may_stage.set()
    with pytest.raises(EngineStartError, match="told to fail"):
        await starting
    assert setup.engines[0].is_stopped
    assert setup.left() == []


async def test_an_engine_that_does_not_start_lets_go_of_its_snapshot(setup: Setup) -> None:
    with pytest.raises(EngineStartError, match="told to fail"):
        await setup.engine(fail=True).start()
    assert setup.engines[0].is_stopped
    assert setup.left() == []


async def test_a_start_that_is_cancelled_leaves_nothing(setup: Setup) -> None:
    setup.node.may_stage.clear()
    starting = asyncio.ensure_future(setup.engine().start())
    await setup.began.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert setup.engines[0].is_stopped
    assert setup.left() == []


async def test_staging_that_takes_longer_than_an_engine_waits(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged_engine, "_BESIDE_S", 0.05)
    setup.node.may_stage.clear()
    engine = setup.engine()
    starting = asyncio.ensure_future(engine.start())
    async with asyncio.timeout(10):
        while not setup.engines or not setup.engines[0].is_stopped:  # noqa: ASYNC110 - until it has given up
            await asyncio.sleep(0.001)
    setup.node.may_stage.set()
    await starting
    assert [made.loader.get("snapshot") for made in setup.engines] == [None, str(setup.in_dram)]
    await engine.stop()
