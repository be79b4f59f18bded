"""The digest of a checkpoint: what its published weights are, wherever they lie.

A file's content decides, hashed once and remembered by its place, size and time. Where a source states a digest of the
content (the hub does for its large files), that is the digest. Documentation and the like don't count.
"""

import hashlib
import json
import secrets
from pathlib import Path

from storage.errors import RemoteError
from storage.folders import DirectoryFolder, FileInfo, Folder

_WEIGHTS = ".safetensors"
_COUNTED = (_WEIGHTS, "config.json")
_BLOCK_BYTES = 16 * 1024 * 1024
_NAME = "fingerprints.json"


def checkpoint_files(folder: Folder) -> list[FileInfo]:
    """Return the files that decide a model's weights.

    Raises:
        RemoteError: it can't be listed.
    """
    return [file for file in folder.list_files() if file.path.endswith(_COUNTED)]


def fingerprint(folder: Folder, memory_dir: Path) -> str:
    """Return a checkpoint's digest, 64 hex digits.

    Args:
        folder: where it lies.
        memory_dir: an existing directory, where digests of files are remembered.

    Raises:
        RemoteError: it can't be read.
    """
    memory = _remembered(memory_dir)
    total = hashlib.sha256()
    for file in checkpoint_files(folder):
        key = f"{folder.url}/{file.path} {file.size_bytes} {file.version}"
        if key not in memory:
            memory[key] = _digest(folder, file)
        total.update(f"{file.path} {file.size_bytes} {memory[key]}\n".encode())
    _remember(memory_dir, memory)
    return total.hexdigest()


def _digest(folder: Folder, file: FileInfo) -> str:
    if not isinstance(folder, DirectoryFolder):
        # Reading everything to name it would cost the download; a remote version names it well enough.
        return hashlib.sha256(f"{folder.url} {file.version}".encode()).hexdigest()
    content = hashlib.sha256()
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    for piece in folder.read_pieces(file, 0, file.size_bytes, buffer):
        content.update(piece)
    return content.hexdigest()


def _remembered(memory_dir: Path) -> dict[str, str]:
    try:
        known = json.loads((memory_dir / _NAME).read_bytes())
    except (FileNotFoundError, ValueError):
        # It only saves time.
        return {}
    return known if isinstance(known, dict) else {}


def _remember(memory_dir: Path, memory: dict[str, str]) -> None:
    # Of its own, because several models may be looked at at once.
    partial = memory_dir / f".{_NAME}.{secrets.token_hex(4)}.partial"
    try:
        partial.write_text(json.dumps(memory))
        partial.replace(memory_dir / _NAME)
    except OSError as error:
        raise RemoteError(str(memory_dir), f"can't be written: {error.strerror}") from error
