from pathlib import Path

import pytest

from storage.errors import AdapterError, SourceError
from storage.source import adapters_in, model_directory, read_adapter
from tests.support.adapters import BASE, tensors_of, write_adapter


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def found(root: Path) -> list[tuple[str, int]]:
    return [(adapter.id, adapter.rank) for adapter in adapters_in(str(root), BASE, 16)]


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
    write_adapter(tmp_path / "b")
    write_adapter(tmp_path / "a", tensors_of(rank=2), rank=2)
    (tmp_path / "notes").mkdir()
    assert found(tmp_path) == [("a", 2), ("b", 4)]
    assert adapters_in("s3://bucket/adapters", BASE, 16) == [], "they are found when they are asked for"


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    one, same = write_adapter(tmp_path / "one"), write_adapter(tmp_path / "same")
    other = write_adapter(tmp_path / "other", tensors_of(fill=1.0))
    digests = [read_adapter(path, BASE, 16).digest for path in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]


def test_one_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    write_adapter(tmp_path / "good")
    bad = write_adapter(tmp_path / "bad", tensors_of(fill=float("nan")))
    with pytest.raises(AdapterError, match=f"'{bad}' can't be used: its weights .* hold NaN"):
        found(tmp_path)
    with pytest.raises(AdapterError, match="there is no directory"):
        found(tmp_path / "nowhere")
