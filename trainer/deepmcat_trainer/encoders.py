"""The encoder that a recipe begins with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from deepmcat_core.encoder import Encoder, build_encoder, parse_encoder, pretrained
from deepmcat_core.errors import ConfigError
from deepmcat_core.manifest import EncoderSpec
from deepmcat_trainer.body import Body
from deepmcat_trainer.features import feature_store
from deepmcat_trainer.pca import Pca
from deepmcat_trainer.seeds import Use, derive
from deepmcat_trainer.settings import LoopSettings, ScratchSettings

PROJECT_ABOVE = 512
"""Features longer than this are projected for export: 4096 of them make each embedding 16 KB and centroids 16 MB."""


def from_scratch(settings: LoopSettings, size: int) -> Encoder:
    """With random weights from torch's generator, for images of `size`. Raises ConfigError."""
    return _trainable(build_encoder(encoder_spec(settings, size)))


def from_weights(settings: LoopSettings, size: int) -> Encoder:
    """With the weights that others trained. Raises ConfigError, MissingExtra."""
    return _trainable(pretrained(encoder_spec(settings, size)))


def _trainable(encoder: Encoder) -> Encoder:
    if not any(p.requires_grad for p in encoder.parameters()):
        raise ConfigError(f"the encoder {encoder.spec.name!r} has nothing to train; use it with --recipe frozen")
    return encoder


def encoder_spec(settings: LoopSettings, size: int) -> EncoderSpec:
    """The encoder that a person named, for images of `size`: the small one works at about 64 px."""
    spec = parse_encoder(settings.encoder)
    shrink = {"shrink": max(1, size // 64)} if spec.name == "small-vgg-sobel" else {}
    return replace(spec, options={**spec.options, **shrink, **settings.encoder_options()})


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """What draws initial weights in the block draws those of this seed; torch's generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, Use.WEIGHTS))
        yield


def projected(body: Body, settings: ScratchSettings) -> Encoder:
    """The trained encoder; where its features are long, with their first principal components as its projection.

    The components are not whitened: whitening makes noise as loud as signal and costs 13 to 28 points of purity in
    the final clusters. Within DeepCluster's E step it stays, because the reference has it.
    """
    encoder, run = body.encoder, body.run
    n, dim = body.part.stop - body.part.start, encoder.backbone.dim
    if dim <= PROJECT_ABOVE:
        return encoder
    with feature_store(n, dim, memory_mb=settings.feature_memory_mb, folder=run.folder) as features:
        body.embed_part(features, "projection: embedding")
        pca = Pca.fit(features, settings.embedding_dim, run.device, world=run.world)
    return encoder.projected(*pca.affine())
