"""Long jobs show that they move: a bar for a person, a line for a log."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from deepmcat_trainer.progress import progress


def shown(console: Console) -> str:
    with progress("preparing", console=console) as advance:
        advance.expect(3)
        for _ in range(3):
            time.sleep(0.001)  # a rate needs time to pass
            advance()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_a_terminal_there_is_one_line() -> None:
    """A log gets one line at the end, with count and rate."""
    text = shown(Console(file=io.StringIO()))

    assert text.startswith("preparing: 3 images in ")
    assert text.count("\n") == 1
    assert "images/s)" in text


def test_earlier_work_is_not_counted_as_this_jobs() -> None:
    """What an interrupted run has done is in the bar and not in the rate."""
    file = io.StringIO()
    with progress("preparing", console=Console(file=file)) as advance:
        advance.skip(1000)
        advance()

    assert file.getvalue().startswith("preparing: 1 images in ")


def test_on_a_terminal_there_is_a_bar() -> None:
    """A person sees count, total and rate."""
    text = shown(Console(file=io.StringIO(), force_terminal=True, width=120))

    assert "3/3" in text
    assert "images/s" in text


def test_a_failed_job_claims_nothing() -> None:
    """The line at the end is for jobs that came to their end."""
    console = Console(file=io.StringIO())
    with pytest.raises(ValueError, match="x"), progress("preparing", console=console):
        raise ValueError("x")

    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == ""
