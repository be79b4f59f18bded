"""A small file that outlives restarts: written whole or not at all."""

import contextlib
from pathlib import Path

from app.errors import CatalogueError


def write_kept(file: Path, content: bytes) -> None:
    """Replace the file's content. Raises CatalogueError: it is as it was."""
    partial = file.with_name(f"{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise CatalogueError(str(file), error.strerror or str(error)) from error
