"""What is trained and served: decoding, preprocessing, encoder, centroids, artifact. No transport, no metrics.

    import deepmcat_core
    for answer in deepmcat_core.load("artifact/").categorize([Path("image.dcm").read_bytes()]):
        print(answer)

Importing this package imports nothing heavy; torch is imported only where a torch engine is opened.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepmcat_core.categorizer import Categorization, Categorizer, load

__all__ = ["Categorization", "Categorizer", "load"]

# ONNX Runtime from 1.29 on tells Microsoft what it runs, unless this is set before it is imported; switching it off
# afterwards is too late for the first message. Who wants that sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> object:
    """Import the path on first use: a decoding worker imports this package and needs neither faiss nor an engine."""
    if name in __all__:
        from deepmcat_core import categorizer

        return getattr(categorizer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
