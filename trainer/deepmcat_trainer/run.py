"""Where and within what limits a recipe trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from deepmcat_trainer.budget import Budget
from deepmcat_trainer.checkpoint import RunKey
from deepmcat_trainer.distributed import ALONE, World
from deepmcat_trainer.progress import Progress, progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """folder: of the checkpoints, beside the artifact to come. device: "cpu" or "cuda[:N]". resume: go on from there.

    key: what the run is of, so that a resumed one is the same. world: the processes that it runs in.
    """

    folder: Path
    key: RunKey
    device: str
    budget: Budget
    console: Console
    resume: bool = False
    world: World = ALONE

    def say(self, sentence: str) -> None:
        """A line for the person at the terminal, from the first process."""
        if self.world.first:
            self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Progress]:
        """A progress bar on a terminal; elsewhere nothing, because an epoch says its one line anyway."""
        if not (self.console.is_terminal and self.world.first):
            yield Progress()
            return
        with progress(description, total=total, console=self.console) as advance:
            yield advance
