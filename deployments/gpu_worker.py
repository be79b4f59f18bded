"""What lets vLLM's worker on a GPU sleep without copying weights out: ``worker_extension_cls`` of engines on a GPU.

Asleep, weights and KV cache give their memory back and keep their addresses, so that captured graphs stay valid
(vLLM's sleep mode, level 2). Awake again, the weights come from the snapshot, in the layout that the model computes
with: copies only. What else lay in the weights' memory (buffers, tables, adapters) is kept on the host meanwhile.

Models whose weights vLLM changes once they are loaded (quantized ones, mixtures of experts) don't have in memory what
the snapshot has: they sleep by vLLM's own level 1, which copies all weights to the host and back.

Where a tenant has an engine of its own, the engines of the model compute from one copy of the weights
(``shared_weights``): each lets go of it asleep, and awake again has another's, or copies the snapshot if there is none.

Covers: the worker's half, called by the engine between requests, by the same names as ``cpu_worker``'s. Does not cover:
memory and names (``device_weights``). Not yet run on a GPU.
"""

import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.device_allocator import get_mem_allocator_instance
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from deployments.device_memory import held_bytes
from deployments.device_weights import KeptMemory, check_weights, fill, release_source, source_for
from deployments.os_memory import trim_heap
from deployments.shared_weights import SharedWeights, shared_weights
from deployments.snapshot_weights import weights_of
from storage.cuda import memory_at
from storage.device_source import DeviceSource
from storage.weights import rank_file

logger = logging.getLogger(__name__)

# With adapters enabled, a layer stands inside one of vLLM's that adds the adapters, under this name.
_WRAPPED = "base_layer."
# What these do after loading, they do on CPUs and XPUs only.
_UNCHANGED = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
_WEIGHTS_TAG = "weights"


class SleepingGpuWorker:
    """Mixed into vLLM's worker, whose ``sleep``, ``wake_up``, ``get_model`` and ``device`` it uses."""

    # Of a worker that sleeps by ours: what is kept on the host, and how the weights will be known again.
    flashserve_kept: KeptMemory | None = None

    def fall_asleep(self: Any) -> str | None:
        """Give the memory of weights and KV cache back; no request may be running.

        Returns why this engine can't sleep, in which case it stays as it was.
        """
        if not self.model_config.enable_sleep_mode:
            return "this device has no memory that keeps its addresses"
        model = self.get_model()
        if reason := changed_after_loading(model):
            logger.info("the weights are copied to the host: %s", reason)
            release_source()
            self.sleep(level=1)
            return None
        shared = self.shared_weights()
        # What is shared lies elsewhere.
        weights = named_weights(model).values() if shared is None else ()
        self.flashserve_kept = KeptMemory(self.weights_memory(), weights)
        logger.info("%d bytes beside the snapshot's are kept on the host", self.flashserve_kept.size_bytes)
        self.sleep(level=2)
        if shared is not None:
            shared.drop()
        return None

    def prepare_wake(self: Any, snapshot: str) -> None:
        """Begin to lock the snapshot's memory for the device, in the background, so that ``wake_from`` need not.

        Raises:
            StorageError: the snapshot is broken.
        """
        if self.flashserve_kept is not None:
            self.snapshot_source(snapshot)

    def wake_from(self: Any, snapshot: str) -> dict[str, float]:
        """Take the weights from the snapshot in this directory; return the seconds that each stage took.

        ``registered`` is 1 if host memory could be locked and copied from directly, 0 if through a ring of buffers.

        Raises:
            StorageError: the snapshot is broken, or not this model's, and the worker still sleeps; or a copy failed.
        """
        begin_s = time.perf_counter()
        if self.flashserve_kept is None:
            self.wake_up()
            return {"wake_up_s": time.perf_counter() - begin_s}
        if (shared := self.shared_weights()) is not None:
            return self.wake_with(shared, snapshot)
        weights = named_weights(self.get_model())
        source = self.snapshot_source(snapshot)
        check_weights(weights, source)
        self.wake_up(tags=[_WEIGHTS_TAG])
        mapped_s = time.perf_counter()
        report = fill(weights, source)
        self.flashserve_kept.restore()
        copied_s = time.perf_counter()
        self.wake_up()  # the KV cache, and whatever else there is
        self.flashserve_kept = None
        return {
            "map_s": mapped_s - begin_s,
            "copy_s": copied_s - mapped_s,
            "kv_cache_s": time.perf_counter() - copied_s,
            "transfer_s": report.took_s,
            "registered": float(report.path == "registered"),
        }

    def wake_with(self: Any, shared: SharedWeights, snapshot: str) -> dict[str, float]:
        """Wake with weights that other engines may have; see ``wake_from``."""
        begin_s = time.perf_counter()
        # Before any of vLLM's memory is there: where this has no room, the engine still sleeps.
        report = shared.bring(Path(snapshot), lambda: self.snapshot_source(snapshot))
        shared_s = time.perf_counter()
        self.wake_up(tags=[_WEIGHTS_TAG])
        self.flashserve_kept.restore()
        kept_s = time.perf_counter()
        self.wake_up()
        self.flashserve_kept = None
        stages = {
            "copy_s": shared_s - begin_s,
            "map_s": kept_s - shared_s,
            "kv_cache_s": time.perf_counter() - kept_s,
        }
        if report is None:
            return stages
        return stages | {"transfer_s": report.took_s, "registered": float(report.path == "registered")}

    def adapter_ids(self: Any) -> tuple[list[int], list[int]]:
        """Return the ids of the adapters in slots, which vLLM doesn't tell, and of all that are loaded."""
        return [], list(self.list_loras())

    def unload_adapter(self: Any, int_id: int) -> None:
        """Forget an adapter: the slot that it computes from is free for another, and its memory goes back."""
        self.remove_lora(int_id)
        trim_heap()

    def snapshot_source(self: Any, snapshot: str) -> DeviceSource:
        """Return the snapshot's file for this worker's rank, locked or being locked."""
        return source_for(Path(snapshot), rank_file(get_tensor_model_parallel_rank()), self.device)

    def shared_weights(self: Any) -> SharedWeights | None:
        """Return the weights that this worker's model shares with other engines, if it does."""
        return shared_weights()

    def device_bytes(self: Any) -> int:
        """Return what this worker holds of its device now; weights that it shares count whole."""
        allocator = get_mem_allocator_instance() if self.model_config.enable_sleep_mode else None
        allocations = () if allocator is None else allocator.pointer_to_data.values()
        shared = self.shared_weights()
        return held_bytes(self.device, allocations, 0 if shared is None else shared.mapped_bytes)

    def weights_memory(self: Any) -> list[torch.Tensor]:
        """Return all of the memory that weights were allocated in, and that a sleep gives back."""
        allocations = get_mem_allocator_instance().pointer_to_data.values()
        return [
            memory_at(allocation.handle[2], allocation.handle[1], self.device)
            for allocation in allocations
            if allocation.tag == _WEIGHTS_TAG
        ]


def changed_after_loading(model: nn.Module) -> str | None:
    """Return which layer's weights vLLM changes once they are loaded, or None if they stay as a snapshot has them."""
    for name, module in model.named_modules():
        method = vars(module).get("quant_method")
        if isinstance(method, QuantizeMethodBase) and type(method) not in _UNCHANGED:
            return f"layer '{name}' is changed by {type(method).__name__}"
    return None


def named_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights by every name that they may have in the snapshot, which knows no adapters."""
    return {name.replace(_WRAPPED, ""): weight for name, weight in weights_of(model, every_name=True).items()}
