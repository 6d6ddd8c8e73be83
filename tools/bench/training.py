"""A training step, what it keeps, and whether its gradients are right."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from tools.bench.cases import Case
from tools.bench.forms import Run, Setup, build_source, prepare
from tools.bench.variants import Variant


class Trained(nn.Module):
    """A network in training mode in the form of a variant.

    Args:
        net: whose parameters are trained.
        run: its forward pass.
        is_mixed: bf16 by autocast over weights in fp32; the result is fp32 again.
    """

    def __init__(self, net: nn.Module, run: Run, *, is_mixed: bool) -> None:
        super().__init__()
        self.net = net.train()
        self.run, self.is_mixed = run, is_mixed

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_mixed:
            return self.run(x)
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.run(x).float()

    def step(self, x: Tensor) -> None:
        """Runs forward and backward pass, and drops the gradients."""
        self(x).square().mean().backward()
        self.zero_grad()

    def gradient(self, x: Tensor) -> Tensor:
        """Returns the gradients of a step in a row, by parameter name, on the CPU."""
        named = sorted(self.net.named_parameters())
        gradients = torch.autograd.grad(self(x).square().mean(), [parameter for _, parameter in named])
        return torch.cat([gradient.flatten().cpu() for gradient in gradients])


def saved_bytes(net: nn.Module, x: Tensor) -> int:
    """Returns the bytes of the distinct storages that autograd keeps for the backward pass; no weights, not `x`."""
    given = {tensor.untyped_storage().data_ptr() for tensor in (*net.parameters(), *net.buffers(), x)}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        net(x)
    return sum(size for place, size in kept.items() if place not in given)


def build_trained(variant: Variant, case: Case, net: nn.Module, setup: Setup, dtype: str = "fp32") -> Trained:
    """Returns a variant ready for its first step, with the weights of `net`; bf16 only over weights in fp32."""
    module = build_source(variant, case, net)
    run = prepare(replace(variant, dtype=dtype), module, setup)
    return Trained(module, run, is_mixed=dtype == "fp32" and variant.dtype == "bf16")


def comparable(case: Case) -> Case:
    """Returns the case on whose gradients, in fp64, variants must agree: small, and without dropout.

    In fp32 rounding alone moves gradients by a hundredth of the largest, where it turns a ReLU; masks of dropout differ
    with the layout of the maps.
    """
    arguments = {**case.arguments, "drop_rate": 0.0} if "drop_rate" in case.arguments else case.arguments
    height, width = case.size
    return replace(case, arguments=arguments, batch=min(2, case.batch), size=(min(64, height), min(64, width)))
