"""Names of vLLM's that are not public, each used in one file: these fail clearly when upstream changes."""

import inspect
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import vllm
from vllm import device_allocator
from vllm.compilation import decorators
from vllm.device_allocator import AllocationData, cumem, sleep_mode_backend
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue, SpinCondition
from vllm.lora.layers import LogitsProcessorWithLoRA, VocabParallelEmbeddingWithLoRA
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import utils as punica_utils
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager, WorkerLoRAManager
from vllm.model_executor.layers import utils as layer_utils
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.platforms import current_platform
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.sched.utils import check_stop
from vllm.v1.engine import core_client, utils
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.sample.ops import topk_topp_sampler
from vllm.v1.sample.sampler import Sampler
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu_input_batch import InputBatch
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker as GpuWorker
from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin

import deployments
from deployments.gpu_worker import SleepingGpuWorker
from deployments.start_marks import MOMENTS

_VLLM = Path(vllm.__file__).parent
_SOURCES = [_VLLM / "v1", _VLLM / "model_executor" / "model_loader", Path(deployments.__file__).parent]


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
    packing = inspect.getsource(layer_utils.dispatch_cpu_unquantized_gemm)
    assert "handler = ops.create_onednn_mm(origin_weight.t()" in packing
    assert "layer.cpu_linear = lambda x, weight, bias: ops.onednn_mm(handler" in packing
    assert "layer.weight = torch.nn.Parameter(torch.empty(0)" in packing
    for method, removes in ((UnquantizedLinearMethod, True), (UnquantizedEmbeddingMethod, False)):
        source = inspect.getsource(method.process_weights_after_loading)
        assert f"dispatch_cpu_unquantized_gemm(layer, remove_weight={removes})" in source
    assert "self.base_layer = base_layer" in inspect.getsource(BaseLinearLayerWithLoRA.__init__)
    linear = inspect.getsource(LinearBase.__init__)
    assert all(f"self.{name} = {name}" in linear for name in ("input_size", "output_size", "params_dtype"))


def test_cpu_adapters() -> None:
    """`deployments/cpu_adapters.py` adds a slot to these; once kernels skip rows without an adapter, it may go."""
    assert "lora_b_weights[lora_indices_tensor]" in inspect.getsource(lora_ops.bgmv_shrink)
    assert "lora_b_weights[lora_indices_tensor]" in inspect.getsource(lora_ops.bgmv_expand)
    for layer in (BaseLinearLayerWithLoRA, VocabParallelEmbeddingWithLoRA, LogitsProcessorWithLoRA):
        source = inspect.getsource(layer.create_lora_weights)
        assert "self.lora_a_stacked = " in source
        assert "self.lora_b_stacked = " in source
    assert "self.lora_a_stacked_2d = self.lora_a_stacked.view(" in inspect.getsource(
        VocabParallelEmbeddingWithLoRA.create_lora_weights
    )
    assert "else -1" in inspect.getsource(punica_utils.convert_mapping)


def test_packed_adapters() -> None:
    """`deployments/packed_adapters.py` stands in for vLLM's managers by these."""
    manager = inspect.getsource(LoRAModelManager)
    assert "for module_name, module in self.modules.items():\n            module_lora = self._get_lora_layer" in manager
    assert "self.lora_index_to_id[index] = lora_model.id" in manager
    assert "self._registered_adapters[lora.id] = lora" in manager
    assert "def _create_merged_loras_inplace(self, lora_model: LoRAModel)" in manager
    worker = inspect.getsource(LRUCacheWorkerLoRAManager)
    assert "lora = self._load_adapter(lora_request)" in worker
    assert "lora_manager_cls=self._manager_cls" in worker
    assert "self._adapter_manager = lora_manager" in worker
    constructor = inspect.signature(WorkerLoRAManager).parameters
    assert list(constructor) == ["vllm_config", "device", "embedding_modules", "lora_model_cls"]
    load = inspect.getsource(LoRAModelRunnerMixin.load_lora_model)
    assert "self.lora_manager = LRUCacheWorkerLoRAManager(" in load
    assert "return self.lora_manager.create_lora_manager(model, vllm_config)" in load
    assert hasattr(torch, "_foreach_copy_")
    # What stands for vLLM's own way from files to slots.
    assert "hf_to_vllm_mapper = hf_to_vllm_mapper.get_rename_mapper()" in inspect.getsource(WorkerLoRAManager)
    assert "self.lora_b *= self.scaling" in inspect.getsource(LoRALayerWeights.optimize)
    assert "peft_helper.vllm_lora_scaling_factor" in inspect.getsource(LoRALayerWeights.from_config)
    assert "lora_b = tensor.to(device=device, dtype=dtype)" in inspect.getsource(LoRAModel.from_lora_tensors)
    assert "self.packed_modules[module_full_name] = [" in manager


