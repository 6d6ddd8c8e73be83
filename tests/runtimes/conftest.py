from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from filelock import FileLock

from densekit.checkpoint import load_model, save_model
from densekit.export import export_model
from tests.export.networks import make


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A small x2 RDN as a checkpoint, an .onnx, an .xml with its .bin, and a .pt2.

    Ten seconds' work, most of it the exporter's start, so that the first process does it for those beside it.
    """
    for package in ("onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "exported"
    with FileLock(f"{folder}.lock"):
        if not (folder / "net.pt2").exists():
            net, card = make("rdn")
            folder.mkdir(exist_ok=True)
            save_model(folder / "net.safetensors", net, card)
            for suffix in ("onnx", "xml", "pt2"):
                export_model(net, card, folder / f"net.{suffix}")
    net, card = load_model(folder / "net.safetensors")
    return SimpleNamespace(folder=folder, net=net, card=card)
