"""The watch over an artifact's catalog: what it takes, what it refuses, and that nothing ends it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepmcat_core import artifact as artifacts
from deepmcat_core.artifact import Artifact
from deepmcat_core.catalog import Catalog, append, file_name
from deepmcat_core.categorizer import Categorizer
from deepmcat_core.frame import Limits
from deepmcat_core.logs import JsonFormatter
from deepmcat_server.catalog_watch import CatalogWatch

POLL_S = 0.02


@pytest.fixture(name="categorizer")
def categorizer_fixture(artifact: Artifact, engine: Any) -> Categorizer:
    return Categorizer(artifact, engine, Limits())


@pytest.fixture(name="events")
def events_fixture() -> Any:
    """The events of the watch so far."""
    stream, logger = io.StringIO(), logging.getLogger("deepmcat.server.catalog")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda: [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(level)


def version(artifact: Artifact, number: int) -> Catalog:
    """A catalog version with the same categories."""
    catalog = artifact.catalog
    while catalog.version < number:
        catalog = catalog.succeed(catalog.categories)
    return catalog


async def test_a_file_that_is_still_being_copied_is_tried_again(categorizer, events, until, tmp_path: Path):
    """A version that is read half-written is refused, logged once, and in force as soon as it is whole."""
    artifact = categorizer.artifact
    shutil.copytree(artifact.folder / "catalog", tmp_path / "elsewhere")
    append(tmp_path / "elsewhere", version(artifact, 2))
    whole = (tmp_path / "elsewhere" / file_name(2)).read_bytes()
    arriving = artifact.folder / "catalog" / file_name(2)
    told: list[str] = []
    async with CatalogWatch(categorizer, poll_s=POLL_S, on_catalog=told.append):
        arriving.write_bytes(whole[: len(whole) // 2])
        await until(lambda: events() == ["catalog refused"])
        await asyncio.sleep(5 * POLL_S)
        half = categorizer.catalog.version
        arriving.write_bytes(whole)
        await until(lambda: categorizer.catalog.version == 2)

    assert half == 1
    assert events() == ["catalog refused", "catalog in force"]
    assert told == ["refused", "ok"]


def replace_by_a_folder(path: Path) -> None:
    path.mkdir()


def nest_too_deeply(path: Path) -> None:
    path.write_text("[" * 100_000)


def name_nonsense(path: Path) -> None:
    path.write_text(json.dumps({"version": 2, "k": 4, "parent": "", "categories": [3], "sha256": ""}))


@pytest.mark.parametrize("spoil", [replace_by_a_folder, nest_too_deeply, name_nonsense])
async def test_nothing_ends_the_watch(categorizer, events, until, spoil: Callable[[Path], None]):
    """Whatever is found under a catalog's name is refused with one line, and the next good version is taken."""
    artifact = categorizer.artifact
    bad = artifact.folder / "catalog" / file_name(2)
    async with CatalogWatch(categorizer, poll_s=POLL_S):
        spoil(bad)
        await until(lambda: "catalog refused" in events())
        await asyncio.sleep(5 * POLL_S)
        if bad.is_dir():
            bad.rmdir()
        else:
            bad.unlink()
        artifact.append_catalog(version(artifact, 2))
        await until(lambda: categorizer.catalog.version == 2)

    assert events() == ["catalog refused", "catalog in force"]


async def test_a_version_from_before_the_watch_is_taken(categorizer, until):
    """What was appended between the load of the artifact and the start of the watch is not passed over."""
    categorizer.artifact.append_catalog(version(categorizer.artifact, 2))
    async with CatalogWatch(categorizer, poll_s=POLL_S):
        await until(lambda: categorizer.catalog.version == 2)


async def test_the_names_of_another_artifact_are_none_of_ours(categorizer, changed, events, tmp_path: Path):
    """Where another artifact takes the folder, its newer catalog stays out of the answers of the one that is loaded."""
    folder = categorizer.artifact.folder
    artifacts.write(tmp_path / "other", changed(created_at="2026-02-02T00:00:00Z"))
    append(tmp_path / "other" / "catalog", version(categorizer.artifact, 2))
    async with CatalogWatch(categorizer, poll_s=POLL_S):
        folder.rename(tmp_path / "before")
        (tmp_path / "other").rename(folder)
        await asyncio.sleep(10 * POLL_S)

    assert categorizer.catalog.version == 1
    assert events() == []
