"""What is refused of an adapter before anything is loaded, and that each refusal says why."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.adapter_check import UnfitAdapterError, check_config, check_tensors
from storage.tensor_header import LENGTH_BYTES, Tensor, header_bytes, parse_header
from tests.support.adapters import BASE, DOWN, RANK, SHAPES, Q, safetensors, tensors_of


def parsed(file: bytes) -> dict[str, Tensor]:
    length = header_bytes(file[:LENGTH_BYTES], len(file))
    return parse_header(file[LENGTH_BYTES : LENGTH_BYTES + length], len(file))


def check(tensors: dict[str, Any], base: dict[str, Any] | None = None, rank: int = RANK) -> None:
    check_tensors(parsed(safetensors(tensors)), rank, BASE if base is None else base)


def without(half: str) -> dict[str, Any]:
    return {name: values for name, values in tensors_of().items() if f"{half}.weight" not in name or Q not in name}


def test_a_good_one_passes() -> None:
    assert check_config({"r": RANK}, 16) == RANK
    check(tensors_of())
    embedding = tensors_of({Q: (50, 16)})
    embeddings = {
        f"base_model.model.model.embed_tokens.lora_embedding_{half}": embedding[
            f"base_model.model.{Q}.lora_{half}.weight"
        ]
        for half in "AB"
    }
    check(tensors_of() | embeddings)
    check({name.removeprefix("base_model.model."): values for name, values in tensors_of().items()})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ([], "not a LoRA configuration"), ({}, "not a LoRA configuration"), ("r", "not a LoRA configuration"),
        ({"r": 0}, "rank is '0'"), ({"r": -1}, "rank is '-1'"), ({"r": "8"}, "rank is '8'"), ({"r": None}, "rank"),
        ({"r": 2.5}, "rank is '2.5'"), ({"r": True}, "rank is 'True'"), ({"r": 17}, "'lora.max_rank' allows 16"),
        ({"r": 4, "peft_type": "IA3"}, "of type 'IA3'"), ({"r": 4, "use_dora": True}, "use_dora"),
        ({"r": 4, "modules_to_save": ["lm_head"]}, "modules_to_save"), ({"r": 4, "bias": "all"}, "bias = 'all'"),
        ({"r": 4, "rank_pattern": {"q_proj": 8}}, "rank_pattern"), ({"r": 4, "alpha_pattern": {"a": 1}}, "alpha_patt"),
        ({"r": 4, "lora_alpha": "much"}, "lora_alpha"), ({"r": 4, "lora_alpha": float("nan")}, "lora_alpha is 'nan'"),
        ({"r": 4, "lora_alpha": float("inf")}, "lora_alpha is 'inf'"),
    ],
)  # fmt: skip
def test_configurations_that_no_engine_takes(config: Any, said: str) -> None:
    with pytest.raises(UnfitAdapterError) as caught:
        check_config(config, 16)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "it has no LoRA weights"),
        (without("lora_B"), f"tensors are missing: '{Q} (no lora_B)'"),
        (without("lora_A"), f"tensors are missing: '{Q} (no lora_A)'"),
        (tensors_of(rank=8), "not of rank 4"),
        (tensors_of({Q: (32, 32)}), f"another base: '{Q}' is 32 to 32 there, and 16 to 16 here"),
        (tensors_of({Q: (16, 8)}), "another base"),
        (tensors_of({"model.layers.2.self_attn.q_proj": (16, 16)}), "the base model has no 'model.layers.2.self"),
        (tensors_of({"model.layers.0.self_attn.qkv_proj": (16, 32)}), "the base model has no"),
        (tensors_of({"model.layers.0.mlp.q_proj": (16, 16)}), "the base model has no"),
        (tensors_of({"transformer.h.0.attn.c_attn": (16, 16)}), "the base model has no 'transformer.h.0"),
        (tensors_of({f"model.layers.{i}.self_attn.q_proj": (16, 16) for i in range(2, 9)}), "and 4 more"),
        ({"model.layers.0.self_attn.q_proj.weight": tensors_of()[f"base_model.model.{Q}.lora_A.weight"]}, "no LoRA"),
        (tensors_of() | {f"{Q}.lora_A.weight": tensors_of()[f"base_model.model.{Q}.lora_A.weight"]}, "twice"),
        ({f"{Q}.lora_magnitude_vector": tensors_of()[f"base_model.model.{Q}.lora_A.weight"]}, "no LoRA weights"),
    ],
)
def test_tensors_that_do_not_fit(tensors: dict[str, Any], said: str) -> None:
    with pytest.raises(UnfitAdapterError) as caught:
        check(tensors)
    assert said in str(caught.value)


def test_weights_that_are_no_matrices_or_of_another_type() -> None:
    name, values = next(iter(tensors_of().items()))
    with pytest.raises(UnfitAdapterError, match="no matrices"):
        check(tensors_of() | {name: values.reshape(-1)})
    file = safetensors({name: values}, dtype="I32")
    with pytest.raises(UnfitAdapterError, match="type I32"):
        check_tensors(parsed(file), RANK, BASE)


@pytest.mark.parametrize("base", [{}, {"model_type": "bert"}, {"model_type": "llama", "hidden_size": "16"}])
def test_of_a_base_that_is_not_known_only_the_adapter_itself_is_judged(base: dict[str, Any]) -> None:
    check(tensors_of({"encoder.layer.0.attention.self.query": (7, 9)}), base)
    with pytest.raises(UnfitAdapterError, match="rank"):
        check(tensors_of({"encoder.layer.0.attention.self.query": (7, 9)}, rank=2), base)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [4, 17]}, {"shape": [-4, 16]}, {"shape": ["4", 16]}, {"shape": [4.0, 16]}, {"shape": 64},
        {"data_offsets": [0, 255]}, {"data_offsets": [4, 260]}, {"data_offsets": [0]}, {"data_offsets": [256, 0]},
        {"data_offsets": [0, 1 << 40]}, {"dtype": "F16"}, {"dtype": "X1"}, {"dtype": None}, {"dtype": ["F32"]},
    ],
)  # fmt: skip
def test_a_header_that_is_not_its_files(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"header|bytes|type"):
        parsed(safetensors(tensors_of(), **changes))


@pytest.mark.parametrize(
    "file",
    [
        b"", b"\x02", b"PK\x03\x04" + b"\0" * 100, b"\x80\x04\x95" + b"\0" * 100, b"\xff" * 100,
        safetensors(tensors_of())[:-1], safetensors(tensors_of()) + b"\0", safetensors(tensors_of())[:200],
        b"\x02\0\0\0\0\0\0\0[]", b"\x04\0\0\0\0\0\0\0null", b"\x08\0\0\0\0\0\0\0" + b'{"a": 1}',
    ],
)  # fmt: skip
def test_files_that_are_no_safetensors(file: bytes) -> None:
    with pytest.raises(ValueError, match=r"safetensors|header|bytes"):
        parsed(file)


@given(st.binary(max_size=200))
def test_no_bytes_are_too_much_for_it(file: bytes) -> None:
    with contextlib.suppress(ValueError):
        parsed(file)


entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "I64", "", None, 7]),
        "shape": st.lists(st.integers(-2, 5), max_size=3) | st.none(),
        "data_offsets": st.lists(st.integers(-8, 80), max_size=3) | st.text(max_size=2),
    },
)


@given(st.dictionaries(st.text(max_size=5), entries | st.none(), max_size=3), st.integers(0, 100))
def test_what_a_header_is_taken_for_lies_in_the_file_without_gaps(header: dict[str, Any], data_bytes: int) -> None:
    text = json.dumps(header).encode()
    file_bytes = LENGTH_BYTES + len(text) + data_bytes
    try:
        tensors = parse_header(text, file_bytes)
    except ValueError:
        return
    spans = [(tensor.start, tensor.end) for tensor in tensors.values()]
    ends = [LENGTH_BYTES + len(text), *(end for _, end in spans)]
    assert [start for start, _ in spans] == ends[:-1]
    assert ends[-1] == file_bytes


@given(st.sampled_from(sorted(SHAPES)), st.integers(1, 64), st.integers(1, 64), st.integers(1, 8))
def test_only_the_bases_own_shape_and_the_named_rank_pass(module: str, inputs: int, outputs: int, rank: int) -> None:
    tensors = parsed(safetensors(tensors_of({module: (inputs, outputs)}, rank)))
    fits = (inputs, outputs) == SHAPES[module] and rank == RANK
    if fits:
        check_tensors(tensors, RANK, BASE)
    else:
        with pytest.raises(UnfitAdapterError):
            check_tensors(tensors, RANK, BASE)


def test_the_layers_of_other_families() -> None:
    for kind, fused in (("phi3", "self_attn.qkv_proj"), ("starcoder2", "mlp.c_fc")):
        outputs = {"self_attn.qkv_proj": 32, "mlp.c_fc": 24}[fused]
        check(tensors_of({f"model.layers.0.{fused}": (16, outputs)}), BASE | {"model_type": kind})
        with pytest.raises(UnfitAdapterError):
            check(tensors_of({DOWN: (24, 16), "model.layers.0.mlp.gate_proj": (16, 24)}), BASE | {"model_type": kind})
