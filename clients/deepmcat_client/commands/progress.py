"""A progress bar on stderr, where that is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text


@contextmanager
def image_progress(images: Callable[[], Iterable[Any]], *, shown: bool = True) -> Iterator[Callable[[], None]]:
    """Gives what advances the bar by one image. images: walked once, to count, and only where there is a bar."""
    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield lambda: None
        return
    columns = BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn()
    # Redirecting would send the answers, which are stdout's, to stderr.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task("", total=sum(1 for _ in images()))
        yield lambda: bar.advance(task)


class _Rate(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        """The rate since the start."""
        return Text(f"{task.completed / task.elapsed:.0f} images/s" if task.elapsed else "")
