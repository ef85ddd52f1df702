"""What people call the clusters: append-only versions of the categories.

Each version is one file, catalog/000001.json …, with the digest of its content and of its parent, written under a
temporary name and linked into place (on a file system without hard links: written there, and only if the name is new);
the highest is in force. Ids are opaque and never reused, so a router's rule
that names an id keeps its meaning when the category is renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from deepmcat_core.durable import sync_directory
from deepmcat_core.errors import ArtifactDamaged, ConfigError

UNKNOWN = "unknown"
"""The reserved id and name of the category of outliers."""


class CategoryStatus(StrEnum):
    """How far people have come with a category."""

    SUGGESTED = "suggested"
    NAMED = "named"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """An entry of a terminology: coding scheme designator ("SCT", "DCM"), value, meaning (PS3.3 section 8)."""

    scheme: str
    value: str
    meaning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A coded header term and the share of the category's fit images that have it."""

    attribute: str
    value: str
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """What people call one or more fine clusters. `lineage`: ids of the categories it came from."""

    id: str
    name: str
    clusters: tuple[int, ...]
    status: CategoryStatus = CategoryStatus.SUGGESTED
    codes: tuple[Code, ...] = ()
    lineage: tuple[str, ...] = ()
    fit_images: int = 0
    terms: tuple[Term, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """One version of the categories of an artifact with K fine clusters.

    version: from 1. parent: digest of the version before, "" for the first.
    """

    version: int
    k: int
    categories: tuple[Category, ...]
    parent: str = ""
    by_cluster: tuple[Category, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index by cluster, and refuse catalogs in which a cluster has not exactly one active category."""
        ids = [c.id for c in self.categories]
        if len(set(ids)) < len(ids) or UNKNOWN in ids or "" in ids:
            raise ArtifactDamaged("category ids of the catalog are empty, reserved or not unique")
        table: list[Category | None] = [None] * self.k
        for category in self.active:
            for cluster in category.clusters:
                if not 0 <= cluster < self.k or table[cluster] is not None:
                    raise ArtifactDamaged(f"cluster {cluster} is unknown or in more than one category")
                table[cluster] = category
        if None in table:
            raise ArtifactDamaged(f"cluster {table.index(None)} has no category")
        object.__setattr__(self, "by_cluster", tuple(table))

    @property
    def active(self) -> tuple[Category, ...]:
        """The categories that are assigned."""
        return tuple(c for c in self.categories if c.status is not CategoryStatus.RETIRED)

    def succeed(self, categories: Iterable[Category]) -> Catalog:
        """The next version. Ids of this version may not disappear: retired categories stay, so ids are never reused."""
        categories = tuple(categories)
        lost = {c.id for c in self.categories} - {c.id for c in categories}
        if lost:
            raise ConfigError(f"{len(lost)} categories would disappear; retire them instead")
        return Catalog(version=self.version + 1, k=self.k, categories=categories, parent=self.digest())

    def digest(self) -> str:
        """SHA-256 over the content."""
        return hashlib.sha256(_canonical(self._content())).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The content of a catalog file, with its digest."""
        return {**self._content(), "sha256": self.digest()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Catalog:
        """The catalog of a catalog file. Raises ArtifactDamaged."""
        try:
            catalog = cls(
                version=int(data["version"]),
                k=int(data["k"]),
                parent=str(data["parent"]),
                categories=tuple(_category(c) for c in data["categories"]),
            )
            if catalog.digest() != data["sha256"]:
                raise ArtifactDamaged(f"catalog version {catalog.version} does not match its digest")
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactDamaged("a catalog file does not hold a catalog") from error
        return catalog

    def _content(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "k": self.k,
            "parent": self.parent,
            "categories": [asdict(c) for c in self.categories],
        }


def new_id() -> str:
    """A category id that nobody has used: 64 random bits."""
    return f"c-{secrets.token_hex(8)}"


def read_newest(folder: Path) -> Catalog:
    """The catalog in force: the highest version in `folder`, with an unbroken chain of parents below it."""
    paths = sorted(folder.glob("[0-9]*.json"))
    if not paths:
        raise ArtifactDamaged("the artifact has no catalog")
    newest: Catalog | None = None
    for number, path in enumerate(paths, start=1):
        catalog = Catalog.from_json(_read(path))
        if catalog.version != number or path.name != file_name(number):
            raise ArtifactDamaged(f"catalog version {number} is missing")
        if newest is not None and catalog.parent != newest.digest():
            raise ArtifactDamaged(f"catalog version {number} does not follow from version {number - 1}")
        newest = catalog
    assert newest is not None
    return newest


def append(folder: Path, catalog: Catalog, *, link: Callable[[Path, Path], None] = os.link) -> None:
    """Write a new version, durably, and only if nobody else has written it meanwhile. Raises ConfigError.

    link: gives a file a second name, and raises FileExistsError where that is taken, unlike rename.
    """
    target = folder / file_name(catalog.version)
    temporary = folder / f".{catalog.version}-{secrets.token_hex(4)}"
    content = json.dumps(catalog.to_json(), indent=1, ensure_ascii=False).encode()
    _write_new(temporary, content)
    try:
        _put_in_place(temporary, target, content, link)
    except FileExistsError as error:
        raise ConfigError(f"catalog version {catalog.version} was written by someone else; start again") from error
    finally:
        temporary.unlink()
    sync_directory(folder)


def file_name(version: int) -> str:
    """The file name of a version."""
    return f"{version:06d}.json"


def _put_in_place(temporary: Path, target: Path, content: bytes, link: Callable[[Path, Path], None]) -> None:
    """Raises FileExistsError."""
    try:
        link(temporary, target)
    except FileExistsError:
        raise
    except OSError:  # no hard links here, as on exFAT and many network shares: exclusive still, if not all at once
        _write_new(target, content)


def _write_new(path: Path, content: bytes) -> None:
    """A new file, on the disk when this returns; none where it cannot be written. Raises FileExistsError."""
    with path.open("xb") as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            path.unlink()
            raise


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise ArtifactDamaged(f"catalog file {path.name} is not JSON") from error
    if not isinstance(data, dict):
        raise ArtifactDamaged(f"catalog file {path.name} does not hold a catalog")
    return data


def _canonical(data: dict[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _category(data: dict[str, Any]) -> Category:
    return Category(
        id=str(data["id"]),
        name=str(data["name"]),
        clusters=tuple(int(c) for c in data["clusters"]),
        status=CategoryStatus(data["status"]),
        codes=tuple(Code(**c) for c in data["codes"]),
        lineage=tuple(str(i) for i in data["lineage"]),
        fit_images=int(data["fit_images"]),
        terms=tuple(Term(**t) for t in data["terms"]),
    )
