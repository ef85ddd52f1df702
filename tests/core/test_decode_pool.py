"""Promises of the decode pool: the same planes, errors that travel, and deaths that cost one image at most."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError
from pathlib import Path

import numpy as np
import pytest

from deepmcat_core.decode_pool import DecodePool
from deepmcat_core.errors import ConfigError, CorruptImage, ImageTooLarge
from deepmcat_core.planes import ReadOptions, read_planes


@pytest.fixture(scope="module", name="pool")
def pool_fixture() -> Iterator[DecodePool]:
    root = str(Path(__file__).parents[2])
    sys.path.insert(0, root)  # workers have to find the functions of this module
    with DecodePool(2) as pool:
        yield pool
    sys.path.remove(root)


def test_a_worker_reads_what_read_planes_reads(pool, make_dicom):
    """The pool changes where it happens and nothing else."""
    data = [make_dicom(np.random.default_rng(i).integers(0, 999, (8, 8)).astype(np.uint16)) for i in range(8)]

    futures = [pool.submit(item, ReadOptions()) for item in data]

    for item, future in zip(data, futures, strict=True):
        np.testing.assert_array_equal(future.result().planes, read_planes(item, ReadOptions()).planes)


def test_errors_come_back_without_their_cause(pool, make_dicom):
    """The sentence is ours; the decoder's, which may quote a header, stays in the worker."""
    with pytest.raises(CorruptImage, match="cannot be decoded") as caught:
        pool.submit(make_dicom(np.eye(3, dtype=np.uint8), PhotometricInterpretation="DOE"), ReadOptions()).result()

    assert "DOE" not in repr(caught.value.__cause__) + repr(caught.value.__context__)


def test_workers_import_no_more_than_decoding_needs(pool):
    """A worker that imported torch would cost a gigabyte and seconds; one that imported an engine, a GPU."""
    modules = pool.submit_call(_imported).result()

    assert not modules & {"torch", "faiss", "onnxruntime", "transformers", "scipy", "grpc", "pydantic"}
    assert "pydicom" in modules


def test_a_call_that_kills_its_worker_is_tried_once_more_and_given_up(pool):
    """Two deaths, two new workers, one error; the pool goes on."""
    before = pool.restarts

    with pytest.raises(CorruptImage, match="died"):
        pool.submit_call(os._exit, 3).result()

    assert pool.restarts == before + 2
    assert pool.submit_call(os.getpid).result() != os.getpid()


def test_a_death_costs_nobody_else_anything(pool, make_dicom):
    """Images around one that kills its worker are answered, each once."""
    good = make_dicom(np.eye(8, dtype=np.uint8))
    before = [pool.submit(good, ReadOptions()) for _ in range(6)]
    killer = pool.submit_call(os._exit, 3)
    after = [pool.submit(good, ReadOptions()) for _ in range(6)]

    assert all(future.result().total_frames == 1 for future in before + after)
    assert isinstance(killer.exception(), CorruptImage)


def test_an_image_survives_the_first_death(pool, tmp_path):
    """A worker killed from outside costs the image in its hands a second try."""
    before = pool.restarts

    assert pool.submit_call(_die_once, str(tmp_path / "died")).result() == "survived"
    assert pool.restarts == before + 1


def test_a_worker_killed_while_idle_is_replaced(pool):
    """Nobody notices, but the counter."""
    before = pool.restarts
    pid = pool.submit_call(os.getpid).result()
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)

    assert pid not in {future.result() for future in [pool.submit_call(_pid_after_a_while) for _ in range(4)]}
    assert pool.restarts == before + 1


def test_functions_raise_what_they_raise(pool):
    """`submit_call` is for any picklable function, and its errors are its own."""
    with pytest.raises(ConfigError, match="no such thing"):
        pool.submit_call(_refuse, "no such thing").result()


def test_what_cannot_travel_is_an_error_and_not_a_death(pool):
    """Neither arguments nor results that cannot be pickled look like a damaged image."""
    before = pool.restarts

    with pytest.raises(TypeError, match="cannot be pickled"):
        pool.submit_call(_unpicklable).result()
    with pytest.raises(TypeError):
        pool.submit_call(str, threading.Lock()).result()
    with pytest.raises(ModuleNotFoundError):
        pool.submit_call(_from_nowhere()).result()

    assert pool.restarts == before


def test_workers_leave_ctrl_c_to_their_parent(pool):
    """A SIGINT, which a terminal sends to all of them, ends no worker."""
    before = pool.restarts

    assert pool.submit_call(_interrupt_yourself).result() == "still here"
    assert pool.restarts == before


