"""The fixed first layer of the DeepCluster networks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Sobel(nn.Module):
    """Horizontal and vertical gradients by the Sobel filters: (B, 1, H, W) → (B, 2, H, W). Never trained.

    Without it, k-means finds groups of brightness before groups of shape (Caron et al. 2018, section 4.1).
    """

    filters: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        horizontal = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
        filters = torch.stack([horizontal, horizontal.T])[:, None]  # (2, 1, 3, 3)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The gradients of (B, 1, H, W) images."""
        return F.conv2d(images, self.filters, padding=1)
