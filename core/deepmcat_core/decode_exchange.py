"""What goes between a process and its decoding worker: pickles through a pipe, and images beside it in shared memory.

    sender ─copy─► Room ─copy─► receiver        bytes and arrays of some size
       └──pickle, with their places──pipe──►    everything else

Through the pipe an image is copied five times and wakes the other end up for each 64 KiB or so. Both ends take turns,
each reads all of a message before it answers, and what was read is a copy; so one room is enough for both directions,
and whatever the other end writes later changes nothing.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
import pickle
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

ROOM_BYTES = 2**23  # of memory only as far as it was ever filled
_LARGE_BYTES = 2**15  # less is quicker through the pipe
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.ENOSYS, errno.EINVAL})


class _Place(NamedTuple):
    """Where something lies in the room. dtype and shape: of an array; None: bytes."""

    start: int
    stop: int
    dtype: str | None = None
    shape: tuple[int, ...] = ()


class Room:
    """Memory that this process and its worker share, without a name: no other process can open it.

    It travels to a worker as an argument of its Process. Where the platform has no memfd_create(2), or does not allow
    it, it holds nothing. Raises OSError where descriptors or memory are short.
    """

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._descriptor = _nameless()
        if self._descriptor is not None:
            try:
                os.ftruncate(self._descriptor, ROOM_BYTES)
                _seal(self._descriptor)
                self._memory = mmap.mmap(self._descriptor, ROOM_BYTES)
            except OSError:
                self.close()
                raise

    def __reduce__(self) -> tuple[Callable[..., Room], tuple[Any, ...]]:
        """For a process that is being spawned, and for nothing else."""
        if self._descriptor is None:
            return Room, ()
        from multiprocessing.reduction import DupFd

        return _shared, (DupFd(self._descriptor),)

    def put(self, data: bytes | memoryview, start: int) -> int | None:
        """Copy `data` to `start`; where it ends, or None where there is no room."""
        stop = start + len(data)
        if self._memory is None or stop > len(self._memory):
            return None
        self._memory[start:stop] = data
        return stop

    def view(self, start: int, stop: int) -> memoryview:
        """What lies there, until the other end writes again. To be copied at once: the room cannot close before."""
        return memoryview(self._memory or b"")[start:stop]

    def sent(self) -> None:
        """The worker has it: nobody else is to get it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def close(self) -> None:
        """Let go of it."""
        self.sent()
        if self._memory is not None:
            self._memory.close()
            self._memory = None


def _nameless() -> int | None:
    """A descriptor of memory without a name; None where there is none to be had (vm.memfd_noexec, a seccomp filter)."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        return os.memfd_create("deepmcat-decode", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        if error.errno in _NOT_ALLOWED:
            return None
        raise


def _seal(descriptor: int) -> None:
    """Have it keep its size: a worker that made it smaller would have whoever reads it killed by SIGBUS."""
    import fcntl  # where there is memory without a name, there is this

    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)


def _shared(descriptor: Any) -> Room:
    room = Room.__new__(Room)
    room._descriptor = descriptor.detach()
    room._memory = mmap.mmap(room._descriptor, ROOM_BYTES)
    room.sent()
    return room


class Exchange:
    """One end of a pipe with the room beside it."""

    def __init__(self, pipe: Connection, room: Room) -> None:
        self._pipe = pipe
        self._room = room

    def send(self, value: Any) -> None:
        """Send what can be pickled. Raises what pickling raises, before anything is sent, and OSError."""
        written = io.BytesIO()
        _Writer(written, self._room).dump(value)
        self._pipe.send_bytes(written.getbuffer())

    def receive(self) -> Any:
        """What the other end sent. Raises EOFError and OSError where it is gone, and what unpickling raises."""
        return _Reader(io.BytesIO(self._pipe.recv_bytes()), self._room).load()

    def close(self) -> None:
        """Close the pipe and let go of the room."""
        self._pipe.close()
        self._room.close()


class _Writer(pickle.Pickler):
    """Puts what is large into the room, one behind the other."""

    def __init__(self, file: io.BytesIO, room: Room) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._room = room
        self._end = 0

    def persistent_id(self, value: Any) -> _Place | None:
        """Its place in the room; None: it is pickled, because it is small, another thing, or finds no room."""
        if type(value) is bytes and len(value) >= _LARGE_BYTES:
            return self._place(value)
        if type(value) is np.ndarray and value.nbytes >= _LARGE_BYTES and not value.dtype.hasobject:
            data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
            return self._place(data.data, value.dtype.str, value.shape)
        return None

    def _place(self, data: bytes | memoryview, dtype: str | None = None, shape: tuple[int, ...] = ()) -> _Place | None:
        start = self._end
        stop = self._room.put(data, start)
        if stop is None:
            return None
        self._end = stop
        return _Place(start, stop, dtype, shape)


class _Reader(pickle.Unpickler):
    """Takes copies out of the room."""

    def __init__(self, file: io.BytesIO, room: Room) -> None:
        super().__init__(file)
        self._room = room

    def persistent_load(self, place: _Place) -> Any:
        """What lies there."""
        with self._room.view(place.start, place.stop) as data:
            if place.dtype is None:
                return bytes(data)
            return np.array(np.frombuffer(data, place.dtype).reshape(place.shape))
