"""Adapters of random small weights, as PEFT saves them: rank 16 on all linear layers of a Llama-like model."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

RANK, ALPHA = 16, 32
# Large enough that adapters answer differently, small enough that they don't all say the same.
SPREAD = 0.02


def linear_layers(model_dir: Path) -> dict[str, tuple[int, int]]:
    """Inputs and outputs by module, of every layer."""
    config = json.loads((model_dir / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    key_value = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    leaves = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden, key_value),
        "self_attn.v_proj": (hidden, key_value), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (hidden, inner), "mlp.up_proj": (hidden, inner), "mlp.down_proj": (inner, hidden),
    }  # fmt: skip
    return {
        f"model.layers.{layer}.{leaf}": shape
        for layer in range(config["num_hidden_layers"])
        for leaf, shape in leaves.items()
    }


def write_adapters(root: Path, model_dir: Path, count: int, dtype: torch.dtype = torch.bfloat16) -> Iterator[Path]:
    """Yields the directory of each as it is written; the number decides the weights."""
    layers = linear_layers(model_dir)
    leaves = sorted({module.rpartition(".")[2] for module in layers})
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for module, (inputs, outputs) in layers.items():
            name = f"base_model.model.{module}"
            a = torch.randn(RANK, inputs, generator=generator) * SPREAD
            b = torch.randn(outputs, RANK, generator=generator) * SPREAD
            tensors |= {f"{name}.lora_A.weight": a.to(dtype), f"{name}.lora_B.weight": b.to(dtype)}
        # Called as if by its content: so copies on a node are, and only such are shared by engines.
        directory = root / f"{number + 1:064x}"
        directory.mkdir(parents=True)
        save_file(tensors, directory / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": leaves}
        (directory / "adapter_config.json").write_text(json.dumps(config))
        yield directory


def weights_bytes(directory: Path) -> int:
    """The size of an adapter's weights, within a few kilobytes."""
    return (directory / "adapter_model.safetensors").stat().st_size
