"""The categories that a new artifact starts with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from deepmcat_core.catalog import Catalog, Category, CategoryStatus, new_id
from deepmcat_trainer import naming
from deepmcat_trainer.dataset import Dataset
from deepmcat_trainer.grouping import Grouping
from deepmcat_trainer.lineage import Previous, Succession, largest_first, succeed
from deepmcat_trainer.splits import Split


def first_catalog(
    grouping: Grouping, dataset: Dataset, k: int, previous: Previous | None = None
) -> tuple[Catalog, Succession | None]:
    """The first catalog: a category per group of the cut into `k`, the largest first.

    With `previous`, the categories that live on keep their id, name, status and codes, and those that do not are there
    as retired; what became of each is the second value.
    """
    cut = largest_first(grouping.tree.cut(k), grouping.fine.sizes)
    succession = None if previous is None else succeed(previous, grouping.fine.assignment, cut)
    groups = cut if succession is None else succession.groups
    kept = {} if succession is None else {g: succession.old[a] for g, a in enumerate(succession.heirs) if a >= 0}
    columns = dataset.coded().take(dataset.indices(Split.FIT)).to_pydict()
    suggestions = naming.suggest(
        columns, groups[grouping.fine.assignment], int(groups.max()) + 1, {g: c.name for g, c in kept.items()}
    )
    sizes = np.bincount(groups, weights=grouping.fine.sizes).astype(np.int64)
    categories = [
        replace(
            kept.get(i) or Category(id=new_id(), name=suggestion.name, clusters=()),
            clusters=tuple(int(c) for c in np.flatnonzero(groups == i)),
            lineage=() if succession is None else succession.lineage(i),
            fit_images=int(sizes[i]),
            terms=suggestion.terms,
        )
        for i, suggestion in enumerate(suggestions)
    ]
    retired = [] if previous is None else _retired(previous.catalog, {c.id for c in kept.values()})
    return Catalog(version=1, k=grouping.fine.k, categories=(*categories, *retired)), succession


def _retired(catalog: Catalog, kept: set[str]) -> list[Category]:
    """The categories of a catalog that do not live on: they stay, so that no id is used again."""
    return [
        replace(c, clusters=(), fit_images=0, status=CategoryStatus.RETIRED)
        for c in catalog.categories
        if c.id not in kept
    ]
