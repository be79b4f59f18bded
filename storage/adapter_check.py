"""Whether an adapter fits its base model, told from headers and configurations: nothing is loaded.

Covers: rank, features that vLLM lacks, module names, shapes, halves of pairs, types, size. Does not cover: reading, and
values of weights (``adapter_source``). Of a base model whose layers are not known here, the
engine has the last word on names and shapes.
"""

import re
from collections.abc import Mapping
from typing import Any

from storage.tensor_header import Tensor

# More than any adapter has whose rank an engine can be told to allow.
MAX_ADAPTER_BYTES = 2 * 1024**3
MAX_CONFIG_BYTES = 1024 * 1024

_TYPES = {"F16", "BF16", "F32"}
_PREFIX = "base_model.model."
_PAIRED = re.compile(r"(?P<module>.+)\.(?:lora_(?P<linear>[AB])\.weight|lora_embedding_(?P<embedding>[AB]))", re.DOTALL)
_LAYER = re.compile(r"model\.layers\.(?P<layer>\d{1,6})\.(?P<leaf>[a-z_]+\.[a-z_]+)")
# PEFT saves them along with adapters of embeddings; vLLM leaves them alone.
_BASE_EMBEDDINGS = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
# Configurations that name the sizes of the same layers in the same way.
_LLAMA_LIKE = {
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite", "olmo", "olmo2", "phi3",
    "smollm3", "starcoder2", "stablelm", "exaone4", "seed_oss",
}  # fmt: skip
# What some of them have in the place of others.
_FUSED = {"self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.c_fc", "mlp.c_proj"}
_LACKING = {
    "phi3": {
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.c_fc",
        "mlp.c_proj",
    },
    "starcoder2": {
        "self_attn.qkv_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj", "mlp.down_proj",
    },
}  # fmt: skip
_SHOWN = 3

# Inputs and outputs of a matrix.
_Shape = tuple[int, int]


class UnfitAdapterError(ValueError):
    """What keeps an adapter from being used, as a clause; becomes an ``AdapterError`` where its place is known."""


def check_config(config: Any, max_rank: int) -> int:
    """Return the rank that an adapter's configuration names.

    Raises:
        UnfitAdapterError: it is no LoRA configuration, or asks for what the engine doesn't do.
    """
    if not isinstance(config, dict) or "r" not in config:
        raise UnfitAdapterError("its adapter_config.json is not a LoRA configuration")
    rank, kind = config["r"], config.get("peft_type", "LORA")
    if kind != "LORA":
        raise UnfitAdapterError(f"it is an adapter of type {_quoted(kind)}, not LORA")
    if type(rank) is not int or rank < 1:
        raise UnfitAdapterError(f"its rank is {_quoted(rank)}")
    if rank > max_rank:
        raise UnfitAdapterError(f"its rank is {rank}, and 'lora.max_rank' allows {max_rank}")
    alpha = config.get("lora_alpha", rank)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < float("inf"):
        raise UnfitAdapterError(f"its lora_alpha is {_quoted(alpha)}")
    for key, allowed in (("use_dora", (None, False)), ("modules_to_save", (None, [])), ("bias", (None, "none"))):
        if config.get(key) not in allowed:
            raise UnfitAdapterError(f"it has {key} = {_quoted(config[key])}, which vLLM doesn't support")
    for key in ("rank_pattern", "alpha_pattern"):
        if config.get(key):
            raise UnfitAdapterError(f"it has a {key}, which vLLM doesn't support")
    return rank


def check_tensors(tensors: Mapping[str, Tensor], rank: int, base: Mapping[str, Any]) -> None:
    """Check the tensors of an adapter of ``rank`` against the base model's ``config.json``.

    Raises:
        UnfitAdapterError: they don't fit.
    """
    pairs = _pairs(tensors)
    shapes = _shapes(base)
    found = {module: _shape_of(module, shapes, base) for module in pairs}
    foreign = [module for module, shape in found.items() if shape is None]
    if shapes and foreign:
        raise UnfitAdapterError(f"the base model has no {_some(foreign)}")
    for module, pair in pairs.items():
        _check_pair(module, pair["A"], pair["B"], rank, found[module])


