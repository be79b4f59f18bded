"""What `lora_engine.py` asks of a worker, ours or vLLM's: vLLM mixes it into the worker (`worker_extension_cls`)."""

import time
from typing import Any

import torch
from vllm.lora.request import LoRARequest


class LoraProbe:
    """Seconds inside the worker; the engine has no request in hand meanwhile."""

    def seconds_to_load(self: Any, int_id: int, directory: str) -> float:
        """Of an adapter that the engine doesn't know."""
        begin_s = time.perf_counter()
        self.add_lora(LoRARequest(f"adapter{int_id}", int_id, directory))
        return time.perf_counter() - begin_s

    def seconds_to_activate(self: Any, int_ids: list[int]) -> list[float]:
        """Of adapters in the host cache that are in no slot, one after the other; there are more than slots."""
        took_s = []
        for int_id in int_ids:
            # Its files are not looked at again.
            request = LoRARequest(f"adapter{int_id}", int_id, "/nowhere")
            begin_s = time.perf_counter()
            self.add_lora(request)
            took_s.append(time.perf_counter() - begin_s)
        return took_s

    def seconds_to_copy(self: Any, size_bytes: int, buffers: int, count: int) -> list[float]:
        """Of a plain copy of so many bytes of touched memory, from other buffers to others each time."""
        sources = [torch.full((size_bytes,), index, dtype=torch.uint8) for index in range(buffers)]
        targets = [torch.zeros(size_bytes, dtype=torch.uint8) for _ in range(max(2, buffers // 2))]
        took_s = []
        for index in range(count):
            begin_s = time.perf_counter()
            targets[index % len(targets)].copy_(sources[index % buffers])
            took_s.append(time.perf_counter() - begin_s)
        return took_s

    def drop_adapter(self: Any, int_id: int) -> None:
        """Have it in the engine no longer."""
        self.remove_lora(int_id)
