"""Makes a model's snapshot from its checkpoint, with the help of an engine that loads it and writes what it holds.

Covers: the snapshot's identity, what the engine is started with, the small files beside the weights. Does not cover:
writing the weights (``snapshot_loader``, in the engine's worker), the engine (``staged_engine``), keeping the result
(``storage``).
"""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import vllm
from vllm.config import VllmConfig

from deployments.engine import Engine
from deployments.engine_args import SNAPSHOT_FORMAT, engine_config
from deployments.types import ModelSpec
from storage.checkpoint import SMALL_SUFFIXES
from storage.manifest import MANIFEST_NAME, Manifest, Origin
from storage.partial import UnfinishedSnapshot
from storage.snapshot import describe_directory
from storage.tier import LocalTier


def origin_of(spec: ModelSpec, checkpoint: str) -> Origin:
    """Return what decides the bytes of the snapshot of ``spec``, whose checkpoint has this digest.

    Raises:
        EngineArgumentError: vLLM refuses the model or its arguments.
    """
    config: VllmConfig = engine_config(spec)
    model, parallel = config.model_config, config.parallel_config
    return Origin(
        checkpoint=checkpoint,
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=model.quantization,
        tensor_parallel=parallel.tensor_parallel_size,
        platform="cuda" if spec.device == "gpu" else "cpu",
        vllm_version=vllm.__version__,
    )


@contextmanager
def building(spec: ModelSpec, origin: Origin, disk: LocalTier) -> Iterator["Building"]:
    """Build the snapshot of ``spec`` into the disk tier; what is not finished at the end is gone."""
    with disk.build() as unfinished:
        yield Building(spec, origin, unfinished)


async def build_snapshot(
    spec: ModelSpec, origin: Origin, disk: LocalTier, make_engine: Callable[[ModelSpec], Engine]
) -> Manifest:
    """Build the snapshot of ``spec`` and return its manifest; it takes an engine's start.

    Raises:
        EngineStartError: the engine could not be started.
        StorageError: the snapshot could not be written.
    """
    with building(spec, origin, disk) as being_built:
        engine = make_engine(being_built.engine_spec)
        try:
            await engine.start()
        finally:
            await engine.stop()
        return being_built.finish()


class Building:
    """A snapshot that an engine writes while it loads the checkpoint in ``spec.path``."""

    def __init__(self, spec: ModelSpec, origin: Origin, unfinished: UnfinishedSnapshot) -> None:
        self._spec = spec
        self._origin = origin
        self._unfinished = unfinished

    @property
    def engine_spec(self) -> ModelSpec:
        """What to start the engine with."""
        return with_loader(self._spec, build=self._unfinished.directory)

    def finish(self) -> Manifest:
        """Add what else belongs to the snapshot, once the engine has started, and make it appear.

        Raises:
            StorageError: it could not be written.
        """
        directory = self._unfinished.directory
        _copy_small_files(Path(self._spec.path), directory)
        manifest = describe_directory(self._spec.model_id, self._origin, directory)
        self._unfinished.finish(manifest)
        return manifest


def with_loader(spec: ModelSpec, **extra: Path) -> ModelSpec:
    """Return ``spec`` with its weights taken from a snapshot, or put into one; see ``snapshot_loader``."""
    loader = {"load_format": SNAPSHOT_FORMAT, "model_loader_extra_config": {k: str(v) for k, v in extra.items()}}
    return dataclasses.replace(spec, engine=spec.engine | loader)


def _copy_small_files(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        relative = path.relative_to(source)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.suffix in SMALL_SUFFIXES and path.is_file() and not hidden and path.name != MANIFEST_NAME:
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / relative)
