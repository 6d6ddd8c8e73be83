"""The runtimes: a file's bytes become a function of arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from densekit.errors import CheckpointError, ConfigError
from densekit.files import printable
from densekit.runtimes.reading import Exported

Array: TypeAlias = NDArray[Any]
Run: TypeAlias = Callable[[Array], list[Array]]

NO_MEMORY = ("failed to allocate", "bad_alloc", "bad allocation", "not enough memory", "out of memory")


def prepare(exported: Exported) -> Run:
    """Returns the graph in a file as a function of one array.

    Raises:
        ConfigError: its runtime is not installed.
        CheckpointError: the runtime cannot read it.
    """
    source = printable(exported.path)
    if exported.kind == "onnx":
        return run_onnx(exported.data, source)
    return run_openvino(exported.data, exported.weights, source)


def run_onnx(data: bytes, source: str) -> Run:
    """Returns an ONNX graph as a function in ONNX Runtime, on the CPU, with torch's number of threads.

    Raises:
        ConfigError: ONNX Runtime is not installed.
        CheckpointError: it cannot read the graph; `source` names the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise missing("onnxruntime", source) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait busily gain nothing on a machine of one's own, and take it from everyone else on others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what goes wrong is raised
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(f"{source}: ONNX Runtime cannot read it: {first_line(error)}") from error
    name = session.get_inputs()[0].name

    def run(x: Array) -> list[Array]:
        with translated("ONNX Runtime", source):
            return list(session.run(None, {name: x}))

    return run


def run_openvino(data: bytes, weights: bytes, source: str) -> Run:
    """Returns an OpenVINO or ONNX graph as a function in OpenVINO, on the CPU, with torch's number of threads.

    Raises:
        ConfigError: OpenVINO is not installed.
        CheckpointError: it cannot read the graph; `source` names the file.
    """
    try:
        import openvino
    except ImportError as error:
        raise missing("openvino", source) from error
    # Its default on CPUs that have bf16 is bf16, whose 8 bits are too few for pixels.
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        core = openvino.Core()
        model = core.read_model(data, weights) if weights else core.read_model(data)
        compiled = core.compile_model(model, "CPU", settings)
    except Exception as error:
        raise CheckpointError(f"{source}: OpenVINO cannot read it: {first_line(error)}") from error
    outputs = list(compiled.outputs)

    def run(x: Array) -> list[Array]:
        with translated("OpenVINO", source):
            results = compiled(x)
            return [np.array(results[output]) for output in outputs]  # the runtime writes over its own

    return run


@contextmanager
def translated(runtime: str, source: str) -> Iterator[None]:
    """Turns what a runtime raises into what the predictor knows: memory that did not suffice, or a file at fault.

    Raises:
        MemoryError: a tile does not fit.
        CheckpointError: anything else.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if any(text in str(error).lower() for text in NO_MEMORY):
            raise MemoryError(first_line(error)) from error
        raise CheckpointError(f"{source}: {runtime} could not run it: {first_line(error)}") from error


def missing(package: str, source: str) -> ConfigError:
    """Returns the error that says what to install."""
    return ConfigError(f"{source}: needs the package {package}; run: pip install 'densekit[export]'")


def first_line(error: BaseException) -> str:
    """Returns what a runtime says, on one line and not all of it: most of theirs are pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith("Exception from ")] or lines or [type(error).__name__]
    return printable(telling[0][:200])
