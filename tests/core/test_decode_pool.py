"""Promises of the decode pool: the same planes, errors that travel, and deaths that cost one image at most."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import multiprocessing
import os
import resource
import signal
import struct
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

from deepmcat_core.decode_death import KILLS, Cause, WorkerDied
from deepmcat_core.decode_limits import WorkerLimits
from deepmcat_core.decode_pool import DecodePool
from deepmcat_core.decode_worker import Surplus, WorkerProcess
from deepmcat_core.errors import ConfigError, CorruptImage, ImageTooLarge
from deepmcat_core.planes import ReadOptions, read_planes

SMALL = WorkerLimits(memory_bytes=256 * 2**20)


@pytest.fixture(scope="module", autouse=True)
def importable_fixture() -> Iterator[None]:
    """Workers have to find the functions of this module."""
    root = str(Path(__file__).parents[2])
    sys.path.insert(0, root)
    yield
    sys.path.remove(root)


@pytest.fixture(scope="module", name="pool")
def pool_fixture(importable_fixture: None) -> Iterator[DecodePool]:
    with DecodePool(2) as pool:
        yield pool


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
    with DecodePool(1, WorkerLimits(calls=2)) as pool:
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
    with DecodePool(1, WorkerLimits(wall_s=1.0)) as pool:
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
        "    print(*pids, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    pids = [int(pid) for pid in ended.stdout.split()]

    assert ended.returncode == -signal.SIGKILL
    assert pids
    assert _soon(lambda: not any(_is_running(pid) for pid in pids))
    assert ended.stderr == ""


def test_a_second_kill_from_outside_is_not_held_against_the_image(pool, tmp_path):
    """What an operator or the OOM killer does says nothing about an image: it is read once they let it."""
    before = pool.restarts

    assert pool.submit_call(_be_killed, str(tmp_path), 3).result() == "survived"
    assert pool.restarts == before + 3


def test_being_killed_for_ever_ends_without_a_verdict(tmp_path):
    """The tries are bounded, and what they end with is not about the image."""
    deaths: list[Cause] = []
    with DecodePool(1, on_death=deaths.append) as pool, pytest.raises(BrokenExecutor, match="killed from outside"):
        pool.submit_call(_be_killed, str(tmp_path), 1000).result()

    assert deaths == [Cause.KILLED] * KILLS


def test_a_dead_worker_is_replaced_before_it_is_needed():
    """The pool heals by itself: no image has to wait for the imports of a worker that died while idle."""
    with DecodePool(1) as pool:
        pid = pool.submit_call(os.getpid).result()
        before = _children()
        os.kill(pid, signal.SIGKILL)

        assert _soon(lambda: pool.restarts == 1 and len(_children()) == len(before))
        assert pool.submit_call(os.getpid).result() in _children() - before
        assert pool.restarts == 1


def test_replacing_workers_leaks_nothing(pool, tmp_path):
    """Neither open files nor processes are left of those that died."""
    assert pool.submit_call(_be_killed, str(tmp_path), 1).result() == "survived"
    assert _soon(lambda: len(_children()) == 2)
    files = _open_files()
    for _ in range(3):
        with pytest.raises(CorruptImage):
            pool.submit_call(os._exit, 3).result()

    assert _soon(lambda: len(_children()) == 2 and _open_files() == files)


def test_a_codec_that_loops_is_ended_by_its_cpu_time():
    """A loop in C, which no handler of Python's can end, costs its image an error and no second try."""
    deaths: list[Cause] = []
    with DecodePool(1, WorkerLimits(cpu_s=0.2), deaths.append) as pool:
        stuck = pool.submit_call(_loop_in_c)
        behind = pool.submit_call(os.getpid)

        with pytest.raises(ImageTooLarge, match=r"more than 0\.2 s of CPU time"):
            stuck.result()
        assert behind.result()
        assert deaths == [Cause.CPU]


def test_cpu_time_is_counted_anew_for_each_call():
    """A worker that has worked for long is not ended for it."""
    with DecodePool(1, WorkerLimits(cpu_s=0.3)) as pool:
        pids = {pool.submit_call(_work, 0.15).result() for _ in range(4)}

        assert len(pids) == 1
        assert pool.restarts == 0


