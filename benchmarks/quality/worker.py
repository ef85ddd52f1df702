"""A process for each cell, forked from one that has imported everything: its peak memory is the cell's own.

What was imported before is part of that peak (about 500 MB with torch), as it is of a command's.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.quality import outliers, scoring
from benchmarks.quality.cells import Record, write
from benchmarks.quality.features import Source, Store, peak_mb
from benchmarks.quality.fitted import Fitted
from benchmarks.quality.method import Method
from benchmarks.quality.methods import METHODS
from benchmarks.quality.problems import Fold, Problem
from benchmarks.quality.task import Task

from deepmcat_trainer.dataset import Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a process needs to make one cell. method: the name of one of METHODS."""

    dataset: Path
    store: Store
    problem: Problem
    method: str
    seed: int
    device: str
    cell: str
    hash: str
    path: Path
    machine: dict[str, Any]


def features(dataset: Path, store: Store, source: Source, device: str, machine: dict[str, Any]) -> None:
    """Cache the features of an encoder."""
    store.make(source, Dataset.open(dataset).images, device, machine)


def run(job: Job) -> None:
    """Make a cell and write it."""
    method = next(m for m in METHODS if m.name == job.method)
    with tempfile.TemporaryDirectory(prefix="cell-") as folder:
        record = measure(job, method, Dataset.open(job.dataset).images, Path(folder))
    write(job.path, record)


def measure(job: Job, method: Method, images: Any, folder: Path) -> Record:
    """Fit and score. Seconds are those of training and clustering; wall_s is all that the process did."""
    start = time.monotonic()
    fits = [method.fit(_task(job, method, fold, images, folder / str(i))) for i, fold in enumerate(job.problem.folds)]
    peak = peak_mb()  # of the method, before scoring
    stages = {name: round(sum(f.seconds.get(name, 0.0) for f in fits), 2) for name in fits[0].seconds}
    total = sum(stages.values())
    return {
        "cell": job.cell,
        "hash": job.hash,
        "problem": job.problem.name,
        "method": job.method,
        "seed": job.seed,
        "fit_images": job.problem.fit_images,
        "seconds": stages,
        "total_s": round(total, 2),
        "images_per_s": round(job.problem.fit_images / max(total, 1e-3), 1),
        "peak_mb": peak,
        "device": job.device,
        "machine": job.machine,
        **_scores(job.problem, fits),
        "wall_s": round(time.monotonic() - start, 2),
    }


def _task(job: Job, method: Method, fold: Fold, images: Any, folder: Path) -> Task:
    return Task(
        images=images, fold=fold, classes=job.problem.c, seed=job.seed, device=job.device, folder=folder,
        store=job.store, fit_labels=job.problem.truth[fold.fit] if method.labels else None,
    )  # fmt: skip


def _scores(problem: Problem, fits: list[Fitted]) -> dict[str, Any]:
    known = [fitted.verdicts for fitted in fits if fitted.verdicts is not None]
    if problem.left_out is None:
        p_values = np.concatenate([verdicts.p_values for verdicts in known]) if known else np.empty(0)
        return {"scores": scoring.score(problem, fits), "false_rejection": outliers.false_rejection(p_values)}
    (verdicts,) = known
    unusual = problem.truth[problem.folds[0].test] == problem.left_out
    return {
        "outliers": outliers.separation(verdicts, unusual),
        "false_rejection": outliers.false_rejection(verdicts.p_values[~unusual]),
    }


def in_process(target: Callable[..., None], *arguments: Any) -> bool:
    """Call `target` in a process of its own; False where it failed, after its own message."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.quality.worker"])
    process = context.Process(target=target, args=arguments)
    process.start()
    try:
        process.join()
    except BaseException:
        process.terminate()
        process.join()
        raise
    return process.exitcode == 0
