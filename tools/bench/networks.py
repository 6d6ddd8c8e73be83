"""What each variant starts from: a network with the same random weights, its input, its count of operations."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from densekit.models import create_model
from tools.bench.cases import Case

SEED = 0


def build_network(case: Case, memory: str = "speed") -> nn.Module:
    """Returns our network as plain modules, with the same weights at every call and in every process."""
    arguments = case.arguments if memory == "speed" else {**case.arguments, "memory": memory}
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        net = create_model(case.model, **arguments)
        randomize_(net)
    return net


def make_input(case: Case) -> Tensor:
    """Returns the picture in 0..1 that all variants get, of `case.shape`."""
    return torch.rand(case.shape, generator=torch.Generator().manual_seed(SEED))


@torch.no_grad()
def randomize_(net: nn.Module) -> None:
    """Draws weights that hide no fault: every path carries signal, and no norm is the identity.

    Convolutions start as in He et al.; biases are not zero. Norms have random statistics and factors. In every tenth
    norm a tenth of them is negative, which an inference form that folds or clamps must get right; in all of them, which
    costs such a form in bfloat16 a pass, would be unlike trained networks (none of 9,296 in the embedded ones).
    """
    norms = 0
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                module.bias.normal_(std=0.1)
        elif isinstance(module, nn.Linear):
            module.bias.normal_(std=0.1)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.weight.uniform_(0.5, 1.5)
            if norms % 10 == 0:
                module.weight.mul_(1 - 2 * (torch.rand_like(module.weight) < 0.1))
            norms += 1
            module.bias.normal_(std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)


def count_flops(net: nn.Module, shape: tuple[int, ...], *, is_training: bool = False) -> int:
    """Returns the operations of all convolutions and matrix products, two for a multiplication with its addition.

    Args:
        net: any network; it is copied without its weights.
        shape: of the input, (B, C, H, W).
        is_training: of forward and backward pass.
    """
    net = copy.deepcopy(net).to("meta").train(is_training)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(is_training):
        y = net(torch.empty(shape, device="meta"))
        if is_training:
            y.sum().backward()
    return int(counter.get_total_flops())
