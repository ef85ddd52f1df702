"""What the library says to every image, for every artifact: what a server has to say too.

Images are read in decoding workers with the limits of the servers' own, because hostile ones would end this process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from deepmcat_client.requests import RawPlane
from deepmcat_client.results import Categorization as Answer
from deepmcat_core import frame
from deepmcat_core.assigner import DEFAULT_TOP_K, Assignment
from deepmcat_core.catalog import Catalog
from deepmcat_core.categorizer import Categorization, Categorizer
from deepmcat_core.decode_limits import WorkerLimits
from deepmcat_core.decode_pool import DecodePool
from deepmcat_core.engine import open_engine
from deepmcat_core.errors import ImageError
from deepmcat_core.planes import Planes

from .shelf import Shelf
from .specimens import Specimen

FRAMES = (0, 2)
"""What callers ask for: the artifact's policy, and another number."""

DISTANCE = 1e-5
P_VALUE = 0.02  # steps of it are one calibration image, which a difference of DISTANCE can pass
COSINE = 1 - 1e-5

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How an image is asked for."""

    specimen: Specimen
    frames: int = 0
    top_k: int = 0
    want_embedding: bool = False


@dataclass(frozen=True, slots=True)
class _Read:
    """An image as its artifact's encoder sees it. embeddings: (F, D)."""

    planes: Planes
    embeddings: Floats


class Oracle:
    """Knows the answer to each of `specimens`, and keeps those that have one: see `kept`."""

    def __init__(self, shelf: Shelf, specimens: Sequence[Specimen], limits: WorkerLimits) -> None:
        self._catalogs = shelf.catalogs
        self._known: dict[tuple[str, str, int], _Read | ImageError] = {}
        self._categorizers = {
            a.artifact_id: Categorizer(a, open_engine(a, device="cpu")) for a in shelf.artifacts.values()
        }
        with DecodePool(2, limits) as pool:
            for key, read in list(self._reading(specimens, pool)):
                self._known[key] = read()
        self.kept = [specimen for specimen in specimens if self._is_steady(specimen)]

    def is_good(self, specimen: Specimen) -> bool:
        """Whether it is an image, for every artifact."""
        return not any(isinstance(self._known[a, specimen.name, 0], ImageError) for a in self._categorizers)

    def expected(self, asked: Asked, artifact_id: str, catalog_version: int) -> Categorization | ImageError | None:
        """What this artifact says with this catalog; None where there is no such thing."""
        catalog = self._catalogs.get(artifact_id, {}).get(catalog_version)
        if catalog is None:
            return None
        return self._answer(artifact_id, catalog, asked)

    def versions_from(self, artifact_id: str, oldest: int) -> list[int]:
        """The catalog versions of an artifact from one on; none where there is no such artifact."""
        return [version for version in list(self._catalogs.get(artifact_id, {})) if version >= oldest]

    def reason(self, asked: Asked) -> str:
        """The error that an image gets, whatever the artifact; "" for one that is an image."""
        read = self._known[next(iter(self._categorizers)), asked.specimen.name, asked.frames]
        return read.reason if isinstance(read, ImageError) else ""

    def _reading(
        self, specimens: Iterable[Specimen], pool: DecodePool
    ) -> Iterator[tuple[tuple[str, str, int], partial[_Read | ImageError]]]:
        """For each image what will have read it. Artifacts that read alike share it."""
        for specimen in specimens:
            reading = {}
            for artifact_id, categorizer in self._categorizers.items():
                for frames in FRAMES:
                    options = categorizer.read_options(frames)
                    key = (options.preprocessing.size, frames)
                    reading[key] = reading.get(key) or pool.submit(core_source(specimen.source), options)
                    yield (artifact_id, specimen.name, frames), partial(_embedded, categorizer, reading[key])

    def _answer(
        self, artifact_id: str, catalog: Catalog, asked: Asked, off: Floats | float = 0
    ) -> Categorization | ImageError:
        read = self._known[artifact_id, asked.specimen.name, asked.frames]
        if isinstance(read, ImageError):
            return read
        categorizer = self._categorizers[artifact_id]
        if categorizer.catalog is not catalog:
            categorizer.use_catalog(catalog)
        embeddings = (read.embeddings + off).astype(np.float32)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        return categorizer.answer(read.planes, embeddings, asked.top_k or DEFAULT_TOP_K)

    def _is_steady(self, specimen: Specimen) -> bool:
        """Whether no rounding could change what is answered: one between two clusters has two right answers."""
        if len({type(self._known[a, specimen.name, f]) for a in self._categorizers for f in FRAMES}) > 1:
            return False  # an image or not, depending on who asks: left to the conformance tests
        rng = np.random.default_rng(0)
        for artifact_id in self._categorizers:
            for frames in FRAMES:
                asked, catalog = Asked(specimen=specimen, frames=frames), self._catalogs[artifact_id][1]
                read = self._known[artifact_id, specimen.name, frames]
                if isinstance(read, ImageError):
                    continue
                offs = [np.zeros(1), *(rng.normal(0, 2 * DISTANCE, read.embeddings.shape) for _ in range(8))]
                answers = [self._answer(artifact_id, catalog, asked, off) for off in offs]
                if len({_named(answer) for answer in answers}) > 1:
                    return False
        return True


