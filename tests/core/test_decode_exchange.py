"""What goes to a decoding worker and back comes as it was sent, large or small."""

from __future__ import annotations

import errno
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from deepmcat_core import decode_exchange
from deepmcat_core.decode_exchange import ROOM_BYTES, Exchange, Room

Ends = tuple[Exchange, Exchange]
LARGE = bytes(range(256)) * 2**10


def room_of(*, shared: bool, monkeypatch: pytest.MonkeyPatch) -> Room:
    if not shared:
        monkeypatch.delattr(decode_exchange.os, "memfd_create", raising=False)
    elif not hasattr(decode_exchange.os, "memfd_create"):
        pytest.skip("this platform has no memory without a name")
    return Room()


def across(sender: Exchange, receiver: Exchange, value: Any) -> Any:
    """What comes out at the other end, which reads while this one writes: a pipe holds 64 KiB."""
    with ThreadPoolExecutor(1) as reader:
        received = reader.submit(receiver.receive)
        sender.send(value)
        return received.result()


@pytest.fixture(name="ends", params=[True, False], ids=["shared memory", "the pipe alone"])
def ends_fixture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    room = room_of(shared=request.param, monkeypatch=monkeypatch)
    ours, theirs = multiprocessing.Pipe()
    yield Exchange(ours, room), Exchange(theirs, room)
    ours.close()
    theirs.close()
    room.close()


@pytest.mark.parametrize(
    "value",
    [
        b"",
        LARGE,
        (LARGE, LARGE[::-1], [b"small", LARGE], None),
        np.arange(60_000, dtype=np.uint16).reshape(3, 100, 200),
        np.arange(60_000, dtype=np.int32).reshape(300, 200)[::2].T,
        np.zeros((0, 5)),
        {"image": np.full((2, 40_000), 1.5), "of": LARGE},
    ],
    ids=["nothing", "bytes", "several", "array", "a view of an array", "an array of nothing", "both"],
)
def test_what_is_sent_is_received(ends: Ends, value: Any) -> None:
    """Bytes and arrays come with their type and shape, whatever is beside them."""
    ours, theirs = ends
    received = across(ours, theirs, value)
    np.testing.assert_equal(received, value)
    if isinstance(value, np.ndarray):
        assert received.dtype == value.dtype
        assert received.flags.writeable


def test_large_things_are_beside_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an image, the pipe carries its place."""
    room = room_of(shared=True, monkeypatch=monkeypatch)
    ours, theirs = multiprocessing.Pipe()
    Exchange(ours, room).send((LARGE, np.zeros(100_000)))
    assert len(theirs.recv_bytes()) < 500
    room.close()


def test_what_was_received_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a copy: what is sent next changes nothing of it."""
    room = room_of(shared=True, monkeypatch=monkeypatch)
    ours, theirs = multiprocessing.Pipe()
    sender, receiver = Exchange(ours, room), Exchange(theirs, room)
    sender.send((LARGE, np.ones(100_000)))
    data, ones = receiver.receive()
    sender.send((bytes(len(LARGE)), np.zeros(100_000)))
    assert data == LARGE
    assert ones.all()
    room.close()


def test_what_finds_no_room_goes_through_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the room holds: the first things lie there, the others come with the message."""
    room = room_of(shared=True, monkeypatch=monkeypatch)
    ours, theirs = multiprocessing.Pipe()
    value = (LARGE, b"x" * ROOM_BYTES, LARGE[::-1])
    assert across(Exchange(ours, room), Exchange(theirs, room), value) == value
    room.close()


def test_a_place_outside_of_the_room_is_nobodys_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever places the other end names, only what is in the room is read."""
    room = room_of(shared=True, monkeypatch=monkeypatch)
    room.put(b"end", ROOM_BYTES - 3)
    with room.view(ROOM_BYTES - 3, ROOM_BYTES + 100) as found:
        assert bytes(found) == b"end"
    assert room.put(b"four", ROOM_BYTES - 3) is None
    room.close()


def refusing(number: int) -> Callable[..., int]:
    def refused(*args: object) -> int:
        raise OSError(number, os.strerror(number))

    return refused


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENOSYS])
def test_where_shared_memory_is_not_allowed_the_pipe_is_enough(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox or a kernel's setting may forbid it: what is sent is received all the same."""
    monkeypatch.setattr(decode_exchange.os, "memfd_create", refusing(number), raising=False)
    room = Room()
    ours, theirs = multiprocessing.Pipe()
    assert across(Exchange(ours, room), Exchange(theirs, room), LARGE) == LARGE
    room.close()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this platform has no memory without a name")
def test_a_room_that_cannot_be_made_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where descriptors run out on the way, the one that it had is closed."""
    given: list[int] = []
    create = os.memfd_create

    def remembered(*args: Any) -> int:
        given.append(create(*args))
        return given[-1]

    monkeypatch.setattr(decode_exchange.os, "memfd_create", remembered)
    monkeypatch.setattr(decode_exchange.mmap, "mmap", refusing(errno.EMFILE))
    with pytest.raises(OSError, match="Too many open files"):
        Room()
    assert len(given) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(given[0])


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this platform has no memory without a name")
def test_the_other_end_cannot_make_the_room_smaller() -> None:
    """Reading what is no more would end this process."""
    room = Room()
    assert room._descriptor is not None
    with pytest.raises(PermissionError):
        os.ftruncate(room._descriptor, 0)
    room.close()
