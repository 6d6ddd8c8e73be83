"""Whether an exported graph does what its network does, in each runtime that can run it, and how fast."""

from __future__ import annotations

import importlib.util
import io
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from densekit.blocks import optimize
from densekit.cards import Card
from densekit.errors import DensekitError
from densekit.export.pictures import SIZES, fit, samples
from densekit.export.tracing import on_cpu, quiet
from densekit.files import printable
from densekit.runtimes import Graph, read_exported
from densekit.runtimes.runs import Array, Run, run_onnx, run_openvino

MAX_DIFFERENCE = 1e-4  # of fp32, which the order of summation moves by 1e-6 to 1e-5
MIN_AGREEMENT = 0.9999  # of classes: where two logits are all but equal, rounding decides
MAX_LEVELS = 1  # of 8 bits
TIMED, ROUNDS = (1, 96, 128), 5


class Unequal(DensekitError):
    """An exported graph that does not do what its network does."""


@dataclass(frozen=True)
class Comparison:
    """What a runtime makes of images, against the network in PyTorch.

    Attributes:
        runtime: its name.
        images: how many were compared.
        max_difference: largest absolute difference of two values; of logits and features that go beyond 1, as a share
            of the largest.
        psnr: between the results, in dB; its peak is 1 for images, else the largest value. Infinite where
            equal, minus infinite where values are not finite.
        agreement: share of the pixels that get the same class, 0..1; None where there are no classes.
        levels: largest difference in 8 bits, of images in 0..1 only, else None.
        speed: how many times as fast as the network optimised for prediction in PyTorch, with as many threads.
        threads: that number.
    """

    runtime: str
    images: int
    max_difference: float
    psnr: float
    agreement: float | None
    levels: int | None
    speed: float
    threads: int

    def faults(self) -> list[str]:
        """Returns what is beyond the limits for fp32."""
        found = []
        if not self.max_difference <= MAX_DIFFERENCE:
            found.append(f"a difference of {self.max_difference:.2g}, more than {MAX_DIFFERENCE:g}")
        if self.agreement is not None and not self.agreement >= MIN_AGREEMENT:
            found.append(f"the same class for {self.agreement:.2%} of the pixels, less than {MIN_AGREEMENT:.2%}")
        if self.levels is not None and self.levels > MAX_LEVELS:
            found.append(f"a difference of {self.levels} levels in 8 bits, more than {MAX_LEVELS}")
        return found

    def __str__(self) -> str:
        parts = [f"{self.runtime}: {self.images} images, max difference {self.max_difference:.1e}"]
        parts.append("PSNR " + ("infinite" if self.psnr == math.inf else f"{self.psnr:.1f} dB"))
        parts += [f"same class {self.agreement:.4%}"] if self.agreement is not None else []
        parts += [f"at most {self.levels} of 255 levels"] if self.levels is not None else []
        return ", ".join([*parts, f"{self.speed:.2f} times the speed of PyTorch ({self.threads} threads)"])


def verify(path: str | Path, net: nn.Module, card: Card, pictures: Sequence[str | Path] = ()) -> list[Comparison]:
    """Returns how an exported .onnx or .xml compares with its network on random, drawn and given pictures.

    Raises:
        Unequal: a runtime is beyond the limits, with one line for each.
        CheckpointError, ConfigError: as `densekit.runtimes.open_exported`.
        DataError: a picture that cannot be read.
    """
    exported = read_exported(path)
    runs = runs_of(exported.kind, exported.data, exported.weights, printable(path))
    found = compare(runs, on_cpu(net), exported.graph, card.task, pictures)
    if exported.graph.precision == "fp32":
        judge(found, printable(path))
    return found


def judge(found: Iterable[Comparison], source: str) -> None:
    """Passes what is within the limits for fp32.

    Raises:
        Unequal: some are not.
    """
    faults = [f"{source}: {one.runtime} gives {fault}" for one in found for fault in one.faults()]
    if faults:
        raise Unequal("\n".join(faults))


def runs_of(kind: str, data: bytes, weights: bytes, source: str) -> dict[str, Run]:
    """Returns the graph in every runtime that reads such a file, by name; OpenVINO reads ONNX too, where it is there.

    A .pt2 is to be one that this process has just made: torch may run code that such a file holds.
    """
    if kind == "pt2":
        return {"torch.export": _run_program(data)}
    if kind == "openvino":
        return {"OpenVINO": run_openvino(data, weights, source)}
    runs = {"ONNX Runtime": run_onnx(data, source)}
    if importlib.util.find_spec("openvino"):
        runs["OpenVINO"] = run_openvino(data, b"", source)
    return runs


def compare(
    runs: dict[str, Run], net: nn.Module, graph: Graph, task: str, pictures: Sequence[str | Path] = ()
) -> list[Comparison]:
    """Returns what each runtime makes of random, drawn and given pictures against a network on the CPU in fp32."""
    sums = _sums(runs, net, graph, task, samples(graph, pictures))
    timed = fit(np.random.default_rng(0).integers(0, 256, (*TIMED, graph.in_channels), np.uint8), graph)
    speeds = _speeds(runs, net, graph, timed)
    return [sums[name].comparison(name, speeds[name]) for name in runs]


def check(runs: dict[str, Run], net: nn.Module, graph: Graph, task: str, source: str) -> None:
    """Passes a graph that gives in every runtime what the network gives on the smallest of those images.

    Raises:
        Unequal: it does not; `source` names the file.
    """
    sums = _sums(runs, net, graph, task, samples(graph, sizes=SIZES[:2]))
    judge((found.comparison(name, math.nan) for name, found in sums.items()), source)


