"""How much memory an engine's KV cache is given on a CPU, where vLLM itself would plan for the whole machine."""

from vllm.config import ModelConfig
from vllm.config.parallel import ParallelConfig
from vllm.utils.torch_utils import STR_DTYPE_TO_TORCH_DTYPE

# What a sequence is expected to have, prompt and answer, if its model allows as many.
USUAL_TOKENS = 2048
# vLLM's blocks on a CPU; every sequence may leave its last one all but empty.
_BLOCK_TOKENS = 128


def planned_kv_bytes(model: ModelConfig, concurrency: int, cache_dtype: str = "auto") -> int:
    """Return room for so many sequences of usual length at once, and for one as long as the model allows.

    A token takes ``2 x layers x KV heads x head size x bytes of a number``: as vLLM's own attention layers count, and
    more than models with compressed or sliding caches need.
    """
    dtype = model.dtype if cache_dtype == "auto" else STR_DTYPE_TO_TORCH_DTYPE[cache_dtype]
    layers = model.get_num_layers(ParallelConfig())
    keys_and_values = 2
    token_bytes = keys_and_values * layers * model.get_total_num_kv_heads() * model.get_head_size() * dtype.itemsize
    tokens = max(model.max_model_len, concurrency * min(model.max_model_len, USUAL_TOKENS))
    return token_bytes * (tokens + (concurrency + 1) * _BLOCK_TOKENS)
