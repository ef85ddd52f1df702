"""A soak is worth what it finds: each kind of broken promise is found in books and samples that were made for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.soak import promises
from tests.soak.ledger import Ledger
from tests.soak.oracle import Asked, Oracle
from tests.soak.shelf import Shelf
from tests.soak.specimens import Specimen
from tests.soak.vitals import Series, Vitals, theil_sen

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_client import wire
from deepmcat_client.errors import BY_REASON, CorruptImage, ServerBusy
from deepmcat_client.requests import RawPlane
from deepmcat_client.results import Categorization
from deepmcat_core.decode_limits import WorkerLimits
from deepmcat_server import wire as server_wire

WHO = "a caller"
MIB = 2**20


@pytest.fixture(name="shelf", scope="module")
def shelf_fixture(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))


@pytest.fixture(name="specimens", scope="module")
def specimens_fixture() -> list[Specimen]:
    rng = np.random.default_rng(5)
    data = [np.kron(rng.integers(0, 256, (4, 4), np.uint8), np.ones((8, 8), np.uint8)).tobytes() for _ in range(3)]
    planes = [RawPlane(rows=32, columns=32, sample_type="uint8", data=each) for each in data]
    images = [Specimen(name=f"plane {n}", source=plane) for n, plane in enumerate(planes)]
    return [*images, Specimen(name="none", source=b"no image at all" * 20)]


@pytest.fixture(name="oracle", scope="module")
def oracle_fixture(shelf: Shelf, specimens: list[Specimen]) -> Oracle:
    return Oracle(shelf, specimens, WorkerLimits())


@pytest.fixture(name="ledger")
def ledger_fixture(oracle: Oracle) -> Ledger:
    return Ledger(oracle)


@pytest.fixture(name="answer")
def answer_fixture(oracle: Oracle, shelf: Shelf) -> Callable[..., Categorization]:
    """`answer(asked, category="other")`: what a server says to an image, with some of it changed."""

    def answer(asked: Asked, version: int = 1, **changes: Any) -> Categorization:
        artifact_id = shelf.artifacts["a"].artifact_id
        expected = oracle.expected(asked, artifact_id, version)
        message: Any = server_wire.categorization(expected, want_embedding=asked.want_embedding)
        for name, value in changes.items():
            setattr(message if hasattr(message, name) else message.assignment, name, value)
        return wire.categorization(pb.Categorization.FromString(message.SerializeToString()))

    return answer


def broken(ledger: Ledger) -> list[str]:
    return [promise.name for promise in promises.of_books(ledger) if not promise.kept]


def test_right_answers_break_no_promise(ledger, answer, specimens, shelf, oracle):
    """What the library says is right, with an embedding and without, and by the names of any catalog version."""
    assert shelf.rename_categories("a").version == 2
    for version, want_embedding in ((1, False), (2, True)):
        asked = Asked(specimen=specimens[0], want_embedding=want_embedding)
        ledger.sends(WHO)
        ledger.answered(WHO, asked, answer(asked, version))
    ledger.sends(WHO)
    none = Asked(specimen=specimens[3])
    ledger.answered(WHO, none, BY_REASON[oracle.reason(none)]("as expected"))
    assert broken(ledger) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster_id": 11},
        {"category": "kind 3, 2"},
        {"category_id": "c-0"},
        {"distance": 0.9},
        {"catalog_version": 99},
        {"artifact_id": "f" * 64},
        {"total_frames": 2},
        {"p_value": 0.5},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_wrong_answer_is_found(ledger, answer, specimens, changes):
    """Each part of an answer that is not the library's is a wrong answer."""
    asked = Asked(specimen=specimens[1])
    assert getattr(answer(asked).assignment, next(iter(changes)), None) != next(iter(changes.values()))
    ledger.sends(WHO)
    ledger.answered(WHO, asked, answer(asked, **changes))
    assert broken(ledger) == ["every answer is what the library says"]


