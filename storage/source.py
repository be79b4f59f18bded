"""From what a configuration calls a model or an adapter to checked files on this node.

Covers: directories in Hugging Face and PEFT layout, read without importing torch. Weights are safetensors only:
pickled ones can run code when they are loaded, so they are refused here, before any engine sees them.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from storage.errors import AdapterError, SourceError

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
REMOTE_SCHEMES = ("s3://", "hf://")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter on disk; ``digest`` is the SHA-256 of its configuration and weights, in hex."""

    id: str
    path: Path
    digest: str
    rank: int


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


def adapters_in(source: str) -> list[Adapter]:
    """Return the adapters in the subdirectories of ``source``, by name; the directory's name is the adapter's id.

    Raises:
        AdapterError: ``source`` is no directory, or one of the adapters can't be used.
    """
    root = Path(source).expanduser().resolve()
    if not root.is_dir():
        raise AdapterError(source, f"there is no directory {root}")
    return [read_adapter(path) for path in sorted(root.iterdir()) if (path / "adapter_config.json").is_file()]


def read_adapter(path: Path) -> Adapter:
    """Check an adapter in PEFT layout and return its facts.

    Raises:
        AdapterError: the configuration is missing or no LoRA, or the weights are missing or pickled.
    """
    config_file, weights_file = path / "adapter_config.json", path / "adapter_model.safetensors"
    try:
        config = json.loads(config_file.read_bytes())
        rank = config["r"]
    except FileNotFoundError as error:
        raise AdapterError(str(path), "it has no adapter_config.json") from error
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterError(str(path), "its adapter_config.json is not a LoRA configuration") from error
    if not isinstance(rank, int) or rank < 1:
        raise AdapterError(str(path), f"its rank is {rank!r}")
    if not weights_file.is_file():
        raise AdapterError(str(path), "it has no adapter_model.safetensors (pickled weights are not loaded)")
    digest = hashlib.sha256(config_file.read_bytes())
    with weights_file.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return Adapter(path.name, path, digest.hexdigest(), rank)
