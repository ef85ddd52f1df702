"""What one of several fronts gets of what the settings give all of them together, and how it is told."""

from __future__ import annotations

import json
from pathlib import Path

from deepmcat_core import config
from deepmcat_core.cpus import available_cpus
from deepmcat_server.addresses import Address
from deepmcat_server.config import Settings

ADMIN = Address("127.0.0.1", 0)
"""Where a front tells its supervisor how it is."""

SHARED = (
    "max_streams",
    "max_calls",
    "max_connections",
    "max_pending_bytes",
    "max_queue",
    "max_pending_frames",
)
"""Bounds of what is open or inside at once, whoever holds it: memory of the machine."""


def share_of(settings: Settings, *, listen: Address, caller_id_key: Path) -> Settings:
    """The settings of one of `settings.fronts`: an equal share of CPUs and bounds, rounded up, at the same port.

    listen: with the actual port. caller_id_key: for all of them, where the settings have none, so that a caller has
    one id in the log.
    """

    def part(amount: int) -> int:
        return -(-amount // settings.fronts)

    return settings.model_copy(
        update={name: part(getattr(settings, name)) for name in SHARED}
        | {
            "listen": str(listen),
            "admin": str(ADMIN),
            "decode_workers": part(settings.workers),
            "engine_threads": part(settings.engine_threads or available_cpus()),
            "caller_id_key_file": settings.caller_id_key_file or caller_id_key,
        }
    )


def told(number: int, settings: Settings) -> bytes:
    """What is written to the standard input of a front: a line, of its number and its settings.

    No command line and no environment: others see the one, and the other has no room for a few thousand quotas.
    """
    return json.dumps([number, settings.model_dump(mode="json", exclude_defaults=True)]).encode() + b"\n"


def heard(line: bytes) -> tuple[int, Settings]:
    """What a front was told. Raises ConfigError."""
    number, settings = json.loads(line)
    return number, config.validate(Settings, settings)
