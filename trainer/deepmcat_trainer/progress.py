"""How a long job shows that it moves: a bar with rate and time left on a terminal, one line at the end elsewhere.

with progress("preparing", total=len(items)) as advance:
    for item in items:
        work(item)
        advance()
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text


class Progress:
    """Counts what is done. Calling it advances; `expect` tells how many there will be, once somebody knows."""

    def __init__(self, total: int | None = None, bar: RichProgress | None = None, description: str = "") -> None:
        self.done = 0
        self._bar = bar
        self._task = bar.add_task(description, total=total) if bar else None

    @property
    def live(self) -> bool:
        """Whether somebody is looking at a bar: only then is it worth counting ahead for `expect`."""
        return self._bar is not None

    def __call__(self, n: int = 1) -> None:
        """Count `n` more as done."""
        self.done += n
        self.skip(n)

    def skip(self, n: int = 1) -> None:
        """Count `n` as done by an earlier run: they move the bar, and are no work of this one."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, n)

    def expect(self, total: int) -> None:
        """Tell how many there will be in all."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=total)


class RateColumn(ProgressColumn):
    """The recent rate, such as `774 images/s`."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """The rate as text; empty until there is one."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {self._unit}/s", style="progress.data.speed")


@contextmanager
def progress(
    description: str, total: int | None = None, *, unit: str = "images", console: Console | None = None
) -> Iterator[Progress]:
    """Show progress on stderr while the block runs; the block calls what it is given once per `unit` done."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield from _quiet(description, total, unit, console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(unit),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with RichProgress(*columns, console=console) as bar:
        yield Progress(total, bar, description)


def _quiet(description: str, total: int | None, unit: str, console: Console) -> Iterator[Progress]:
    start = time.monotonic()
    counter = Progress(total)
    yield counter
    seconds = time.monotonic() - start
    rate = counter.done / max(seconds, 1e-9)
    line = f"{description}: {counter.done:,} {unit} in {seconds:,.1f} s ({rate:,.0f} {unit}/s)"
    console.print(line, highlight=False, markup=False, soft_wrap=True)