def test_another_image_s_answer_is_found(ledger, answer, specimens):
    """An answer that is right for a neighbour is wrong."""
    ledger.sends(WHO)
    ledger.answered(WHO, Asked(specimen=specimens[0]), answer(Asked(specimen=specimens[2])))
    assert broken(ledger) == ["every answer is what the library says"]


@pytest.mark.parametrize("error", [ServerBusy("full"), CorruptImage("not this one")])
def test_a_good_image_that_ends_with_an_error_is_lost(ledger, specimens, error):
    """No error is an answer to an image that has one, be it temporary or not."""
    ledger.sends(WHO)
    ledger.answered(WHO, Asked(specimen=specimens[0]), error)
    assert broken(ledger) == ["no image is lost"]


def test_an_image_without_a_word_is_missed(ledger):
    """What was sent, and neither answered nor left by its caller, is not accounted for."""
    ledger.sends(WHO, 3)
    ledger.vanishes(WHO, 2)
    assert broken(ledger) == ["every image is accounted for"]


def series(rss: Sequence[float], step_s: float = 1.0, **changes: Sequence[int]) -> Series:
    """Samples of a process with this memory, in MiB."""
    values = {"workers_rss_bytes": [100] * len(rss), "descriptors": [40] * len(rss), "threads": [20] * len(rss)}
    values |= {name: [0] * len(rss) for name in ("children", "shared", "temporary")} | changes
    samples = [
        Vitals(at_s=n * step_s, rss_bytes=round(mib * MIB), **{name: each[n] for name, each in values.items()})
        for n, mib in enumerate(rss)
    ]
    return Series(SimpleNamespace(name="steady", temporary=Path("/nowhere")), samples)


@pytest.mark.parametrize(("mib_a_minute", "kept"), [(0.0, True), (0.1, True), (0.6, False)])
def test_a_slow_leak_is_found_in_half_an_hour(mib_a_minute, kept):
    """Over 2 % in ten minutes at rest is too much, however much memory goes up and down with what is inside."""
    rng = np.random.default_rng(1)
    run = series([200 + mib_a_minute * minute + rng.normal(20, 15) for minute in np.linspace(0, 30, 1800)])
    run.at_rest = series([200 + mib_a_minute * 4 * n + rng.normal(0, 0.3) for n in range(8)], 240.0).samples
    assert [p.kept for p in promises.of_memory(run)] == [kept, True, True]


@pytest.mark.parametrize(("last", "kept"), [(210, True), (260, False)])
def test_a_gross_leak_is_found_in_two_minutes(last, kept):
    """In a short run there are two rests, and what is held at the second may not be much more."""
    run = series([200] * 120)
    run.at_rest = series([200, last], 60.0).samples
    assert [p.kept for p in promises.of_memory(run)] == [kept, True, True]


def test_memory_that_grows_at_work_is_found():
    """Workers, or a server, that grow by a third while they work are found also where a rest would give it back."""
    growing = [100 + n // 6 for n in range(600)]
    run = series(growing, workers_rss_bytes=growing)
    run.at_rest = series([100, 100, 100]).samples
    assert [p.kept for p in promises.of_memory(run)] == [True, False, False]


@pytest.mark.parametrize("name", ["descriptors", "threads", "children", "shared", "temporary"])
def test_what_is_never_given_back_is_found(name):
    """A server that holds ever more of anything is found out."""
    growing = series([200] * 600, **{name: [20 + n // 10 for n in range(600)]})
    assert [p.name for p in promises.of_leftovers(growing) if not p.kept] == [f"{name}, no growth"]


def test_the_slope_is_that_of_most_samples():
    """A third of samples that are anything does not tilt the slope."""
    values = [2.0 * n for n in range(300)]
    values[::3] = [1e6] * 100
    assert theil_sen(range(300), values) == pytest.approx(2.0, rel=0.2)
