"""Names that people give while the server runs: a new catalog version comes into force without a restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from deepmcat_core import catalog as catalogs
from deepmcat_core import logs
from deepmcat_core.artifact import CATALOG, identify
from deepmcat_core.categorizer import Categorizer
from deepmcat_core.errors import ArtifactDamaged
from deepmcat_server.metrics import CatalogResult
from deepmcat_server.polling import Polling

LOG = logs.logger("server.catalog")


class CatalogWatch(Polling):
    """Looks for a newer catalog file every `poll_s` seconds while in context.

    One that cannot be used leaves the old in force, and is tried again at each look: it may be on its way still. Where
    another artifact has taken the folder, its catalog is none of ours.
    """

    def __init__(
        self,
        categorizer: Categorizer,
        *,
        poll_s: float,
        on_catalog: Callable[[CatalogResult], None] = lambda result: None,
    ) -> None:
        """on_catalog: told of each newer version what became of it, in a thread."""
        super().__init__([partial(asyncio.to_thread, self._look)], poll_s=poll_s)
        self._categorizer = categorizer
        self._on_catalog = on_catalog
        self._refused: str | None = None  # the file that has had its line in the log

    def _look(self) -> None:
        """Cheap while nothing changes: names of files only."""
        newest = ""
        try:
            newest = self._newest()
            if newest > catalogs.file_name(self._categorizer.catalog.version):
                self._use_newest()
        except Exception:  # noqa: BLE001  # whatever lies in the folder, the watch goes on and the old names stay
            if newest != self._refused:
                self._on_catalog("refused")
                artifact_id = self._categorizer.artifact.artifact_id
                logs.event(LOG, logging.ERROR, "catalog refused", artifact_id=artifact_id, exc_info=True)
            self._refused = newest

    def _use_newest(self) -> None:
        artifact = self._categorizer.artifact
        if identify(artifact.folder) != artifact.artifact_id:
            return
        catalog = artifact.reload_catalog()
        if catalog.k != artifact.manifest.k:
            raise ArtifactDamaged("the catalog is another artifact's")
        if identify(artifact.folder) != artifact.artifact_id or self._categorizer.artifact is not artifact:
            return  # taken while it was read
        self._categorizer.use_catalog(catalog)
        self._refused = None
        self._on_catalog("ok")
        logs.event(LOG, logging.INFO, "catalog in force", catalog_version=catalog.version)

    def _newest(self) -> str:
        folder = self._categorizer.artifact.folder / CATALOG
        return max((path.name for path in folder.glob("[0-9]*.json")), default="")
