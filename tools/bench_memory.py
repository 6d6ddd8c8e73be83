"""What a training step keeps for its backward pass, and what that costs: DenseNet-121, FC-DenseNet-103 and RDN.

python -m tools.bench_memory [--rounds 4] [--only densenet121 ...]: for each network and policy the bytes of distinct
storages that autograd keeps, but for weights, buffers and the batch; the most bytes of tensors that are there at once
in the step, the weights' gradients included; and CPU seconds of a step on one thread, in turn, the least of the rounds,
beside the plain network's. DenseNet-121 stands beside torchvision's.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn
from torchvision.models import densenet121

from densekit import create_model
from densekit.blocks import MEMORY_POLICIES, saved_bytes
from densekit.memory import LiveBytes

CASES = [
    ("densenet121", (8, 3, 224, 224)),
    ("fc_densenet103", (1, 3, 224, 224)),
    ("fc_densenet103", (1, 3, 360, 480)),
    ("rdn", (1, 3, 48, 48)),
]


def step(net: nn.Module, x: Tensor) -> float:
    """Returns the CPU seconds of one forward and backward pass."""
    net.zero_grad()
    began = time.process_time()
    net(x).square().mean().backward()
    return time.process_time() - began


def most_bytes(net: nn.Module, x: Tensor) -> int:
    """Returns the most bytes of tensors at once in a step, but for weights, buffers and the batch."""
    net.zero_grad()
    with LiveBytes([*net.parameters(), *net.buffers(), x]) as live:
        net(x).square().mean().backward()
    return live.peak


def rivals(name: str) -> dict[str, nn.Module]:
    """Returns the networks to compare, the one that counts as 1 first."""
    nets: dict[str, nn.Module] = {}
    if name == "densenet121":
        nets = {"torchvision": densenet121(), "torchvision, memory_efficient": densenet121(memory_efficient=True)}
    nets |= {policy: create_model(name, memory=policy) for policy in MEMORY_POLICIES}
    weights = next(iter(nets.values())).state_dict()
    for net in nets.values():
        net.load_state_dict(weights)
    return nets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    names = sorted({name for name, _ in CASES})
    parser.add_argument("--only", nargs="*", choices=names, default=names, help="networks; all if not given")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name, size in CASES:
        if name not in arguments.only:
            continue
        nets, x = rivals(name), torch.randn(size)
        times: dict[str, list[float]] = {rival: [] for rival in nets}
        for _ in range(arguments.rounds):
            for rival, net in nets.items():
                times[rival].append(step(net.train(), x))
        first = next(iter(nets))
        shape = "x".join(map(str, size))
        print(f"{name}, {shape}, float32, one thread\n")
        print(f"| | kept, MiB | at most at once, MiB | step, {first} = 1 |\n|---|---|---|---|")
        for rival, net in nets.items():
            ratio = min(times[rival]) / min(times[first])
            kept, most = saved_bytes(net, x) / 2**20, most_bytes(net, x) / 2**20
            print(f"| {rival} | {kept:.1f} | {most:.0f} | {ratio:.2f} |", flush=True)
        print()


if __name__ == "__main__":
    main()
