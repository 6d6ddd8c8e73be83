from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn


def make_positive(net: nn.Module) -> nn.Module:
    """Gives `net` positive weights in fp64 and evaluation mode, so that no path through it cancels or dies."""
    net.double().eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.uniform_(0.5, 1.5).div_(fan_in if name.endswith("weight") else 1)
    return net


def measure_reach(net: nn.Module, *, in_channels: int, size: int, phases: Iterable[int] | None = None) -> int:
    """Returns how many input pixels to each side an output pixel depends on, at worst over `phases` of its grid."""
    make_positive(net)
    x = torch.rand(1, in_channels, size, size, dtype=torch.float64, requires_grad=True)
    y = net(x)
    y = y[-1] if isinstance(y, list) else y
    scale = y.shape[-1] / size
    period = max(1, round(net.multiple_of * scale))
    first = y.shape[-1] // 2 // period * period
    reach = 0
    for at in (first + phase for phase in (range(period) if phases is None else phases)):
        (gradient,) = torch.autograd.grad(y[0, :, at, at].sum(), x, retain_graph=True)
        rows, columns = gradient[0].abs().sum(0).nonzero(as_tuple=True)
        reach = max(reach, *((seen - int(at / scale)).abs().max().item() for seen in (rows, columns)))
    assert reach < size // 2 - net.multiple_of, "the picture is too small to tell"
    return reach


def find_dead_parameters(net: nn.Module, x: Tensor) -> list[str]:
    """Returns the parameters that get no gradient, or only zeros, from a random loss in training mode."""
    net.train().zero_grad()
    outputs = net(x)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    sum((y * torch.randn_like(y)).sum() for y in outputs).backward()
    return [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]


def build_on_meta(build: Callable[..., nn.Module], *args, **arguments) -> nn.Module:
    with torch.device("meta"):
        return build(*args, **arguments)


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


@pytest.fixture
def reach():
    return measure_reach


@pytest.fixture
def dead_parameters():
    return find_dead_parameters


@pytest.fixture
def count():
    """Counts the parameters of a network that takes no memory."""
    return lambda build, *args, **arguments: sum(
        p.numel() for p in build_on_meta(build, *args, **arguments).parameters()
    )


@pytest.fixture
def on_meta():
    return build_on_meta
