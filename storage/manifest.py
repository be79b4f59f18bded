"""What a snapshot consists of: its identity, its files with a checksum for each chunk, where each tensor lies.

Covers: the data, its JSON form, and every check that can be made without reading the files. A manifest may come from
anywhere, so nothing in it is believed: paths can't leave the snapshot, tensors can't leave their file or overlap.
Does not cover: the files themselves (``snapshot``).
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import prod
from pathlib import PurePosixPath
from typing import Any

from storage.errors import ManifestError

MANIFEST_NAME = "manifest.json"
LAYOUT_VERSION = 1
# Large enough that a request costs little beside its bytes, small enough that the next tier need not wait long.
CHUNK_BYTES = 16 * 1024 * 1024
MAX_FILES = 10_000
MAX_MANIFEST_BYTES = 64 * 1024 * 1024

# Safetensors' names of element types, with their size in bits.
ELEMENT_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_CHECKSUM = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Origin:
    """What decides a snapshot's bytes; its digest is the snapshot's id, so the same id means the same bytes."""

    checkpoint: str  # digest of the published weights
    dtype: str
    quantization: str | None
    tensor_parallel: int
    platform: str  # cpu or cuda: the layout differs
    vllm_version: str
    layout_version: int = LAYOUT_VERSION

    @property
    def snapshot_id(self) -> str:
        """64 hex digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class FileEntry:
    """One file: ``path`` is relative, with ``/``; ``chunks`` are checksums of its pieces of ``CHUNK_BYTES``."""

    path: str
    size_bytes: int
    chunks: tuple[str, ...]

    def chunk_range(self, index: int) -> tuple[int, int]:
        """Return start and end of a chunk in the file, in bytes."""
        start = index * CHUNK_BYTES
        return start, min(start + CHUNK_BYTES, self.size_bytes)


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: bytes ``start`` to ``end`` of ``file``, counted from the file's beginning."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Manifest:
    """A snapshot; ``name`` is what a person calls it."""

    name: str
    origin: Origin
    files: tuple[FileEntry, ...]
    tensors: tuple[TensorEntry, ...]

    @property
    def id(self) -> str:
        """The snapshot's id, 64 hex digits."""
        return self.origin.snapshot_id

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, the manifest not counted."""
        return sum(file.size_bytes for file in self.files)

    def to_json(self) -> bytes:
        """Return the manifest as it stands in ``manifest.json``; the same manifest gives the same bytes."""
        document = {"id": self.id, "chunk_bytes": CHUNK_BYTES} | asdict(self)
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Read and check a manifest; ``where`` is named in errors.

    Raises:
        ManifestError: it is malformed or describes what may not be.
    """
    try:
        document = json.loads(content)
        manifest = Manifest(
            name=_text(document["name"]),
            origin=Origin(**document["origin"]),
            files=tuple(
                FileEntry(_text(file["path"]), _count(file["size_bytes"]), tuple(map(_text, file["chunks"])))
                for file in document["files"]
            ),
            tensors=tuple(
                TensorEntry(
                    _text(tensor["name"]),
                    _text(tensor["file"]),
                    _text(tensor["dtype"]),
                    tuple(map(_count, tensor["shape"])),
                    _count(tensor["start"]),
                    _count(tensor["end"]),
                )
                for tensor in document["tensors"]
            ),
        )
        given_id, chunk_bytes = document["id"], document["chunk_bytes"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ManifestError(where, f"it is malformed ({type(error).__name__}: {error})") from error
    problem = next(iter(_problems(manifest, given_id, chunk_bytes)), None)
    if problem:
        raise ManifestError(where, problem)
    return manifest


def check_relative_path(path: str) -> str | None:
    """Return what is wrong with a file's path inside a snapshot, or None."""
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or str(pure) != path or "\\" in path or "\0" in path:
        return f"'{path}' is no plain relative path"
    if any(part in {".", ".."} or part.startswith(".") for part in pure.parts):
        return f"'{path}' has a part that begins with a dot"
    if pure.suffix in _PICKLES:
        return f"'{path}' may be pickled, which can run code"
    return None


def _problems(manifest: Manifest, given_id: Any, chunk_bytes: Any) -> Iterable[str]:
    if manifest.origin.layout_version != LAYOUT_VERSION:
        yield f"its layout version is {manifest.origin.layout_version}, {LAYOUT_VERSION} is read here"
    if chunk_bytes != CHUNK_BYTES:
        yield f"its chunks have {chunk_bytes} bytes, {CHUNK_BYTES} are read here"
    if given_id != manifest.id:
        yield "its id is not that of its origin"
    yield from _file_problems(manifest.files)
    yield from _tensor_problems(manifest)


def _file_problems(files: tuple[FileEntry, ...]) -> Iterable[str]:
    if len(files) > MAX_FILES:
        yield f"it names {len(files)} files, {MAX_FILES} are allowed"
    names = [file.path for file in files]
    if len(set(names)) != len(names):
        yield "it names a file twice"
    for file in files:
        problem = check_relative_path(file.path)
        if problem:
            yield problem
        if file.path == MANIFEST_NAME:
            yield "it lists itself"
        if len(file.chunks) != -(-file.size_bytes // CHUNK_BYTES):
            yield f"'{file.path}' has {len(file.chunks)} checksums for {file.size_bytes} bytes"
        if not all(_CHECKSUM.fullmatch(chunk) for chunk in file.chunks):
            yield f"'{file.path}' has a checksum that is none"


def _tensor_problems(manifest: Manifest) -> Iterable[str]:
    sizes = {file.path: file.size_bytes for file in manifest.files}
    by_file: dict[str, list[TensorEntry]] = {}
    for tensor in manifest.tensors:
        if tensor.file not in sizes:
            yield f"tensor '{tensor.name}' lies in '{tensor.file}', which it doesn't name"
        elif not 0 <= tensor.start <= tensor.end <= sizes[tensor.file]:
            yield f"tensor '{tensor.name}' leaves '{tensor.file}'"
        elif tensor.dtype not in ELEMENT_BITS:
            yield f"tensor '{tensor.name}' is of type {tensor.dtype}"
        elif (tensor.end - tensor.start) * 8 != prod(tensor.shape) * ELEMENT_BITS[tensor.dtype]:
            yield f"tensor '{tensor.name}' has not the bytes of its shape"
        by_file.setdefault(tensor.file, []).append(tensor)
    for tensors in by_file.values():
        yield from _overlaps(sorted(tensors, key=lambda tensor: (tensor.start, tensor.end)))


def _overlaps(tensors: list[TensorEntry]) -> Iterable[str]:
    names = [tensor.name for tensor in tensors]
    if len(set(names)) != len(names):
        yield f"'{tensors[0].file}' holds a tensor twice"
    for before, after in pairwise(tensors):
        if after.start < before.end:
            yield f"tensors '{before.name}' and '{after.name}' overlap"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text is expected, not {value!r}")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"a count is expected, not {value!r}")
    return value
