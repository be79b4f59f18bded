"""Whose a key is, at the cost of a lookup.

Covers: following the file of keys, remembering right and wrong ones that were compared once: digests under a secret of
this process. Does not cover: keys themselves (``api_keys``), what follows from whose a key is (``door``).
"""

import asyncio
import hmac
import logging
import os
import secrets
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.api_keys import KeyTable, StoredKey, fits, key_id, read_keys
from app.errors import ConfigError, KeyRefusedError, KeysUnavailableError
from app.tenants import Tenant
from deployments.health import check_goes_on

logger = logging.getLogger(__name__)

LOOK_PERIOD_S = 0.5
# Wrong keys that are remembered, so that whoever insists on one costs nothing.
_MAX_WRONG = 4096
# Keys that wait to be compared. Right ones wait once in the life of a gateway.
_MAX_COMPARING = 64

_Version = tuple[int, int, int]


class KeyRing:
    """One event loop; ``run`` first."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._table: KeyTable | None = None
        # Why what stands in the file now is not what counts; None if it is.
        self.problem: str | None = None
        self._secret = secrets.token_bytes(32)
        # By the hash that a key was compared with: another one is another key.
        self._right: dict[str, bytes] = {}
        self._wrong: OrderedDict[bytes, None] = OrderedDict()
        self._comparing: dict[bytes, asyncio.Future[bool]] = {}
        # One: comparing is meant to be slow, and must not take the processors from streams.
        self._thread = ThreadPoolExecutor(1, "api-keys")
        self._following: asyncio.Task[None] | None = None
        self._taken = self._seen = _version(file)
        self._take(_read(file))

    def run(self) -> None:
        """Begin to follow the file."""
        self._following = asyncio.get_running_loop().create_task(self._follow())

    def check(self) -> None:
        """Raise what has ended the following, if anything has."""
        check_goes_on(self._following, "following the file of API keys")

    def close(self) -> None:
        """Follow the file no longer."""
        if self._following is not None:
            self._following.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def tenants(self) -> dict[str, Tenant]:
        """Return the tenants by name. Raises KeysUnavailableError: the file could not be read yet."""
        return dict(self._known().tenants)

    async def owner(self, key: str) -> Tenant:
        """Return whose a key is.

        Raises:
            KeyRefusedError: nobody's.
            KeysUnavailableError: the file could not be read yet, or too many keys wait to be compared.
        """
        table = self._known()
        stored = table.keys.get(key_id(key) or "")
        if stored is None:
            raise KeyRefusedError(was_given=True)
        digest = hmac.digest(self._secret, f"{stored.hash} {key}".encode(), "sha256")
        if hmac.compare_digest(self._right.get(stored.hash, b""), digest):
            return stored.tenant
        if digest in self._wrong or not await self._compared(key, stored, digest):
            raise KeyRefusedError(was_given=True)
        return stored.tenant

    async def _compared(self, key: str, stored: StoredKey, digest: bytes) -> bool:
        comparing = self._comparing.get(digest)
        if comparing is None:
            if len(self._comparing) >= _MAX_COMPARING:
                raise KeysUnavailableError("too many keys wait to be checked")
            comparing = asyncio.get_running_loop().run_in_executor(self._thread, fits, key, stored.hash)
            self._comparing[digest] = comparing
            comparing.add_done_callback(lambda done: self._remember(done, stored.hash, digest))
        return await asyncio.shield(comparing)

    def _remember(self, comparing: asyncio.Future[bool], stored_hash: str, digest: bytes) -> None:
        self._comparing.pop(digest, None)
        if comparing.cancelled() or comparing.exception() is not None:
            return
        if comparing.result():
            self._right[stored_hash] = digest
        else:
            self._wrong[digest] = None
            if len(self._wrong) > _MAX_WRONG:
                self._wrong.popitem(last=False)

    def _known(self) -> KeyTable:
        if self._table is None:
            raise KeysUnavailableError("their file can't be read")
        return self._table

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_PERIOD_S)
            await self.look()

    async def look(self) -> None:
        """Read the file if it has changed and is no longer being written: was the same when looked at last."""
        version = await asyncio.to_thread(_version, self._file)
        if version != self._taken and version == self._seen:
            self._taken = version
            self._take(await asyncio.to_thread(_read, self._file))
        self._seen = version

    def _take(self, found: KeyTable | ConfigError) -> None:
        """Go by what stands in the file; where that is wrong, by what stood there before."""
        if isinstance(found, ConfigError):
            self.problem = str(found)
            kept = "nobody is let in" if self._table is None else "the keys stay as they were"
            logger.error("%s: %s", kept, found)
            return
        self.problem, self._table = None, found
        hashes = {stored.hash for stored in found.keys.values()}
        self._right = {stored: digest for stored, digest in self._right.items() if stored in hashes}
        logger.info("%d tenants with %d keys", len(found.tenants), len(found.keys))

    def __repr__(self) -> str:
        tenants = len(self._table.tenants) if self._table is not None else 0
        return f"<KeyRing {tenants} tenants{', stale' if self.problem else ''}>"


def _read(file: Path) -> KeyTable | ConfigError:
    try:
        return read_keys(file)
    except ConfigError as error:
        return error


def _version(file: Path) -> _Version | None:
    try:
        status = os.stat(file)  # noqa: PTH116 - all at once
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
