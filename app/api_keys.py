"""API keys: what they look like, how they are stored, the file of tenants.

A key is ``fs-ID-SECRET``. The file holds its id and a salted hash of all of it, from which nobody gets it back. The id
says which hash to compare, so that a wrong key costs at most one.

Covers: making, hashing and comparing keys, reading the file. Does not cover: following the file's changes
(``key_ring``), what keys are for (``tenants``).
"""

import hashlib
import hmac
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from app.config import problem_text
from app.errors import ConfigError
from app.tenants import TENANT_NAME, Quota, Reach, Tenant

# They stand before a slash in engines and before a colon in salts.
_KEY = re.compile(r"fs-(?P<id>[0-9a-f]{12})-[A-Za-z0-9_-]{43}")
_HASH = re.compile(r"scrypt:(?P<log_cost>\d\d?):(?P<salt>[A-Za-z0-9_=-]+):(?P<digest>[A-Za-z0-9_=-]+)")
# 40 ms and 16 MiB a key. Secrets have 256 bits: no guessing gets anywhere even without.
_LOG_COST = 14
# A file may ask for more, but not for what takes seconds and gigabytes.
_LOG_COSTS = range(10, 18)
_BLOCK_SIZE = 8
_SALT_BYTES = 16
_DIGEST_BYTES = 32


def new_key() -> str:
    """Return a key that nobody has."""
    return f"fs-{secrets.token_hex(6)}-{secrets.token_urlsafe(32)}"


def key_id(key: str) -> str | None:
    """Return the id within a key; None for what isn't one."""
    # Asked first: what is no ASCII holds digits that are none of ours.
    match = _KEY.fullmatch(key) if key.isascii() else None
    return match["id"] if match else None


def hashed(key: str) -> str:
    """Return what is stored of a key, under a salt of its own. Takes a while, on purpose."""
    salt = secrets.token_bytes(_SALT_BYTES)
    return f"scrypt:{_LOG_COST}:{_text(salt)}:{_text(_digest(key, salt, _LOG_COST))}"


def fits(key: str, stored: str) -> bool:
    """Tell whether ``stored`` was made of ``key``. Takes a while, and as long whether it was or not."""
    log_cost, salt, digest = _parsed(stored)
    return hmac.compare_digest(_digest(key, salt, log_cost), digest)


def _digest(key: str, salt: bytes, log_cost: int) -> bytes:
    cost = 1 << log_cost
    memory_bytes = 2 * 128 * cost * _BLOCK_SIZE
    return hashlib.scrypt(key.encode(), salt=salt, n=cost, r=_BLOCK_SIZE, p=1, maxmem=memory_bytes, dklen=_DIGEST_BYTES)


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode()


def _parsed(stored: str) -> tuple[int, bytes, bytes]:
    """Return cost, salt and digest of a stored hash; raises ValueError for what isn't one."""
    match = _HASH.fullmatch(stored)
    if match is None or int(match["log_cost"]) not in _LOG_COSTS:
        message = "this is no hash of a key: `flashserve key new` prints one"
        raise ValueError(message)
    # A wrong length is also a ValueError.
    return int(match["log_cost"]), urlsafe_b64decode(match["salt"]), urlsafe_b64decode(match["digest"])


def _checked_hash(stored: str) -> str:
    _parsed(stored)
    return stored


@dataclass(frozen=True)
class StoredKey:
    """A key as the file has it, and whose it is."""

    id: str
    hash: str
    tenant: Tenant


@dataclass(frozen=True)
class KeyTable:
    """All of a file: tenants by name, keys by id."""

    tenants: Mapping[str, Tenant]
    keys: Mapping[str, StoredKey]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Key(_Section):
    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    hash: Annotated[str, AfterValidator(_checked_hash)]


class _Tenant(_Section):
    name: str = Field(pattern=f"^{TENANT_NAME}$")
    keys: list[_Key] = []
    models: Literal["*"] | list[str] = []
    adapters: Literal["*"] | list[str] = []
    requests_per_minute: float | None = Field(None, gt=0, allow_inf_nan=False)
    tokens_per_minute: float | None = Field(None, gt=0, allow_inf_nan=False)
    max_concurrent_requests: int | None = Field(None, ge=1)
    weight: float = Field(1.0, gt=0, le=1000)
    admin: bool = False

    def tenant(self) -> Tenant:
        return Tenant(
            self.name,
            Reach(_names(self.models), _names(self.adapters), self.name),
            Quota(self.requests_per_minute, self.tokens_per_minute, self.max_concurrent_requests),
            self.weight,
            self.admin,
        )


class _File(_Section):
    tenants: list[_Tenant] = Field(min_length=1)


def _names(given: str | list[str]) -> frozenset[str] | None:
    return None if isinstance(given, str) else frozenset(given)


def read_keys(file: Path) -> KeyTable:
    """Read a file of tenants.

    Raises:
        ConfigError: with a sentence for each problem; none quotes a key or a hash.
    """
    try:
        return parse_keys(yaml.safe_load(file.read_text()))
    except FileNotFoundError as error:
        raise ConfigError((f"there is no file {file}",)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError((f"{file} can't be read: {getattr(error, 'strerror', None) or 'it is no text'}",)) from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        # The error itself quotes what stands there.
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise ConfigError((f"{file} is no YAML{where}",)) from error
    except ConfigError as error:
        raise ConfigError(tuple(f"{file}: {problem}" for problem in error.problems)) from error


def parse_keys(document: Any) -> KeyTable:
    """Check what stands in a file of tenants. Raises ConfigError, as ``read_keys``."""
    try:
        file = _File.model_validate(document)
    except ValidationError as error:
        # Whatever was given may be a key in the wrong place.
        details = error.errors(include_input=False, include_context=False, include_url=False)
        raise ConfigError(tuple(problem_text(detail | {"input": {}}, _File) for detail in details)) from error
    problems = tuple(_conflicts(file.tenants))
    if problems:
        raise ConfigError(problems)
    tenants = {section.name: section.tenant() for section in file.tenants}
    keys = {
        key.id: StoredKey(key.id, key.hash, tenants[section.name]) for section in file.tenants for key in section.keys
    }
    return KeyTable(tenants, keys)


def _conflicts(tenants: Iterable[_Tenant]) -> Iterable[str]:
    names: set[str] = set()
    ids: set[str] = set()
    for index, tenant in enumerate(tenants):
        if tenant.name in names:
            yield f"tenants[{index}].name: '{tenant.name}' is given twice"
        names.add(tenant.name)
        for position, key in enumerate(tenant.keys):
            if key.id in ids:
                yield f"tenants[{index}].keys[{position}].id: '{key.id}' is given twice"
            ids.add(key.id)
