"""Suggested names for categories, from the coded columns of the fit images' headers.

A name starts with what most images of the category share: modality, body part, view, plane ("CT CHEST AXIAL"). Where
two categories would get one name, each adds the description or code that sets it apart most; where that does not
help, a number. Categories without headers are "Category 1" … by size. People rename them; nothing depends on names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deepmcat_core.catalog import UNKNOWN, Term

Ints = npt.NDArray[np.int64]
Columns = Mapping[str, Sequence[str | None]]
"""Attribute → its value for each image, None or "" where the header has none."""

BASE = ("Modality", "BodyPartExamined", "ViewPosition", "Plane")
OTHERS = ("Laterality", "SOPClass", "description")
MAJORITY = 0.6  # of the category's images, for a term of the base name
DISTINCTIVE_SHARE = 0.5
DISTINCTIVE_LIFT = 1.5  # times as frequent in the category as over all
LISTED_SHARE = 0.05
LISTED = 3  # terms an attribute
LONGEST = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """The name of a category, and the header terms of its fit images, most frequent first."""

    name: str
    terms: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class _Profile:
    """One category: its terms, and how much more frequent each is in it than over all."""

    terms: tuple[Term, ...]
    lifts: Mapping[tuple[str, str], float]

    def base(self) -> str:
        majority = {t.attribute: t.value for t in self.terms if t.attribute in BASE and t.share >= MAJORITY}
        return " ".join(majority[a] for a in BASE if a in majority)

    def distinctive(self) -> str:
        """The term outside the base name that sets the category apart most; "" if none does."""
        said = self.base().split()
        apart = [
            t
            for t in self.terms
            if t.share >= DISTINCTIVE_SHARE
            and self.lifts[t.attribute, t.value] >= DISTINCTIVE_LIFT
            and _short(t.value) not in said
        ]
        best = max(apart, key=lambda t: t.share * np.log(self.lifts[t.attribute, t.value]), default=None)
        return _short(best.value) if best else ""


def suggest(columns: Columns, groups: Ints, k: int, names_kept: Mapping[int, str] | None = None) -> list[Suggestion]:
    """A suggestion for each of the groups 0 … k−1, numbered from the largest.

    columns: coded attributes, each with as many values as `groups` (N,) has images; any of them may be missing.
    names_kept: the groups that have a name already; nothing else is called so.
    """
    overall = {a: Counter(map(_clean, columns[a])) for a in (*BASE, *OTHERS) if a in columns}
    profiles = [_profile(columns, overall, np.flatnonzero(groups == g)) for g in range(k)]
    bases = [p.base() for p in profiles]
    names = [
        " ".join(filter(None, [base, profile.distinctive()])) if bases.count(base) > 1 or not base else base
        for base, profile in zip(bases, profiles, strict=True)
    ]
    return [Suggestion(name=n, terms=p.terms) for n, p in zip(_unique(names, names_kept or {}), profiles, strict=True)]


def _profile(columns: Columns, overall: Mapping[str, Counter[str]], images: Ints) -> _Profile:
    terms, lifts = [], {}
    total = sum(next(iter(overall.values()), Counter[str]()).values())
    for attribute, everywhere in overall.items():
        values = columns[attribute]
        here = Counter(_clean(values[i]) for i in images)
        del here[""]
        for value, count in here.most_common(LISTED):
            share = count / len(images)
            if share >= LISTED_SHARE:
                terms.append(Term(attribute=attribute, value=value, share=round(share, 4)))
                lifts[attribute, value] = share * total / everywhere[value]
    return _Profile(tuple(sorted(terms, key=lambda t: -t.share)), lifts)


def _short(value: str) -> str:
    """A term as a part of a name: a SOP class without what all of them end in ("Enhanced MR", "RT Dose")."""
    return value.removesuffix(" Storage").removesuffix(" Image")


def _unique(names: Sequence[str], kept: Mapping[int, str]) -> list[str]:
    """Names that differ and are not reserved: an empty one becomes "Category 3", a repeated one gets a number."""
    taken = {UNKNOWN, *(name.casefold() for name in kept.values())}
    result = []
    for i, name in enumerate(names):
        if i in kept:
            result.append(kept[i])
            continue
        stem, number = name[:LONGEST].strip() or f"Category {i + 1}", 2
        candidate = stem
        while candidate.casefold() in taken:
            candidate, number = f"{stem} {number}", number + 1
        taken.add(candidate.casefold())
        result.append(candidate)
    return result


def _clean(value: str | None) -> str:
    """One line of printable text: terminals and CSV files will show it."""
    return " ".join("".join(c if c.isprintable() else " " for c in value or "").split())[:LONGEST]
