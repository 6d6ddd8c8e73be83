from __future__ import annotations

import pytest
import torch
from torch import nn

from densekit import create_model
from densekit.blocks import BasicLayer, DenseBlock, optimize
from densekit.blocks.inference.convs import PlannedConv
from densekit.predict.cast import cast_for_prediction


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("fc_densenet56", {"num_classes": 3, "mean": (0.41, 0.39, 0.37), "std": (0.3, 0.29, 0.31)}),
        ("densenet121", {"mean": (0.41, 0.39, 0.37), "std": (0.3, 0.29, 0.31)}),
        ("unet", {"encoder": "densenet121", "num_classes": 2}),
        ("rdn", {"num_blocks": 2, "num_layers": 2, "growth_rate": 8, "num_features": 8}),
    ],
)
def test_what_reads_the_images_keeps_its_digits(name, arguments):
    torch.manual_seed(0)
    ready = optimize(create_model(name, **arguments).eval())
    before = {key: (value.dtype, value.clone()) for key, value in ready.named_buffers()}
    cast = cast_for_prediction(ready, torch.bfloat16)
    wide = {key for key, value in cast.named_buffers() if value.dtype == torch.float32}
    first = next(key for key, part in ready.named_modules() if isinstance(part, PlannedConv))
    statistics = {key for key in before if key.rpartition(".")[2] in ("mean", "std")}
    assert wide == {f"{first}.weight", f"{first}.bias"} | statistics
    assert all(torch.equal(before[key][1], value) for key, value in cast.named_buffers() if key in wide)
    assert all(
        value.dtype == before[key][0] and torch.equal(value, before[key][1]) for key, value in ready.named_buffers()
    )
    x = torch.rand(1, 3, 32, 32)
    found = cast(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found.float() - ready(x)).abs().max() <= 0.1 * ready(x).abs().max()


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
    assert cast(torch.rand(1, 3, 9, 9).bfloat16()).dtype == torch.bfloat16


def test_in_a_block_alone_everything_is_cast():
    ready = optimize(DenseBlock(4, 2, 8, lambda c: BasicLayer(c, 8)).eval())
    cast = cast_for_prediction(ready, torch.bfloat16)
    assert {value.dtype for value in cast.buffers()} == {torch.bfloat16}
    assert cast(torch.randn(1, 4, 6, 5).bfloat16()).shape == (1, 20, 6, 5)
