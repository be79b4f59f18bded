"""vLLM's executor for worker processes on a CPU, where the cores are the device and none is there to be wasted.

While its worker computes, vLLM's engine core polls shared memory for the result, and for a second after it. That takes
a whole core, which on a CPU the worker and everything that serves its tokens could use. Here it waits to be woken, as
vLLM itself does once an engine has been idle for that second.
"""

from typing import Any

from vllm.v1.executor.multiproc_executor import MultiprocExecutor

# A wake-up can get lost in ZeroMQ (its conflating pipes race), so the memory is looked at this often in any case.
_LOOK_EVERY_MS = 1


class CpuExecutor(MultiprocExecutor):
    """``distributed_executor_backend`` of engines on a CPU."""

    supports_pp = True

    def _init_executor(self) -> None:
        super()._init_executor()
        for queue in self.response_mqs:
            _let_sleep(queue)


def _let_sleep(queue: Any) -> None:
    # vLLM 0.29 has no argument for it; tests/contract/test_vllm_names.py guards these names.
    condition = queue._spin_condition  # noqa: SLF001
    wait = condition.wait

    def wait_briefly(timeout_ms: int | None = None) -> None:
        wait(_LOOK_EVERY_MS if timeout_ms is None else min(timeout_ms, _LOOK_EVERY_MS))

    condition.busy_loop_s = 0.0
    condition.wait = wait_briefly
