"""The encoder that is trained, with its images, on its device: what the loop and its objectives share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from deepmcat_core.encoder import Encoder
from deepmcat_core.engine import LARGEST_BATCH
from deepmcat_core.errors import ConfigError, InferenceError
from deepmcat_trainer.features import SplitImages, evenly_spaced
from deepmcat_trainer.run import Run

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Network = Callable[[torch.Tensor], torch.Tensor]

MIN_IMAGES = 64
SAMPLE = 1024


class Body:
    """`encoder` is trained in place. pass_s: seconds that the last pass over all images took, embedding them."""

    def __init__(self, encoder: Encoder, images: SplitImages, run: Run, fewest: int = MIN_IMAGES) -> None:
        """Raises ConfigError where there are not even the `fewest` images."""
        if len(images) < fewest:
            raise ConfigError(
                f"training needs at least {fewest} images to fit; this dataset has {len(images)}. "
                "Prepare more, or use --recipe stages or frozen, which train nothing."
            )
        self.encoder = to_device(encoder, run.device)
        self.images = images
        self.run = run
        self.pass_s = 0.0

    @property
    def device(self) -> str:
        """Where the encoder is: "cpu" or "cuda[:N]"."""
        return self.run.device

    @property
    def part(self) -> slice:
        """The images that this process embeds."""
        return self.run.world.part(len(self.images))

    def autocast(self) -> torch.autocast:
        """bfloat16 on a GPU: it has float32's range, so that the loss needs no scaling."""
        return torch.autocast("cuda", dtype=torch.bfloat16, enabled=self.device.startswith("cuda"))

    def embed(self, out: Floats, description: str) -> None:
        """Write the features (N, F) of all images to `out`, in the order of the split; leaves the encoder in eval mode.

        Each process embeds its part and hears of the others'. Raises InferenceError where features are not finite.
        """
        self.embed_part(out[self.part], description)
        self.run.world.share(out)

    def embed_part(self, out: Floats, description: str) -> None:
        """As embed, but only the features (n, F) of this process's part: all of them may fit into no process."""
        start = self.run.budget.used
        self.apply(self.encoder.features, np.arange(self.part.start, self.part.stop), out, description)
        self.pass_s = self.run.budget.used - start

    def sample(self) -> Floats:
        """The features (n, F) of images evenly spaced over the split: enough to tell whether they are healthy."""
        rows = evenly_spaced(len(self.images), SAMPLE)
        features = np.empty((len(rows), self.encoder.backbone.dim), dtype=np.float32)
        self.apply(self.encoder.features, rows, features, "looking at features")
        return features

    @torch.inference_mode()
    def apply(self, network: Network, rows: Ints, out: Floats, description: str) -> None:
        """Write what `network` makes (n, D) of the images at `rows` (n,) to `out`; leaves the encoder in eval mode.

        Raises InferenceError where it is not finite.
        """
        size = LARGEST_BATCH[torch.device(self.device).type]
        self.encoder.eval()
        with self.run.bar(description, len(rows)) as advance, self.autocast():
            for start in range(0, len(rows), size):
                pixels = self.images.batch(rows[start : start + size])
                made = network(pixels).float().cpu().numpy()  # (B, D)
                if not np.isfinite(made).all():
                    raise InferenceError("features are not finite: try a lower learning rate (lr)")
                out[start : start + size] = made
                advance(len(made))


def to_device(encoder: Encoder, device: str) -> Encoder:
    """The encoder on `device`, in the memory format that convolutions are fastest in: on a CPU up to four times."""
    return encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
