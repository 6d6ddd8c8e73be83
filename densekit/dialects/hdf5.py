"""HDF5 files of Keras: layers and their weights, in both of its layouts.

Source: keras.src.legacy.saving.legacy_h5_format (.h5) and keras.src.saving.saving_lib (.weights.h5) of Keras 3.
"""

from __future__ import annotations

import io
from types import ModuleType
from typing import Any

import numpy as np
import torch

from densekit.cards import MAX_FILE
from densekit.dialects.dialect import NOTE, Tensors
from densekit.errors import CheckpointError

SIGNATURE = b"\x89HDF\r\n"
# What the numbered variables of a layer are, by how many there are, where the first is a vector or not.
VECTORS = {4: ("gamma", "beta", "moving_mean", "moving_variance")}
KERNELS: dict[int, tuple[str, ...]] = {1: ("kernel",), 2: ("kernel", "bias")}


def read_layers(data: bytes) -> tuple[Tensors, str]:
    """Returns the weights of a file as "layer/weight", such as "conv1_conv/kernel", and the note that densekit left.

    Raises:
        CheckpointError: h5py is not installed, or the file unpacks to too much.
        Exception: what h5py says of a damaged file.
    """
    h5py = need_h5py()
    tensors: Tensors = {}
    size = 0

    def add(name: str, item: Any) -> None:
        nonlocal size
        size += item.nbytes
        if size > MAX_FILE:
            raise CheckpointError(f"unpacks to more than {MAX_FILE >> 20} MiB; refused")
        tensors[name] = torch.from_numpy(np.array(item))

    def take(path: str, item: Any) -> None:
        if isinstance(item, h5py.Group) and path.endswith("/vars") and "name" in item.attrs:
            for weight, number in zip(_weights_of(item), sorted(item, key=int), strict=True):
                add(f"{item.attrs['name']}/{weight}", item[number])
        elif isinstance(item, h5py.Dataset) and item.dtype.kind == "f" and not path.startswith("optimizer"):
            parts = path.split("/")
            if parts[-2:-1] != ["vars"]:
                add(_layer_and_weight(parts), item)

    with h5py.File(io.BytesIO(data), "r") as file:
        file.visititems(take)
        return tensors, file[NOTE].asstr()[()] if NOTE in file else ""


def _weights_of(group: Any) -> tuple[str, ...]:
    """Returns the names of the numbered variables of a layer; the newer layout leaves them out."""
    if not len(group):
        return ()
    table = VECTORS if group["0"].ndim == 1 else KERNELS
    return table.get(len(group)) or tuple(sorted(group, key=int))


def _layer_and_weight(parts: list[str]) -> str:
    """Returns "layer/weight" for a path of the older layout, which has the layer's name twice and may have ":0"."""
    *layer, weight = parts[parts[0] == "model_weights" :]
    half = len(layer) // 2
    if len(layer) % 2 == 0 and layer[:half] == layer[half:]:
        layer = layer[:half]
    return "/".join([*layer, weight.removesuffix(":0")])


def write_layers(tensors: Tensors, note: str) -> bytes:
    """Returns an .h5 that Keras' `load_weights` reads, in order or by name.

    Args:
        tensors: "layer/weight", in the order of the network's layers and of each layer's weights.
        note: what densekit is to find in it again.

    Raises:
        CheckpointError: h5py is not installed.
    """
    h5py = need_h5py()
    layers: dict[str, list[str]] = {}
    for name in tensors:
        layers.setdefault(name.rpartition("/")[0], []).append(name)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer in layers]
        file.attrs["backend"] = b"tensorflow"  # whose kernels are not turned, as a theano's are
        file.attrs["keras_version"] = b"3.0.0"
        for layer, names in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name in names:
                group.create_dataset(name, data=tensors[name].numpy())
        file.create_dataset(NOTE, data=note)
    return buffer.getvalue()


def need_h5py() -> ModuleType:
    """Returns h5py.

    Raises:
        CheckpointError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise CheckpointError("a file of Keras needs h5py: pip install 'densekit[keras]'") from error
    return h5py
