"""Looks for adapters that are asked for and not known, where their models say that adapters are.

Covers: which places, one look however many ask, not looking again for a while. Does not cover: taking what was found
(``adapter_registry``).
"""

import asyncio
import logging
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping

from app.entry import Entry
from app.errors import AdaptersUnreachableError, AppError, InvalidRequestError
from app.names import ADAPTER_NAME
from storage.adapter_files import AdapterFiles
from storage.errors import StorageError

logger = logging.getLogger(__name__)

# Whoever puts an adapter there and has asked too early waits no longer than this.
NEGATIVE_S = 5.0
_MAX_REMEMBERED = 4096
# Looks at once: a storm of unknown names must not take the threads, nor the place's patience, from everybody.
_MAX_LOOKING = 4

_Place = tuple[str, str]


class AdapterFinder:
    """One gateway's; one event loop."""

    def __init__(
        self, found: Callable[[Entry, str, str], Awaitable[None]], files: AdapterFiles, clock: Callable[[], float]
    ) -> None:
        """``found`` registers an adapter of a model, by its name and where it is."""
        self._found = found
        self._files = files
        self._clock = clock
        # By model and name: when it was not there, or why it could not be used.
        self._missing: OrderedDict[_Place, tuple[float, AppError | None]] = OrderedDict()
        self._looking: dict[_Place, asyncio.Task[bool]] = {}
        self._few = asyncio.Semaphore(_MAX_LOOKING)

    async def find(self, name: str, entries: Mapping[str, Entry], holds: Callable[[str, str], bool]) -> bool:
        """Tell whether an adapter was found and taken; see ``AdapterRegistry.discover``."""
        places = [place for place in _places(name, entries) if holds(*place)]
        looks = [self._look(entries[model_id], adapter_id) for model_id, adapter_id in places]
        found = await asyncio.gather(*looks, return_exceptions=True)
        if True in found:
            return True
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return False

    async def _look(self, entry: Entry, name: str) -> bool:
        place = (entry.spec.id, name)
        looking = self._looking.get(place)
        if looking is None:
            if (known := self._missing.get(place)) is not None and self._clock() - known[0] < NEGATIVE_S:
                if known[1] is not None:
                    raise known[1]
                return False
            looking = asyncio.get_running_loop().create_task(self._once(entry, name))
            self._looking[place] = looking
            looking.add_done_callback(lambda _: self._looking.pop(place, None))
        # Shielded: others may wait for it too.
        return await asyncio.shield(looking)

    async def _once(self, entry: Entry, name: str) -> bool:
        problem: AppError | None = None
        source = f"{entry.lora_source.rstrip('/')}/{name}"
        try:
            async with self._few:
                if await asyncio.to_thread(self._files.is_there, source):
                    await self._found(entry, name, source)
                    return True
        except StorageError as error:
            logger.warning("adapters of %s can't be looked up: %s", entry.spec.id, error)
            problem = AdaptersUnreachableError("please try again")
        except AdaptersUnreachableError:
            problem = AdaptersUnreachableError("please try again")
        except InvalidRequestError as error:
            problem = InvalidRequestError(error.message, "model")
        self._missing[entry.spec.id, name] = (self._clock(), problem)
        if len(self._missing) > _MAX_REMEMBERED:
            self._missing.popitem(last=False)
        if problem is not None:
            raise problem
        return False

    def __repr__(self) -> str:
        return f"<AdapterFinder {len(self._missing)} not there>"


def _places(name: str, entries: Mapping[str, Entry]) -> Iterable[_Place]:
    """Yield model and adapter for whatever a name that isn't known could mean."""
    model_id, separator, adapter_id = name.partition(":")
    if not separator:
        adapter_id = name
    if re.fullmatch(ADAPTER_NAME, adapter_id) is None:
        return
    for entry in entries.values():
        known = {spec.id for spec in entry.spec.adapters if spec.owner is None}
        if separator and entry.spec.id != model_id:
            continue
        if entry.spec.lora_enabled and entry.lora_source and adapter_id not in {*known, *entry.removed}:
            yield entry.spec.id, adapter_id
