"""Small adapters, good and bad, as files."""

import json
import struct
from collections.abc import Mapping
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
SHAPES = {Q: (16, 16), DOWN: (24, 16)}


def tensors_of(shapes: Mapping[str, tuple[int, int]] = SHAPES, rank: int = RANK, fill: float = 0.5) -> dict[str, Any]:
    """Both halves of each, as PEFT names them."""
    halves = {}
    for module, (inputs, outputs) in shapes.items():
        halves[f"base_model.model.{module}.lora_A.weight"] = np.full((rank, inputs), fill, np.float32)
        halves[f"base_model.model.{module}.lora_B.weight"] = np.full((outputs, rank), fill, np.float32)
    return halves


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
    return struct.pack("<Q", len(text)) + text + b"".join(values.tobytes() for values in tensors.values())


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
