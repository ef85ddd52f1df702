"""The categories that a new artifact starts with."""

from __future__ import annotations

import numpy as np

from deepmcat_core.catalog import Catalog, Category, new_id
from deepmcat_trainer import naming
from deepmcat_trainer.dataset import Dataset
from deepmcat_trainer.grouping import Grouping
from deepmcat_trainer.splits import Split


def first_catalog(grouping: Grouping, dataset: Dataset, k: int) -> Catalog:
    """The first catalog: a category per group of the cut into `k`, the largest first."""
    groups = grouping.tree.cut(k)  # (K,)
    sizes = np.bincount(groups, weights=grouping.fine.sizes, minlength=k).astype(np.int64)
    rank = np.argsort(np.argsort(-sizes, kind="stable"))
    ranked = rank[groups]
    columns = dataset.coded().take(dataset.indices(Split.FIT)).to_pydict()
    suggestions = naming.suggest(columns, ranked[grouping.fine.assignment], k)
    sizes = np.sort(sizes)[::-1]
    return Catalog(
        version=1,
        k=grouping.fine.k,
        categories=tuple(
            Category(
                id=new_id(),
                name=suggestion.name,
                clusters=tuple(int(c) for c in np.flatnonzero(ranked == i)),
                fit_images=int(sizes[i]),
                terms=suggestion.terms,
            )
            for i, suggestion in enumerate(suggestions)
        ),
    )
