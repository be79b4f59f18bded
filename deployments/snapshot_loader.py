"""vLLM's model loader for snapshots: ``load_format: flashserve``.

Covers: taking an engine's weights from a mapped snapshot, and making the snapshot from the checkpoint on the model's
first start. vLLM finds it through the entry point ``vllm.general_plugins``. Does not cover: the tensors themselves
(``snapshot_weights``, on a device ``device_weights``), where snapshots come from (``storage``).

``model_loader_extra_config`` says what to do: ``{"snapshot": directory}`` restores, ``{"snapshot_in": file}`` restores
from the directory that the file names once it is there, ``{"build": directory}`` loads the checkpoint and writes each
rank's file into an existing directory, which the caller then describes and commits.
"""

import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.config import LoadConfig, ModelConfig, VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from deployments.device_weights import fill, release_source, source_for
from deployments.engine_args import SNAPSHOT_FORMAT, shares_weights
from deployments.gpu_worker import changed_after_loading
from deployments.shared_weights import share, unshareable
from deployments.snapshot_weights import restore, weights_of
from storage.device_source import DeviceSource
from storage.weights import rank_file, write_tensors

logger = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.002


def register() -> None:
    """Entry point: make vLLM know the load format, in whichever of its processes this is."""
    register_model_loader(SNAPSHOT_FORMAT)(SnapshotLoader)


def restored_from(config: LoadConfig) -> Path | None:
    """Return the directory of the snapshot that a model with this configuration was restored from; None if it wasn't.

    To be asked after the model was loaded.
    """
    extra: dict[str, Any] = dict(config.model_loader_extra_config or {})
    if config.load_format != SNAPSHOT_FORMAT or "build" in extra:
        return None
    return Path(extra["snapshot"]) if "snapshot" in extra else Path(Path(extra["snapshot_in"]).read_text())


class SnapshotLoader(BaseModelLoader):
    """Restores a model from a snapshot, or builds one on the way."""

    def __init__(self, load_config: LoadConfig) -> None:
        super().__init__(load_config)
        extra: dict[str, Any] = dict(load_config.model_loader_extra_config or {})
        given = {name: extra.pop(name, None) for name in ("snapshot", "snapshot_in", "build")}
        if extra or sum(value is not None for value in given.values()) != 1:
            message = (
                f"load format '{SNAPSHOT_FORMAT}' takes one of {', '.join(given)}, not {sorted(extra) or 'several'}"
            )
            raise ValueError(message)
        self._build: str | None = given["build"]
        self._snapshot = Path(given["snapshot"]) if given["snapshot"] else None
        self._snapshot_in = Path(given["snapshot_in"]) if given["snapshot_in"] else None
        self._shares = False
        self._stock = DefaultModelLoader(LoadConfig(load_format="safetensors"))

    def download_model(self, model_config: ModelConfig) -> None:
        """Do nothing: a snapshot is on this node before an engine starts."""

    def load_model(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = "") -> nn.Module:
        """See ``BaseModelLoader``. On a device the snapshot is being locked while the model is made."""
        self._shares = shares_weights(vllm_config)
        device = torch.device(self.load_config.device or vllm_config.device_config.device)
        if self._snapshot is not None and device.type != "cpu":
            source_for(self._snapshot, rank_file(get_tensor_model_parallel_rank()), device)
        return super().load_model(vllm_config, model_config, prefix)

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        """Give the model its weights; see ``BaseModelLoader``.

        Raises:
            CorruptSnapshotError: the snapshot is not this model's.
        """
        file = rank_file(get_tensor_model_parallel_rank())
        if self._build is None:
            directory = self._snapshot or self._once_it_is_there()
            device = next(model.parameters()).device
            if device.type == "cpu":
                restore(model, directory, file)
            else:
                self._fill(model, source_for(directory, file, device), device)
            return
        self._stock.load_weights(model, model_config)
        write_tensors(Path(self._build) / file, weights_of(model))

    def _fill(self, model: nn.Module, source: DeviceSource, device: torch.device) -> None:
        """Copy the weights to the device, or have those that another engine has copied there."""
        if not self._shares:
            fill(weights_of(model), source)
        elif (reason := changed_after_loading(model) or unshareable(model, device)) is not None:
            logger.warning("this engine has a copy of the weights for itself: %s", reason)
            fill(weights_of(model), source)
        elif share(model, source, device) is None:
            # Nothing is copied from it, and perhaps never will be.
            release_source()

    def _once_it_is_there(self) -> Path:
        """Wait for the file that names the snapshot's directory: as long as it takes, since who writes it ends us."""
        assert self._snapshot_in is not None  # noqa: S101 - of three, the others are None
        while not self._snapshot_in.exists():
            time.sleep(_LOOK_AGAIN_S)
        return Path(self._snapshot_in.read_text())
