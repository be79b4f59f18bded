"""A model's source on this node: its small files at once, its weights when an engine really has to read them.

Covers: directories, which are used where they are; checkpoints and published snapshots in S3 or on the hub, of which
the small files are kept in a directory for each version. Does not cover: snapshots' weights (``store``).
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from storage.errors import RemoteError, SourceError
from storage.fingerprint import fingerprint
from storage.folders import FileInfo, Folder
from storage.manifest import CHUNK_BYTES, MANIFEST_NAME, Manifest, parse_manifest
from storage.partial import DirectoryLock
from storage.promote import PIECE_BYTES, CopyPolicy, with_retries
from storage.remote import open_folder
from storage.source import REMOTE_SCHEMES, check_layout, model_directory

# What an engine and a gateway need besides weights; code is never fetched.
SMALL_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".vocab", ".merges")
_WEIGHTS = ".safetensors"
_MAX_SMALL_BYTES = 256 * 1024 * 1024
_NAME = ".sources"
_COMPLETE = ".complete"


@dataclass(frozen=True)
class LocalSource:
    """A model's source as this node has it: ``directory`` holds its small files, for a directory its weights too."""

    url: str
    directory: Path

    @property
    def is_remote(self) -> bool:
        """Tell whether weights have to be fetched."""
        return self.url.startswith(REMOTE_SCHEMES)

    def published(self) -> Manifest | None:
        """Return the manifest when the source is a published snapshot and no checkpoint.

        Raises:
            ManifestError: there is one that can't be used.
        """
        path = self.directory / MANIFEST_NAME
        return parse_manifest(path.read_bytes(), self.url) if path.is_file() else None


class SourceCache:
    """Small files of remote sources, below ``root``. Methods block; several processes may share a root."""

    def __init__(self, root: Path, s3_endpoint_url: str | None = None) -> None:
        self._root = root / _NAME
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._s3_endpoint_url = s3_endpoint_url

    def localize(self, url: str) -> LocalSource:
        """Return a source with its small files on this node. While a remote place fails, what was had last is used.

        Raises:
            SourceError: it is no model in Hugging Face layout, or has no weights in safetensors.
            RemoteError: it can't be reached, and never was.
        """
        if not url.startswith(REMOTE_SCHEMES):
            return LocalSource(url, model_directory(url))
        place = self._root / hashlib.sha256(url.encode()).hexdigest()[:32]
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        with DirectoryLock(place, wait=True):
            try:
                return LocalSource(url, self._newest(url, place))
            except RemoteError:
                known = sorted(place.glob(f"*/{_COMPLETE}"), key=lambda path: path.stat().st_mtime)
                if not known:
                    raise
                return LocalSource(url, known[-1].parent)

    def digest(self, source: LocalSource) -> str:
        """Return the digest of the checkpoint, for a published snapshot that of the one it was made from.

        Raises:
            RemoteError: it can't be read.
        """
        published = source.published()
        if published is not None:
            return published.origin.checkpoint
        return fingerprint(open_folder(source.url, self._s3_endpoint_url), self._root)

    @contextmanager
    def checkpoint(self, source: LocalSource) -> Iterator[Path]:
        """Give a directory with all of a checkpoint; a remote one is fetched into it, and gone afterwards.

        Raises:
            RemoteError: it can't be read.
        """
        if not source.is_remote:
            yield source.directory
            return
        folder = open_folder(source.url, self._s3_endpoint_url)
        infos = [info for info in folder.list_files() if _is_small(info) or info.path.endswith(_WEIGHTS)]
        with tempfile.TemporaryDirectory(dir=self._root) as directory:
            fetch(folder, infos, Path(directory))
            yield Path(directory)

    def _newest(self, url: str, place: Path) -> Path:
        folder = open_folder(url, self._s3_endpoint_url)
        infos = folder.list_files()
        check_layout(url, [info.path for info in infos])
        small = [info for info in infos if _is_small(info)]
        if sum(info.size_bytes for info in small) > _MAX_SMALL_BYTES:
            raise SourceError(url, f"its small files have more than {_MAX_SMALL_BYTES} bytes")
        version = hashlib.sha256(repr([(info.path, info.version) for info in infos]).encode()).hexdigest()[:32]
        directory = place / version
        if not (directory / _COMPLETE).is_file():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            fetch(folder, small, directory)
            (directory / _COMPLETE).touch()
        return directory

    def __repr__(self) -> str:
        return f"<SourceCache {self._root}>"


def _is_small(info: FileInfo) -> bool:
    hidden = any(part.startswith(".") for part in info.path.split("/"))
    return info.path.endswith(SMALL_SUFFIXES) and not hidden


def fetch(folder: Folder, infos: list[FileInfo], target: Path) -> None:
    """Copy files into the directory ``target``. Raises RemoteError; what was copied until then is left there."""
    for info in infos:
        if info.path.startswith("/") or ".." in Path(info.path).parts:
            raise RemoteError(folder.url, f"a file is called '{info.path}'")
        path = target / info.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(info.size_bytes)
    chunks = [(info, start) for info in infos for start in range(0, info.size_bytes, CHUNK_BYTES)]
    policy = CopyPolicy()
    with ThreadPoolExecutor(policy.threads, "fetch") as pool:
        for future in [pool.submit(_fetch_chunk, folder, info, start, target, policy) for info, start in chunks]:
            future.result()


def _fetch_chunk(folder: Folder, info: FileInfo, start: int, target: Path, policy: CopyPolicy) -> None:
    buffer = memoryview(bytearray(PIECE_BYTES))
    end = min(start + CHUNK_BYTES, info.size_bytes)

    def fetch() -> None:
        with (target / info.path).open("r+b") as file, closing(folder.read_pieces(info, start, end, buffer)) as pieces:
            file.seek(start)
            for piece in pieces:
                file.write(piece)

    with_retries(folder.url, fetch, policy)
