"""The record in a finished model directory: from which recipe it was made, and the digest of every file."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from app.demo.fetch import file_sha256

READY_NAME = "READY.json"


class ReadyFile(BaseModel):
    """Size in bytes and sha256 (hex) of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size_bytes: int
    sha256: str


class Ready(BaseModel):
    """The content of ``READY.json``; ``files`` has a path relative to the directory for each file but itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    model: str
    license: str
    recipe: str
    files: dict[str, ReadyFile]


def describe(folder: Path) -> dict[str, ReadyFile]:
    """Size and digest of every file below ``folder`` but the record itself."""
    return {
        path.relative_to(folder).as_posix(): ReadyFile(size_bytes=path.stat().st_size, sha256=file_sha256(path))
        for path in _files(folder)
    }


def is_ready(folder: Path, recipe: str, *, check_digests: bool) -> bool:
    """Whether ``folder`` holds exactly the files its record names, made by ``recipe``.

    Sizes are compared; the digests too, reading every byte, with ``check_digests``.
    """
    try:
        record = Ready.model_validate_json((folder / READY_NAME).read_bytes())
    except (OSError, ValidationError):
        return False
    if record.recipe != recipe:
        return False
    if check_digests:
        return describe(folder) == record.files
    found = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}
    return found == {name: file.size_bytes for name, file in record.files.items()}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / READY_NAME)
