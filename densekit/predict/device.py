"""Where and in which precision a network runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn

from densekit.blocks.inference import optimize
from densekit.errors import CheckpointError, ConfigError, DeviceError, suggest
from densekit.files import printable
from densekit.memory import activation_bytes_per_pixel
from densekit.predict.cast import cast_for_prediction, cast_images
from densekit.runtimes.net import ExportedNet

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """Returns the device a name stands for; "auto" is the first of CUDA, MPS and CPU that this machine has.

    Raises:
        ConfigError: no name of a device.
        DeviceError: a device that is not there.
    """
    kind, _, index = name.partition(":")
    if kind not in DEVICES or (index and not (kind == "cuda" and index.isdecimal())):
        raise ConfigError(
            f"device {printable(name)!r}: expected auto, cpu, cuda, cuda:N or mps{suggest(kind, DEVICES)}"
        )
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device {name}: torch {torch.__version__} sees {_cuda_devices()}; use --device cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"device mps: not on this machine as torch {torch.__version__} sees it; use --device cpu")
    return torch.device(f"{kind}:{index}" if index else kind)


def choose_precision(name: str, device: torch.device, task: str) -> str:
    """Returns the precision a name stands for: "fp32", "bf16" or "fp16".

    "auto" is fp32 except on CUDA, where super-resolution takes fp16 and segmentation bf16: a trained x2 RDN loses
    0.01 dB of 37.65 dB with bf16 and nothing with fp16.

    Raises:
        ConfigError: no name of a precision.
    """
    if name == "auto":
        if device.type != "cuda":
            return "fp32"
        return "fp16" if task == "sr" else "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if name not in PRECISIONS:
        known = ("auto", *PRECISIONS)
        raise ConfigError(f"precision {printable(name)!r}: expected one of {', '.join(known)}{suggest(name, known)}")
    return name


def choose_place(net: nn.Module, device: str, precision: str, task: str) -> tuple[torch.device, str]:
    """Returns where and in which precision a network runs; an exported one on the CPU, as it was exported.

    Raises:
        ConfigError: no name of a device or precision, or one that an exported network cannot have.
        DeviceError: a device that is not there.
    """
    if not isinstance(net, ExportedNet):
        where = choose_device(device)
        chosen = choose_precision(precision, where, task)
        able: tuple[str, ...] = getattr(net, "precisions", tuple(PRECISIONS))  # some foreign networks have fewer
        if chosen not in able and precision != "auto":
            raise ConfigError(f"precision {precision}: this network runs in {' or '.join(able)} alone")
        return where, chosen if chosen in able else "fp32"
    where = choose_device("cpu" if device == "auto" else device)
    choose_precision(precision, where, task)
    if where.type != "cpu":
        raise ConfigError(f"device {device}: an exported file runs on the CPU; use --device cpu, or its checkpoint")
    if precision not in ("auto", net.graph.precision):
        raise ConfigError(
            f"precision {precision}: the file was exported in {net.graph.precision}, so it runs in that; "
            "leave out --precision"
        )
    return where, net.graph.precision


class Runner:
    """A network on its device, in its precision, whose results are all finite.

    It is optimised at its first run, an exported one excepted; what changes its weights afterwards has no effect.
    """

    def __init__(self, net: nn.Module, device: torch.device, precision: str, in_channels: int) -> None:
        self._net = net.to(device).eval().requires_grad_(False)
        self._device, self._precision = device, precision
        self._dtype = PRECISIONS.get(precision, torch.float32)  # an exported network takes float32 whatever it runs in
        self._in_channels = in_channels

    @cached_property
    def net(self) -> nn.Module:
        """The network in fp32.

        Raises:
            CheckpointError: its weights are not all finite.
        """
        return self._net if isinstance(self._net, ExportedNet) else optimize(self._net)

    @cached_property
    def _fast(self) -> nn.Module | None:
        """The network in a lower precision."""
        return None if self._dtype == torch.float32 else cast_for_prediction(self.net, self._dtype)

    @cached_property
    def bytes_per_pixel(self) -> float:
        """Peak of what is alive during a forward pass, in bytes per input pixel; measured on first use or at export."""
        if isinstance(self._net, ExportedNet):
            return self._net.bytes_per_pixel
        net = self.net if self._fast is None else self._fast
        return activation_bytes_per_pixel(net, self._in_channels, self._dtype)

    def bind(
        self, notes: list[str], *, full: bool = False, apply: Callable[[nn.Module, Tensor], Tensor] = nn.Module.__call__
    ) -> Callable[[Tensor], Tensor]:
        """Returns the network as a function of float32 tiles that adds a line to `notes` where it had to fall back.

        A tile that comes out of bf16 or fp16 with a value that is not finite is run again in fp32. `full` runs all of
        them in fp32. `apply` is how the network runs on a tile.

        Raises (when called):
            CheckpointError: fp32 gives such values too.
        """

        def run(x: Tensor) -> Tensor:
            x = x.to(self._device).contiguous(memory_format=torch.channels_last)
            if self._fast is not None and not full:
                y = apply(self._fast, cast_images(self._fast, x, self._dtype)).float()
                if _is_finite(y):
                    return y
                note = f"{self._precision} gave values that are not finite: those tiles were run again in fp32"
                if note not in notes:
                    notes.append(note)
            y = apply(self.net, x)
            if not _is_finite(y):
                raise CheckpointError("the weights give values that are not finite; use another checkpoint")
            return y

        return run


def _is_finite(y: Tensor) -> bool:
    """Says whether all values are finite, without the copies that `isfinite` makes."""
    return all(bound.isfinite() for bound in y.permute(0, 2, 3, 1).aminmax())


def _cuda_devices() -> str:
    count = torch.cuda.device_count()
    return f"{count} CUDA devices" if count else "no CUDA device"
