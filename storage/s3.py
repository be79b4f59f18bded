"""Folders in S3, or in anything that speaks its protocol; the one file that imports boto3."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from storage.errors import RemoteChangedError, RemoteDeniedError, RemoteError, RemoteMissingError, SourceError
from storage.folders import FileInfo, Pieces
from storage.ranged_get import Answer, RangeCutError, RangedGets, goes_through_proxy

_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 30
_MAX_CONNECTIONS = 64
# urllib3 reads into memory of its own and copies: blocks this small stay in the processor's cache.
_BLOCK_BYTES = 256 * 1024
_URL_LIFE_S = 900
# Another region, a server that has no ranges or no signed URLs: what only a client of the whole protocol can follow.
_ASK_OTHERWISE = {200, 206, 301, 302, 307, 308, 400, 501}
_CODE = re.compile(rb"<Code>([A-Za-z0-9.]+)</Code>")
_MISSING = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
_DENIED = {"401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "Forbidden"}
_CHANGED = {"412", "PreconditionFailed", "416", "InvalidRange"}


class S3Folder:
    """The keys below ``s3://bucket/prefix``. Credentials and region come from the environment, as in every AWS tool."""

    def __init__(self, url: str, endpoint_url: str | None = None) -> None:
        """Raises SourceError if ``url`` names no bucket; reaches nothing yet."""
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc:
            raise SourceError(url, "it should look like s3://bucket/prefix")
        self.url = url.rstrip("/")
        self._bucket = parts.netloc
        prefix = parts.path.strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._client = _client(endpoint_url)
        self._gets = RangedGets(_READ_TIMEOUT_S)
        # Turned off for good by any thread that finds it does not work here.
        self._direct = not goes_through_proxy(self._client.meta.endpoint_url)

    def list_files(self) -> list[FileInfo]:
        """See ``Folder``."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
        with self._translating(""):
            objects = [item for page in pages for item in page.get("Contents", ())]
        if not objects:
            raise RemoteMissingError(self.url, "there is nothing")
        files = [
            FileInfo(item["Key"].removeprefix(self._prefix), item["Size"], item["ETag"])
            for item in objects
            # Some tools make objects for directories.
            if not item["Key"].endswith("/")
        ]
        return sorted(files, key=lambda file: file.path)

    def read_pieces(self, file: FileInfo, start: int, end: int, buffer: memoryview) -> Pieces:
        """See ``Folder``: one ranged GET, bound to the version that was listed."""
        if end <= start:
            return
        with self._translating(file.path):
            answer = self._ask_directly(file, start, end) if self._direct else None
            if answer is None:
                yield from self._read_by_boto3(file, start, end, buffer)
                return
            try:
                yield from answer.pieces(buffer)
            except RangeCutError as error:
                raise self._cut(file, start + error.done_bytes) from error
            except HTTPException as error:
                raise RemoteError(self._where(file.path), f"the connection broke: {error!r}") from error

    def _ask_directly(self, file: FileInfo, start: int, end: int) -> Answer | None:
        """Ask past boto3, by a URL that it signs; None if that is not how it goes here, and boto3 has to."""
        url = self._client.generate_presigned_url(
            "get_object", Params={"Bucket": self._bucket, "Key": self._prefix + file.path}, ExpiresIn=_URL_LIFE_S
        )
        try:
            answer = self._gets.ask(url, {"If-Match": file.version}, start, end)
        except (OSError, HTTPException):
            # Certificates of another authority, a server that is no longer there: boto3 knows, or says it better.
            return None
        if isinstance(answer, Answer):
            return answer
        if answer.status in _ASK_OTHERWISE:
            self._direct = False
            return None
        code = _code_of(answer.body)
        raise _kind({code, str(answer.status)})(self._where(file.path), f"S3 answers {answer.status} {code}".strip())

    def _read_by_boto3(self, file: FileInfo, start: int, end: int, buffer: memoryview) -> Pieces:
        reply = self._client.get_object(
            Bucket=self._bucket, Key=self._prefix + file.path, Range=f"bytes={start}-{end - 1}", IfMatch=file.version
        )
        with reply["Body"] as body:
            at = start
            while at < end:
                count = body.readinto(buffer[: min(end - at, _BLOCK_BYTES)])
                if not count:
                    raise self._cut(file, at)
                yield buffer[:count]
                at += count

    def _cut(self, file: FileInfo, at: int) -> RemoteError:
        return RemoteError(self._where(file.path), f"the connection ended at byte {at}")

    def write(self, path: str, source: Path) -> None:
        """See ``Folder``: in parts and in parallel where the file is large."""
        with self._translating(path):
            self._client.upload_file(str(source), self._bucket, self._prefix + path)

    @contextmanager
    def _translating(self, path: str) -> Iterator[None]:
        where = self._where(path)
        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
            raise _kind({code, status})(where, f"S3 answers {status or code} {code}".strip()) from error
        except (BotoCoreError, boto3.exceptions.S3UploadFailedError, OSError) as error:
            raise RemoteError(where, str(error)) from error

    def _where(self, path: str) -> str:
        return f"{self.url}/{path}" if path else self.url

    def __repr__(self) -> str:
        return f"<S3Folder {self.url}>"


def _client(endpoint_url: str | None) -> BaseClient:
    # No retries of botocore's own: they would restart a chunk without knowing the copy's deadline.
    config = Config(
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_READ_TIMEOUT_S,
        max_pool_connections=_MAX_CONNECTIONS,
        retries={"total_max_attempts": 1},
        signature_version="s3v4",
        # Chunks have checksums of ours; S3's own would be computed over whole objects.
        response_checksum_validation="when_required",
        request_checksum_calculation="when_required",
    )
    arguments: dict[str, Any] = {"endpoint_url": endpoint_url} if endpoint_url else {}
    return boto3.client("s3", config=config, **arguments)


def _code_of(body: bytes) -> str:
    found = _CODE.search(body)
    return found[1].decode() if found else ""


def _kind(codes: set[str]) -> type[RemoteError]:
    if codes & _CHANGED:
        return RemoteChangedError
    if codes & _MISSING:
        return RemoteMissingError
    if codes & _DENIED:
        return RemoteDeniedError
    return RemoteError
