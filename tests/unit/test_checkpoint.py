"""Remote models on this node: small files at once and by version, weights for as long as they are read."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import S3Server, serve_s3
from snapshot_samples import make_snapshot

from storage.checkpoint import SourceCache
from storage.errors import RemoteError, RemoteMissingError, SourceError
from storage.promote import CopyPolicy

URL = "s3://models/m"
SMALL = {"config.json": b'{"v": 1}', "tokenizer.json": b"{}", "sub/merges.txt": b"a b"}
WEIGHTS = bytes(range(256)) * 1000


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(CopyPolicy, "__init__", _impatient)
    with serve_s3() as server:
        files = SMALL | {"model.safetensors": WEIGHTS, "modeling.py": b"import os", ".hidden.json": b"x"}
        server.objects |= {f"models/m/{path}": content for path, content in files.items()}
        yield server


_patient = CopyPolicy.__init__


def _impatient(policy: CopyPolicy) -> None:
    _patient(policy, attempts=2, first_wait_s=0.001, longest_wait_s=0.001)


@pytest.fixture
def cache(s3: S3Server, tmp_path: Path) -> SourceCache:
    return SourceCache(tmp_path, s3.url)


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != ".complete")
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def test_small_files_come_once_and_code_never(cache: SourceCache, s3: S3Server) -> None:
    source = cache.localize(URL)
    assert contents(source.directory) == SMALL
    read_bytes = s3.read_bytes
    assert cache.localize(URL) == source
    assert s3.read_bytes == read_bytes


def test_a_new_version_has_a_directory_of_its_own(cache: SourceCache, s3: S3Server) -> None:
    old = cache.localize(URL)
    old_digest = cache.digest(old)
    s3.objects["models/m/config.json"] = b'{"v": 2}'
    new = cache.localize(URL)
    assert contents(new.directory) == SMALL | {"config.json": b'{"v": 2}'}
    assert contents(old.directory) == SMALL, "engines may still read it"
    assert cache.digest(new) != old_digest


def test_while_s3_fails_what_was_had_last_is_used(cache: SourceCache, s3: S3Server) -> None:
    source = cache.localize(URL)
    s3.objects.clear()
    assert cache.localize(URL) == source
    with pytest.raises(RemoteMissingError):
        cache.localize("s3://models/other")


def test_a_failed_fetch_is_no_version(cache: SourceCache, s3: S3Server) -> None:
    s3.faults = [500] * 20
    with pytest.raises(RemoteError):
        cache.localize(URL)
    s3.faults.clear()
    assert contents(cache.localize(URL).directory) == SMALL


def test_weights_are_there_while_they_are_read(cache: SourceCache) -> None:
    with cache.checkpoint(cache.localize(URL)) as directory:
        assert contents(directory) == SMALL | {"model.safetensors": WEIGHTS}
    assert not directory.exists()


def test_pickled_weights_are_refused(cache: SourceCache, s3: S3Server) -> None:
    s3.objects["models/m/pytorch_model.bin"] = s3.objects.pop("models/m/model.safetensors")
    with pytest.raises(SourceError, match="pickled"):
        cache.localize(URL)


def test_a_published_snapshot_has_the_digest_of_its_checkpoint(
    cache: SourceCache, s3: S3Server, tmp_path: Path
) -> None:
    manifest = make_snapshot(tmp_path / "published", 3)
    s3.objects |= {f"models/p/{name}": content for name, content in contents(tmp_path / "published").items()}
    source = cache.localize("s3://models/p")
    assert source.published() == manifest
    assert cache.digest(source) == manifest.origin.checkpoint
    assert not list(source.directory.glob("*.safetensors"))


def test_a_directory_is_used_where_it_is(cache: SourceCache, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "a.safetensors").write_bytes(b"x")
    source = cache.localize(str(model))
    assert (source.directory, source.is_remote, source.published()) == (model, False, None)
    with cache.checkpoint(source) as directory:
        assert directory == model
