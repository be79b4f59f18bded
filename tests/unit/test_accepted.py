import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from app import accepted
from app.accepted import AcceptedModels
from deployments.types import ModelSpec


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (model / "model.safetensors").write_bytes(b"weights")
    return ModelSpec("m", str(model), {"dtype": "float32"})


def test_what_was_accepted_is_known_to_the_next_process(tmp_path: Path, spec: ModelSpec) -> None:
    assert not AcceptedModels(tmp_path).holds(spec)
    AcceptedModels(tmp_path).add(spec)
    assert AcceptedModels(tmp_path).holds(spec)
    assert AcceptedModels(tmp_path).holds(replace(spec, keep_awake_s=5.0)), "vLLM is not told of it"


def test_what_vllm_would_read_is_asked_again_when_it_changes(
    tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = AcceptedModels(tmp_path)
    known.add(spec)
    assert not known.holds(replace(spec, engine={"dtype": "bfloat16"}))
    assert not known.holds(replace(spec, device="gpu"))
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "opt"}))
    assert not known.holds(spec)
    known.add(spec)
    monkeypatch.setattr(accepted, "_vllm_version", lambda: "another")
    assert not known.holds(spec)


def test_it_stays_small(tmp_path: Path, spec: ModelSpec) -> None:
    known = AcceptedModels(tmp_path)
    for number in range(300):
        known.add(replace(spec, id=f"m{number}"))
        newest = max((tmp_path / ".accepted").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (number, number))
    assert len(list((tmp_path / ".accepted").iterdir())) == 256
    assert known.holds(replace(spec, id="m298"))
    assert not known.holds(replace(spec, id="m0"))


def test_without_a_place_to_remember_it_is_asked_again(tmp_path: Path, spec: ModelSpec) -> None:
    (tmp_path / "full").touch()
    known = AcceptedModels(tmp_path / "full")
    known.add(spec)
    assert not known.holds(spec)
