"""Adapters registered, replaced and removed at run time, and found when they are first asked for.

Covers: checking and copying before anything is listed, states, looking in the places that models name. Does not cover:
the list (``adapter_list``), the checks themselves and the copies (``storage``), paths (``adapter_routes``).
"""

import asyncio
import contextlib
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from typing_extensions import TypedDict

from app.adapter_finder import AdapterFinder
from app.adapter_list import AdapterKey
from app.attempts import translated
from app.entry import Entry
from app.errors import AdapterNotFoundError, AdaptersUnreachableError, InvalidRequestError, ModelNotFoundError
from app.model_specs import adapter_spec
from app.names import ADAPTER_NAME, NAME_RULE
from deployments.adapters import engine_name, qualified, ref_of
from deployments.types import AdapterSpec
from storage.adapter_files import AdapterFiles
from storage.adapter_source import base_config
from storage.checkpoint import SourceCache
from storage.errors import AdapterError, RemoteMissingError, SourceError, StorageError
from storage.source import Adapter

logger = logging.getLogger(__name__)

AdapterState = Literal["unknown", "staging", "ready", "resident", "failed"]
_MAX_FAILED = 1000


class AdapterDescription(TypedDict):
    """An adapter as administrators see it; digest, rank and bytes are None before they are known."""

    model: str
    id: str
    owner: str | None
    source: str
    digest: str | None
    rank: int | None
    size_bytes: int | None
    state: AdapterState
    reason: str | None


@dataclass(frozen=True)
class _Attempt:
    """A registration that is under way, or failed for a ``reason``."""

    source: str
    reason: str | None = None


