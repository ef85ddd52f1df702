"""Talks to a DeepMCAT server; needs neither torch nor numpy.

    from deepmcat_client import Client
    with Client("127.0.0.1:50051") as client:
        print(client.categorize(Path("image.dcm")).assignment.category)

Errors are a tree of their own: deepmcat_client.errors.
"""

from deepmcat_client.async_client import AsyncClient
from deepmcat_client.client import Client
from deepmcat_client.errors import ClientError, ImageError, NotAnImage
from deepmcat_client.requests import Options, RawPlane, Source
from deepmcat_client.results import ArtifactInfo, Assignment, Catalog, Categorization, Category
from deepmcat_client.retry import RetryPolicy

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
]
