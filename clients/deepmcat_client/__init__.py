"""Talks to a DeepMCAT server; needs neither torch nor numpy.

    from deepmcat_client import Client
    with Client("127.0.0.1:50051") as client:
        print(client.categorize(Path("image.dcm")).assignment.category)

Errors are a tree of their own: deepmcat_client.errors. Names are imported on first use, so that the command line
answers `--help` without gRPC.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepmcat_client.async_client import AsyncClient
    from deepmcat_client.client import Client
    from deepmcat_client.errors import ClientError, ImageError, NotAnImage
    from deepmcat_client.requests import Options, RawPlane, Source
    from deepmcat_client.results import ArtifactInfo, Assignment, Catalog, Categorization, Category
    from deepmcat_client.retry import RetryPolicy
    from deepmcat_client.security import Tls, TokenFile

__all__ = [
    "ArtifactInfo",
    "Assignment",
    "AsyncClient",
    "Catalog",
    "Categorization",
    "Category",
    "Client",
    "ClientError",
    "ImageError",
    "NotAnImage",
    "Options",
    "RawPlane",
    "RetryPolicy",
    "Source",
    "Tls",
    "TokenFile",
]

_MODULES = {
    "async_client": ("AsyncClient",),
    "client": ("Client",),
    "errors": ("ClientError", "ImageError", "NotAnImage"),
    "requests": ("Options", "RawPlane", "Source"),
    "results": ("ArtifactInfo", "Assignment", "Catalog", "Categorization", "Category"),
    "retry": ("RetryPolicy",),
    "security": ("Tls", "TokenFile"),
}


def __getattr__(name: str) -> object:
    """Import what is asked for."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
