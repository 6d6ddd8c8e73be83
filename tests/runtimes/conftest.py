from __future__ import annotations

from types import SimpleNamespace

import pytest

from densekit.checkpoint import save_model
from densekit.export import export_model
from tests.export.networks import make


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A small x2 RDN as a checkpoint, an .onnx, an .xml with its .bin, and a .pt2."""
    for package in ("onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("exported")
    net, card = make("rdn")
    save_model(folder / "net.safetensors", net, card)
    for suffix in ("onnx", "xml", "pt2"):
        export_model(net, card, folder / f"net.{suffix}")
    return SimpleNamespace(folder=folder, net=net, card=card)
