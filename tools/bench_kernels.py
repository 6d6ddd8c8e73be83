"""How fast the kernels run DenseNet-121 on a GPU, beside eager channels last and torch.compile, and beside the floor.

python -m tools.bench_kernels [--batch 256] [--size 224] [--dtype fp16 bf16] [--rounds 7]: a table for the dense blocks
in prediction, one for the kernels' part of a training step, and images a second of the whole network, whose stem and
transitions are eager in the row "kernels". All ways run in turn, A B C A B C; medians. The floor is the greater of the
least bytes over the copy rate and of the operations over the matrix rate, both measured in the same run; least: each
layer reads the maps before it once and writes its own. Ends with code 4 where there is no GPU or no Triton.
"""

from __future__ import annotations

import argparse
import collections
import copy
import statistics
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from densekit import create_model
from densekit.blocks import BottleneckLayer, DenseBlock
from densekit.blocks.kernels import bottleneck_forward, choice, plain, pointwise_backward, pointwise_measured
from densekit.blocks.kernels.layout import has_triton

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
DEVICE = torch.device("cuda")
Run = Callable[[], object]


class KernelBlock(nn.Module):
    """A dense block of bottleneck layers in prediction, by the kernels: norms folded, one buffer channels last.

    Args:
        block: in evaluation mode.
        dtype: in which to compute.
    """

    def __init__(self, block: DenseBlock, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.growth_rate = block.in_channels, block.out_channels, block.growth_rate
        self.layers = [folded(layer, dtype) for layer in block.children()]

    def forward(self, x: Tensor) -> Tensor:
        shape = (x.shape[0], self.out_channels, *x.shape[2:])
        buffer = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        end = self.in_channels
        buffer[:, :end] = x
        for layer in self.layers:
            bottleneck_forward(buffer, end, *layer, buffer[:, end : end + self.growth_rate])
            end += self.growth_rate
        return buffer


@torch.no_grad()
def folded(layer: BottleneckLayer, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]:
    """Returns a, b, weight1, bias1, weight2 and dilation of a layer, as `bottleneck_forward` takes them."""
    vectors = []
    for norm in (layer.norm1, layer.norm2):
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        vectors.append((scale.float(), (norm.bias - norm.running_mean * scale).float()))
    (a, b), (scale, bias) = vectors
    weight1 = (layer.conv1.weight * scale.view(-1, 1, 1, 1)).to(dtype)
    weight2 = layer.conv2.weight.to(dtype).contiguous(memory_format=torch.channels_last)
    return a, b, weight1, bias, weight2, layer.conv2.dilation[0]


def medians(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Returns the median seconds of each, run in turn after a warm-up of two calls."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        choice.seconds(run, (), 2, DEVICE)
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(choice.seconds(run, (), 3, DEVICE))
    return {name: statistics.median(values) for name, values in times.items()}


class Ceilings:
    """Bytes and operations a second that this GPU reaches: in a copy of 1 GiB, and in a matrix product of 8192."""

    def __init__(self, dtype: torch.dtype, rounds: int) -> None:
        source = torch.empty(2**30, dtype=torch.uint8, device=DEVICE)
        target = torch.empty_like(source)
        matrix = torch.randn(8192, 8192, device=DEVICE).to(dtype)
        times = medians({"copy": lambda: target.copy_(source), "product": lambda: matrix @ matrix}, rounds)
        self.bytes = 2 * source.numel() / times["copy"]
        self.operations = 2 * 8192**3 / times["product"]

    def floor(self, size: int, operations: float) -> float:
        """Returns the least seconds in which so many bytes move and so many operations are done."""
        return max(size / self.bytes, operations / self.operations)


def cost(block: DenseBlock, pixels: int, element: int) -> tuple[int, float]:
    """Returns the least bytes that a block of bottleneck layers moves, its input included, and its operations."""
    size, operations = 2 * block.in_channels, 0.0
    for layer in block.children():
        width, c = layer.conv1.weight.shape[:2]
        size += c + block.growth_rate
        operations += 2 * width * (c + 9 * block.growth_rate)
    return size * pixels * element, operations * pixels


def blocks_with_inputs(net: nn.Module, x: Tensor) -> Iterator[tuple[str, DenseBlock, Tensor]]:
    """Yields name, block and input of each dense block of a network that is given x."""
    for name, module in net.features.named_children():
        if isinstance(module, DenseBlock):
            yield name, module, x
        x = module(x)


def bench_blocks(net: nn.Module, x: Tensor, ceilings: Ceilings, rounds: int) -> None:
    """Prints the table of the dense blocks in prediction."""
    print("| block | eager, ms | compile, ms | kernels, ms | times compile | share of the floor | difference |")
    print("|---|---|---|---|---|---|---|")
    for name, block, maps in blocks_with_inputs(net, x):
        kernels, compiled = KernelBlock(block, maps.dtype), torch.compile(block)
        expected = block(maps).float()
        difference = (kernels(maps).float() - expected).norm() / expected.norm()
        runs: dict[str, Run] = {
            "eager": lambda block=block, maps=maps: block(maps),
            "compile": lambda compiled=compiled, maps=maps: compiled(maps),
            "kernels": lambda kernels=kernels, maps=maps: kernels(maps),
        }
        times = medians(runs, rounds)
        floor = ceilings.floor(*cost(block, maps.numel() // maps.shape[1], maps.element_size()))
        print(
            f"| {name} | {1e3 * times['eager']:.3f} | {1e3 * times['compile']:.3f} | {1e3 * times['kernels']:.3f} "
            f"| {times['compile'] / times['kernels']:.2f} | {floor / times['kernels']:.0%} | {difference:.1e} |",
            flush=True,
        )


def bench_training(net: nn.Module, x: Tensor, rounds: int) -> None:
    """Prints the table of the 1x1 convolutions in training, summed over the layers of a block."""
    print("\n| block | forward: torch, ms | kernels, ms | times | backward: torch, ms | kernels, ms | times |")
    print("|---|---|---|---|---|---|---|")
    for name, block, maps in blocks_with_inputs(net, x):
        shape = (maps.shape[0], block.out_channels, *maps.shape[2:])
        buffer, grad = (
            torch.randn(shape, dtype=maps.dtype, device=DEVICE).to(memory_format=torch.channels_last) for _ in range(2)
        )
        seconds: collections.Counter[str] = collections.Counter()
        for layer in block.children():
            grad.zero_()  # the runs add to it
            a, b, weight, *_ = folded(layer, maps.dtype)
            seconds.update(medians(training_runs(buffer, grad, a, b, weight), rounds))
        print(f"| {name} ", end="")
        for way in ("forward", "backward"):
            torchs, ours = seconds[f"{way}, torch"], seconds[f"{way}, kernels"]
            print(f"| {1e3 * torchs:.2f} | {1e3 * ours:.2f} | {torchs / ours:.2f} ", end="")
        print("|", flush=True)


def training_runs(buffer: Tensor, grad: Tensor, a: Tensor, b: Tensor, weight: Tensor) -> dict[str, Run]:
    """Returns what is measured of a layer: both passes through its 1x1 convolution, in torch and by the kernels."""
    c = weight.shape[1]
    x, part = buffer[:, :c], grad[:, :c]
    du = torch.randn_like(plain.pointwise_measured(x, a, b, weight)[0])
    return {
        "forward, torch": lambda: plain.pointwise_measured(x, a, b, weight),
        "forward, kernels": lambda: pointwise_measured(buffer, c, a, b, weight),
        "backward, torch": lambda: plain.pointwise_backward(du, x, a, b, weight, b, a, part),
        "backward, kernels": lambda: pointwise_backward(du, buffer, c, a, b, weight, b, a, grad),
    }


def bench_network(net: nn.Module, x: Tensor, rounds: int) -> None:
    """Prints images a second of the whole network."""
    kernels = copy.deepcopy(net)
    for name, module in net.features.named_children():
        if isinstance(module, DenseBlock):
            setattr(kernels.features, name, KernelBlock(module, x.dtype))
    compiled = torch.compile(net)
    times = medians({"eager": lambda: net(x), "compile": lambda: compiled(x), "kernels": lambda: kernels(x)}, rounds)
    print("\n| network | images/s | times compile |\n|---|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {len(x) / seconds:.0f} | {times['compile'] / seconds:.2f} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224, help="side of the pictures")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or not has_triton():
        missing = "no CUDA device" if has_triton() else "Triton is not installed"
        print(f"error: {missing}: the kernels are measured on a GPU, with Triton", file=sys.stderr)
        return 4
    for name in arguments.dtype:
        dtype, batch, rounds = DTYPES[name], arguments.batch, arguments.rounds
        torch.compiler.reset()
        torch.manual_seed(0)
        net = create_model("densenet121").eval().requires_grad_(False)
        net = net.to(DEVICE, dtype, memory_format=torch.channels_last)
        x = torch.rand(batch, 3, arguments.size, arguments.size, device=DEVICE).to(
            dtype, memory_format=torch.channels_last
        )
        ceilings = Ceilings(dtype, rounds)
        print(
            f"\nDenseNet-121, {torch.cuda.get_device_name()}, torch {torch.__version__}, batch {batch}, {name}: copy ",
            end="",
        )
        print(f"{ceilings.bytes / 1e12:.2f} TB/s, matrix product {ceilings.operations / 1e12:.0f} TFLOP/s\n")
        with torch.no_grad():
            bench_blocks(net, x, ceilings, rounds)
            bench_network(net, x, rounds)
            bench_training(net, x, rounds)
        print("\nchosen: " + ", ".join(f"{count} x {way}" for way, count in chosen()))
    return 0


def chosen() -> list[tuple[str, int]]:
    """Returns how often each way was the fastest, the most frequent first."""
    return collections.Counter(choice.winners.values()).most_common()


if __name__ == "__main__":
    sys.exit(main())
