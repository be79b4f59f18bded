"""A small mapping in a file beside the disk tier, which several processes read and change."""

import json
from pathlib import Path
from typing import Any

from storage.errors import NotKeptError
from storage.partial import DirectoryLock


def read_kept(root: Path, file_name: str) -> dict[str, Any]:
    """Return what is kept; nothing while there is no file. Raises NotKeptError: it can't be read."""
    file = root / file_name
    try:
        kept: dict[str, Any] = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise NotKeptError(str(file), str(error)) from error
    return kept


def keep(root: Path, file_name: str, key: str, value: Any | None) -> None:
    """Set an entry, or with None take it out; readers see the file before or after, whole.

    Raises:
        NotKeptError: it is as it was.
    """
    if read_kept(root, file_name).get(key) == value:
        return
    with DirectoryLock(root, wait=True):
        kept = read_kept(root, file_name)
        kept.pop(key, None)
        if value is not None:
            kept[key] = value
        partial = root / f".{file_name}.partial"
        try:
            partial.write_text(json.dumps(kept))
            partial.replace(root / file_name)
        except OSError as error:
            raise NotKeptError(str(root / file_name), error.strerror or str(error)) from error
