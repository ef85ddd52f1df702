"""How well groups of images agree with classes: what scikit-learn has, and the purities that it does not.

All but `agreement` start from the contingency table T (C, K): T[c, g] images of class c in group g.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score

Ints = npt.NDArray[np.int64]


def contingency(classes: Ints, groups: Ints, n_classes: int, n_groups: int) -> Ints:
    """The table (n_classes, n_groups) of how many images have each class and group."""
    table = np.zeros((n_classes, n_groups), dtype=np.int64)
    np.add.at(table, (classes, groups), 1)
    return table


def purity(table: Ints) -> float:
    """The share of images in the majority class of their group. Rises to 1 with the number of groups."""
    return float(table.max(axis=0).sum() / table.sum())


def inverse_purity(table: Ints) -> float:
    """The share of images in the majority group of their class. Falls as the number of groups rises."""
    return float(table.max(axis=1).sum() / table.sum())


def accuracy(table: Ints) -> float:
    """The share of images right under the best one-to-one match of groups and classes (Hungarian method)."""
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / table.sum())


def majority(table: Ints) -> Ints:
    """The majority class of each group, (K,); −1 for a group without images."""
    return np.where(table.sum(axis=0) > 0, table.argmax(axis=0), -1)


def recalls(table: Ints, mapping: Ints) -> npt.NDArray[np.float64]:
    """The recall of each class that occurs, when images of group g are called class `mapping`[g]; −1 is no class."""
    right = np.zeros(len(table), dtype=np.int64)
    mapped = np.flatnonzero(mapping >= 0)
    np.add.at(right, mapping[mapped], table[mapping[mapped], mapped])
    totals = table.sum(axis=1)
    present = totals > 0
    return np.asarray(right[present] / totals[present], dtype=np.float64)


def mapped_purity(table: Ints, mapping: Ints) -> float:
    """The share of images whose group's `mapping` is their class."""
    mapped = np.flatnonzero(mapping >= 0)
    return float(table[mapping[mapped], mapped].sum() / table.sum())


def agreement(classes: Ints, groups: Ints) -> dict[str, float]:
    """NMI (arithmetic mean), AMI and ARI."""
    return {
        "nmi": float(normalized_mutual_info_score(classes, groups)),
        "ami": float(adjusted_mutual_info_score(classes, groups)),
        "ari": float(adjusted_rand_score(classes, groups)),
    }
