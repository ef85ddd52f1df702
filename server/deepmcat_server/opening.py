"""From an artifact on disk to one that can answer: verified, its engine open, its self-test passed. Blocks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from deepmcat_core import logs
from deepmcat_core.artifact import Artifact
from deepmcat_core.categorizer import Categorizer
from deepmcat_core.engine import Engine, open_engine
from deepmcat_core.errors import (
    ArtifactDamaged,
    ArtifactError,
    ArtifactFormat,
    ArtifactMissing,
    ArtifactSelfTest,
    MissingExtra,
)
from deepmcat_core.frame import Limits
from deepmcat_server import versions
from deepmcat_server.addresses import parse_encoder
from deepmcat_server.config import Settings
from deepmcat_server.metrics import LoadResult
from deepmcat_server.versions import Found

LOG = logs.logger("server.artifacts")

OpenEngine = Callable[[Artifact], Engine]


class ArtifactChanging(ArtifactError):
    """What lies at the path changed while it was read."""


class NoRoom(ArtifactError):
    """Another artifact does not fit into the memory that artifacts may take."""


RESULTS: dict[type[ArtifactError], LoadResult] = {
    ArtifactMissing: "missing",
    ArtifactFormat: "format",
    ArtifactDamaged: "damaged",
    ArtifactSelfTest: "self_test",
    ArtifactChanging: "changing",
    NoRoom: "no_room",
}


def result_of(error: Exception) -> LoadResult:
    """The word for why an artifact was refused."""
    return next((RESULTS[cls] for cls in type(error).__mro__ if cls in RESULTS), "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A path that is served from, the newest that was found there, and what of it could be used."""

    path: Path
    found: Found
    categorizer: Categorizer


def engine_opener(settings: Settings) -> OpenEngine:
    """What opens an artifact's engine: on the device and in the precision of the settings, or in their Triton.

    Raises MissingExtra.
    """
    if settings.encoder is None:
        return partial(
            open_engine,
            device=settings.device,
            precision=settings.precision,
            threads=settings.engine_threads or None,
        )
    if find_spec("tritonclient") is None:
        raise MissingExtra("tritonclient", "triton")
    from deepmcat_server.triton_engine import open_triton

    return partial(open_triton, remote=parse_encoder(settings.encoder), timeout_s=settings.encoder_timeout_s)


def read(found: Found) -> Artifact:
    """The artifact, verified. Raises ArtifactError."""
    artifact = Artifact.load(found.path)
    if not versions.unchanged(found):
        raise _changing(found)
    return artifact


def open_found(found: Found, open_engine: OpenEngine, limits: Limits) -> Categorizer:
    """What was found, ready to answer. Raises ArtifactError, ConfigError, InferenceError."""
    artifact = read(found)
    engine = open_engine(artifact)
    try:
        if not versions.unchanged(found):  # the engine has read files of its own
            raise _changing(found)
        return Categorizer(artifact, engine, limits)
    except BaseException:
        engine.close()
        raise


def open_newest(path: Path, open_engine: OpenEngine, limits: Limits) -> Opened:
    """The newest artifact at `path` that can be used, those passed over logged. Raises what the newest has."""
    found = versions.versions(path)
    if not found:
        Artifact.load(path)  # says what is missing
        raise ArtifactChanging(f"{path} has only now become an artifact; start again")
    errors: list[ArtifactError] = []
    for candidate in reversed(found):
        try:
            categorizer = open_found(candidate, open_engine, limits)
        except ArtifactError as error:
            refused(candidate, error)
            errors.append(error)
        else:
            return Opened(path=path, found=found[-1], categorizer=categorizer)
    raise errors[0]


def refused(found: Found, error: Exception) -> None:
    """Log why an artifact is not taken. To be called where the error is handled."""
    logs.event(
        LOG, logging.ERROR, "artifact refused", artifact_version=found.version, reason=result_of(error), exc_info=True
    )


def _changing(found: Found) -> ArtifactChanging:
    return ArtifactChanging(f"{found.path} changed while it was read; it is read again when it no longer does")
