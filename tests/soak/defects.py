"""`deepmcat serve` with a defect, to see that a soak finds it: `python -m tests.soak.defects DEFECT serve …`."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from typing import Any

from deepmcat_client.cli import main
from deepmcat_core.categorizer import Categorizer

EVERY = 1000


def wrong() -> None:
    """One answer of a thousand names another cluster."""
    inner, count = Categorizer.answer, itertools.count(1)

    def answer(self: Categorizer, *args: Any, **options: Any) -> Any:
        found = inner(self, *args, **options)
        if next(count) % EVERY:
            return found
        cluster_id = (found.assignment.cluster_id + 1) % self.artifact.manifest.k
        return dataclasses.replace(found, assignment=dataclasses.replace(found.assignment, cluster_id=cluster_id))

    Categorizer.answer = answer


def failing() -> None:
    """One answer of a thousand is a bug."""
    inner, count = Categorizer.answer, itertools.count(1)

    def answer(self: Categorizer, *args: Any, **options: Any) -> Any:
        if next(count) % EVERY == 0:
            raise KeyError("a bug")
        return inner(self, *args, **options)

    Categorizer.answer = answer


def leak() -> None:
    """Each answer keeps 200 kB."""
    inner, kept = Categorizer.answer, []

    def answer(self: Categorizer, *args: Any, **options: Any) -> Any:
        kept.append(bytearray(b"x") * 200_000)
        return inner(self, *args, **options)

    Categorizer.answer = answer


def stuck() -> None:
    """One image of a thousand that leaves does not give its room back."""
    from deepmcat_server.room import Place

    inner, count = Place.release, itertools.count(1)

    def release(self: Any) -> None:
        if next(count) % EVERY:
            inner(self)

    Place.release = release


DEFECTS = {function.__name__: function for function in (wrong, failing, leak, stuck)}

if __name__ == "__main__":
    DEFECTS[sys.argv[1]]()
    sys.exit(main(sys.argv[2:]))
