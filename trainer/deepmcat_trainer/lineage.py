"""What becomes of an artifact's categories in the next one, by what both say of the same images.

A category is compared as the set of fit images that it holds. The old artifact holds an image where it would answer
with one of its categories. What it calls an outlier is held by none: such an image counts in the size of the new
category that it falls into and in no overlap, so outliers can make a category new and never tie it to an old one.

    Jaccard(old, new) = images in both / images in either

Where that is PERSISTS or more, the two are one category: it keeps id, name, status and codes. Each then has at least
half of the other, so each is the other's best match; only at exactly one half can there be two, and then the named
one, the larger, the earlier is taken.

People's work comes first. A fine cluster that a *named* category holds most of goes to that category, wherever the
cut puts it; so neither merges made by people nor names of kinds that look alike depend on where the next tree is cut.
A named category that reaches no Jaccard of PERSISTS in this way claims nothing. All other clusters are grouped by the
cut; only a small rest of a group goes with the named category that has most of the group. Between two categories that
live on, named or not, a fine cluster goes to the one that holds most of it: their border is no news.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from deepmcat_core.catalog import Catalog, Category, CategoryStatus

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

PERSISTS = 0.5
SMALL_REST = 0.1  # of a group's images: below this what no named category claims of it is no category of its own

OUTLIER = -1


class Change(StrEnum):
    """What became of an old category, or where a new one comes from. Old ones are never NEW, new ones never RETIRED."""

    KEPT = "kept"
    SPLIT = "split"
    MERGED = "merged"
    NEW = "new"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Previous:
    """What an artifact says of the fit images of the next one.

    held: (N,) the position in `catalog.active` of each image's category, OUTLIER where the artifact calls it one.
    """

    artifact_id: str
    catalog: Catalog
    held: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Succession:
    """How A old categories, those of `previous.catalog.active`, become G new ones, numbered from the largest.

    groups: (K,) the new category of each fine cluster. overlap: (A, G) images by old and new category. outliers: (G,)
    images of each new category that no old one holds. heirs: (G,) the old category that each new one continues, or −1.
    """

    previous: Previous
    groups: Ints
    overlap: Ints
    outliers: Ints
    heirs: Ints

    @property
    def old(self) -> tuple[Category, ...]:
        """The A old categories."""
        return self.previous.catalog.active

    @property
    def sizes(self) -> Ints:
        """Images of each new category, (G,)."""
        return np.asarray(self.overlap.sum(axis=0) + self.outliers)

    @property
    def held(self) -> Ints:
        """Images that each old category holds, (A,)."""
        return np.asarray(self.overlap.sum(axis=1))

    @property
    def jaccard(self) -> npt.NDArray[np.float64]:
        """The Jaccard index of each old and new category, (A, G)."""
        return _jaccard(self.overlap, self.sizes)

    @property
    def parts(self) -> Bools:
        """Where most of the new category's images are the old one's, (A, G)."""
        return np.asarray((2 * self.overlap >= self.sizes) & (self.overlap > 0))

    @property
    def sources(self) -> Bools:
        """Where the new category comes from the old one: a part of it, or with most of its images in it, (A, G)."""
        return self.parts | ((2 * self.overlap >= self.held[:, None]) & (self.overlap > 0))

    def successors(self, a: int) -> list[int]:
        """The new categories that come from the old category `a`, the one with most of its images first."""
        return sorted(np.flatnonzero(self.sources[a] | (self.heirs == a)).tolist(), key=lambda g: -self.overlap[a, g])

    def fate(self, a: int) -> Change:
        """What became of the old category `a`.

        SPLIT: new categories are mostly its own. MERGED: most of it is in one that is mostly others'. RETIRED: neither.
        """
        if a in self.heirs:
            return Change.KEPT
        if self.parts[a].any():
            return Change.SPLIT
        return Change.MERGED if self.sources[a].any() else Change.RETIRED

    def origin(self, g: int) -> Change:
        """Where the new category `g` comes from.

        NEW: at least half of its images are outliers to the old artifact, or no old category is a source. SPLIT: most
        of them are of one old category. MERGED: it has most of the images of old categories, none of which fills it.
        """
        if self.heirs[g] >= 0:
            return Change.KEPT
        if 2 * self.outliers[g] >= self.sizes[g] or not self.sources[:, g].any():
            return Change.NEW
        return Change.SPLIT if self.parts[:, g].any() else Change.MERGED

    def lineage(self, g: int) -> tuple[str, ...]:
        """The ids that the new category `g` comes from; of one that is kept, those that went into it, the oldest first.

        An old category that lives on is in the lineage of what was split off it, and never in that of another kept one.
        """
        heir = int(self.heirs[g])
        before = self.old[heir].lineage if heir >= 0 else ()
        kept = set(self.heirs.tolist()) if heir >= 0 else set()
        ids = [self.old[a].id for a in np.flatnonzero(self.sources[:, g]).tolist() if a not in kept]
        return (*before, *(id_ for id_ in ids if id_ not in before))

    @property
    def living_on(self) -> int:
        """Images held by old categories that are kept."""
        return int(self.held[self.heirs[self.heirs >= 0]].sum())

    @property
    def keeping_id(self) -> int:
        """Those of them that the new artifact gives the same id."""
        return int(sum(self.overlap[a, g] for g, a in enumerate(self.heirs) if a >= 0))

    def to_json(self, ids: list[str]) -> dict[str, Any]:
        """What a manifest says of it. ids: of the G new categories."""
        jaccard = self.jaccard
        return {
            "artifact_id": self.previous.artifact_id,
            "catalog_version": self.previous.catalog.version,
            "fit_images": len(self.previous.held),
            "outliers": int(self.outliers.sum()),
            "images_of_kept_categories": self.living_on,
            "images_that_keep_their_id": self.keeping_id,
            "categories": [
                {
                    "id": category.id,
                    "change": self.fate(a).value,
                    "images": int(self.held[a]),
                    "jaccard": round(float(jaccard[a].max()), 4),
                    "successors": [ids[g] for g in self.successors(a)],
                }
                for a, category in enumerate(self.old)
            ],
            "new": [ids[g] for g in range(len(ids)) if self.origin(g) is Change.NEW],
        }


def succeed(previous: Previous, clusters: Ints, cut: Ints) -> Succession:
    """What becomes of the previous categories.

    clusters: (N,) the new fine cluster of each fit image. cut: (K,) the group of each fine cluster in the suggested
    cut, 0 … . Every fine cluster has an image.
    """
    old = previous.catalog.active
    table = np.zeros((len(cut), len(old) + 1), dtype=np.int64)  # (K, A + 1) images by fine cluster; last: outliers
    np.add.at(table, (clusters, previous.held), 1)  # OUTLIER is the last column
    holders = table.argmax(axis=1)  # of equals the first, and outliers last
    named = {a for a, category in enumerate(old) if category.status is CategoryStatus.NAMED}
    made = _succession(previous, table, _with_named(table, holders, cut, named))
    while lost := {a for a in named if made.jaccard[a].max() < PERSISTS}:
        named -= lost
        made = _succession(previous, table, _with_named(table, holders, cut, named))
    settled = _succession(previous, table, _settled(made, holders))
    return settled if set(made.heirs.tolist()) <= set(settled.heirs.tolist()) else made


def _succession(previous: Previous, table: Ints, groups: Ints) -> Succession:
    """What becomes of the previous categories where the fine clusters are in these `groups` (K,)."""
    groups = largest_first(groups, table.sum(axis=1))
    grouped = np.zeros((groups.max() + 1, table.shape[1]), dtype=np.int64)
    np.add.at(grouped, groups, table)
    overlap, sizes = grouped[:, :-1].T, grouped.sum(axis=1)
    heirs = _heirs(previous.catalog.active, overlap, sizes)
    return Succession(previous=previous, groups=groups, overlap=overlap, outliers=grouped[:, -1], heirs=heirs)


def largest_first(groups: Ints, sizes: Ints) -> Ints:
    """`groups` (K,) renumbered 0 …, that with most images first. sizes: (K,) images of each fine cluster."""
    values, numbered = np.unique(groups, return_inverse=True)
    totals = np.bincount(numbered, weights=sizes, minlength=len(values))
    return np.argsort(np.argsort(-totals, kind="stable"))[numbered].astype(np.int64)


def _with_named(table: Ints, holders: Ints, cut: Ints, named: set[int]) -> Ints:
    """The group of each fine cluster, (K,): the position of a named category, or beyond those the number in the cut."""
    claimed = np.isin(holders, list(named))
    groups = np.where(claimed, holders, table.shape[1] + cut)
    sizes = table.sum(axis=1)
    for group in np.unique(cut[claimed]):
        inside = cut == group
        rest = inside & ~claimed
        if sizes[rest].sum() < SMALL_REST * sizes[inside].sum():
            taken = inside & claimed
            groups[rest] = np.bincount(holders[taken], weights=sizes[taken]).argmax()
    return np.asarray(groups, dtype=np.int64)


def _settled(made: Succession, holders: Ints) -> Ints:
    """The groups with the clusters between categories that live on gone to their holders, (K,)."""
    homes = np.full(len(made.old) + 1, -1, dtype=np.int64)  # the group of each old category; outliers have none
    kept = np.flatnonzero(made.heirs >= 0)
    homes[made.heirs[kept]] = kept
    disputed = np.isin(made.groups, kept) & (homes[holders] >= 0)
    return np.where(disputed, homes[holders], made.groups)


def _jaccard(overlap: Ints, sizes: Ints) -> npt.NDArray[np.float64]:
    """(A, G), of overlaps (A, G) and the sizes (G,) of the new categories."""
    either = overlap.sum(axis=1)[:, None] + sizes[None, :] - overlap
    return np.asarray(overlap / np.maximum(either, 1))


def _heirs(old: tuple[Category, ...], overlap: Ints, sizes: Ints) -> Ints:
    """The old category that each new one continues, or −1, (G,): pairs by falling Jaccard, each category once."""
    jaccard = _jaccard(overlap, sizes)
    heirs = np.full(len(sizes), -1, dtype=np.int64)
    pairs = np.argwhere(jaccard >= PERSISTS).tolist()
    unnamed = [category.status is not CategoryStatus.NAMED for category in old]
    for a, g in sorted(pairs, key=lambda pair: (-jaccard[*pair], unnamed[pair[0]], -overlap[*pair], *pair)):
        if heirs[g] < 0 and a not in heirs:
            heirs[g] = a
    return heirs
