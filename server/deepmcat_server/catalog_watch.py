"""Names that people give while the server runs: a new catalog version comes into force without a restart."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Self

from deepmcat_core import logs
from deepmcat_core.artifact import CATALOG
from deepmcat_core.categorizer import Categorizer
from deepmcat_core.errors import ArtifactError

LOG = logs.logger("server.catalog")


class CatalogWatch:
    """Looks for a newer catalog file every `poll_s` seconds while in context; a damaged one leaves the old in force."""

    def __init__(self, categorizer: Categorizer, *, poll_s: float) -> None:
        self._categorizer = categorizer
        self._poll_s = poll_s
        self._seen = self._newest()

    async def __aenter__(self) -> Self:
        """Start looking."""
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop looking."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            await asyncio.to_thread(self._look)

    def _look(self) -> None:
        """Cheap while nothing changes: names of files only. Each new name is tried once."""
        newest = self._newest()
        if newest <= self._seen:
            return
        self._seen = newest
        artifact = self._categorizer.artifact
        try:
            catalog = artifact.reload_catalog()
        except (ArtifactError, OSError):
            logs.event(LOG, logging.ERROR, "catalog refused", artifact_id=artifact.artifact_id, exc_info=True)
            return
        if catalog.k != artifact.manifest.k:
            logs.event(LOG, logging.ERROR, "catalog of another artifact refused", catalog_version=catalog.version)
            return
        self._categorizer.use_catalog(catalog)
        logs.event(LOG, logging.INFO, "catalog in force", catalog_version=catalog.version)

    def _newest(self) -> str:
        folder = self._categorizer.artifact.folder / CATALOG
        return max((path.name for path in folder.glob("[0-9]*.json")), default="")