def test_cpu_worker() -> None:
    """`deployments/cpu_worker.py` finds the KV cache and the model by these."""
    assert "self.kv_caches: list[torch.Tensor] = []" in inspect.getsource(GPUModelRunner.__init__)
    assert list(inspect.signature(CPUWorker.load_model).parameters) == ["self", "load_dummy_weights"]
    assert "not supported on CPU" in inspect.getsource(CPUWorker.sleep)  # once it is, ours may go


def test_gpu_worker() -> None:
    """`deployments/gpu_worker.py` stands in vLLM's worker, and tells what a sleep loses, by these."""
    assert list(inspect.signature(GpuWorker.sleep).parameters) == ["self", "level"]
    assert list(inspect.signature(GpuWorker.wake_up).parameters) == ["self", "tags"]
    # An extension may add names, and not replace one.
    assert not [name for name in vars(SleepingGpuWorker) if name[:2] != "__" and hasattr(GpuWorker, name)]
    assert 'offload_tags=("weights",) if level == 1 else tuple()' in inspect.getsource(sleep_mode_backend.CuMemBackend)
    assert 'self._maybe_get_memory_pool_context(tag="weights")' in inspect.getsource(GpuWorker.load_model)
    assert "self.pointer_to_data[py_d_mem] = AllocationData(" in inspect.getsource(cumem.CuMemAllocator)
    assert {"handle", "tag", "is_asleep"} <= {entry.name for entry in fields(AllocationData)}
    assert "py_device, py_size_or_aligned_size, py_ptr, py_handle" in inspect.getsource(device_allocator)
    # What leaves weights on a GPU as they were loaded; all other methods are taken to change them.
    for method in (UnquantizedLinearMethod, UnquantizedEmbeddingMethod):
        source = inspect.getsource(method.process_weights_after_loading)
        statements = [line.strip() for line in source.splitlines() if line.startswith(" " * 8) and line[8] != " "]
        assert all("is_cpu()" in line or "is_xpu()" in line for line in statements)


def test_resuming_scheduler() -> None:
    """`deployments/resuming_scheduler.py` adds output and advances grammars by these."""
    assert list(inspect.signature(Scheduler.add_request).parameters) == ["self", "request"]
    promote = inspect.getsource(Scheduler._try_promote_blocked_waiting_request)
    assert "self.grammar_compile_error_reqs.add(request.request_id)" in promote
    schedule = inspect.getsource(Scheduler.schedule)
    assert "self._try_promote_blocked_waiting_request(request)" in schedule
    assert "if request.prefill_stats and request.num_preemptions <= 0" in schedule
    assert "num_new_tokens = request.num_tokens - num_computed_tokens" in schedule
    step = inspect.getsource(Scheduler.update_from_output)
    assert "structured_output_manager.should_advance(\n                request, new_token_ids=new_token_ids" in step
    assert "trim_reasoning_for_advance" in step
    assert "reasoner.is_reasoning_end(" in inspect.getsource(StructuredOutputManager.should_fill_bitmask)


