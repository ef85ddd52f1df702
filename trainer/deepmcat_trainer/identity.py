"""Names that tell nothing: keyed hashes of locators and patients.

    HMAC-SHA-256(key, kind ‖ 0 ‖ text), the first 128 bits in hex

The same key gives the same ids again, so datasets made with one `--key` can be compared; without the key nobody can
try out patient numbers against them.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import BinaryIO

from deepmcat_core.errors import ConfigError

MIN_KEY_BYTES = 16
_ID_BYTES = 16


class Identity:
    """Makes ids with one key."""

    def __init__(self, key: bytes) -> None:
        self.key = key

    def image(self, locator: str) -> str:
        """The id of an image."""
        return self._name(b"image", os.fsencode(locator))

    def frame(self, locator: str, frame: int) -> str:
        """The id of one frame of an image: of one row."""
        return self._name(b"frame", b"%d\0%b" % (frame, os.fsencode(locator)))

    def patient(self, patient_id: str) -> str:
        """The key of a patient; "" where the patient is unknown. DICOM pads with blanks and NULs: they do not count."""
        text = patient_id.strip(" \0")
        return self._name(b"patient", text.encode("utf-8", "replace")) if text else ""

    def fingerprint(self) -> str:
        """Tells whether two keys are the same, and nothing of the key."""
        return self._name(b"key", b"")

    def _name(self, kind: bytes, text: bytes) -> str:
        return hmac.digest(self.key, kind + b"\0" + text, hashlib.sha256)[:_ID_BYTES].hex()


def read_key(path: Path) -> bytes:
    """The bytes of a key file, exactly as they are. Raises ConfigError."""
    try:
        key = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the key file {path}: {error.strerror}") from error
    if len(key) < MIN_KEY_BYTES:
        raise ConfigError(
            f"the key file {path} has {len(key)} bytes; a key needs {MIN_KEY_BYTES} or more, such as those of: "
            "openssl rand -hex -out FILE 32"
        )
    return key


def own_key(path: Path) -> bytes:
    """The key at `path`, made at random (mode 0600) if there is none yet."""
    if not path.exists():
        text = secrets.token_hex(32).encode() + b"\n"
        temporary = path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        with private_file(temporary) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    return path.read_bytes()


def private_file(path: Path) -> BinaryIO:
    """A new file that only its owner may read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.fchmod(descriptor, 0o600)
    return os.fdopen(descriptor, "wb")
