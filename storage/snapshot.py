"""Snapshots as files: describing a directory, checking one, publishing one, finding what is published.

Covers: what is common to every place a snapshot can be in. Does not cover: writing the tensors, which takes an engine
(``deployments.loader``), and which snapshots a node keeps (``store``).
"""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from storage.errors import CorruptSnapshotError, ManifestError, RemoteMissingError
from storage.folders import DirectoryFolder, FileInfo, Folder, read_into, read_whole
from storage.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    Origin,
    TensorEntry,
    parse_manifest,
)
from storage.promote import checksum_chunks, verify_files

_HEADER_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


def describe_directory(name: str, origin: Origin, directory: Path) -> Manifest:
    """Return the manifest of the snapshot whose files are in ``directory``.

    Raises:
        ManifestError: what is there can't be a snapshot.
        RemoteError: it can't be read.
    """
    folder = DirectoryFolder(directory)
    infos = [info for info in folder.list_files() if info.path != MANIFEST_NAME]
    files = [describe_file(folder, info) for info in infos]
    tensors = [tensor for info in infos if info.path.endswith(".safetensors") for tensor in read_header(folder, info)]
    manifest = Manifest(name, origin, tuple(files), tuple(tensors))
    return parse_manifest(manifest.to_json(), str(directory))


def describe_file(folder: Folder, info: FileInfo) -> FileEntry:
    """Return a file's entry. Raises RemoteError."""
    return checksum_chunks(folder, info)


def read_header(folder: Folder, info: FileInfo) -> list[TensorEntry]:
    """Return the tensors of a safetensors file, with their place in it.

    Raises:
        ManifestError: it is no safetensors file.
        RemoteError: it can't be read.
    """
    where = f"{folder.url}/{info.path}"
    if info.size_bytes < _HEADER_LENGTH.size:
        raise ManifestError(where, "it is too short for a safetensors file")
    (length,) = _HEADER_LENGTH.unpack(_range(folder, info, 0, _HEADER_LENGTH.size))
    data_start = _HEADER_LENGTH.size + length
    if length > _MAX_HEADER_BYTES or data_start > info.size_bytes:
        raise ManifestError(where, f"its header claims {length} bytes")
    try:
        header: dict[str, Any] = json.loads(_range(folder, info, _HEADER_LENGTH.size, length))
        return [
            TensorEntry(
                tensor,
                info.path,
                entry["dtype"],
                tuple(entry["shape"]),
                data_start + entry["data_offsets"][0],
                data_start + entry["data_offsets"][1],
            )
            for tensor, entry in header.items()
            if tensor != "__metadata__"
        ]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ManifestError(where, f"its header is malformed ({error})") from error


def open_published(folder: Folder) -> Manifest:
    """Return the manifest of the snapshot that ``folder`` holds.

    Raises:
        RemoteMissingError: it holds none.
        ManifestError: its manifest can't be used.
        RemoteError: it can't be read.
    """
    info = next((file for file in folder.list_files() if file.path == MANIFEST_NAME), None)
    if info is None:
        raise RemoteMissingError(folder.url, f"it holds no {MANIFEST_NAME}, so it is no snapshot")
    if info.size_bytes > MAX_MANIFEST_BYTES:
        raise ManifestError(folder.url, f"it has more than {MAX_MANIFEST_BYTES} bytes")
    return parse_manifest(read_whole(folder, info), folder.url)


def publish(manifest: Manifest, directory: Path, target: Folder, on_file: Callable[[FileEntry], object]) -> None:
    """Store a snapshot's files in ``target``; the manifest comes last, so nobody sees half of one.

    Raises:
        RemoteError: a file could not be stored.
    """
    for file in manifest.files:
        target.write(file.path, directory / file.path)
        on_file(file)
    target.write(MANIFEST_NAME, directory / MANIFEST_NAME)


def verify(manifest: Manifest, directory: Path) -> None:
    """Read a snapshot whole and compare it with its manifest.

    Raises:
        CorruptSnapshotError: something is missing, too much, or different.
        RemoteError: it can't be read, or a link leaves it.
    """
    folder = DirectoryFolder(directory)
    verify_shape(manifest, folder)
    verify_files(manifest, folder)


def verify_shape(manifest: Manifest, folder: Folder) -> None:
    """Check that the files and tensors are those of the manifest, without reading the weights. Raises as ``verify``."""
    infos = folder.list_files()
    known = {MANIFEST_NAME, *(file.path for file in manifest.files)}
    for path in sorted(known - {info.path for info in infos}):
        raise CorruptSnapshotError(folder.url, path, "is missing")
    for info in infos:
        if info.path not in known:
            raise CorruptSnapshotError(folder.url, info.path, "is not in the manifest")
    stated = set(manifest.tensors)
    weights = [info for info in infos if info.path.endswith(".safetensors")]
    try:
        found = {tensor for info in weights for tensor in read_header(folder, info)}
    except ManifestError as error:
        raise CorruptSnapshotError(folder.url, error.where.removeprefix(f"{folder.url}/"), error.reason) from error
    if stated != found:
        tensor = min(stated ^ found, key=lambda tensor: (tensor.file, tensor.name))
        raise CorruptSnapshotError(folder.url, tensor.file, f"and the manifest differ in tensor '{tensor.name}'")


def _range(folder: Folder, info: FileInfo, start: int, length: int) -> bytes:
    content = bytearray(length)
    read_into(folder, info, start, memoryview(content))
    return bytes(content)
