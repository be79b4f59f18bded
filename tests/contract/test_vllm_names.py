"""Names of vLLM's that are not public, each used in one file: these fail clearly when upstream changes."""

import inspect

from vllm.distributed.device_communicators.shm_broadcast import MessageQueue, SpinCondition
from vllm.v1.executor.multiproc_executor import MultiprocExecutor


def test_cpu_executor() -> None:
    """`deployments/cpu_executor.py` lets the engine core sleep by these."""
    assert "busy_loop_s" in inspect.signature(SpinCondition).parameters
    assert list(inspect.signature(SpinCondition.wait).parameters) == ["self", "timeout_ms"]
    assert "self._spin_condition.wait(timeout_ms=" in inspect.getsource(MessageQueue.acquire_read)
    assert "self.last_read + self.busy_loop_s" in inspect.getsource(SpinCondition.wait)
    source = inspect.getsource(MultiprocExecutor)
    assert "def _init_executor(self)" in source
    assert "self.response_mqs.append(" in source
