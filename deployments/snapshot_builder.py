"""Makes a model's snapshot from its checkpoint, by starting an engine that loads it and writes what it holds.

Covers: the snapshot's identity, the engine's run, the small files beside the weights. Does not cover: writing the
weights (``snapshot_loader``, in the engine's worker) and keeping the result (``storage``).
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import vllm
from vllm.config import VllmConfig

from deployments.engine import Engine
from deployments.engine_args import SNAPSHOT_FORMAT, engine_config
from deployments.types import ModelSpec
from storage.fingerprint import fingerprint
from storage.folders import DirectoryFolder
from storage.manifest import MANIFEST_NAME, Manifest, Origin
from storage.snapshot import describe_directory
from storage.tier import LocalTier

# Weights and what may hold code stay behind.
_SMALL_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".vocab", ".merges"}


def origin_of(spec: ModelSpec, memory_dir: Path) -> Origin:
    """Return what decides the bytes of the snapshot of ``spec``; reads the checkpoint only if it is new here.

    Raises:
        EngineArgumentError: vLLM refuses the model or its arguments.
        RemoteError: the checkpoint can't be read.
    """
    config: VllmConfig = engine_config(spec)
    model, parallel = config.model_config, config.parallel_config
    return Origin(
        checkpoint=fingerprint(DirectoryFolder(Path(spec.path)), memory_dir),
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=model.quantization,
        tensor_parallel=parallel.tensor_parallel_size,
        platform="cuda" if spec.device == "gpu" else "cpu",
        vllm_version=vllm.__version__,
    )


async def build_snapshot(
    spec: ModelSpec, origin: Origin, disk: LocalTier, make_engine: Callable[[ModelSpec], Engine]
) -> Manifest:
    """Build the snapshot of ``spec`` into the disk tier and return its manifest; it takes an engine's start.

    Raises:
        EngineStartError: the engine could not be started.
        StorageError: the snapshot could not be written.
    """
    with disk.build() as building:
        engine = make_engine(with_loader(spec, build=building.directory))
        try:
            await engine.start()
        finally:
            await engine.stop()
        _copy_small_files(Path(spec.path), building.directory)
        manifest = describe_directory(spec.id, origin, building.directory)
        building.finish(manifest)
    return manifest


def with_loader(spec: ModelSpec, **extra: Path) -> ModelSpec:
    """Return ``spec`` with its weights taken from a snapshot (``snapshot=``), or put into one (``build=``)."""
    loader = {"load_format": SNAPSHOT_FORMAT, "model_loader_extra_config": {k: str(v) for k, v in extra.items()}}
    return dataclasses.replace(spec, engine=spec.engine | loader)


def _copy_small_files(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        relative = path.relative_to(source)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.suffix in _SMALL_SUFFIXES and path.is_file() and not hidden and path.name != MANIFEST_NAME:
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / relative)