class AdapterRegistry:
    """One gateway's; one event loop."""

    def __init__(  # noqa: PLR0913 - what it is wired to
        self,
        catalogue: Any,
        *,
        files: AdapterFiles,
        sources: SourceCache,
        entries: Callable[[], Awaitable[Mapping[str, Entry]]],
        refresh: Callable[[], Awaitable[None]],
        resident: Callable[[], Awaitable[Mapping[str, Collection[str]]]],
        tenants: Callable[[], Collection[str]],
    ) -> None:
        """``catalogue`` is a Serve handle; ``refresh`` takes its list as it is now.

        ``resident`` returns by model the names of adapters that its engines have in memory.
        """
        self._catalogue = catalogue
        self._files = files
        self._sources = sources
        self._entries = entries
        self._refresh = refresh
        self._resident = resident
        self._tenants = tenants
        self._attempts: OrderedDict[AdapterKey, _Attempt] = OrderedDict()
        # By adapter: one change after the other.
        self._changing: dict[AdapterKey, asyncio.Lock] = {}
        self._finder = AdapterFinder(self._discovered, files, time.monotonic)

    async def put(
        self, model_id: str, name: str, source: str, owner: str | None = None, *, replace: bool
    ) -> AdapterDescription:
        """Register an adapter once its files have been checked and copied; requests from then on get it.

        Raises:
            ModelNotFoundError, InvalidRequestError: there can't be such an adapter; nothing is left of it.
            AdaptersUnreachableError: its files can't be read now.
            CatalogueError: it could not be kept.
        """
        entry = await self._entry(model_id)
        self._check_names(name, owner)
        if "://" not in source and not source.startswith("/"):
            # Relative to what? Gateways run anywhere.
            raise InvalidRequestError("A URL or an absolute path is needed.", "source")
        key = (model_id, owner, name)
        if not replace and _listed(entry, key) is not None:
            message = f"The adapter `{_shown(key)}` is registered already; it can be replaced with PUT."
            raise InvalidRequestError(message, "id")
        async with self._changing.setdefault(key, asyncio.Lock()):
            await self._register(entry, key, source)
        for described in await self.describe(key):
            return described
        # Removed in the meantime, by somebody else, or with its model.
        raise AdapterNotFoundError(_shown(key))

    async def remove(self, model_id: str, name: str, owner: str | None = None) -> AdapterDescription:
        """Have an adapter no longer: requests in hand end with it, then it leaves engines and disks.

        Raises:
            ModelNotFoundError, AdapterNotFoundError, CatalogueError.
        """
        key = (model_id, owner, name)
        spec = _listed(await self._entry(model_id), key)
        failed = self._attempts.get(key)
        if spec is None and (failed is None or failed.reason is None):
            raise AdapterNotFoundError(_shown(key))
        if spec is not None:
            await self._change("remove_adapter", model_id, key)
        if failed is not None and failed.reason is not None:
            self._attempts.pop(key, None)
        source = spec.path if spec is not None else failed.source if failed is not None else ""
        return _description(key, source, "unknown", "it was removed")

    async def describe(self, only: AdapterKey | None = None) -> list[AdapterDescription]:
        """Return every adapter with its state, or one."""
        entries = await self._entries()
        resident, here = await self._resident(), await asyncio.to_thread(self._files.digests)
        told = {}
        for model_id, entry in entries.items():
            names = resident.get(model_id, ())
            for spec in entry.spec.adapters:
                key = (model_id, spec.owner, spec.id)
                if only in {None, key}:
                    told[key] = _described(key, spec, is_resident=engine_name(ref_of(spec)) in names, here=here)
        for key, attempt in self._attempts.items():
            if only not in {None, key} or key[0] not in entries:
                continue
            state: AdapterState = "staging" if attempt.reason is None else "failed"
            if key not in told:
                told[key] = _description(key, attempt.source, state, attempt.reason)
            else:
                # What was there goes on meanwhile.
                what = "a new version is being copied" if attempt.reason is None else "a new version was refused"
                told[key]["reason"] = f"{what}{f': {attempt.reason}' if attempt.reason else ''}"
        return list(told.values())

    async def discover(self, name: str, holds: Callable[[str, str], bool]) -> bool:
        """Look for an adapter that isn't known where models say that theirs are; tell whether it is known now.

        ``holds`` tells whether the caller may ask for an adapter of a model: others are not looked for.

        Raises:
            InvalidRequestError: it is there, and can't be used.
            AdaptersUnreachableError: the place can't be read now.
        """
        return await self._finder.find(name, await self._entries(), holds)

    async def model_for(self, name: str) -> tuple[str, str]:
        """Return model and adapter of a name as vLLM's own API has it: ``model:adapter``, or bare where one will do.

        Raises:
            InvalidRequestError: it doesn't say for which model.
        """
        model_id, separator, adapter = name.partition(":")
        if separator:
            return model_id, adapter
        able = [model_id for model_id, entry in (await self._entries()).items() if entry.spec.lora_enabled]
        if len(able) != 1:
            raise InvalidRequestError("Several models may have adapters: say `model:adapter`.", "lora_name")
        return able[0], name

    async def is_listed(self, model_id: str, name: str) -> bool:
        """Tell whether an adapter of the operator's is registered."""
        entry = (await self._entries()).get(model_id)
        return entry is not None and _listed(entry, (model_id, None, name)) is not None

    async def _discovered(self, entry: Entry, name: str, source: str) -> None:
        key = (entry.spec.id, None, name)
        async with self._changing.setdefault(key, asyncio.Lock()):
            now = await self._entry(entry.spec.id)
            # An administrator may have been quicker.
            if _listed(now, key) is None and name not in now.removed:
                await self._register(now, key, source, discovered=True)

    async def _entry(self, model_id: str) -> Entry:
        entry = (await self._entries()).get(model_id)
        if entry is None:
            raise ModelNotFoundError(model_id)
        return entry

    def _check_names(self, name: str, owner: str | None) -> None:
        if re.fullmatch(ADAPTER_NAME, name) is None:
            raise InvalidRequestError(f"That is no name for an adapter: {NAME_RULE}.", "id")
        if owner is not None and owner not in self._tenants():
            raise InvalidRequestError(f"There is no tenant `{owner[:100]}`.", "owner")

    async def _register(self, entry: Entry, key: AdapterKey, source: str, *, discovered: bool = False) -> None:
        model_id, owner, _ = key
        if not entry.spec.lora_enabled:
            message = f"The model `{model_id}` takes no adapters: it has no `lora` section in its configuration."
            raise InvalidRequestError(message, "model")
        self._note(key, _Attempt(source))
        try:
            spec = adapter_spec(await asyncio.to_thread(self._take, entry, key, source), owner)
        except StorageError as error:
            refusal = _refusal(error)
            self._note(key, _Attempt(source, str(refusal)))
            raise refusal from error
        except BaseException:
            # Cancelled too: it must not be shown as under way.
            self._attempts.pop(key, None)
            raise
        self._attempts.pop(key, None)
        try:
            await self._change("put_adapter", model_id, model_id, spec, discovered)
        except BaseException:
            # Cancelled too: a copy that no list knows would stay until the next sweep.
            await self._drop(spec.digest)
            raise
        await asyncio.to_thread(self._files.sweep, await self._digests())
        # The same content may just have been on its way out, for another name that was removed.
        with contextlib.suppress(StorageError):
            await asyncio.to_thread(lambda: self._files.use(spec.digest, spec.path).close())

    async def _drop(self, digest: str) -> None:
        """Remove a copy that no adapter came of."""
        if digest not in await self._digests():
            await asyncio.to_thread(self._files.remove, digest)

    async def _digests(self) -> set[str]:
        return {adapter.digest for entry in (await self._entries()).values() for adapter in entry.spec.adapters}

    def _take(self, entry: Entry, key: AdapterKey, source: str) -> Adapter:
        spec = entry.spec
        base = base_config(self._sources.localize(spec.source or spec.path).directory)
        return self._files.take(key[2], source, base, spec.max_lora_rank)

    async def _change(self, method: str, model_id: str, *arguments: Any) -> None:
        try:
            await getattr(self._catalogue, method).remote(*arguments)
            await self._refresh()
        except (RayError, RayServeException) as error:
            raise translated(error, model_id) from error

    def _note(self, key: AdapterKey, attempt: _Attempt) -> None:
        self._attempts.pop(key, None)
        self._attempts[key] = attempt
        if len(self._attempts) > _MAX_FAILED:
            self._attempts.popitem(last=False)

    def __repr__(self) -> str:
        return f"<AdapterRegistry {len(self._attempts)} attempts, {self._finder!r}>"


