"""`deepmcat serve` with a defect, to see that a soak finds it: `python -m tests.soak.defects DEFECT serve …`.

They sit where answers become messages, after everything else.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

from deepmcat_client.cli import main

EVERY = 50


def wrong() -> None:
    """One answer of fifty names another cluster."""
    from deepmcat_server import wire

    inner, count = wire.categorization, itertools.count(1)

    def categorization(*args: Any, **options: Any) -> Any:
        message: Any = inner(*args, **options)
        if next(count) % EVERY == 0:
            message.assignment.cluster_id += 1
        return message

    wire.categorization = categorization


def failing() -> None:
    """One answer of fifty is a bug."""
    from deepmcat_server import wire

    inner, count = wire.categorization, itertools.count(1)

    def categorization(*args: Any, **options: Any) -> Any:
        if next(count) % EVERY == 0:
            raise KeyError("a bug")
        return inner(*args, **options)

    wire.categorization = categorization


def leak() -> None:
    """Each answer keeps 200 kB."""
    from deepmcat_server import wire

    inner, kept = wire.categorization, []

    def categorization(*args: Any, **options: Any) -> Any:
        kept.append(bytearray(b"x") * 200_000)
        return inner(*args, **options)

    wire.categorization = categorization


def stuck() -> None:
    """One image of fifty that leaves does not give its room back."""
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
