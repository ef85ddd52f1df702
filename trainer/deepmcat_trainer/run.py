"""Where and within what limits a recipe trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from deepmcat_trainer.budget import Budget
from deepmcat_trainer.checkpoint import RunKey
from deepmcat_trainer.progress import Progress, progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """folder: of the checkpoints, beside the artifact to come. device: "cpu" or "cuda[:N]". resume: go on from there.

    key: what the run is of, so that a resumed one is the same.
    """

    folder: Path
    key: RunKey
    device: str
    budget: Budget
    console: Console
    resume: bool = False

    def say(self, sentence: str) -> None:
        """A line for the person at the terminal."""
        self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Progress]:
        """A progress bar on a terminal; elsewhere nothing, because an epoch says its one line anyway."""
        if not self.console.is_terminal:
            yield Progress()
            return
        with progress(description, total=total, console=self.console) as advance:
            yield advance
