"""Tiny models with random weights, one for each way of holding them: tied, experts, quantized; and one cut off."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

SIZES = {
    "vocab_size": 5120, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1,
    "eos_token_id": 2, "torch_dtype": "float32", "initializer_range": 0.2,
}  # fmt: skip
SHALLOW_LAYERS = 6
# As llm-compressor writes it for 8-bit weights by channel and activations by token.
_INT8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {
                "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True,
            },
        }
    },
}  # fmt: skip


def make_tied(directory: Path) -> Path:
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)).save_pretrained(directory)
    return directory


def make_experts(directory: Path) -> Path:
    torch.manual_seed(2)
    config = MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, tie_word_embeddings=False)
    MixtralForCausalLM(config).save_pretrained(directory)
    return directory


def make_int8(directory: Path) -> Path:
    """Every linear layer but the last in eight bits, with a scale for each row."""
    torch.manual_seed(3)
    LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)).save_pretrained(directory)
    tensors = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            scale = tensor.abs().amax(dim=1, keepdim=True) / 127
            tensors[name] = (tensor / scale).round().clamp(-127, 127).to(torch.int8)
            tensors[f"{name}_scale"] = scale
        else:
            tensors[name] = tensor
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": _INT8}))
    return directory


def make_shallow(directory: Path, source: Path) -> Path:
    """The first layers of a model: its tensors' real shapes at a fraction of its time, and nothing sensible to say."""
    shutil.copytree(source, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((source / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"num_hidden_layers": SHALLOW_LAYERS}))
    tensors = load_file(source / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if _layer(name) < SHALLOW_LAYERS}
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _layer(name: str) -> int:
    return int(name.removeprefix("model.layers.").split(".")[0]) if name.startswith("model.layers.") else -1
