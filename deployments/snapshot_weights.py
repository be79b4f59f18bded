"""The weights of a model beside those of a snapshot: their names, shapes and types, and views of the file as weights.

Covers: models on a CPU. Does not cover: devices (``device_weights``), vLLM's loader (``snapshot_loader``). Knows
torch, not vLLM.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from storage.errors import CorruptSnapshotError
from storage.manifest import MANIFEST_NAME, TensorEntry, parse_manifest
from storage.weights import map_tensors

logger = logging.getLogger(__name__)

WeightKind = tuple[torch.Size, torch.dtype]


def weights_of(model: nn.Module, *, every_name: bool = False) -> dict[str, torch.Tensor]:
    """Return what a snapshot holds of a model, by names: parameters and persistent buffers.

    Tied ones are there once, by the first of their names, or with ``every_name`` by each.
    """
    persistent = model.state_dict(keep_vars=True).keys()
    weights = {name: parameter.data for name, parameter in model.named_parameters(remove_duplicate=not every_name)}
    buffers = model.named_buffers(remove_duplicate=not every_name)
    return weights | {name: buffer for name, buffer in buffers if name in persistent}


def open_snapshot(directory: Path, file: str, kinds: Mapping[str, WeightKind]) -> dict[str, torch.Tensor]:
    """Return the tensors of a snapshot's file as views of its mapping; ``kinds`` says what the model's weights are.

    Raises:
        CorruptSnapshotError: the file is broken, or a tensor's name, shape or type is not the model's.
        ManifestError: the manifest is malformed.
    """
    tensors = map_tensors(directory / file, entries_of(directory, file))
    for name, tensor in tensors.items():
        if kinds.get(name) != (tensor.shape, tensor.dtype):
            raise not_this_model(directory, file, name)
    return tensors


def entries_of(directory: Path, file: str) -> list[TensorEntry]:
    """Return the tensors of a snapshot's file, as its manifest describes them. Raises as ``open_snapshot``."""
    path = directory / MANIFEST_NAME
    try:
        manifest = parse_manifest(path.read_bytes(), str(path))
    except OSError as error:
        raise CorruptSnapshotError(str(directory), MANIFEST_NAME, f"can't be read: {error}") from error
    return [entry for entry in manifest.tensors if entry.file == file]


def not_this_model(directory: Path, file: str, name: str) -> CorruptSnapshotError:
    """Return the error for a snapshot whose tensor ``name`` is missing, superfluous or of another shape or type."""
    return CorruptSnapshotError(str(directory), file, f"is not this model's: it differs in '{name}'")


def restore(model: nn.Module, directory: Path, file: str) -> None:
    """Make the model's weights views of a snapshot's file: nothing is copied on a CPU.

    Raises:
        CorruptSnapshotError: the file is broken, or names, shapes or types are not the model's.
        ManifestError: the manifest is malformed.
    """
    weights = weights_of(model)
    tensors = open_snapshot(directory, file, {name: (w.shape, w.dtype) for name, w in weights.items()})
    if missing := sorted(weights.keys() - tensors.keys()):
        raise not_this_model(directory, file, missing[0])
    named = dict(model.named_parameters(remove_duplicate=True)) | dict(model.named_buffers(remove_duplicate=True))
    for name, tensor in tensors.items():
        named[name].data = tensor
    logger.info("%d tensors restored from %s", len(tensors), directory)
