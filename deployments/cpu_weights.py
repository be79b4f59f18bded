"""The weights of a running model on a CPU: let go of, and taken from a snapshot again.

vLLM packs the matrix of each linear layer into a copy in oneDNN's layout when it has loaded a model, and drops the
original. So to let go means to drop packed copies and everything else, and to come back means to map the snapshot and
pack again; or to compute from what is mapped, which costs speed, and has no copy of its own. Does not cover: the KV
cache and when it is done (``cpu_worker``), adapters' weights, which stay.

The names of vLLM's that are not public stand here and nowhere else; ``tests/contract/test_vllm_names.py`` guards them.
"""

import ctypes
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import nn
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.utils.torch_utils import set_default_torch_dtype

from deployments.snapshot_weights import WeightKind, not_this_model, open_snapshot

# With adapters enabled, a layer stands inside one of vLLM's that adds the adapters, under this name.
_WRAPPED = "base_layer."
_REPEATABLE = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
# What vLLM calls the function that multiplies with a layer's packed copy, and keeps it alive.
_PACKED = "cpu_linear"


class CpuWeights:
    """What a snapshot holds of ``model``, which vLLM has loaded and packed; ``dtype`` is the model's."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._model = model
        self._dtype = dtype
        self._kinds: dict[str, WeightKind] = {}

    def unsupported(self) -> str | None:
        """Return why these weights can't be restored, or None if they can."""
        for name, layer in _layers(self._model):
            method = layer.quant_method
            # Other kinds of layers change their weights in ways that are not known to work twice.
            if type(method) not in _REPEATABLE or _PACKED not in vars(layer):
                return f"layer '{name}' is packed by {type(method).__name__}"
        return None

    def release(self) -> None:
        """Let go of all weights; the model can't be run until ``map`` and ``pack``."""
        self._kinds = {name: _kind(module, attribute) for name, (module, attribute) in self._places().items()}
        for _, layer in _layers(self._model):
            delattr(layer, _PACKED)
        for module, attribute in self._places().values():
            tensor = getattr(module, attribute)
            tensor.data = torch.empty(0, dtype=tensor.dtype)

    def map(self, directory: Path, file: str) -> None:
        """Make the weights views of a snapshot's file.

        Raises:
            StorageError: the snapshot is broken, or not this model's; nothing was changed.
        """
        weights = {name: getattr(module, attribute) for name, (module, attribute) in self._places().items()}
        tensors = open_snapshot(directory, file, self._kinds)
        # Tied weights have several names, and the snapshot need not have them all.
        found = {id(weights[name]) for name in tensors}
        for name, weight in weights.items():
            if id(weight) not in found:
                raise not_this_model(directory, file, name)
        for name, tensor in tensors.items():
            weights[name].data = tensor

    def pack(self) -> None:
        """Pack the matrices of linear layers, as vLLM does after loading."""
        # Largest first, so that no thread is left with a large one at the end.
        layers = sorted((layer for _, layer in _layers(self._model)), key=lambda layer: -layer.weight.nbytes)
        cores = _cores()
        with (
            set_default_torch_dtype(self._dtype),
            ThreadPoolExecutor(len(cores), initializer=_work_alone, initargs=(cores,)) as threads,
        ):
            for _ in threads.map(_pack, layers):
                pass

    def leave_unpacked(self) -> None:
        """Multiply with the mapped matrices themselves: every process that maps the snapshot has the same memory."""
        for _, layer in _layers(self._model):
            setattr(layer, _PACKED, nn.functional.linear)

    def _places(self) -> dict[str, tuple[nn.Module, str]]:
        places = {}
        for name in self._model.state_dict(keep_vars=True):
            path, _, attribute = name.rpartition(".")
            places[name.replace(_WRAPPED, "")] = (self._model.get_submodule(path), attribute)
        return places


def _pack(layer: nn.Module) -> None:
    layer.quant_method.process_weights_after_loading(layer)


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers that vLLM packs, each once; a layer within an adapter's wrapper is one, the wrapper is not."""
    for name, module in model.named_modules():
        if isinstance(vars(module).get("quant_method"), QuantizeMethodBase):
            yield name, module


def _kind(module: nn.Module, attribute: str) -> WeightKind:
    """Return shape and type of a weight as it was before it was packed."""
    tensor = getattr(module, attribute)
    if isinstance(module, LinearBase):
        if attribute == "weight":
            rows = getattr(module, "output_size_per_partition", module.output_size)
            columns = getattr(module, "input_size_per_partition", module.input_size)
            return torch.Size((rows, columns)), module.params_dtype
        return tensor.shape, module.params_dtype
    return tensor.shape, tensor.dtype


def _cores() -> set[int]:
    # vLLM binds a worker to the cores it computes on, and leaves some to others. For this moment its parent's will do:
    # with two cores there is one to compute on, and packing would take twice as long.
    return os.sched_getaffinity(os.getppid())


def _work_alone(cores: set[int]) -> None:
    os.sched_setaffinity(0, cores)
    # Threads that pack one matrix each need not wait for each other, as OpenMP's would within every matrix.
    ctypes.CDLL(None).omp_set_num_threads(1)
