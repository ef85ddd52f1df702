"""Long jobs show that they move: a bar for a person, a line for a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from deepmcat_trainer.progress import progress


def shown(console: Console, *, done: int = 3) -> str:
    with progress("preparing", total=5, console=console) as advance:
        for _ in range(done):
            advance()
        advance.expect(done)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_a_terminal_there_is_one_line() -> None:
    """A log gets one line at the end, with count and rate."""
    text = shown(Console(file=io.StringIO()))

    assert text.startswith("preparing: 3 images in ")
    assert text.count("\n") == 1
    assert "images/s)" in text


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
