"""SmolLM2's GGUF file as a bf16 model directory in the layout of Hugging Face.

The weights are those of the 4-bit file, widened: no precision comes back, but every engine reads the result.
"""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from app.demo.errors import PrepareError

_END_OF_TURN = "<|im_end|>"
_END_OF_TURN_ID = 2
_CHECK_TURN = [{"role": "user", "content": "Hi"}]
_CHECK_TEXT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
)


def convert_gguf(gguf: Path, target: Path, model: str) -> None:
    """Write ``gguf`` into the existing directory ``target`` as safetensors, configuration and tokenizer.

    Raises:
        PrepareError: The result fails the check of its tokenizer; ``model`` names it in the message.
    """
    with _quiet():
        _write_weights(gguf, target)
        _write_tokenizer(gguf, target)
        fault = _tokenizer_fault(target)
    if fault:
        raise PrepareError(model, f"the converted tokenizer is wrong ({fault})")


def _write_weights(gguf: Path, target: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    # transformers remembers that the file was quantized and would refuse to save what it has already widened.
    network.hf_quantizer = None
    network.is_quantized = False
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    network.config.rms_norm_eps = 1e-5
    ids = {"bos_token_id": 1, "eos_token_id": _END_OF_TURN_ID, "pad_token_id": _END_OF_TURN_ID}
    network.generation_config = GenerationConfig(**ids)
    network.save_pretrained(target)
    _edit_json(target / "config.json", drop=("_model_name_or_path", "_name_or_path"))
    (target / "model.safetensors").chmod(0o644)


def _write_tokenizer(gguf: Path, target: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The original splits digits first; the GGUF reader drops that, and blanks before a number come out differently.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.model_max_length = 8192
    tokenizer.save_pretrained(target)
    # The name that both transformers 4 and 5 know for "read tokenizer.json as it is".
    _edit_json(
        target / "tokenizer_config.json",
        drop=("backend", "is_local", "local_files_only"),
        tokenizer_class="PreTrainedTokenizerFast",
    )


def _tokenizer_fault(target: Path) -> str:
    """What is wrong with the tokenizer in ``target``, or nothing."""
    tokenizer = AutoTokenizer.from_pretrained(target)
    if (tokenizer.eos_token, tokenizer.eos_token_id) != (_END_OF_TURN, _END_OF_TURN_ID):
        return f"end of turn is {tokenizer.eos_token!r}"
    if GenerationConfig.from_pretrained(target).eos_token_id != _END_OF_TURN_ID:
        return "generation would not stop at the end of a turn"
    if tokenizer.apply_chat_template(_CHECK_TURN, tokenize=False, add_generation_prompt=True) != _CHECK_TEXT:
        return "its chat template formats differently"
    if tokenizer.encode(_END_OF_TURN) != [_END_OF_TURN_ID]:
        return f"{_END_OF_TURN} is not one token"
    if tokenizer.tokenize("  12") != ["ĠĠ", "1", "2"]:
        return "it does not split digits"
    return ""


def _edit_json(path: Path, drop: tuple[str, ...], **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in content.items() if key not in drop}
    path.write_text(json.dumps(kept | changes, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers and its bars: the user sees our own progress only."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        # The bar of the GGUF reader obeys no switch of transformers.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