def _pairs(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return halves ``A`` and ``B`` by module."""
    pairs: dict[str, dict[str, Tensor]] = {}
    strange: list[str] = []
    for name, tensor in tensors.items():
        if name.endswith(_BASE_EMBEDDINGS):
            continue
        match = _PAIRED.fullmatch(name)
        if match is None:
            strange.append(name)
            continue
        if tensor.dtype not in _TYPES:
            raise UnfitAdapterError(
                f"{_quoted(name)} is of type {tensor.dtype}, not one of {', '.join(sorted(_TYPES))}"
            )
        module = match["module"].removeprefix(_PREFIX)
        half = match["linear"] or match["embedding"]
        if half in pairs.setdefault(module, {}):
            raise UnfitAdapterError(f"it has {_quoted(module)} twice")
        pairs[module][half] = tensor
    if strange:
        raise UnfitAdapterError(f"it has tensors that are no LoRA weights: {_some(strange)}")
    if not pairs:
        raise UnfitAdapterError("it has no LoRA weights")
    halves = [f"{module} (no lora_{'B' if 'A' in pair else 'A'})" for module, pair in pairs.items() if len(pair) < 2]  # noqa: PLR2004 - A and B
    if halves:
        raise UnfitAdapterError(f"tensors are missing: {_some(halves)}")
    return pairs


def _check_pair(module: str, a: Tensor, b: Tensor, rank: int, shape: _Shape | None) -> None:
    if len(a.shape) != 2 or len(b.shape) != 2:  # noqa: PLR2004 - matrices
        raise UnfitAdapterError(f"the weights of {_quoted(module)} are no matrices")
    if a.shape[0] != rank or b.shape[1] != rank:
        found = f"{list(a.shape)} and {list(b.shape)}"
        raise UnfitAdapterError(f"the weights of {_quoted(module)} are {found}, which is not of rank {rank}")
    found_shape = (a.shape[1], b.shape[0])
    if shape is not None and found_shape != shape:
        raise UnfitAdapterError(
            f"it was made for another base: {_quoted(module)} is {found_shape[0]} to {found_shape[1]} there, and "
            f"{shape[0]} to {shape[1]} here"
        )


def _shape_of(module: str, shapes: Mapping[str, _Shape], base: Mapping[str, Any]) -> _Shape | None:
    """Return what a module takes and gives; None where the base has none of that name, or isn't known."""
    match = _LAYER.fullmatch(module)
    if match is None:
        return shapes.get(module)
    return shapes.get(match["leaf"]) if shapes and int(match["layer"]) < base["num_hidden_layers"] else None


def _shapes(base: Mapping[str, Any]) -> dict[str, _Shape]:
    """Return inputs and outputs of the matrices of one layer, and of the embeddings; empty where they aren't known."""
    if base.get("model_type") not in _LLAMA_LIKE:
        return {}
    sizes = [base.get(key) for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")]
    if not all(type(size) is int and size > 0 for size in sizes):
        return {}
    hidden, inner, heads, _ = (int(str(size)) for size in sizes)
    head = base.get("head_dim") or hidden // heads
    queries, keys = heads * head, (base.get("num_key_value_heads") or heads) * head
    vocabulary = base.get("vocab_size", 0)
    shapes = {
        "self_attn.q_proj": (hidden, queries), "self_attn.k_proj": (hidden, keys), "self_attn.v_proj": (hidden, keys),
        "self_attn.qkv_proj": (hidden, queries + 2 * keys), "self_attn.o_proj": (queries, hidden),
        "mlp.gate_proj": (hidden, inner), "mlp.up_proj": (hidden, inner), "mlp.gate_up_proj": (hidden, 2 * inner),
        "mlp.down_proj": (inner, hidden), "mlp.c_fc": (hidden, inner), "mlp.c_proj": (inner, hidden),
        "model.embed_tokens": (vocabulary, hidden), "lm_head": (hidden, vocabulary),
    }  # fmt: skip
    lacking = _LACKING.get(str(base["model_type"]), _FUSED)
    return {name: shape for name, shape in shapes.items() if name not in lacking}


def _some(names: list[str]) -> str:
    shown = ", ".join(_quoted(name) for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def _quoted(value: Any) -> str:
    text = str(value)
    return f"'{text[:120]}{'…' if len(text) > 120 else ''}'"  # noqa: PLR2004 - as much as helps
