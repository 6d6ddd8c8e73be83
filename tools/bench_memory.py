"""What a training step of DenseNet-121 keeps for its backward pass, and what it costs, beside torchvision's.

python -m tools.bench_memory [--batch 8] [--size 224] [--rounds 4]: bytes of distinct storages that autograd saves, but
for weights, buffers and the input; CPU seconds of a step on one thread, in turn, the least of the rounds.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn
from torchvision.models import densenet121

from densekit import create_model
from densekit.blocks import MEMORY_POLICIES


def saved_bytes(net: nn.Module, x: Tensor) -> int:
    """Returns the bytes that autograd keeps between forward and backward pass."""
    given = {tensor.untyped_storage().data_ptr() for tensor in (*net.parameters(), *net.buffers(), x)}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = net(x)
    del output
    return sum(storages.values())


def step(net: nn.Module, x: Tensor) -> float:
    """Returns the CPU seconds of one forward and backward pass."""
    net.zero_grad()
    began = time.process_time()
    net(x).square().mean().backward()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="side of the pictures")
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    nets: dict[str, nn.Module] = {"torchvision": densenet121(), "memory_efficient": densenet121(memory_efficient=True)}
    for policy in MEMORY_POLICIES:
        nets[policy] = create_model("densenet121", memory=policy)
        nets[policy].load_state_dict(nets["torchvision"].state_dict())
    x = torch.randn(arguments.batch, 3, arguments.size, arguments.size)
    times: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(arguments.rounds):
        for name, net in nets.items():
            times[name].append(step(net.train(), x))
    print(f"DenseNet-121, batch {arguments.batch}, {arguments.size}x{arguments.size}, float32, one thread\n")
    print("| | saved, MiB | step, torchvision = 1 |\n|---|---|---|")
    for name, net in nets.items():
        ratio = min(times[name]) / min(times["torchvision"])
        print(f"| {name} | {saved_bytes(net, x) / 2**20:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
