"""Names of vLLM's that are not public, each used in one file: these fail clearly when upstream changes."""

import inspect

from vllm.distributed.device_communicators.shm_broadcast import MessageQueue, SpinCondition
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.model_executor.layers import utils
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu_model_runner import GPUModelRunner


def test_cpu_executor() -> None:
    """`deployments/cpu_executor.py` lets the engine core sleep by these."""
    assert "busy_loop_s" in inspect.signature(SpinCondition).parameters
    assert list(inspect.signature(SpinCondition.wait).parameters) == ["self", "timeout_ms"]
    assert "self._spin_condition.wait(timeout_ms=" in inspect.getsource(MessageQueue.acquire_read)
    assert "self.last_read + self.busy_loop_s" in inspect.getsource(SpinCondition.wait)
    source = inspect.getsource(MultiprocExecutor)
    assert "def _init_executor(self)" in source
    assert "self.response_mqs.append(" in source


def test_cpu_weights() -> None:
    """`deployments/cpu_weights.py` drops packed copies and packs again by these."""
    packing = inspect.getsource(utils.dispatch_cpu_unquantized_gemm)
    assert "handler = ops.create_onednn_mm(origin_weight.t()" in packing
    assert "layer.cpu_linear = lambda x, weight, bias: ops.onednn_mm(handler" in packing
    assert "layer.weight = torch.nn.Parameter(torch.empty(0)" in packing
    for method, removes in ((UnquantizedLinearMethod, True), (UnquantizedEmbeddingMethod, False)):
        source = inspect.getsource(method.process_weights_after_loading)
        assert f"dispatch_cpu_unquantized_gemm(layer, remove_weight={removes})" in source
    assert "self.base_layer = base_layer" in inspect.getsource(BaseLinearLayerWithLoRA.__init__)
    linear = inspect.getsource(LinearBase.__init__)
    assert all(f"self.{name} = {name}" in linear for name in ("input_size", "output_size", "params_dtype"))


def test_cpu_worker() -> None:
    """`deployments/cpu_worker.py` finds the KV cache and the model by these."""
    assert "self.kv_caches: list[torch.Tensor] = []" in inspect.getsource(GPUModelRunner.__init__)
    assert list(inspect.signature(CPUWorker.load_model).parameters) == ["self", "load_dummy_weights"]
    assert "not supported on CPU" in inspect.getsource(CPUWorker.sleep)  # once it is, ours may go
