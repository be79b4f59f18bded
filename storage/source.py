"""From what a configuration calls a model or an adapter to checked files on this node.

Covers: directories in Hugging Face and PEFT layout, read without importing torch. Weights are safetensors only:
pickled ones can run code when they are loaded, so they are refused here, before any engine sees them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.adapter_source import CONFIG_NAME, check_values, digest_of, look_at
from storage.errors import AdapterError, RemoteError, SourceError
from storage.folders import DirectoryFolder

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
REMOTE_SCHEMES = ("s3://", "hf://")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter at ``path``, a directory or a URL.

    ``digest`` is the SHA-256 of its configuration and weights, in hex.
    """

    id: str
    path: str
    digest: str
    rank: int
    size_bytes: int


def model_directory(source: str) -> Path:
    """Return the absolute directory of a model.

    Raises:
        SourceError: it is no directory in Hugging Face layout with safetensors weights.
    """
    if "://" in source:
        raise SourceError(source, f"{', '.join(REMOTE_SCHEMES)} and directories are understood")
    path = Path(source).expanduser().resolve()
    if not path.is_dir():
        raise SourceError(source, f"there is no directory {path}")
    check_layout(source, [file.name for file in path.iterdir()])
    return path


def absolute(source: str) -> str:
    """Return a source as it is understood in any process: a path as an absolute one."""
    return source if "://" in source else str(Path(source).expanduser().resolve())


def check_layout(source: str, names: list[str]) -> None:
    """Check that files of these names make a model.

    Raises:
        SourceError: they don't.
    """
    if "config.json" not in names:
        raise SourceError(source, "it has no config.json")
    if not any(name.endswith(".safetensors") for name in names):
        pickled = any(name.endswith(_PICKLE_SUFFIXES) for name in names)
        reason = "it has only pickled weights, which can run code" if pickled else "it has no weights"
        raise SourceError(source, f"{reason}; *.safetensors files are needed")


def adapters_in(source: str, base: Mapping[str, Any], max_rank: int) -> list[Adapter]:
    """Return the adapters in the subdirectories of ``source``, by name; the directory's name is the adapter's id.

    ``base`` is the configuration of the model they are for. A remote ``source`` is not searched: what is there is found
    when it is asked for.

    Raises:
        AdapterError: ``source`` is no directory, or one of the adapters can't be used.
    """
    if source.startswith(REMOTE_SCHEMES):
        return []
    root = Path(source).expanduser().resolve()
    if not root.is_dir():
        raise AdapterError(source, f"there is no directory {root}")
    directories = sorted(path for path in root.iterdir() if (path / CONFIG_NAME).is_file())
    return [read_adapter(path, base, max_rank) for path in directories]


def read_adapter(path: Path, base: Mapping[str, Any], max_rank: int) -> Adapter:
    """Check an adapter in PEFT layout, where it is, and return its facts.

    Raises:
        AdapterError: it can't be used with such a model.
    """
    try:
        found = look_at(DirectoryFolder(path), base, max_rank)
        check_values(path, found.tensors)
        return Adapter(path.name, str(path), digest_of(path), found.rank, found.size_bytes)
    except (OSError, RemoteError) as error:
        raise AdapterError(str(path), str(error)) from error
