"""Artifacts that change on disk while the server runs: what comes to lie at a path comes into force.

A look is cheap (versions.py). What is new is taken at the second look that finds it unchanged, because a copy may be on
its way, and only once: what was refused is tried again when it changes. So an administrator's choice stands until then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

from deepmcat_core import logs
from deepmcat_server.polling import Polling
from deepmcat_server.versions import Found, newest

LOG = logs.logger("server.artifacts")


class ArtifactWatch(Polling):
    """Looks at `paths` every `poll_s` seconds while in context; 0: never. `follow` gets a name and what is new there.

    taken: what was found at each path when the server began.
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        taken: Mapping[str, Found],
        follow: Callable[[str, Found], Awaitable[object]],
        *,
        poll_s: float,
    ) -> None:
        super().__init__([partial(self._look, name) for name in paths], poll_s=poll_s)
        self._paths = paths
        self._taken: dict[str, Found | None] = dict(taken)
        self._seen: dict[str, Found | None] = dict(taken)
        self._follow = follow

    async def _look(self, name: str) -> None:
        found = await asyncio.to_thread(newest, self._paths[name])
        settled, self._seen[name] = found == self._seen[name], found
        if found is None and not settled:
            logs.event(LOG, logging.WARNING, "artifact gone from its path", artifact_name=name)
        if found is not None and settled and found != self._taken[name]:
            self._taken[name] = found
            await self._follow(name, found)