def test_resuming_on_a_gpu() -> None:
    """`deployments/resumable.py` counts on V2 for these: output that comes with a new request stays output."""
    assert "                    req._all_token_ids,\n" in inspect.getsource(Scheduler.schedule)
    v2 = Path(vllm.__file__).parent / "v1" / "worker" / "gpu"
    runner = (v2 / "model_runner.py").read_text()
    assert "prompt_len=prompt_len,\n                all_token_ids=new_req_data.prefill_token_ids," in runner
    penalties = (v2 / "sample" / "penalties.py").read_text()
    assert "mask = block < prefill_len\n        mask &= block >= prompt_len" in penalties
    assert "tl.randint(seed, pos)" in (v2 / "sample" / "gumbel.py").read_text()


def test_resuming_worker() -> None:
    """`deployments/resuming_worker.py` restores requests by these."""
    runner = inspect.getsource(GPUModelRunner)
    assert "self.input_batch.add_request(request)" in runner
    assert "gen.set_offset(gen.get_offset() - 4)" in runner  # what a CPU's generator can't do
    add = inspect.getsource(InputBatch.add_request)
    assert add.index("self._register_add_request(request)") < add.index("end_idx = start_idx + len(request.output")
    sampler = inspect.getsource(topk_topp_sampler.TopKTopPSampler.forward_cpu)
    assert "q = empty_exponential_noise_like(probs, self.use_fp64_gumbel)" in sampler
    assert "q[i].exponential_(generator=generator)" in sampler
    assert "self.topk_topp_sampler = " in inspect.getsource(Sampler.__init__)
    assert "self.model_runner.initialize_kv_cache(" in inspect.getsource(CPUWorker.initialize_from_config)


def test_resumable() -> None:
    """`deployments/resumable.py` finds out by these whether a request has ended."""
    assert list(inspect.signature(check_stop).parameters) == ["request", "max_model_len"]
    process = inspect.getsource(InputProcessor.process_inputs)
    assert "self.generation_config_fields,\n                self.renderer.get_eos_token_id()," in process


def test_process_pool() -> None:
    """`deployments/engine_launch.py` and `deployments/pooled_start.py` start an engine with these."""
    launch = ["vllm_config", "executor_class", "log_stats", "addresses"]
    assert list(inspect.signature(utils.launch_core_engines).parameters) == launch
    assert hasattr(utils.CoreEngineProcManager, "monitor_engine_liveness")
    assert list(inspect.signature(utils.EngineZmqAddresses).parameters)[:2] == ["inputs", "outputs"]
    assert "client_addresses" in inspect.signature(AsyncLLM).parameters
    client = inspect.getsource(core_client.MPClient)
    assert 'client_addresses["input_address"]' in client
    assert "identities.remove(identity)" in client  # what a stranger's message fails on


def test_end_of_an_engine_nobody_manages() -> None:
    """`deployments/pooled_start.py` ends the requests of a dead engine by the client's `shutdown`."""
    client = inspect.getsource(core_client)
    assert "outputs_queue.put_nowait(EngineDeadError())" in client
    assert "propagate_error" in inspect.getsource(AsyncLLM)


@pytest.mark.skipif(not current_platform.is_cpu(), reason="what vLLM sets for a worker on a CPU")
def test_threads_of_a_forked_worker() -> None:
    """`deployments/engine_launch.py` applies what vLLM puts into a worker's environment."""
    source = inspect.getsource(OMPProcessManager.configure_omp_envs)
    assert '"OMP_NUM_THREADS"' in source
    assert '"GOMP_CPU_AFFINITY"' in source


def test_ahead_of_time_compilation_does_not_load_on_a_cpu() -> None:
    """`deployments/engine_launch.py` turns it off for this; when it fails, see whether it may be left on."""
    assert "compiled_fn.finalize_loading(" in inspect.getsource(decorators)


@pytest.mark.parametrize("moment", MOMENTS)
def test_moments_of_a_start(moment: str) -> None:
    """`deployments/start_marks.py` reads these messages."""
    assert any(f'"{moment}' in path.read_text() for root in _SOURCES for path in root.rglob("*.py"))