def _listed(entry: Entry, key: AdapterKey) -> AdapterSpec | None:
    return next((spec for spec in entry.spec.adapters if (spec.owner, spec.id) == key[1:]), None)


def _shown(key: AdapterKey) -> str:
    model_id, owner, name = key
    return f"{model_id}:{qualified({'id': name, 'path': '', 'digest': '', 'owner': owner})}"


def _described(key: AdapterKey, spec: AdapterSpec, *, is_resident: bool, here: Collection[str]) -> AdapterDescription:
    state: AdapterState = "resident" if is_resident else "ready" if spec.digest in here else "unknown"
    reason = "its files are copied with its first request" if state == "unknown" else None
    return _description(key, spec.path, state, reason) | {
        "digest": spec.digest,
        "rank": spec.rank,
        "size_bytes": spec.size_bytes,
    }


def _description(key: AdapterKey, source: str, state: AdapterState, reason: str | None) -> AdapterDescription:
    return {
        "model": key[0],
        "id": key[2],
        "owner": key[1],
        "source": source,
        "digest": None,
        "rank": None,
        "size_bytes": None,
        "state": state,
        "reason": reason,
    }


def _refusal(error: StorageError) -> Exception:
    match error:
        case AdapterError() | SourceError():
            return InvalidRequestError(f"The adapter can't be used: {error.reason}.", "source")
        case RemoteMissingError():
            # Nor is it said where: who asks for it may be a tenant.
            return InvalidRequestError("The adapter can't be used: there is nothing at its source.", "source")
        case _:
            return AdaptersUnreachableError(str(error))
