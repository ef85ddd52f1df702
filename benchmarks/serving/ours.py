"""Our server as `deepmcat serve` runs it, with what peers/work.py says in place of the encoder.

python -m benchmarks.serving.ours ARTIFACT READY KEY=VALUE …
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import uvloop
from benchmarks.serving.peers import work

from deepmcat_core import logs
from deepmcat_core.artifact import Artifact
from deepmcat_core.categorizer import Categorizer
from deepmcat_server import versions
from deepmcat_server.app import serve
from deepmcat_server.config import load
from deepmcat_server.opening import Opened


class StandIn:
    """An engine (deepmcat_core.engine.Engine) that does what every peer does."""

    name = "stand-in"
    device = "cpu"
    precision = "float32"

    def __init__(self, dim: int, size: int) -> None:
        self.dim = dim
        self._size = size
        self._work = work.from_environment()

    def embed(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return self._work(images[:, 0])

    def warm(self, batches: Sequence[int]) -> None:
        for count in batches:
            self.embed(np.zeros((count, 1, self._size, self._size), np.uint8))

    def close(self) -> None:
        """Nothing to free."""


def main() -> None:
    path, ready, *sets = sys.argv[1:]
    settings = load(sets=sets)
    logs.configure(settings.log_level)
    artifact = Artifact.load(path)
    engine = StandIn(artifact.manifest.dim, artifact.manifest.preprocessing.size)
    found = versions.newest(Path(path))
    assert found is not None
    opened = Opened(path=Path(path), found=found, categorizer=Categorizer(artifact, engine, settings.limits))
    uvloop.run(serve(settings, opened, Path(ready)))


if __name__ == "__main__":
    main()