def given(graph: Graph, images: NDArray[np.uint8]) -> Array:
    """Returns images (B, H, W, C) as the graph takes them."""
    return images if graph.uint8 else np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32) / np.float32(255)


@torch.no_grad()
def reference(net: nn.Module, graph: Graph, task: str, images: NDArray[np.uint8]) -> list[Array]:
    """Returns what the graph is to give for images (B, H, W, C), made by other means than those inside it."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    height, width = x.shape[-2:]
    if graph.any_size:
        missing = (max(-side % graph.multiple_of, graph.min_size - side) for side in (width, height))
        right, bottom = missing
        x = F.pad(x, (0, right, 0, bottom), mode="replicate")
    results = net(x)
    results = list(results) if isinstance(results, list | tuple) else [results]
    if graph.any_size:
        results = [y[..., : height * graph.scale, : width * graph.scale] for y in results]
    if graph.argmax:
        results = [y[:, 0] > 0 if y.shape[1] == 1 else y.argmax(1) for y in results]
    elif graph.uint8 and task == "sr":
        results = [(y.clamp(0, 1) * 255).add(0.5).byte().permute(0, 2, 3, 1) for y in results]
    return [y.numpy() for y in results]


def _sums(
    runs: dict[str, Run], net: nn.Module, graph: Graph, task: str, batches: Iterable[NDArray[np.uint8]]
) -> dict[str, _Sums]:
    sums = {name: _Sums(task, graph) for name in runs}
    for images in batches:
        wanted = reference(net, graph, task, images)
        for name, run in runs.items():
            sums[name].add(run(given(graph, images)), wanted)
    return sums


class _Sums:
    """Adds up how far results are from those wanted."""

    def __init__(self, task: str, graph: Graph) -> None:
        self.task, self.graph = task, graph
        self.images = self.count = self.pixels = self.equal = self.levels = 0
        self.largest = self.squares = 0.0
        self.peak = 1.0

    def add(self, found: list[Array], wanted: list[Array]) -> None:
        assert [y.shape for y in found] == [y.shape for y in wanted], "a graph that gives other shapes than its network"
        self.images += len(wanted[0])
        unit = 255.0 if self.graph.uint8 and self.task == "sr" else 1.0
        for a, b in zip(found, wanted, strict=True):
            if self.task == "seg":
                classes = [class_numbers(y, self.graph) for y in (a, b)]
                self.equal += int((classes[0] == classes[1]).sum())
                self.pixels += classes[0].size
            if self.graph.argmax:
                continue
            if not np.isfinite(a).all():
                self.largest = self.squares = math.inf
                self.levels = 255
                continue
            if self.task == "sr":
                levels = [np.floor(np.clip(y / unit, 0, 1) * 255 + 0.5) for y in (a, b)]
                self.levels = max(self.levels, int(abs(levels[0] - levels[1]).max()))
            difference = (a.astype(np.float64) - b) / unit
            self.largest = max(self.largest, float(abs(difference).max()))
            self.squares += float((difference**2).sum())
            self.count += difference.size
            self.peak = max(self.peak, float(abs(b).max()) / unit)

    def comparison(self, runtime: str, speed: float) -> Comparison:
        """Returns what was found. Bytes are judged by their levels, class numbers by their agreement."""
        peak = 1.0 if self.task == "sr" else self.peak
        error = self.squares / max(self.count, 1)
        as_bytes = self.graph.uint8 and self.task == "sr"
        return Comparison(
            runtime,
            self.images,
            max_difference=0.0 if as_bytes else self.largest / peak,
            psnr=decibels(peak, error),
            agreement=self.equal / self.pixels if self.pixels else None,
            levels=self.levels if self.task == "sr" else None,
            speed=speed,
            threads=torch.get_num_threads(),
        )


def decibels(peak: float, error: float) -> float:
    """Returns the PSNR of a mean squared error: infinite for none, minus infinite for one without bound."""
    if error == 0:
        return math.inf
    return 10 * math.log10(peak**2 / error) if math.isfinite(error) else -math.inf


def class_numbers(y: Array, graph: Graph) -> Array:
    """Returns the classes in what a segmentation graph gave, (B, H, W)."""
    if graph.argmax:
        return y
    return y[:, 0] > 0 if y.shape[1] == 1 else y.argmax(1)


def _speeds(runs: dict[str, Run], net: nn.Module, graph: Graph, images: NDArray[np.uint8]) -> dict[str, float]:
    """Returns how many times as fast as PyTorch each runtime is: medians of turns, one after the other."""
    fast = optimize(net)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255).contiguous(memory_format=torch.channels_last)
    array = given(graph, images)

    def run_net() -> Any:
        with torch.no_grad():
            return fast(x)

    work: dict[str, Callable[[], Any]] = {"": run_net, **{name: partial(run, array) for name, run in runs.items()}}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS + 1):
        for name, call in work.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}  # the first one makes ready
    return {name: medians[""] / medians[name] for name in runs}


def _run_program(data: bytes) -> Run:
    with quiet():
        module = torch.export.load(io.BytesIO(data)).module()

    def run(x: Array) -> list[Array]:
        with torch.no_grad():
            results: Tensor | list[Tensor] = module(torch.from_numpy(x))
        return [y.numpy() for y in (results if isinstance(results, list | tuple) else [results])]

    return run
