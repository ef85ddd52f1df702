"""The encoder that is trained, with its images, on its device: what the loop and its objectives share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from deepmcat_core.encoder import Encoder
from deepmcat_core.errors import ConfigError, InferenceError
from deepmcat_trainer.features import SplitImages
from deepmcat_trainer.run import Run

Floats = npt.NDArray[np.float32]

MIN_IMAGES = 64


class Body:
    """`encoder` is trained in place. pass_s: seconds that the last pass over all images took, embedding them."""

    def __init__(self, encoder: Encoder, images: SplitImages, run: Run) -> None:
        """Raises ConfigError where there are too few images."""
        if len(images) < MIN_IMAGES:
            raise ConfigError(
                f"training needs at least {MIN_IMAGES} images to fit; this dataset has {len(images)}. "
                "Prepare more, or use --recipe frozen, which trains nothing."
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

    @torch.inference_mode()
    def embed_part(self, out: Floats, description: str) -> None:
        """As embed, but only the features (n, F) of this process's part: all of them may fit into no process."""
        start = self.run.budget.used
        self.encoder.eval()
        with self.run.bar(description, len(out)) as advance, self.autocast():
            for where, pixels in self.images.batches(self.part):
                features = self.encoder.features(pixels).float().cpu().numpy()  # (B, F)
                if not np.isfinite(features).all():
                    raise InferenceError("features are not finite: try a lower learning rate (lr)")
                out[where] = features
                advance(len(features))
        self.pass_s = self.run.budget.used - start


def to_device(encoder: Encoder, device: str) -> Encoder:
    """The encoder on `device`, in the memory format that convolutions are fastest in: on a CPU up to four times."""
    return encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