def test_an_image_that_needs_too_much_memory_is_too_large():
    """An allocation over the budget is an answer; the worker lives and reads the next."""
    deaths: list[Cause] = []
    with DecodePool(1, SMALL, deaths.append) as pool:
        pid = pool.submit_call(os.getpid).result()
        with pytest.raises(ImageTooLarge, match=f"more than the {SMALL.memory_bytes} bytes"):
            pool.submit_call(bytearray, 2 * SMALL.memory_bytes).result()

        assert pool.submit_call(os.getpid).result() == pid
        assert deaths == []


@pytest.mark.parametrize("ending", ["_too_big_to_send", "_out_of_memory_in_cpp"])
def test_dying_for_want_of_memory_is_too_large_at_once(pool, ending):
    """A worker that has no room for its answer, or whose codec aborts for want of memory, gets no second try."""
    deaths: list[Cause] = []
    with DecodePool(1, SMALL, deaths.append) as small, pytest.raises(ImageTooLarge, match="memory allowed"):
        small.submit_call(globals()[ending]).result()

    assert deaths == [Cause.MEMORY]


def test_an_image_that_does_not_even_fit_into_its_worker_is_too_large():
    """So it is where there is no room to receive it."""
    deaths: list[Cause] = []
    with DecodePool(1, SMALL, deaths.append) as pool:
        with pytest.raises(ImageTooLarge, match="memory allowed"):
            pool.submit_call(len, bytes(2 * SMALL.memory_bytes)).result()

        assert deaths == [Cause.MEMORY]
        assert pool.submit_call(len, b"four").result() == 4


