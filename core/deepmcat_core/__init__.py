"""What is trained and served: decoding, preprocessing, encoder, centroids, artifact. No transport, no metrics.

    import deepmcat_core
    for answer in deepmcat_core.load("artifact/").categorize([Path("image.dcm").read_bytes()]):
        print(answer)

Importing this package imports nothing heavy; torch is imported only where a torch engine is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepmcat_core.categorizer import Categorization, Categorizer, load

__all__ = ["Categorization", "Categorizer", "load"]


def __getattr__(name: str) -> object:
    """Import the path on first use: a decoding worker imports this package and needs neither faiss nor an engine."""
    if name in __all__:
        from deepmcat_core import categorizer

        return getattr(categorizer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