def core_source(source: bytes | RawPlane) -> frame.ImageSource:
    """A source as the core takes it."""
    if isinstance(source, bytes):
        return source
    return frame.RawPlane(
        rows=source.rows, columns=source.columns, sample_type=source.sample_type, data=source.data,
        inverted=source.inverted,
    )  # fmt: skip


def difference(found: Answer, expected: Categorization, asked: Asked) -> str:
    """What is wrong with an answer; "" for nothing. Both say the same artifact and catalog version."""
    pairs = {
        "total_frames": (found.total_frames, expected.total_frames),
        "flags": (found.flags, tuple(sorted(flag.value for flag in expected.flags))),
        "frame numbers": ([f.frame_number for f in found.frames], [f.index + 1 for f in expected.frames]),
        "an embedding": (found.embedding is not None, asked.want_embedding),
        "candidates": (_candidates(found.assignment), _candidates(expected.assignment)),
    }
    wrong = [f"{name}: {a} instead of {b}" for name, (a, b) in pairs.items() if a != b]
    for a, b in zip([found, *found.frames], [expected, *expected.frames], strict=False):
        wrong += _differences(a.assignment, b.assignment)
    if found.embedding is not None:
        cosine = float(np.frombuffer(found.embedding.data, "<f4") @ expected.embedding)
        wrong += [f"the embedding's cosine is {cosine:.6f}"] * (cosine < COSINE)
    return "; ".join(wrong)


def _differences(found: Assignment, expected: Assignment) -> Iterator[str]:
    for name in ("category_id", "category", "cluster_id", "outlier"):
        a, b = getattr(found, name), getattr(expected, name)
        if a != b:
            yield f"{name}: {a} instead of {b}"
    for name, allowed in (("distance", DISTANCE), ("p_value", P_VALUE)):
        a, b = getattr(found, name), getattr(expected, name)
        if (a is None) != (b is None) or (a is not None and not abs(a - b) <= allowed):
            yield f"{name}: {a} instead of {b}"


def _candidates(assignment: Assignment) -> list[tuple[str, int]]:
    return [(candidate.category_id, candidate.cluster_id) for candidate in assignment.candidates]


def _named(answer: Categorization | ImageError) -> tuple[object, ...]:
    """All of an answer that is not a number."""
    assert isinstance(answer, Categorization)
    all_ = [answer.assignment, *(f.assignment for f in answer.frames)]
    return tuple((a.category_id, a.cluster_id, a.outlier, *_candidates(a)) for a in all_)


def _embedded(categorizer: Categorizer, reading: object) -> _Read | ImageError:
    try:
        planes = reading.result()
    except ImageError as error:
        return error
    return _Read(planes, categorizer.engine.embed(planes.planes[:, None]))