def test_a_worker_that_lost_half_its_memory_is_replaced():
    """What one image leaves behind is not taken from the budget of those after it."""
    deaths: list[Cause] = []
    with DecodePool(1, SMALL, deaths.append) as pool:
        assert pool.submit_call(_leak, SMALL.memory_bytes * 5 // 8).result() == 1
        assert pool.submit_call(_leak, SMALL.memory_bytes * 5 // 8).result() == 1
        assert pool.submit_call(_leak, 0).result() == 1

    assert deaths == [Cause.MEMORY] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_of_an_image_serves_the_next():
    """What an image needed is not given back to the kernel only to be asked for, and zeroed, again."""
    with DecodePool(1) as pool:
        pool.submit_call(_page_faults, 4 * 2**20).result()
        assert pool.submit_call(_page_faults, 4 * 2**20).result() < 100  # of 5 · 1024 pages


def _page_faults(size_bytes: int) -> int:
    """Those of five arrays at once."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(size_bytes, dtype=np.uint8) for _ in range(5)]
    del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_memory_is_given_back_where_it_has_become_more():
    """What cannot be given back is tried once, and again only behind images that have added to it."""
    grown, lasting, tried = 0, 0, []

    def trim() -> None:
        nonlocal grown
        tried.append(grown)
        grown = min(grown, lasting)

    surplus = Surplus(lambda: grown, 10, trim)
    for stays, after_image in [(0, 20), (0, 21), (0, 21), (15, 30), (15, 25), (15, 26), (40, 50), (40, 50)]:
        lasting, grown = stays, after_image
        surplus.give_back()
    assert tried == [21, 21, 30, 26, 50]

    grown = 5  # that it had been kept for something was not for ever
    surplus.give_back()
    grown = 21
    surplus.give_back()
    assert tried == [21, 21, 30, 26, 50, 21]


def test_workers_leave_no_core_and_go_first(pool):
    """A core would hold an image on disk; and where memory runs out, a worker goes before the server."""
    core, address_space, oom_score = pool.submit_call(_circumstances).result()

    assert core in (0, 1)
    assert address_space > WorkerLimits().memory_bytes
    assert oom_score >= 500


def test_what_a_codec_prints_is_shown_to_nobody(pool, capfd):
    """It may quote a header. However much it is, nothing waits for it to be read."""
    assert pool.submit_call(_print_much).result() == "done"
    assert pool.submit_call(os.getpid).result()
    printed = capfd.readouterr()

    assert printed.out + printed.err == ""


def test_a_worker_killed_on_its_way_up_was_killed():
    """Which is not the same as one that cannot start."""
    worker, before = WorkerProcess(WorkerLimits()), _children()
    killer = threading.Thread(target=lambda: _soon(lambda: bool(_children() - before)) and worker.kill())
    killer.start()
    with pytest.raises(WorkerDied) as caught:
        worker.start()
    killer.join()
    worker.end()

    assert caught.value.cause is Cause.KILLED


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


def _soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _children() -> set[int]:
    return {process.pid for process in multiprocessing.active_children() if process.pid is not None}


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


def _be_killed(folder: str, times: int) -> str:
    """SIGKILL, which nobody sends to himself by accident, so many times; then an answer."""
    so_far = len(list(Path(folder).iterdir()))
    if so_far < times:
        (Path(folder) / str(so_far)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def _loop_in_c() -> int:
    return sum(itertools.repeat(0))


def _work(cpu_s: float) -> int:
    start = time.process_time()
    while time.process_time() - start < cpu_s:
        pass
    return os.getpid()


def _too_big_to_send() -> Image:
    return Image(SMALL.memory_bytes * 3 // 8)


def _out_of_memory_in_cpp() -> None:
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
    os.abort()


_leaked: list[bytearray] = []


def _leak(size: int) -> int:
    _leaked.append(bytearray(size))
    return len(_leaked)


def _circumstances() -> tuple[int, int, int]:
    limits = [resource.getrlimit(which)[0] for which in (resource.RLIMIT_CORE, resource.RLIMIT_AS)]
    return limits[0], limits[1], int(Path("/proc/self/oom_score_adj").read_text())


def _print_much() -> str:
    for descriptor in (1, 2):
        for _ in range(100):
            with contextlib.suppress(BlockingIOError):
                os.write(descriptor, b"DOE^JOHN" * 1000)
    return "done"


def test_a_worker_that_is_stopped_costs_its_call_the_time_allowed():
    """It neither reads a call that fills the pipe nor answers: it is ended, and the next call gets another worker."""
    with DecodePool(1, WorkerLimits(wall_s=1.5)) as pool:
        stopped = pool.submit_call(os.getpid).result()
        os.kill(stopped, signal.SIGSTOP)

        with pytest.raises(ImageTooLarge, match=r"longer than 1\.5 s"):
            pool.submit_call(len, bytes(2**20)).result(timeout=60)

        assert pool.submit_call(os.getpid).result(timeout=60) != stopped


def test_a_worker_that_stops_within_its_answer_costs_its_call_the_time_allowed():
    """An answer that has begun is no answer: what is read until its end is waited for no longer than allowed."""
    deaths: list[Cause] = []
    with DecodePool(1, WorkerLimits(wall_s=1.0), deaths.append) as pool:
        with pytest.raises(ImageTooLarge, match="longer than 1 s"):
            pool.submit_call(_answer_by_half).result(timeout=60)

        assert deaths == [Cause.TIME]
        assert pool.submit_call(len, b"four").result(timeout=60) == 4


def test_a_call_takes_no_thread_of_its_own(pool, tmp_path):
    """However many images are read, and whatever time they are allowed, nothing is started for one of them."""
    assert pool.submit_call(len, b"four").result() == 4
    before = threading.active_count()
    held = [pool.submit_call(_wait_for, str(tmp_path / "go on")) for _ in range(2)]
    while not all(call.running() for call in held):
        time.sleep(0.01)
    time.sleep(0.1)
    during = threading.active_count()
    (tmp_path / "go on").touch()

    assert [call.result() for call in held] == [None, None]
    assert during == before


def test_a_closed_pool_leaves_no_thread():
    """Not even the one that looks after how long calls take."""
    before = set(threading.enumerate())
    with DecodePool(1) as pool:
        assert pool.submit_call(len, b"four").result() == 4

    assert _soon(lambda: set(threading.enumerate()) <= before)


def _answer_by_half() -> None:
    """Promise 1,000 bytes through the worker's pipe, send four, and stay."""
    frame = inspect.currentframe()
    while frame is not None and "pipe" not in frame.f_locals:
        frame = frame.f_back
    assert frame is not None
    os.write(frame.f_locals["pipe"].fileno(), struct.pack("!i", 1000) + b"half")
    time.sleep(600)
