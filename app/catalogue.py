"""Which models are served: those of the configuration, with what was added, changed and removed at run time.

Covers: the list with its version, keeping it over restarts, telling whoever follows it. Does not cover: the adapters of
each model (``adapter_list``), checking a model (``model_specs``), carrying changes out (``gateway``,
``deployments.residents``).
"""

import asyncio
import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from app.adapter_list import AdapterKey, AdapterList
from app.entry import Entry
from app.kept_file import write_kept
from deployments.types import AdapterSpec, ModelSpec

logger = logging.getLogger(__name__)

_NAME = ".models.json"
_ADAPTERS_NAME = ".adapters.json"
# How long a question for changes waits for one; Serve waits for it when the application is deleted.
_FOLLOW_S = 2.0


@dataclass(frozen=True)
class Change:
    """What was done at run time to one model: ``entry`` is None where it was removed.

    ``over`` is the section of the configuration that it took the place of; None for one that wasn't configured.
    """

    entry: Entry | None
    over: dict[str, Any] | None


_CHANGES = TypeAdapter(dict[str, Change])


class ModelList:
    """The list; plain data, kept in one file."""

    def __init__(self, configured: Iterable[Entry], file: Path) -> None:
        self._configured = {entry.spec.id: entry for entry in configured}
        self._file = file
        self._changes: dict[str, Change] = {}
        for model_id, change in self._read().items():
            if self._given(model_id) == change.over:
                self._changes[model_id] = change
            else:
                # Whoever edits the configuration means it.
                logger.warning("what was done to model %s at run time is void: its configuration has changed", model_id)

    def entries(self) -> dict[str, Entry]:
        """Return the models that are served, by id."""
        changed = {model_id: change.entry for model_id, change in self._changes.items()}
        return {model_id: entry for model_id, entry in (self._configured | changed).items() if entry is not None}

    def put(self, entry: Entry) -> None:
        """Add a model, or change the one of that id. Raises CatalogueError: it could not be kept; nothing changed."""
        self._keep(entry.spec.id, Change(entry, self._given(entry.spec.id)))

    def remove(self, model_id: str) -> None:
        """Serve a model no longer. Raises as ``put``."""
        self._keep(model_id, Change(None, self._given(model_id)))

    def _given(self, model_id: str) -> dict[str, Any] | None:
        configured = self._configured.get(model_id)
        return configured.given if configured is not None else None

    def _keep(self, model_id: str, change: Change) -> None:
        changes = self._changes | {model_id: change}
        configured = self._configured.get(model_id)
        if change.entry == configured:
            del changes[model_id]
        write_kept(self._file, json.dumps({key: asdict(value) for key, value in changes.items()}).encode())
        self._changes = changes

    def _read(self) -> dict[str, Change]:
        try:
            return _CHANGES.validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError):
            # Serving what is configured is better than serving nothing; the file stays for whoever wants to mend it.
            logger.exception("what was done to models at run time can't be read from %s", self._file)
            return {}

    def __repr__(self) -> str:
        return f"<ModelList {len(self.entries())} models, {len(self._changes)} changed at run time>"


class Catalogue:
    """A Serve deployment with one replica, which owns the list and tells gateways and replicas of its changes."""

    def __init__(self, configured: list[Entry], directory: Path) -> None:
        self._list = ModelList(configured, directory / _NAME)
        given = {model_id: entry.spec.adapters for model_id, entry in self._list.entries().items()}
        self._adapters = AdapterList(given, directory / _ADAPTERS_NAME)
        self._entries = self._served()
        self._version = version_of(self._entries)
        self._changed = asyncio.Event()
        # One change after the other: each writes a file.
        self._changing = asyncio.Lock()

    def _served(self) -> list[Entry]:
        return [self._with_adapters(entry) for entry in self._list.entries().values()]

    def _with_adapters(self, entry: Entry) -> Entry:
        spec = entry.spec
        adapters = self._adapters.of(spec.id, spec.adapters)
        return replace(
            entry, spec=replace(spec, adapters=adapters), removed=self._adapters.removed(spec.id, spec.adapters)
        )

    async def entries(self, known: str | None) -> tuple[str, list[Entry]] | None:
        """Return the list with its version once that isn't ``known``; None after a while, to be asked again."""
        if self._version == known:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FOLLOW_S):
                    await self._changed.wait()
        return None if self._version == known else (self._version, self._entries)

    async def hosted(self, pool: str, known: str | None) -> tuple[str, list[ModelSpec], frozenset[str]] | None:
        """Return what the replicas of a pool host, as ``entries`` does, and the digests of all models' adapters."""
        found = await self.entries(known)
        if found is None:
            return None
        version, entries = found
        digests = frozenset(adapter.digest for entry in entries for adapter in entry.spec.adapters)
        return version, [spec for entry in entries if entry.pool == pool for spec in entry.engines()], digests

    async def put(self, entry: Entry) -> None:
        """See ``ModelList.put``."""
        await self._change(lambda: self._list.put(entry))

    async def remove(self, model_id: str) -> None:
        """See ``ModelList.remove``; what was done to its adapters is forgotten with it."""

        def both() -> None:
            self._list.remove(model_id)
            self._adapters.forget(model_id)

        await self._change(both)

    async def put_adapter(self, model_id: str, spec: AdapterSpec, discovered: bool = False) -> None:  # noqa: FBT001, FBT002 - as Serve's handles pass it
        """See ``AdapterList.put``; of a model that is no longer served, nothing is kept."""
        given = self._list.entries().get(model_id)
        if given is not None:
            await self._change(lambda: self._adapters.put(model_id, spec, given.spec.adapters, discovered=discovered))

    async def remove_adapter(self, key: AdapterKey) -> None:
        """See ``AdapterList.remove``."""
        given = self._list.entries().get(key[0])
        if given is not None:
            await self._change(lambda: self._adapters.remove(key, given.spec.adapters))

    async def _change(self, change: Callable[[], None]) -> None:
        async with self._changing:
            try:
                await asyncio.to_thread(change)
            finally:
                self._tell()

    def _tell(self) -> None:
        self._entries = self._served()
        self._version = version_of(self._entries)
        self._changed.set()
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Catalogue {self._list!r}, {self._adapters!r}>"


def version_of(entries: Iterable[Entry]) -> str:
    """Return what is the same for the same list, on any machine and after any restart."""
    return hashlib.sha256(repr(sorted((entry.spec.id, entry) for entry in entries)).encode()).hexdigest()
