"""What one of several fronts gets of what the settings give all of them together, and how it is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

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


def variables(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment in which these are the settings of a server that is told nothing else; the rest is `environ`."""
    prefix = Settings.model_config["env_prefix"]
    theirs = {f"{prefix}{name.upper()}" for name in Settings.model_fields}
    kept = {name: value for name, value in environ.items() if name.upper() not in theirs}
    values = settings.model_dump(mode="json", exclude_defaults=True)
    return kept | {f"{prefix}{name.upper()}": _written(value) for name, value in values.items()}


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
