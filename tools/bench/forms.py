"""The forms in which a network runs: each makes a function (B, C, H, W) -> result of modules that hold the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from densekit.blocks import optimize
from densekit.predict.cast import cast_for_prediction, cast_images
from tools.bench.cases import Case
from tools.bench.networks import build_network
from tools.bench.peers import PEERS
from tools.bench.variants import OURS, Variant

Run = Callable[[Tensor], Tensor]
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
OPENVINO_DTYPES = {"fp32": "f32", "bf16": "bf16"}


class Absent(Exception):
    """What a form needs is not on this machine; the message says what."""


@dataclass(frozen=True)
class Setup:
    """What a form is made for: device, threads, and the exported network, which may not exist."""

    device: str
    threads: int
    onnx: Path


def inference_form(net: nn.Module) -> nn.Module:
    """Returns our network as densekit prepares it for prediction; it may use up `net`."""
    own = getattr(net, "optimize", None)
    return own() if own is not None else optimize(net)


def build_source(variant: Variant, case: Case, net: nn.Module) -> nn.Module:
    """Returns fresh modules with the weights of `net`, which is ours: those of a peer, or our own."""
    if variant.source != OURS:
        return PEERS[variant.source].build(case, net)
    return build_network(case, variant.memory)


def prepare(variant: Variant, module: nn.Module, setup: Setup) -> Run:
    """Returns the function that is measured. In NCHW and channels_last it trains `module` itself.

    Raises:
        Absent: this machine lacks what the form needs.
    """
    return FORMS[variant.form](module.to(setup.device), variant.dtype, setup)


def run_nchw(module: nn.Module, dtype: str, setup: Setup) -> Run:
    return _cast(module.to(TORCH_DTYPES[dtype]), dtype)


def run_channels_last(module: nn.Module, dtype: str, setup: Setup) -> Run:
    module = module.to(TORCH_DTYPES[dtype]).to(memory_format=torch.channels_last)
    return lambda x: module(x.to(TORCH_DTYPES[dtype], memory_format=torch.channels_last))


def run_densekit(module: nn.Module, dtype: str, setup: Setup) -> Run:
    ready = inference_form(module)  # norms are folded in fp32
    if dtype == "fp32":
        return ready
    cast = cast_for_prediction(ready, TORCH_DTYPES[dtype])
    return lambda x: cast(cast_images(cast, x, TORCH_DTYPES[dtype]))


def run_compiled(module: nn.Module, dtype: str, setup: Setup) -> Run:
    module = module.to(TORCH_DTYPES[dtype]).to(memory_format=torch.channels_last)
    return _cast(torch.compile(module), dtype)


def run_onnxruntime(module: nn.Module, dtype: str, setup: Setup) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setup.threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    provider = "CUDAExecutionProvider" if setup.device == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise Absent(f"not installed: onnxruntime with {provider}")
    session = onnxruntime.InferenceSession(setup.onnx, options, providers=[provider])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.cpu().numpy()})[0])


def run_openvino(module: nn.Module, dtype: str, setup: Setup) -> Run:
    import openvino

    core = openvino.Core()
    config = {
        "INFERENCE_NUM_THREADS": setup.threads,
        "INFERENCE_PRECISION_HINT": OPENVINO_DTYPES[dtype],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # the machine may be shared
    }
    if dtype == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise Absent("OpenVINO has no bf16 on this CPU")
    compiled = core.compile_model(core.read_model(setup.onnx), "CPU", config)
    return lambda x: torch.from_numpy(compiled(x.numpy(), share_inputs=True, share_outputs=True)[0])


FORMS: dict[str, Callable[[nn.Module, str, Setup], Run]] = {
    "NCHW": run_nchw,
    "channels_last": run_channels_last,
    "densekit": run_densekit,
    "torch.compile": run_compiled,
    "ONNX Runtime": run_onnxruntime,
    "OpenVINO": run_openvino,
}


def export_onnx(module: nn.Module, x: Tensor, path: Path) -> None:
    """Writes the file that both runtimes read."""
    torch.onnx.export(module.eval(), (x,), path, dynamo=True, verbose=False)


def _cast(run: Run, dtype: str) -> Run:
    return lambda x: run(x.to(TORCH_DTYPES[dtype]))
