import json
from pathlib import Path
from typing import Any

import pytest
from snapshot_samples import make_snapshot, origin

from storage.errors import ManifestError
from storage.manifest import CHUNK_BYTES, Manifest, parse_manifest


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return make_snapshot(tmp_path / "made")


def test_it_survives_its_json_form(manifest: Manifest) -> None:
    content = manifest.to_json()
    assert parse_manifest(content, "here") == manifest
    assert parse_manifest(content, "here").to_json() == content


def test_the_id_follows_from_the_origin_alone() -> None:
    assert origin().snapshot_id == origin().snapshot_id
    assert len({origin().snapshot_id, origin("b" * 64).snapshot_id}) == 2


def changed(manifest: Manifest, *path: Any, value: Any) -> bytes:
    document = json.loads(manifest.to_json())
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("id",), "0" * 64, "not that of its origin"),
        (("chunk_bytes",), 4096, "chunks have 4096 bytes"),
        (("origin", "layout_version"), 99, "layout version is 99"),
        (("origin", "surprise"), 1, "malformed"),
        (("files",), None, "malformed"),
        (("files", 0, "size_bytes"), -1, "malformed"),
        (("files", 0, "size_bytes"), True, "malformed"),
        (("files", 0, "size_bytes"), CHUNK_BYTES + 1, "1 checksums"),
        (("files", 0, "chunks"), ["xyz"], "checksum that is none"),
        (("files", 0, "path"), "../config.json", "begins with a dot"),
        (("files", 0, "path"), "/etc/passwd", "no plain relative path"),
        (("files", 0, "path"), "a//b", "no plain relative path"),
        (("files", 0, "path"), "a\\b", "no plain relative path"),
        (("files", 0, "path"), "", "no plain relative path"),
        (("files", 0, "path"), "manifest.json", "lists itself"),
        (("files", 0, "path"), "pytorch_model.bin", "pickled"),
        (("files", 0, "path"), "rank-00.safetensors", "names a file twice"),
        (("tensors", 0, "file"), "other", "which it doesn't name"),
        (("tensors", 0, "end"), 10**9, "leaves"),
        (("tensors", 0, "start"), 10**9, "leaves"),
        (("tensors", 0, "dtype"), "PICKLE", "is of type PICKLE"),
        (("tensors", 0, "shape"), [3], "has not the bytes of its shape"),
        (("tensors", 1, "name"), "a", "holds a tensor twice"),
    ],
)
def test_what_may_not_be_is_refused(manifest: Manifest, path: tuple[Any, ...], value: Any, reason: str) -> None:
    with pytest.raises(ManifestError, match=reason) as caught:
        parse_manifest(changed(manifest, *path, value=value), "s3://there")
    assert "s3://there" in str(caught.value)


def test_overlapping_tensors_are_refused(manifest: Manifest) -> None:
    document = json.loads(manifest.to_json())
    for tensor in document["tensors"]:
        tensor["start"], tensor["end"] = 200, 200 + 2048
    with pytest.raises(ManifestError, match="overlap"):
        parse_manifest(json.dumps(document).encode(), "here")


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff", b"{", b"[" * 100_000])
def test_what_is_no_manifest_is_refused(content: bytes) -> None:
    with pytest.raises(ManifestError, match="malformed"):
        parse_manifest(content, "here")
