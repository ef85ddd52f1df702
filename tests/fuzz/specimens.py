"""Files to decode, whole or damaged, each described by a few words and numbers from which it can be made again."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from . import damage
from .damage import Step, damaged
from .hazards import hazards
from .objects import KINDS, make_object
from .plane_files import PLANE_FILES, make_plane_file

# Every kind of file: from a seed to its bytes.
ORIGINALS: dict[str, Callable[[int], bytes]] = {
    **{f"{syntax.keyword}, {content}": partial(make_object, syntax, content) for syntax, content in KINDS},
    **{name: partial(make_plane_file, name) for name in PLANE_FILES},
}
_PER_DAMAGE = 6


@dataclass(frozen=True, slots=True)
class Specimen:
    """A file of a kind of `ORIGINALS`, and what was done to it."""

    kind: str
    seed: int
    steps: tuple[Step, ...] = ()

    def build(self) -> bytes:
        """The file."""
        return damaged(ORIGINALS[self.kind](self.seed), self.steps)


def damages_of(kind: str) -> list[str]:
    """The names of damage that a kind of file can take."""
    return [*damage.BYTES, *(damage.PLANES if kind in PLANE_FILES else damage.DICOM)]


def whole() -> Iterator[Specimen]:
    """One of every kind."""
    for kind in ORIGINALS:
        yield Specimen(kind, 0)


def broken() -> Iterator[Specimen]:
    """Every damage, done to some of the kinds that it does anything to; the same ones every time."""
    for name in damage.ALL:
        rng = Random(name)
        kinds = [kind for kind in ORIGINALS if name in damages_of(kind)]
        tried = (Specimen(rng.choice(kinds), 0, ((name, rng.randrange(2**32)),)) for _ in range(1000))
        changed = (specimen for specimen in tried if specimen.build() != Specimen(specimen.kind, 0).build())
        yield from (specimen for specimen, _ in zip(changed, range(_PER_DAMAGE), strict=False))


def write(folder: Path) -> int:
    """Write every specimen and every hazard into a folder, and say how many."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [*(specimen.build() for specimen in (*whole(), *broken())), *(hazard.data for hazard in hazards())]
    for number, data in enumerate(files):
        (folder / f"{number:04d}").write_bytes(data)
    return len(files)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the generated corpus into a folder.")
    parser.add_argument("folder", type=Path)
    print(write(parser.parse_args().folder), "files")
