"""What an adapter answers when PEFT merges it into the base model in float32: the reference for served adapters."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.demo.catalog import ADAPTERS, DEFAULT_MODELS_DIR, SMOLLM2


def models_dir() -> Path:
    """Where the prepared models are: ``FLASHSERVE_MODELS_DIR``, or the default of the demo."""
    return Path(os.environ.get("FLASHSERVE_MODELS_DIR", DEFAULT_MODELS_DIR))


def base_answer(prompt: str, max_tokens: int = 48) -> str:
    """The greedy answer of the base model to one user turn."""
    return _answer(None, prompt, max_tokens)


def merged_answer(adapter_name: str, prompt: str, max_tokens: int = 48) -> str:
    """The greedy answer of the base model with ``adapter_name`` merged into its weights."""
    return _answer(adapter_name, prompt, max_tokens)


@lru_cache
def _answer(adapter_name: str | None, prompt: str, max_tokens: int) -> str:
    network, tokenizer = _load(adapter_name)
    turn = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        output = network.generate(**inputs, do_sample=False, max_new_tokens=max_tokens)
    answer_ids = output[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(answer_ids, skip_special_tokens=True))


@lru_cache(maxsize=3)
def _load(adapter_name: str | None) -> tuple[Any, Any]:
    base_name = ADAPTERS[adapter_name].base_model if adapter_name else SMOLLM2.name
    base_dir = models_dir() / base_name
    network = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    if adapter_name:
        network = PeftModel.from_pretrained(network, ADAPTERS[adapter_name].path).merge_and_unload()
    return network.eval(), AutoTokenizer.from_pretrained(base_dir)
