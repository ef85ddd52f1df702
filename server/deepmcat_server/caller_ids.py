"""Callers in the log, without saying who they are: the same caller has the same id, and the key stays here."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from functools import lru_cache
from pathlib import Path

from deepmcat_core.errors import ConfigError

MIN_KEY_BYTES = 16
ID_CHARACTERS = 16  # 64 bits: enough to tell callers apart
REMEMBERED = 1024  # ids of callers that have called last


class CallerIds:
    """Ids of callers by HMAC-SHA-256. key: None: one of this start, so ids mean nothing across restarts."""

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key or secrets.token_bytes(32)
        self._remembered = lru_cache(REMEMBERED)(self._id)

    def __call__(self, caller: str) -> str:
        """The id of a caller's key."""
        return self._remembered(caller)

    def _id(self, caller: str) -> str:
        return hmac.new(self._key, caller.encode(), hashlib.sha256).hexdigest()[:ID_CHARACTERS]


def read_key(path: Path) -> bytes:
    """The key in a file, spaces around it stripped. Raises ConfigError."""
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"cannot read the caller_id_key_file {path}: {error.strerror}") from error
    if len(key) < MIN_KEY_BYTES:
        raise ConfigError(f"the caller_id_key_file {path} holds {len(key)} bytes; at least {MIN_KEY_BYTES} are needed")
    return key
