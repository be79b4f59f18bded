"""vLLM's worker on a CPU that can sleep: ``worker_cls`` of engines on a CPU.

Covers: the worker's half of sleep, which vLLM's CPU worker ignores: weights and KV cache go, the process, compiled code
and adapters stay. The engine calls it between requests (``vllm_engine``), by the names of the methods. Does not cover:
the weights themselves (``cpu_weights``), how adapters are kept (``packed_adapters``).
"""

import time
from pathlib import Path

from torch._dynamo import config as dynamo_config
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.v1.worker.cpu_worker import CPUWorker

from deployments.cpu_adapters import lay_out_slots
from deployments.cpu_weights import CpuWeights
from deployments.engine_args import adapter_dram, shares_weights
from deployments.os_memory import drop_pages, trim_heap
from deployments.packed_adapters import adapter_ids, keep_adapters_packed
from deployments.resuming_worker import ResumingWorker
from deployments.snapshot_loader import restored_from
from storage.weights import rank_file


class SleepingCpuWorker(ResumingWorker, CPUWorker):
    """Adds ``fall_asleep``, ``wake_from`` and ``unload_adapter``, and resumes requests (``resuming_worker``)."""

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        """See vLLM's worker."""
        if self.model_config.enforce_eager:
            # vLLM compiles what it samples with all the same: the first request for log probabilities, and so the first
            # sleep with its canary, would hold the engine up for as long as a C++ compiler takes.
            dynamo_config.disable = True
        if self.vllm_config.lora_config is not None:
            keep_adapters_packed(self.model_runner, adapter_dram(self.vllm_config))
        super().load_model(load_dummy_weights=load_dummy_weights)
        lay_out_slots(self.get_model())
        self._weights = CpuWeights(self.get_model(), self.model_config.dtype)
        self._shares = shares_weights(self.vllm_config)
        if not self._shares or self._weights.unsupported() is not None:
            return
        if (snapshot := restored_from(self.load_config)) is not None:
            self._weights.release()
            trim_heap()
            self._bring(snapshot)

    def fall_asleep(self) -> str | None:
        """Give the memory of weights and KV cache back; no request may be running.

        Returns why this engine can't sleep, in which case it stays as it was.
        """
        if reason := self._weights.unsupported():
            return reason
        self._weights.release()
        # Nothing but the prefix cache, which the engine resets, would read the KV cache before it is written.
        storages = {cache.untyped_storage().data_ptr(): cache for cache in self.model_runner.kv_caches}
        for cache in storages.values():
            drop_pages(cache.untyped_storage())
        trim_heap()
        return None

    def adapter_ids(self) -> tuple[list[int], list[int]]:
        """Return the ids of the adapters in slots, and of all in the host cache."""
        return adapter_ids(self.model_runner)

    def unload_adapter(self, int_id: int) -> None:
        """Forget an adapter: the slot that it computes from is free for another, and its memory goes back."""
        self.remove_lora(int_id)
        trim_heap()

    def wake_from(self, snapshot: str) -> dict[str, float]:
        """Take the weights from the snapshot in this directory; return the seconds that each stage took.

        Raises:
            StorageError: the snapshot is broken, or not this model's; the worker still sleeps.
        """
        return self._bring(Path(snapshot))

    def _bring(self, snapshot: Path) -> dict[str, float]:
        begin_s = time.perf_counter()
        self._weights.map(snapshot, rank_file(get_tensor_model_parallel_rank()))
        mapped_s = time.perf_counter()
        if self._shares:
            self._weights.leave_unpacked()
        else:
            self._weights.pack()
        return {"map_s": mapped_s - begin_s, "pack_s": time.perf_counter() - mapped_s}
