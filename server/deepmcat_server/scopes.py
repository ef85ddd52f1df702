"""What a caller may do, in three words, and which of them each method needs.

A method that is neither in METHODS nor of an open service is refused to everybody: whoever adds one says who may
call it.
"""

from __future__ import annotations

from typing import Literal

Scope = Literal["categorize", "read", "admin"]

METHODS: dict[tuple[str, str], Scope] = {
    ("deepmcat.v1.CategorizationService", "Categorize"): "categorize",
    ("deepmcat.v1.CategorizationService", "CategorizeStream"): "categorize",
    ("deepmcat.v1.CategorizationService", "GetArtifact"): "read",
    ("deepmcat.v1.CategorizationService", "ListCategories"): "read",
    ("inference.GRPCInferenceService", "ServerLive"): "read",
    ("inference.GRPCInferenceService", "ServerReady"): "read",
    ("inference.GRPCInferenceService", "ServerMetadata"): "read",
    ("inference.GRPCInferenceService", "ModelReady"): "read",
    ("inference.GRPCInferenceService", "ModelMetadata"): "read",
    ("inference.GRPCInferenceService", "ModelConfig"): "read",
    ("inference.GRPCInferenceService", "ModelStatistics"): "read",
    ("inference.GRPCInferenceService", "RepositoryIndex"): "read",
    ("inference.GRPCInferenceService", "ModelInfer"): "categorize",
    ("inference.GRPCInferenceService", "ModelStreamInfer"): "categorize",
}
"""The scope of each method by service and method."""

ADMIN_SERVICES = frozenset({"deepmcat.v1.AdminService"})
"""Services of which every method needs `admin`, those to come too."""

OPEN_SERVICES = frozenset(
    {
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "grpc.reflection.v1.ServerReflection",
    }
)
"""Services for everybody: probes have no identity, and reflection, where it is on, tells what is published anyway."""


def is_open(service: str) -> bool:
    """Whether everybody may call `service`, without saying who they are."""
    return service in OPEN_SERVICES


def required(service: str, method: str) -> Scope | None:
    """The scope that a method needs; None: nobody may call it, because nobody has said who may."""
    if service in ADMIN_SERVICES:
        return "admin"
    return METHODS.get((service, method))
