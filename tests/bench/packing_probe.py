"""What `staging_engine.py` asks of a worker: vLLM mixes it into its CPU worker (`worker_extension_cls`)."""

import time
from pathlib import Path

import torch
from vllm.distributed import get_tensor_model_parallel_rank

from deployments.os_memory import trim_heap
from storage.weights import rank_file


class PackingProbe:
    """Of a sleeping worker; it sleeps as before afterwards."""

    def packing_alone(self, snapshot: str) -> dict[str, float]:
        """Seconds to pack weights that are mapped and touched already, and the memory that it takes, in bytes."""
        self._weights.map(Path(snapshot), rank_file(get_tensor_model_parallel_rank()))
        for weight in self.get_model().state_dict().values():
            # A byte of every page: from here on no page is missing.
            weight.reshape(-1).view(torch.uint8)[::4096].sum()
        before_bytes = anonymous_bytes()
        begin_s = time.perf_counter()
        self._weights.pack()
        took_s = time.perf_counter() - begin_s
        packed_bytes = anonymous_bytes() - before_bytes
        self._weights.release()
        trim_heap()
        return {"took_s": took_s, "packed_bytes": packed_bytes}

    def own_memory_bytes(self) -> int:
        """The worker's memory that is backed by no file."""
        return anonymous_bytes()


def anonymous_bytes() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Anonymous":
            return int(value.split()[0]) * 1024
    raise LookupError("smaps_rollup has no Anonymous")
