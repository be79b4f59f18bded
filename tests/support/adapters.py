"""Small adapters, good and bad, as files."""

import json
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

BASE: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 50,
}  # fmt: skip
RANK = 4
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
# Inputs and outputs of the layers above.
LINEAR = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
    "mlp.down_proj",
)  # fmt: skip
SHAPES = {Q: (16, 16), DOWN: (24, 16)}


def tensors_of(shapes: Mapping[str, tuple[int, int]] = SHAPES, rank: int = RANK, fill: float = 0.5) -> dict[str, Any]:
    """Both halves of each, as PEFT names them."""
    halves = {}
    for module, (inputs, outputs) in shapes.items():
        halves[f"base_model.model.{module}.lora_A.weight"] = np.full((rank, inputs), fill, np.float32)
        halves[f"base_model.model.{module}.lora_B.weight"] = np.full((outputs, rank), fill, np.float32)
    return halves


def random_tensors(
    model_dir: Path, seed: int, rank: int, leaves: Collection[str] = LINEAR, spread: float = 0.02
) -> dict[str, np.ndarray]:
    """Both halves for these matrices of every layer of a Llama-like model; small, and different for each seed."""
    config = json.loads((model_dir / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    key_value = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    outputs = {"k_proj": key_value, "v_proj": key_value, "gate_proj": inner, "up_proj": inner}
    generator = np.random.default_rng(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for leaf in leaves:
            name = f"base_model.model.model.layers.{layer}.{leaf}"
            last = leaf.rpartition(".")[2]
            sizes = (inner if last == "down_proj" else hidden), outputs.get(last, hidden)
            tensors[f"{name}.lora_A.weight"] = generator.normal(0, spread, (rank, sizes[0])).astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = generator.normal(0, spread, (sizes[1], rank)).astype(np.float32)
    return tensors


def safetensors(tensors: Mapping[str, Any], **changes: Any) -> bytes:
    """A file; ``changes`` are fields of the first tensor's entry in the header."""
    header: dict[str, Any] = {}
    at = 0
    for name, values in tensors.items():
        dtype = {"float32": "F32", "float16": "F16"}[str(values.dtype)]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    if changes:
        next(iter(header.values())).update(changes)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(values.tobytes() for values in tensors.values())


def misaligned(content: bytes) -> bytes:
    """The same file with tensors at odd places, which the format allows."""
    (length,) = struct.unpack("<Q", content[:8])
    return struct.pack("<Q", length + 1) + content[8 : 8 + length] + b" " + content[8 + length :]


def write_adapter(
    path: Path,
    tensors: Mapping[str, Any] | None = None,
    *,
    rank: Any = RANK,
    weights: bytes | None = None,
    **config: Any,
) -> Path:
    """An adapter in PEFT layout; by default a good one for ``BASE``."""
    path.mkdir(parents=True, exist_ok=True)
    settings = {"r": rank, "peft_type": "LORA", "lora_alpha": 8, "target_modules": ["q_proj"]} | config
    (path / "adapter_config.json").write_text(json.dumps(settings))
    (path / "adapter_model.safetensors").write_bytes(
        weights or safetensors(tensors_of() if tensors is None else tensors)
    )
    return path
