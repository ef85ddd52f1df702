"""The training loop of DeepCluster, top to bottom (Caron et al. 2018).

    E step: embed all images → PCA-whitening → L2 → k-means: the clusters are the labels
    M step: one epoch of classification into them, with a new head
    repeat

What its authors' code is known to stumble over is taken care of: empty clusters (sampler.py), the alignment of
features and images (SplitImages has one order), resuming (all randomness is derived from seed and epoch), features
that do not fit in memory (features.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from deepmcat_core.encoder import Encoder
from deepmcat_core.errors import ConfigError, InferenceError
from deepmcat_trainer import checkpoint as checkpoints
from deepmcat_trainer import monitor, pseudo_labels, sampler
from deepmcat_trainer.augment import CropAndFlip
from deepmcat_trainer.checkpoint import Checkpoint
from deepmcat_trainer.features import SplitImages, feature_store
from deepmcat_trainer.monitor import EpochReport
from deepmcat_trainer.pseudo_labels import PseudoLabels
from deepmcat_trainer.run import Run
from deepmcat_trainer.seeds import Use, derive
from deepmcat_trainer.settings import DeepClusterSettings

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

MIN_IMAGES = 64


class Training:
    """Trains `encoder` in place on `images`. `history`: a report per finished epoch."""

    def __init__(self, encoder: Encoder, images: SplitImages, settings: DeepClusterSettings, run: Run) -> None:
        """Raises ConfigError where there are too few images."""
        if len(images) < MIN_IMAGES:
            raise ConfigError(
                f"training needs at least {MIN_IMAGES} images to fit; this dataset has {len(images)}. "
                "Prepare more, or use --recipe frozen, which trains nothing."
            )
        self.encoder = to_device(encoder, run.device)
        self.images = images
        self.settings = settings
        self.run = run
        self.k = min(settings.k or pseudo_labels.default_k(len(images)), len(images))
        self.optimiser = torch.optim.SGD(
            (p for p in encoder.parameters() if p.requires_grad),
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        self.augment = CropAndFlip(
            images.size, scale=settings.crop_scale, ratio=settings.crop_ratio, flip=settings.flip
        )
        self.labels: Ints | None = None  # of the last epoch
        self.history: list[EpochReport] = []

    def train(self) -> None:
        """Resume where that is asked for, then epoch by epoch to the end, or as long as the time budget allows.

        Raises ConfigError where the run to resume is another one, InferenceError where the numbers go wrong or the
        device runs out of memory.
        """
        if self.run.resume and checkpoints.exists(self.run.folder):
            self.restore()
        warned: set[str] = set()
        last = self.history[-1] if self.history else None
        with _own_randomness(self.run.device), _device_errors(self.settings):
            for epoch in range(len(self.history) + 1, self.settings.epochs + 1):
                if last is not None and not self._fits(last):
                    self.run.say(f"time budget: stopping after epoch {epoch - 1} of {self.settings.epochs}")
                    break
                start = self.run.budget.used
                pseudo = self.cluster(epoch)
                middle = self.run.budget.used
                loss = self.classify(pseudo.labels, epoch)
                last = self._report(epoch, pseudo, loss, middle - start, self.run.budget.used - middle)
                self.labels = pseudo.labels
                self.history.append(last)
                self.checkpoint().save(self.run.folder)
                self.run.say(last.line(self.settings.epochs))
                for signature, sentence in monitor.warnings(last).items():
                    if signature not in warned:
                        self.run.say(f"warning: {sentence}")
                    warned.add(signature)

    def cluster(self, epoch: int) -> PseudoLabels:
        """E step: a cluster for every image, from its features without augmentation."""
        n, dim = len(self.images), self.encoder.backbone.dim
        with feature_store(n, dim, memory_mb=self.settings.feature_memory_mb, folder=self.run.folder) as features:
            self.embed(features, f"epoch {epoch}: embedding")  # (N, F)
            return pseudo_labels.assign(
                features,
                k=self.k,
                pca_dim=self.settings.pca_dim,
                iterations=self.settings.kmeans_iterations,
                seed=derive(self.settings.seed, Use.KMEANS, epoch),
                device=self.run.device,
            )

    def classify(self, labels: Ints, epoch: int) -> float:
        """M step: an epoch of classification into the clusters `labels` (N,); returns the mean loss.

        Cluster numbers mean nothing from one epoch to the next: the head is made anew, with an optimiser of its own.
        """
        torch.manual_seed(derive(self.settings.seed, Use.TRAINING, epoch))
        order = sampler.uniform_over_clusters(
            labels, np.random.default_rng(derive(self.settings.seed, Use.SAMPLER, epoch))
        )
        targets = torch.from_numpy(labels).to(self.run.device)
        head = _new_head(self.encoder.backbone.dim, self.k).to(self.run.device)
        head_optimiser = torch.optim.SGD(
            head.parameters(), lr=self.settings.head_lr, weight_decay=self.settings.weight_decay
        )
        losses, seen = torch.zeros((), device=self.run.device), 0  # read at the end: reading makes a CPU wait for a GPU
        self.encoder.train()
        with self.run.bar(f"epoch {epoch}: training", len(order)) as advance:
            for rows in _batches(order, self.settings.batch_size):
                pixels = self.augment(self.images.batch(rows))  # (B, 1, S, S)
                with _autocast(self.run.device):
                    logits = head(F.relu(self.encoder.features(pixels)))  # (B, K)
                    loss = F.cross_entropy(logits, targets[torch.from_numpy(rows).to(self.run.device)])
                self.optimiser.zero_grad()
                head_optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimiser.step()
                head_optimiser.step()
                losses += loss.detach().float() * len(rows)
                seen += len(rows)
                advance(len(rows))
        mean = float(losses) / seen
        if not math.isfinite(mean):
            raise InferenceError(f"the loss of epoch {epoch} is not a number: try a lower learning rate (lr, head_lr)")
        return mean

    @torch.inference_mode()
    def embed(self, out: Floats, description: str) -> None:
        """Write the features (N, F) of all images to `out`, in the order of the split. Raises InferenceError."""
        self.encoder.eval()
        with self.run.bar(description, len(self.images)) as advance, _autocast(self.run.device):
            for where, pixels in self.images.batches():
                features = self.encoder.features(pixels).float().cpu().numpy()  # (B, F)
                if not np.isfinite(features).all():
                    raise InferenceError("features are not finite: try a lower learning rate (lr, head_lr)")
                out[where] = features
                advance(len(features))

    def checkpoint(self) -> Checkpoint:
        """The state after the last finished epoch."""
        assert self.labels is not None
        state = self.optimiser.state
        return Checkpoint(
            key=self.run.key,
            encoder=dict(self.encoder.state_dict()),
            momentum={
                name: state[parameter]["momentum_buffer"]
                for name, parameter in self.encoder.named_parameters()
                if state[parameter].get("momentum_buffer") is not None
            },
            labels=self.labels,
            history=tuple(self.history),
        )

    def restore(self) -> None:
        """Take over the state of the checkpoint in force. Raises ConfigError where it is of another run."""
        stored = Checkpoint.load(self.run.folder)
        self.run.key.require_equal(stored.key, self.run.folder)
        self.encoder.load_state_dict(stored.encoder)
        for name, parameter in self.encoder.named_parameters():
            if name in stored.momentum:
                buffer = torch.empty_like(parameter).copy_(stored.momentum[name])  # in the parameter's memory format
                self.optimiser.state[parameter]["momentum_buffer"] = buffer.detach()
        self.labels, self.history = stored.labels, list(stored.history)
        self.run.say(f"resuming after epoch {stored.epoch} of {self.settings.epochs}")

    def _report(
        self, epoch: int, pseudo: PseudoLabels, loss: float, cluster_s: float, classify_s: float
    ) -> EpochReport:
        return EpochReport(
            epoch=epoch,
            loss=loss,
            k=self.k,
            nmi=monitor.nmi(pseudo.labels, self.labels),
            empty=self.k - len(np.unique(pseudo.labels)),
            largest_share=monitor.largest_share(pseudo.labels),
            spread=monitor.spread(pseudo.pca),
            effective_rank=monitor.effective_rank(pseudo.pca),
            cluster_s=cluster_s,
            classify_s=classify_s,
            images_per_s=len(self.images) / max(cluster_s + classify_s, 1e-9),
        )

    def _fits(self, last: EpochReport) -> bool:
        """Whether an epoch like the last fits the time budget, and the final stage, which embeds everything again."""
        return self.run.budget.fits(last.cluster_s + last.classify_s + last.cluster_s)


def to_device(encoder: Encoder, device: str) -> Encoder:
    """The encoder on `device`, in the memory format that convolutions are fastest in: on a CPU up to four times."""
    return encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _new_head(features: int, k: int) -> nn.Linear:
    head = nn.Linear(features, k)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head


def _batches(order: Ints, size: int) -> Iterator[Ints]:
    """`order` in batches; a last batch of one image is left out, because batch norm needs two."""
    for start in range(0, len(order), size):
        if len(rows := order[start : start + size]) > 1:
            yield rows


def _autocast(device: str) -> torch.autocast:
    """bfloat16 on a GPU: it has float32's range, so that the loss needs no scaling."""
    return torch.autocast("cuda", dtype=torch.bfloat16, enabled=device.startswith("cuda"))


@contextmanager
def _own_randomness(device: str) -> Iterator[None]:
    """Leave torch's global generators as they were: augmentation and dropout draw from them."""
    devices = [torch.device(device).index or 0] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def _device_errors(settings: DeepClusterSettings) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        smaller = max(2, settings.batch_size // 2)
        raise InferenceError(f"the GPU ran out of memory; try a smaller batch: --set batch_size={smaller}") from error
