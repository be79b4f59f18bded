"""What a replica's side does for sleep on a GPU: arguments, leases, what is prepared and counted. No GPU, no engine."""

from pathlib import Path
from typing import Any

import pytest

from deployments import transfer_metrics
from deployments.engine_args import GPU_WORKER_EXTENSION, engine_args
from deployments.errors import WakeError
from deployments.fake_engine import FakeEngine
from deployments.staged_engine import StagedEngine
from deployments.start_metrics import StartMetrics
from deployments.transfer_metrics import count_transfers
from deployments.types import ModelSpec
from storage.lease import Lease, held_leases
from storage.store import StoreConfig
from storage.tier import Place

SNAPSHOT_ID = "a" * 64


class Node:
    """The store of a node that has everything."""

    def __init__(self, root: Path) -> None:
        self.config = StoreConfig(root / "dram", 1, root / "disk", 1)

    async def hold(self, snapshot_id: str, owner: str, _source_url: str | None = None) -> tuple[Lease, Place]:
        path = self.config.dram_dir / snapshot_id
        path.mkdir(parents=True, exist_ok=True)
        return Lease(self.config.disk_dir, snapshot_id, owner), Place("dram", str(path))

    def tier_of(self, _snapshot_id: str) -> str:
        return "dram"


class PreparedEngine(FakeEngine):
    """Remembers what it prepared for; ``broken`` can't."""

    prepared: Path | None = None
    broken = False

    async def prepare_wake(self, snapshot: Path) -> None:
        if self.broken:
            raise WakeError("some", "there is nothing to lock")
        self.prepared = snapshot


async def slept(spec: ModelSpec, root: Path, *, broken: bool = False) -> tuple[PreparedEngine, list[Any]]:
    """An engine that fell asleep, and the leases on the node then; it woke again afterwards."""
    node, inner = Node(root), PreparedEngine(spec)
    inner.broken = broken
    await inner.start()
    engine = StagedEngine(spec, node, lambda *_: inner, StartMetrics())  # type: ignore[arg-type]
    engine._engine, engine._snapshot_id = inner, SNAPSHOT_ID
    await engine.sleep()
    leases = held_leases(node.config.disk_dir)
    await engine.wake()
    assert len(held_leases(node.config.disk_dir)) == 1
    await engine.stop()
    assert held_leases(node.config.disk_dir) == []
    return inner, leases


async def test_on_a_gpu_the_snapshot_is_held_and_locked_while_it_sleeps(tmp_path: Path) -> None:
    engine, leases = await slept(ModelSpec("some", "", device="gpu"), tmp_path)
    assert engine.prepared == tmp_path / "dram" / SNAPSHOT_ID
    assert [lease.snapshot_id for lease in leases] == [SNAPSHOT_ID]


async def test_on_a_cpu_it_may_go(tmp_path: Path) -> None:
    engine, leases = await slept(ModelSpec("some", ""), tmp_path)
    assert engine.prepared is None
    assert leases == []


async def test_what_can_not_be_prepared_sleeps_all_the_same(tmp_path: Path) -> None:
    await slept(ModelSpec("some", "", device="gpu"), tmp_path, broken=True)


def test_engines_on_a_gpu_get_the_workers_extension() -> None:
    arguments = engine_args(ModelSpec("some", "/nowhere", device="gpu"))
    assert arguments.worker_extension_cls == GPU_WORKER_EXTENSION
    assert arguments.enable_sleep_mode is False, "there is no such memory on a CPU, and vLLM would refuse it"


def test_transfers_are_counted_by_their_path(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[Any] = []
    recorder = type("Recorder", (), {"inc": lambda _, *arguments: counted.append(arguments)})
    monkeypatch.setattr(transfer_metrics, "_transfers", recorder)
    count_transfers("some", [{"copy_s": 0.1, "registered": 1.0}, {"registered": 0.0}, {"map_s": 0.1, "pack_s": 0.2}])
    assert counted == [(1, {"model": "some", "path": path}) for path in ("registered", "ring")]
