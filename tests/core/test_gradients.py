"""Features that nobody trained: their shape, and that edges answer in the direction they have."""

from __future__ import annotations

import pytest
import torch

from deepmcat_core.backbones.gradients import DIRECTIONS, GRIDS, Gradients
from deepmcat_core.encoder import Views, build_encoder, parse_encoder, pretrained
from deepmcat_core.errors import ConfigError
from deepmcat_core.manifest import EncoderSpec

# Of the i-th direction grey values rise towards i × 45 degrees, clockwise from the right: rows count downwards.
RIGHT, DOWN, LEFT, UP = 0, 2, 4, 6


def edges(images: torch.Tensor) -> list[torch.Tensor]:
    """What each grid has, (B, DIRECTIONS, grid, grid)."""
    _, *parts = Gradients()(images).split(Gradients.parts, dim=1)
    return [part.view(-1, DIRECTIONS, grid, grid) for part, grid in zip(parts, GRIDS, strict=True)]


def split_image(side: int = 64) -> torch.Tensor:
    """Black above, white below: (1, 1, side, side)."""
    image = torch.zeros(1, 1, side, side)
    image[..., side // 2 :, :] = 1
    return image


@pytest.mark.parametrize("side", [32, 48, 63, 64, 65, 96, 100, 127, 128, 200, 224])
def test_features_are_as_many_whatever_the_image_s_side(side: int) -> None:
    """Three parts, finite, for sides that are multiples of 64 and others; the middle of the edge stays the middle."""
    features = Gradients()(split_image(side))
    down = edges(split_image(side))[0][0, DOWN]

    assert features.shape == (1, Gradients.dim) == (1, sum(Gradients.parts)) == (1, 1024 + 512 + 128)
    assert features.isfinite().all()
    assert set(down.sum(dim=1).topk(2).indices.tolist()) == {3, 4}


@pytest.mark.parametrize("side", [32, 100, 128])
@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_a_flat_image_has_no_edges(side: int, grey: float) -> None:
    """Not even at its border: its pixels are its grey value, and every direction is next to 0."""
    pixels = Gradients()(torch.full((1, 1, side, side), grey))[:, : 32**2]

    torch.testing.assert_close(pixels, torch.full_like(pixels, grey))
    assert all(grid.max() < 1e-3 for grid in edges(torch.full((1, 1, side, side), grey)))


@pytest.mark.parametrize(
    ("image", "direction"),
    [
        (split_image(), DOWN),
        (split_image().flip(2), UP),
        (split_image().transpose(2, 3), RIGHT),
        (split_image().transpose(2, 3).flip(3), LEFT),
    ],
)
def test_an_edge_answers_in_its_direction(image: torch.Tensor, direction: int) -> None:
    """Where grey values rise, the most in that direction, less in the two beside it, nothing in the other five."""
    for grid in edges(image):
        strength = grid[0].sum(dim=(1, 2))
        beside = [(direction + step) % DIRECTIONS for step in (-1, 1)]
        others = [i for i in range(DIRECTIONS) if i not in (direction, *beside)]

        assert int(strength.argmax()) == direction
        torch.testing.assert_close(strength[beside[0]], strength[beside[1]])
        # cos 45° of the edge, below a root; 64 cells hold a little because the root of 0 has no slope
        torch.testing.assert_close(
            strength[beside[0]] / strength[direction], torch.tensor(0.5**0.25), rtol=0.01, atol=0
        )
        assert strength[others].max() < 0.02 * strength[direction]


def test_an_edge_is_seen_where_it_lies() -> None:
    """Cells away from the edge hold nothing."""
    fine, coarse = (grid[0, DOWN] for grid in edges(split_image()))

    assert fine[3:5].min() > 0.3
    assert max(fine[:3].max(), fine[5:].max()) < 1e-3
    assert coarse[1:3].min() > 0.2
    assert max(coarse[0].max(), coarse[3].max()) < 1e-3


def test_the_small_image_is_an_average_of_the_large() -> None:
    """Four times each pixel makes the same features."""
    image = torch.rand(2, 1, 64, 64, generator=torch.manual_seed(0))
    larger = image.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    torch.testing.assert_close(Gradients()(larger), Gradients()(image))


def test_it_has_no_weights() -> None:
    """Nothing to train and nothing to store: of an encoder with views, only the views are in an artifact."""
    plain = pretrained(parse_encoder("gradients"))
    spec = EncoderSpec(
        name="gradients", options={"projection": {"kind": "views", "in": [1024, 512, 128], "out": [4] * 3}}
    )

    assert plain.weights() == {}
    assert not list(plain.backbone.parameters())
    assert isinstance(build_encoder(spec).projection, Views)
    assert {name.split(".")[0] for name in build_encoder(spec).weights()} == {"projection"}


def test_it_takes_no_options() -> None:
    """An option that it has not is refused."""
    with pytest.raises(ConfigError, match="stem"):
        build_encoder(EncoderSpec(name="gradients", options={"stem": "3x3"}))
