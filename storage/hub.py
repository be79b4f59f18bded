"""Folders on the Hugging Face hub: ``hf://org/name@revision``; the one file that imports huggingface_hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from storage.errors import RemoteChangedError, RemoteDeniedError, RemoteError, RemoteMissingError, SourceError
from storage.folders import FileInfo, Pieces

_URL = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?/?")
_TIMEOUT_S = 30.0


class HubFolder:
    """A repository at one revision. Token and endpoint come from the environment, as in every tool of the hub's."""

    def __init__(self, url: str, endpoint: str | None = None) -> None:
        """Raises SourceError if ``url`` names no repository; reaches nothing yet."""
        match = _URL.fullmatch(url)
        if match is None:
            raise SourceError(url, "it should look like hf://organisation/name@revision")
        self.url = url
        self._repository = match["repo"]
        self._revision = match["revision"]
        self._api = HfApi(endpoint=endpoint)
        self._commit: str | None = None

    def list_files(self) -> list[FileInfo]:
        """See ``Folder``. A branch's commit is looked up once: later reads see the same files, whatever is pushed."""
        with self._translating(""):
            if self._commit is None:
                self._commit = self._api.model_info(self._repository, revision=self._revision).sha
            entries = list(self._api.list_repo_tree(self._repository, revision=self._commit, recursive=True))
        files = [
            FileInfo(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)
            for entry in entries
            if isinstance(entry, RepoFile) and not any(part.startswith(".") for part in entry.path.split("/"))
        ]
        return sorted(files, key=lambda file: file.path)

    def read_pieces(self, file: FileInfo, start: int, end: int, _buffer: memoryview) -> Pieces:
        """See ``Folder``: one ranged GET."""
        if end <= start:
            return
        url = hf_hub_url(self._repository, file.path, revision=self._commit, endpoint=self._api.endpoint)
        headers = build_hf_headers() | {"Range": f"bytes={start}-{end - 1}"}
        with (
            self._translating(file.path),
            get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT_S) as reply,
        ):
            hf_raise_for_status(reply)
            self._check_range(file, start, end - start, reply)
            at = start
            for block in reply.iter_raw():
                if at + len(block) > end:
                    raise RemoteChangedError(self._where(file.path), "it sends more than was asked for")
                yield memoryview(block)
                at += len(block)
        if at < end:
            raise RemoteError(self._where(file.path), f"the connection ended at byte {at}")

    def write(self, path: str, source: Path) -> None:
        """Raise: publishing to the hub is left to its own tools."""
        raise RemoteError(self._where(path), f"nothing is published to the hub from here ({source})")

    def _check_range(self, file: FileInfo, start: int, length: int, reply: httpx2.Response) -> None:
        if reply.status_code == HTTPStatus.OK and start == 0 and length == file.size_bytes:
            return
        given = reply.headers.get("Content-Range", "")
        if given != f"bytes {start}-{start + length - 1}/{file.size_bytes}":
            raise RemoteChangedError(self._where(file.path), f"another range than was asked for comes ('{given}')")

    @contextmanager
    def _translating(self, path: str) -> Iterator[None]:
        where = self._where(path)
        try:
            yield
        except OfflineModeIsEnabled as error:
            raise RemoteDeniedError(where, "HF_HUB_OFFLINE is set") from error
        except HfHubHTTPError as error:
            raise self._kind(error)(where, str(error).strip().splitlines()[-1]) from error
        except httpx2.HTTPError as error:
            raise RemoteError(where, str(error) or type(error).__name__) from error

    @staticmethod
    def _kind(error: HfHubHTTPError) -> type[RemoteError]:
        status = error.response.status_code
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return RemoteDeniedError
        if status == HTTPStatus.NOT_FOUND:
            return RemoteMissingError
        return RemoteChangedError if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE else RemoteError

    def _where(self, path: str) -> str:
        return f"{self.url}/{path}" if path else self.url

    def __repr__(self) -> str:
        return f"<HubFolder {self.url}>"
