import json
from pathlib import Path

import pytest

from storage.errors import AdapterError, SourceError
from storage.source import adapters_in, model_directory, read_adapter


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def make_adapter(root: Path, name: str, rank: object = 8, weights: bytes = b"weights") -> Path:
    path = root / name
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps({"r": rank}))
    (path / "adapter_model.safetensors").write_bytes(weights)
    return path


def test_a_model_directory_is_found_also_through_a_link(model: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(model, target_is_directory=True)
    assert model_directory(str(link)) == model_directory(str(model)) == model.resolve()


def test_what_nobody_can_fetch_says_so() -> None:
    with pytest.raises(SourceError, match="s3://, hf:// and directories are understood"):
        model_directory("https://host/model")


def test_missing_pieces_are_named(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="has no weights"):
        model_directory(str(model))
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(SourceError, match="pickled weights, which can run code"):
        model_directory(str(model))
    (model / "config.json").unlink()
    with pytest.raises(SourceError, match=r"has no config\.json"):
        model_directory(str(model))
    with pytest.raises(SourceError, match="there is no directory"):
        model_directory(str(model / "nowhere"))


def test_adapters_are_found_by_their_directories(tmp_path: Path) -> None:
    make_adapter(tmp_path, "b")
    make_adapter(tmp_path, "a", rank=4)
    (tmp_path / "notes").mkdir()
    assert [(adapter.id, adapter.rank) for adapter in adapters_in(str(tmp_path))] == [("a", 4), ("b", 8)]


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    one, same = make_adapter(tmp_path, "one"), make_adapter(tmp_path, "same")
    other = make_adapter(tmp_path, "other", weights=b"Weights")
    assert read_adapter(one).digest == read_adapter(same).digest != read_adapter(other).digest


@pytest.mark.parametrize("rank", [0, -1, "8", None, 2.5])
def test_a_rank_that_is_none(tmp_path: Path, rank: object) -> None:
    with pytest.raises(AdapterError, match="rank"):
        read_adapter(make_adapter(tmp_path, "bad", rank))


def test_adapter_files_that_are_missing_or_broken(tmp_path: Path) -> None:
    path = make_adapter(tmp_path, "bad")
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickled weights are not loaded"):
        read_adapter(path)
    (path / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match="not a LoRA configuration"):
        read_adapter(path)
    (path / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        read_adapter(path)
    with pytest.raises(AdapterError, match="there is no directory"):
        adapters_in(str(path / "nowhere"))
