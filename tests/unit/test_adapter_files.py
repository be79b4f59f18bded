"""An adapter's copy on a node: whole or not there, by content, kept while it is used."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage import adapter_files
from storage.adapter_dram import AdapterDram
from storage.adapter_files import AdapterFiles
from storage.errors import AdapterError, RemoteError, RemoteMissingError, StorageError
from tests.support.adapters import BASE, RANK, Q, safetensors, tensors_of, write_adapter
from tests.support.s3_server import serve_s3


@pytest.fixture
def files(tmp_path: Path) -> AdapterFiles:
    return AdapterFiles(tmp_path / "disk")


def left_behind(root: Path) -> list[Path]:
    return [path for path in (root / "disk").rglob("*") if path.is_file() and not path.name.startswith(".")]


def take(files: AdapterFiles, source: Path, max_rank: int = 16) -> str:
    return files.take("a", str(source), BASE, max_rank).digest


def test_what_is_done_to_the_original_changes_nothing_here(files: AdapterFiles, tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "there")
    adapter = files.take("a", str(source), BASE, 16)
    weights = (source / "adapter_model.safetensors").read_bytes()
    assert (adapter.id, adapter.rank, adapter.path) == ("a", RANK, str(source))
    assert adapter.size_bytes == len(weights) + len((source / "adapter_config.json").read_bytes())
    write_adapter(source, tensors_of(fill=7.0))
    held = files.use(adapter.digest, str(source))
    assert (held.directory / "adapter_model.safetensors").read_bytes() == weights
    shutil.rmtree(source)
    files.use(adapter.digest, str(source)).close()
    held.close()
    held.close()  # harmless


def test_two_names_for_one_content_are_one_copy(files: AdapterFiles, tmp_path: Path) -> None:
    one, same = write_adapter(tmp_path / "one"), write_adapter(tmp_path / "same")
    other = write_adapter(tmp_path / "other", tensors_of(fill=1.0))
    assert take(files, one) == take(files, same) != take(files, other)
    assert len(files.digests()) == 2


def test_a_node_without_it_fetches_it_and_what_has_changed_is_not_taken_for_it(
    files: AdapterFiles, tmp_path: Path
) -> None:
    source = write_adapter(tmp_path / "there")
    digest = take(files, source)
    elsewhere = AdapterFiles(tmp_path / "disk" / "of another node")
    elsewhere.use(digest, str(source)).close()
    assert elsewhere.digests() == {digest}
    assert elsewhere.remove(digest)
    write_adapter(source, tensors_of(fill=7.0))
    with pytest.raises(AdapterError, match="have changed since it was registered"):
        elsewhere.use(digest, str(source))
    shutil.rmtree(source)
    with pytest.raises(RemoteError):
        elsewhere.use(digest, str(source))
    assert elsewhere.digests() == set()


def test_what_is_used_stays_until_it_is_not(files: AdapterFiles, tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "there")
    digest = take(files, source)
    first, second = files.use(digest, str(source)), files.use(digest, str(source))
    assert not files.remove(digest)
    first.close()
    assert not AdapterFiles(tmp_path / "disk").remove(digest), "also another process sees that"
    second.close()
    assert files.remove(digest)
    assert files.remove(digest), "harmless"
    assert left_behind(tmp_path) == []


def test_what_engines_have_made_of_it_goes_with_it(tmp_path: Path) -> None:
    dram = AdapterDram(tmp_path / "dram", 1 << 20)
    files = AdapterFiles(tmp_path / "disk", dram=dram)
    first, second = (take(files, write_adapter(tmp_path / str(n), tensors_of(fill=n))) for n in (1.0, 2.0))
    stranger = "f" * 64
    for digest in (first, second, stranger):
        with dram.making("layout", digest, {}, 8):
            pass
    held = files.use(first, "")
    assert not files.remove(first)
    assert dram.digests() == {first, second, stranger}
    held.close()
    assert files.remove(first)
    assert dram.digests() == {second, stranger}
    # What is young stays: its file may be about to be spoken of.
    files.sweep(())
    assert dram.digests() == {second}
    shutil.rmtree(tmp_path / "disk")
    assert files.remove(second)
    assert dram.digests() == set()


def test_many_at_once_copy_and_remove_and_find_it_whole(files: AdapterFiles, tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "there")
    digest = take(files, source)
    size_bytes = (source / "adapter_model.safetensors").stat().st_size

    def work(index: int) -> None:
        if index % 3 == 0:
            files.remove(digest)
            return
        held = files.use(digest, str(source))
        assert (held.directory / "adapter_model.safetensors").stat().st_size == size_bytes
        held.close()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(60)))
    files.use(digest, str(source)).close()


def spoiled(change: Callable[[dict[str, Any]], None]) -> bytes:
    tensors = tensors_of()
    change(tensors)
    return safetensors(tensors)


def filled(value: float, dtype: Any) -> Callable[[dict[str, Any]], None]:
    def fill(tensors: dict[str, Any]) -> None:
        name = f"base_model.model.{Q}.lora_B.weight"
        tensors[name] = tensors[name].astype(dtype)
        tensors[name][-1, -1] = value

    return fill


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_weights_that_are_no_numbers(files: AdapterFiles, tmp_path: Path, value: float, dtype: Any) -> None:
    source = write_adapter(tmp_path / "bad", weights=spoiled(filled(value, dtype)))
    with pytest.raises(AdapterError, match=r"lora_B.weight' hold NaN or infinity") as caught:
        take(files, source)
    assert caught.value.path == str(source)
    assert left_behind(tmp_path) == []


def test_large_numbers_are_numbers(files: AdapterFiles, tmp_path: Path) -> None:
    for dtype, largest in ((np.float32, np.finfo(np.float32).max), (np.float16, 65504)):
        take(files, write_adapter(tmp_path / "good", weights=spoiled(filled(float(largest), dtype))))


def test_bfloat16_that_is_no_number(files: AdapterFiles, tmp_path: Path) -> None:
    name, values = f"base_model.model.{Q}.lora_A.weight", np.full((RANK, 16), 0x3F80, np.uint16)
    for bits, is_number in ((0x3F80, True), (0xFF7F, True), (0x7F80, False), (0x7FC1, False), (0xFF80, False)):
        values[2, 3] = bits
        first = safetensors({name: values.view(np.float16)} | tensors_of({}), dtype="BF16")
        half = {f"base_model.model.{Q}.lora_B.weight": np.zeros((16, RANK), np.float32)}
        whole = safetensors({name: values.view(np.float16)} | half, dtype="BF16")
        assert len(first) < len(whole)
        source = write_adapter(tmp_path / "a", weights=whole)
        if is_number:
            take(files, source)
        else:
            with pytest.raises(AdapterError, match="NaN or infinity"):
                take(files, source)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: (path / "adapter_config.json").unlink(), r"no adapter_config\.json"),
        (lambda path: (path / "adapter_config.json").write_text("{"), "not a LoRA configuration"),
        (lambda path: (path / "adapter_config.json").write_text("[" * 100_000), "not a LoRA configuration"),
        (lambda path: (path / "adapter_config.json").write_bytes(b"\xff\xfe"), "not a LoRA configuration"),
        (lambda path: (path / "adapter_config.json").write_text(json.dumps({"r": 64})), "allows 16"),
        (lambda path: (path / "adapter_config.json").open("ab").truncate(1 << 30), "1073741824 bytes"),
        (lambda path: (path / "adapter_model.safetensors").unlink(), r"no adapter_model\.safetensors"),
        (
            lambda path: (path / "adapter_model.safetensors").rename(path / "adapter_model.bin"),
            "pickled weights are not loaded",
        ),
        (lambda path: (path / "adapter_model.safetensors").write_bytes(b"PK\3\4" * 99), "no safetensors file"),
        (lambda path: (path / "adapter_model.safetensors").open("ab").truncate(10 << 30), "2147483648 are allowed"),
        (lambda path: (path / "adapter_model.safetensors").open("ab").truncate(1 << 30), "its header speaks of"),
    ],
)
def test_what_is_refused_leaves_nothing(
    files: AdapterFiles, tmp_path: Path, spoil: Callable[[Path], Any], said: str
) -> None:
    source = write_adapter(tmp_path / "bad")
    spoil(source)
    with pytest.raises(AdapterError, match=said):
        take(files, source)
    assert left_behind(tmp_path) == []


def test_links_out_of_an_adapters_directory_are_not_followed(files: AdapterFiles, tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "there")
    (tmp_path / "secret").write_bytes((source / "adapter_model.safetensors").read_bytes())
    (source / "adapter_model.safetensors").unlink()
    (source / "adapter_model.safetensors").symlink_to(tmp_path / "secret")
    with pytest.raises(RemoteError, match="leaves its directory"):
        take(files, source)


def test_nothing_at_all_is_missing(files: AdapterFiles, tmp_path: Path) -> None:
    with pytest.raises(RemoteMissingError):
        take(files, tmp_path / "nowhere")


def test_without_room_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "disk").write_text("a file in the way")
    with pytest.raises(StorageError):
        take(AdapterFiles(tmp_path / "disk"), write_adapter(tmp_path / "there"))


def test_what_nobody_knows_is_swept_away_once_it_is_old(
    files: AdapterFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.sweep(())  # harmless where there is nothing
    known = take(files, write_adapter(tmp_path / "known"))
    unknown = take(files, write_adapter(tmp_path / "unknown", tensors_of(fill=1.0)))
    dead = tmp_path / "disk" / ".adapters" / ".partial" / "dead"
    dead.mkdir()
    files.sweep({known})
    assert files.digests() == {known, unknown}, "it may be spoken of in a moment"
    assert not dead.exists()
    monkeypatch.setattr(adapter_files, "_YOUNG_S", -1.0)
    held = files.use(unknown, "")
    files.sweep({known})
    assert files.digests() == {known, unknown}
    held.close()
    files.sweep({known})
    assert files.digests() == {known}


def test_from_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    source = write_adapter(tmp_path / "there")
    with serve_s3() as server:
        for path in source.iterdir():
            server.objects[f"adapters/team/pirate/{path.name}"] = path.read_bytes()
        files = AdapterFiles(tmp_path / "disk", server.url)
        adapter = files.take("pirate", "s3://adapters/team/pirate/", BASE, 16)
        assert adapter.path == "s3://adapters/team/pirate"
        assert adapter.digest == take(AdapterFiles(tmp_path / "disk"), source)
        with pytest.raises(RemoteMissingError):
            files.take("nobody", "s3://adapters/team/nobody", BASE, 16)
