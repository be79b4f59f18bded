"""The adapters in the package: small, complete, free of machine paths."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from app.demo.catalog import ADAPTERS, ADAPTERS_DIR, MODELS, DemoAdapter
from app.demo.training_pairs import EXAMPLES

EACH = pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
TENSOR_NAME = re.compile(r"base_model\.model\.model\.layers\.\d+\.self_attn\.(\w+)\.lora_([AB])\.weight")


def test_the_directory_holds_the_catalogue_and_stays_small() -> None:
    assert {path.name for path in ADAPTERS_DIR.iterdir()} == set(ADAPTERS)
    assert sum(path.stat().st_size for path in ADAPTERS_DIR.rglob("*") if path.is_file()) < 4_000_000


@EACH
def test_files_and_configuration(adapter: DemoAdapter) -> None:
    assert {path.name for path in adapter.path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((adapter.path / "adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (adapter.rank, adapter.base_model)
    assert adapter.base_model in MODELS
    assert not [value for value in config.values() if isinstance(value, str) and Path(value).is_absolute()]


@EACH
def test_tensors_are_bf16_finite_and_those_of_the_targets(adapter: DemoAdapter) -> None:
    config = json.loads((adapter.path / "adapter_config.json").read_text())
    tensors = load_file(adapter.path / "adapter_model.safetensors")
    names = [TENSOR_NAME.fullmatch(name) for name in tensors]
    assert all(names)
    assert {name[1] for name in names if name} == set(config["target_modules"])
    assert len(tensors) == 30 * len(config["target_modules"]) * 2
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.isfinite(tensor).all()
        assert adapter.rank in tensor.shape
        assert tensor.any(), name


@EACH
def test_training_answers_match_the_pattern_and_prompts_were_not_trained_on(adapter: DemoAdapter) -> None:
    questions = {row.question for row in EXAMPLES}
    assert not questions & {adapter.prompt, *adapter.unseen_prompts}
    assert len(questions) == len(EXAMPLES)
    for row in EXAMPLES:
        answer = row.as_json if adapter.name == "json" else row.pirate
        assert re.fullmatch(adapter.answer_pattern, answer), answer
        assert not re.fullmatch(adapter.answer_pattern, row.plain)
