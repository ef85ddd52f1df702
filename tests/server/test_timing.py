"""How long batches take, learnt from how long they took."""

from __future__ import annotations

import pytest

from deepmcat_server.timing import BatchTimes


def learnt(*batches: tuple[int, float]) -> BatchTimes:
    times = BatchTimes()
    for frames, seconds in batches:
        times.add(frames, seconds)
    return times


def test_times_are_learnt_from_batches_of_several_sizes():
    """0.1 s and 0.01 s a frame; nothing before the first batch."""
    assert BatchTimes().seconds(1) is None
    assert learnt(*[(frames, 0.1 + 0.01 * frames) for frames in (1, 32) * 20]).seconds(16) == pytest.approx(
        0.26, rel=0.02
    )


def test_what_another_expects_counts_as_much_as_one_batch():
    """Expected at first; overruled by what is measured; never taken over by who has measured, or from who has not."""
    other = learnt(*[(frames, 0.1 + 0.01 * frames) for frames in (1, 32) * 20])
    times = BatchTimes()
    times.begin_like(other)
    assert [times.seconds(frames) for frames in (1, 8, 32)] == [other.seconds(frames) for frames in (1, 8, 32)]

    measured = learnt((8, 1.0))
    for each in (measured, other):
        before = each.seconds(8)
        each.begin_like(learnt((8, 5.0)))
        assert each.seconds(8) == before
    empty = BatchTimes()
    empty.begin_like(BatchTimes())
    assert empty.seconds(1) is None

    for _ in range(30):
        times.add(8, 1.0)
    assert times.seconds(8) == pytest.approx(1.0, rel=0.1)
