from __future__ import annotations

import pytest
import torch
from torch import nn

from densekit import create_model
from densekit.blocks import BasicLayer, DenseBlock, optimize
from densekit.blocks.inference.convs import PlannedConv
from densekit.predict.cast import cast_for_prediction, cast_images

NARROW = {"num_blocks": 1, "num_layers": 2, "growth_rate": 8, "num_features": 8}


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize(
    ("name", "arguments", "last"),
    [
        ("fc_densenet56", {"num_classes": 3, "mean": (0.41, 0.39, 0.37), "std": (0.3, 0.29, 0.31)}, "classifier"),
        ("densenet121", {"mean": (0.41, 0.39, 0.37), "std": (0.3, 0.29, 0.31)}, ""),
        ("unet", {"encoder": "densenet121", "num_classes": 2}, "segmentation_head.0"),
        ("rdn", {"num_blocks": 2, "num_layers": 2, "growth_rate": 8, "num_features": 8}, "tail.2"),
        ("rdn", {**NARROW, "num_features": 64, "growth_rate": 64, "bicubic_skip": True}, "tail.2"),
        ("rdn", {**NARROW, "upsampler": "pixelshuffledirect"}, "tail.0"),
        ("rrdbnet", {"num_blocks": 1}, "conv_last"),
        ("srdensenet", {"num_blocks": 2, "num_layers": 2, "in_channels": 1}, "reconstruction.spread"),
        ("rdnet_tiny", {}, ""),
    ],
)
def test_what_reads_the_images_and_what_makes_the_result_keep_their_digits(name, arguments, last):
    torch.manual_seed(0)
    ready = optimize(create_model(name, **arguments).eval())
    before = {key: (value.dtype, value.clone()) for key, value in ready.named_buffers()}
    cast = cast_for_prediction(ready, torch.bfloat16)
    wide = {key for key, value in cast.named_buffers() if value.dtype == torch.float32}
    first = next(key for key, part in ready.named_modules() if isinstance(part, PlannedConv))
    statistics = {key for key in before if key.rpartition(".")[2] in ("mean", "std")}
    kept = {f"{part}.{key}" for part in (first, last) if part for key in ("weight", "bias")}
    kept |= {f"{last.removesuffix('.spread')}.bias"} if last.endswith("spread") else set()
    assert {key for key in wide if not key.endswith("kernels")} == kept | statistics
    assert all(torch.equal(before[key][1], value) for key, value in cast.named_buffers() if key in wide)
    assert all(
        value.dtype == before[key][0] and torch.equal(value, before[key][1]) for key, value in ready.named_buffers()
    )
    x = torch.rand(1, arguments.get("in_channels", 3), 64, 32)
    found, expected = cast(cast_images(cast, x, torch.bfloat16)), ready(x)
    assert found.dtype == (torch.float32 if last else torch.bfloat16)
    assert (found - expected).abs().max() <= 0.1 * expected.abs().max()


def test_flat_pictures_are_not_rounded_to_the_levels_of_the_type():
    """A sky, of which two levels in three are no number of eight bits."""
    torch.manual_seed(0)
    ready = optimize(create_model("rdn", **NARROW, bicubic_skip=True).eval())
    cast = cast_for_prediction(ready, torch.bfloat16)
    sky = torch.linspace(0.8, 0.83, 64).expand(1, 3, 16, 64)
    found, expected = cast(cast_images(cast, sky, torch.bfloat16)), ready(sky)
    assert len(found.unique()) > 1000
    assert (found - expected).std() * 255 < 0.2  # of rounding to these levels it is 0.29


class Foreign(nn.Module):
    """A network of others, which computes with its own mean in the type that it has."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.4))
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 1, 2)

    def forward(self, x):
        return self.last(self.conv(x - self.mean))


def test_of_a_network_of_others_the_first_convolution_alone_is_kept():
    cast = cast_for_prediction(optimize(Foreign().eval()), torch.bfloat16)
    assert (cast.mean.dtype, cast.conv.weight.dtype, cast.last.weight.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.bfloat16,
    )
    assert cast(cast_images(cast, torch.rand(1, 3, 9, 9), torch.bfloat16)).dtype == torch.bfloat16


def test_in_a_block_alone_everything_is_cast():
    ready = optimize(DenseBlock(4, 2, 8, lambda c: BasicLayer(c, 8)).eval())
    cast = cast_for_prediction(ready, torch.bfloat16)
    assert {value.dtype for value in cast.buffers()} == {torch.bfloat16}
    assert cast(torch.randn(1, 4, 6, 5).bfloat16()).shape == (1, 20, 6, 5)
