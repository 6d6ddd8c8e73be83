"""Networks as files for other runtimes: ONNX, OpenVINO and torch.export, verified against PyTorch."""

from densekit.export.comparing import Comparison, Unequal, verify
from densekit.export.run import Export, export_model

__all__ = ["Comparison", "Export", "Unequal", "export_model", "verify"]
