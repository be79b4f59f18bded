"""What engines take of GPUs' memory, and how much of it a replica has. Not yet run on a GPU.

Covers: what vLLM asks for before an engine starts, what a worker holds, awake and asleep. Does not cover: the host's
memory (``footprint``), what follows for who is awake (``residency``).
"""

from collections.abc import Iterable

import torch
from vllm.config import CacheConfig
from vllm.device_allocator import AllocationData
from vllm.platforms import current_platform

from deployments.types import ModelSpec
from storage.cuda import process_bytes

# Of a process on a GPU, beside what PyTorch has allocated, where the driver doesn't tell: context and loaded kernels.
CONTEXT_BYTES = 512 << 20


def devices_bytes(devices: float) -> int:
    """Return the memory of so many GPUs, or of such a share of one, as this process sees them; all are of one size."""
    return int(current_platform.get_device_total_memory() * devices)


def promised_bytes(spec: ModelSpec) -> int:
    """Return what has to be free on all of its GPUs together for an engine to start.

    vLLM starts none on a device with less than ``gpu_memory_utilization`` of its memory free, whatever the engine will
    need, and lets it take no more.
    """
    share = float(spec.engine.get("gpu_memory_utilization") or CacheConfig.gpu_memory_utilization)
    ranks = int(spec.engine.get("tensor_parallel_size") or 1) * int(spec.engine.get("pipeline_parallel_size") or 1)
    return int(devices_bytes(ranks) * share)


def held_bytes(device: torch.device, allocations: Iterable[AllocationData], shared_bytes: int) -> int:
    """Return what this process holds of a GPU: by the driver, else by PyTorch's account without what sleeps.

    ``allocations`` are those of vLLM's allocator, which takes memory from under PyTorch; of ``shared_bytes``, that
    other processes may have too, PyTorch knows nothing.
    """
    counted = process_bytes(device)
    if counted is not None:
        return counted
    asleep_bytes = sum(int(allocation.handle[1]) for allocation in allocations if allocation.is_asleep)
    return CONTEXT_BYTES + torch.cuda.memory_reserved(device) - asleep_bytes + shared_bytes
