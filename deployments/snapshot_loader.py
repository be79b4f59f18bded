"""vLLM's model loader for snapshots: ``load_format: flashserve``.

Covers: taking an engine's weights from a mapped snapshot, and making the snapshot from the checkpoint on the model's
first start. vLLM finds it through the entry point ``vllm.general_plugins``. Does not cover: where snapshots come from
(``storage``).

``model_loader_extra_config`` says what to do: ``{"snapshot": directory}`` restores, ``{"build": directory}`` loads the
checkpoint and writes each rank's file into an existing directory, which the caller then describes and commits.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.config import LoadConfig, ModelConfig
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from deployments.engine_args import SNAPSHOT_FORMAT
from storage.errors import CorruptSnapshotError
from storage.manifest import MANIFEST_NAME, parse_manifest
from storage.weights import map_tensors, rank_file, write_tensors

logger = logging.getLogger(__name__)

WeightKind = tuple[torch.Size, torch.dtype]


def register() -> None:
    """Entry point: make vLLM know the load format, in whichever of its processes this is."""
    register_model_loader(SNAPSHOT_FORMAT)(SnapshotLoader)


class SnapshotLoader(BaseModelLoader):
    """Restores a model from a snapshot, or builds one on the way."""

    def __init__(self, load_config: LoadConfig) -> None:
        super().__init__(load_config)
        extra: dict[str, Any] = dict(load_config.model_loader_extra_config or {})
        self._snapshot: str | None = extra.pop("snapshot", None)
        self._build: str | None = extra.pop("build", None)
        if extra or (self._snapshot is None) == (self._build is None):
            message = (
                f"load format '{SNAPSHOT_FORMAT}' takes either 'snapshot' or 'build', not {sorted(extra) or 'both'}"
            )
            raise ValueError(message)
        self._stock = DefaultModelLoader(LoadConfig(load_format="safetensors"))

    def download_model(self, model_config: ModelConfig) -> None:
        """Do nothing: a snapshot is on this node before an engine starts."""

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        """Give the model its weights; see ``BaseModelLoader``.

        Raises:
            CorruptSnapshotError: the snapshot is not this model's.
        """
        file = rank_file(get_tensor_model_parallel_rank())
        if self._snapshot is not None:
            restore(model, Path(self._snapshot), file)
            return
        self._stock.load_weights(model, model_config)
        write_tensors(Path(self._build or "", file), weights_of(model))


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what a snapshot holds of a model: parameters and persistent buffers, tied ones once, by their names."""
    persistent = model.state_dict(keep_vars=True).keys()
    weights = {name: parameter.data for name, parameter in model.named_parameters(remove_duplicate=True)}
    weights |= {name: buffer for name, buffer in model.named_buffers(remove_duplicate=True) if name in persistent}
    return weights


def open_snapshot(directory: Path, file: str, kinds: Mapping[str, WeightKind]) -> dict[str, torch.Tensor]:
    """Return the tensors of a snapshot's file as views of its mapping; ``kinds`` says what the model's weights are.

    Raises:
        CorruptSnapshotError: the file is broken, or a tensor's name, shape or type is not the model's.
        ManifestError: the manifest is malformed.
    """
    path = directory / MANIFEST_NAME
    try:
        manifest = parse_manifest(path.read_bytes(), str(path))
    except OSError as error:
        raise CorruptSnapshotError(str(directory), MANIFEST_NAME, f"can't be read: {error}") from error
    tensors = map_tensors(directory / file, [entry for entry in manifest.tensors if entry.file == file])
    for name, tensor in tensors.items():
        if kinds.get(name) != (tensor.shape, tensor.dtype):
            raise not_this_model(directory, file, name)
    return tensors


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
        weight = named[name]
        if weight.device.type == "cpu":
            weight.data = tensor
        else:
            weight.data.copy_(tensor, non_blocking=True)
    logger.info("%d tensors restored from %s", len(tensors), directory)
