"""DenseNet in the words of Keras (keras.applications): layers by name, kernels HWIO, channels last.

Its norms add 1.001e-5 to the variance and ours 1e-5, so the difference moves into the variance, which is exact. Its
classifier ends in a softmax, of which ours gives the logits. Its own weights expect what its `preprocess_input` does:
the ImageNet mean and standard deviation.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from densekit.cards import Card
from densekit.dialects.densenet import BARE, FOUR, HALVING, IMAGENET, PARTS, Limit, check_limits, structure
from densekit.dialects.dialect import Dialect, Tensors, Translation
from densekit.dialects.naming import Rows

EPS = 1.001e-5 - 1e-5  # Keras' epsilon less ours
NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
KERNEL = {"kernel": "weight", "bias": "bias"}
WIDTHS: Limit = (
    "growth rate 32, bottlenecks of 4 k and a stem of 64 maps",
    lambda found: (found["growth_rate"], found["bn_size"], found["num_init_features"]) == (32, 4, 64),
)
ROWS = Rows(
    ("conv1_conv", "features.conv0"),
    ("conv1_bn", "features.norm0"),
    *(
        (f"conv{{b+1}}_block{{l}}_{theirs}", f"features.denseblock{{b}}.denselayer{{l}}.{ours}")
        for theirs, ours in zip(("0_bn", "1_conv", "1_bn", "2_conv"), PARTS, strict=True)
    ),
    ("pool{b+1}_bn", "features.transition{b}.norm"),
    ("pool{b+1}_conv", "features.transition{b}.conv"),
    ("bn", "features.norm5"),
    ("predictions", "classifier"),
    # As keras-applications had them before Keras took it in.
    ("conv1/conv", "features.conv0"),
    ("conv1/bn", "features.norm0"),
    ("fc1000", "classifier"),
)


def _to_ours(tensors: Tensors) -> Translation:
    turned: Tensors = {}
    dotted = {}
    for name, tensor in tensors.items():
        layer, _, weight = name.rpartition("/")
        dotted[name] = f"{layer}.{ {**NORM, **KERNEL}.get(weight, weight) }"
        turned[dotted[name]] = _shifted(tensor) if weight == "moving_variance" else _from_kernel(tensor)
    found = ROWS.translate(turned)
    renamed = {name: found.renamed.get(own, own) for name, own in dotted.items()}
    note = "gives logits: the softmax behind Keras' classifier is not part of the network here"
    return Translation(found.tensors, renamed, notes=(note if "classifier.weight" in found.tensors else BARE,))


def _to_theirs(tensors: Tensors, card: Card) -> Tensors:
    check_limits(tensors, "keras", WIDTHS, IMAGENET, HALVING, FOUR)
    theirs: Tensors = {}
    for module in _in_order(structure(tensors)["block_config"]):
        for weight, kind in (NORM if f"{module}.running_mean" in tensors else KERNEL).items():
            for name, tensor in ROWS.theirs(_present(tensors, f"{module}.{kind}")).items():
                given = _unshifted(tensor) if kind == "running_var" else _to_kernel(tensor)
                theirs[f"{name.removesuffix(f'.{kind}')}/{weight}"] = given
    return theirs


def _present(tensors: Tensors, name: str) -> Tensors:
    return {name: tensors[name]} if name in tensors else {}


def _in_order(block_config: list[int]) -> Iterator[str]:
    """Yields our modules in the order of Keras' layers, by which it reads weights."""
    yield from ("features.conv0", "features.norm0")
    for block, length in enumerate(block_config, 1):
        for layer in range(1, length + 1):
            yield from (f"features.denseblock{block}.denselayer{layer}.{part}" for part in PARTS)
        if block < len(block_config):
            yield from (f"features.transition{block}.{part}" for part in ("norm", "conv"))
    yield from ("features.norm5", "classifier")


def _from_kernel(tensor: Tensor) -> Tensor:
    """Returns a kernel (H, W, in, out) or (in, out) with out and in first; a vector as it is."""
    if tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1).contiguous()
    return tensor.T.contiguous() if tensor.ndim == 2 else tensor


def _to_kernel(tensor: Tensor) -> Tensor:
    if tensor.ndim == 4:
        return tensor.permute(2, 3, 1, 0).contiguous()
    return tensor.T.contiguous() if tensor.ndim == 2 else tensor


def _shifted(variance: Tensor) -> Tensor:
    """Returns the variance that with our epsilon gives what this one gives with Keras'."""
    return (variance.double() + EPS).to(variance.dtype)


def _unshifted(variance: Tensor) -> Tensor:
    """Returns a variance of which `_shifted` gives this one, to the bit but for variances below 2e-8.

    The nearest number to the difference may miss it by rounding; one beside it does not, since numbers are no further
    apart there. Those next to zero are: what is lost of them stays in the note of the file.
    """
    found = (variance.double() - EPS).to(variance.dtype)
    for direction in (-torch.inf, torch.inf):
        missed = _shifted(found) != variance
        beside = torch.nextafter(found, torch.full_like(found, direction))
        found = torch.where(missed & (_shifted(beside) == variance), beside, found)
    return found


DIALECTS: tuple[Dialect, ...] = (
    Dialect(
        "keras",
        "densenet",
        lambda tensors: (
            "conv2_block1_1_conv/kernel" in tensors
            and "conv2_block1_2_conv/kernel" in tensors
            and ("conv1_conv/kernel" in tensors or "conv1/conv/kernel" in tensors)
            and ("pool2_conv/kernel" in tensors or "pool2_bn/gamma" in tensors)
        ),
        _to_ours,
        _to_theirs,
        suffix=".h5",
    ),
)