def test_workers_retire_after_their_tasks():
    """A codec that leaks does so for a bounded time; retiring is not dying."""
    with DecodePool(1, max_tasks=2) as pool:
        pids = [pool.submit_call(os.getpid).result() for _ in range(4)]

        assert pids[0] == pids[1] != pids[2] == pids[3]
        assert pool.restarts == 0


def test_a_cancelled_call_leaves_and_takes_its_image_with_it(pool, tmp_path):
    """What nobody waits for any more holds no memory, however long the calls before it take."""
    held = [pool.submit_call(_wait_for, str(tmp_path / "go on")) for _ in range(2)]
    images = [Image(bytes(1000)) for _ in range(20)]
    alive = [weakref.ref(image) for image in images]
    futures = [pool.submit_call(len, image) for image in images]
    del images
    for future in futures:
        assert future.cancel()

    assert [ref() for ref in alive] == [None] * 20
    assert not any(future.done() for future in held)
    (tmp_path / "go on").touch()
    assert pool.submit_call(len, b"four").result() == 4


def test_an_answered_call_leaves_nothing_behind(pool):
    """A worker's thread does not keep the last image while it waits for the next."""
    image = Image(bytes(1000))
    alive = weakref.ref(image)
    future = pool.submit_call(len, image)
    del image

    assert future.result() == 1000
    deadline = time.monotonic() + 10
    while alive() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert alive() is None


def test_a_call_that_takes_too_long_loses_its_worker():
    """A codec that loops ends with its image: no second try, the worker is replaced and counted, the others go on."""
    with DecodePool(1, timeout_s=1.0) as pool:
        pid = pool.submit_call(os.getpid).result()
        stuck = pool.submit_call(time.sleep, 600)
        behind = pool.submit_call(os.getpid)

        with pytest.raises(ImageTooLarge, match="took longer than 1 s"):
            stuck.result(timeout=30)
        assert behind.result(timeout=30) != pid
        assert pool.restarts == 1


def test_workers_of_a_killed_parent_end_without_a_word():
    """A parent that is killed takes its workers with it, busy or not, and nothing is printed."""
    program = (
        "import os, signal, time\n"
        "from deepmcat_core.decode_pool import DecodePool\n"
        "if __name__ == '__main__':\n"
        "    pool = DecodePool(2)\n"
        "    pids = {pool.submit_call(os.getpid).result()}\n"
        "    busy = pool.submit_call(time.sleep, 0.5)\n"
        "    while not busy.running(): time.sleep(0.01)\n"
        "    pids.add(pool.submit_call(os.getpid).result())\n"
        "    time.sleep(0.1)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # Standard error is a pipe that every worker has open: reading it to its end waits for the last of them.
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert ended.returncode == -signal.SIGKILL
    assert ended.stderr == ""


def test_closing_cancels_what_waits_and_ends_what_hangs():
    """Whoever opens the pool closes it, and no future is left without an answer."""
    pool = DecodePool(1)
    assert pool.submit_call(os.getpid).result()
    running = pool.submit_call(time.sleep, 60)
    waiting = pool.submit_call(time.sleep, 60)
    while not running.running():
        time.sleep(0.01)

    pool.close(grace_s=0.1)

    with pytest.raises(CancelledError):
        waiting.result()
    with pytest.raises(BrokenExecutor, match="closed"):
        running.result()
    with pytest.raises(BrokenExecutor, match="closed"):
        pool.submit_call(os.getpid)
    pool.close()


class Image(bytearray):
    """Bytes that can be watched: plain ones have no weak references."""


def _imported() -> set[str]:
    return {name.split(".")[0] for name in sys.modules}


def _die_once(path: str) -> str:
    if not Path(path).exists():
        Path(path).touch()
        os._exit(1)
    return "survived"


def _wait_for(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.01)


def _pid_after_a_while() -> int:
    time.sleep(0.05)
    return os.getpid()


def _refuse(what: str) -> None:
    raise ConfigError(what)


def _unpicklable() -> object:
    return threading.Lock()


def _from_nowhere() -> Callable[[], None]:
    """A function that pickles here and cannot be found in a worker."""
    module = types.ModuleType("deepmcat_test_nowhere")
    exec("def function(): pass", module.__dict__)
    sys.modules[module.__name__] = module
    function: Callable[[], None] = module.__dict__["function"]
    return function


def _interrupt_yourself() -> str:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.05)
    return "still here"
