"""RRDBNet in the words of others: ESRGAN, first and second layout, ESRGAN+, and BasicSR's, which Real-ESRGAN has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from densekit.cards import Card
from densekit.dialects.dialect import Dialect, Tensors, Translation
from densekit.dialects.naming import Rows, count
from densekit.errors import CheckpointError

BASICSR = Rows(
    ("conv_first", "conv_first"),
    ("body.{n}.rdb{i}.conv5", "body.{n}.rdb{i}.fusion"),
    ("body.{n}.rdb{i}.conv{j}", "body.{n}.rdb{i}.dense.denselayer{j}.conv"),
    ("conv_body", "conv_body"),
    ("conv_up{k+1}", "conv_ups.{k}"),
    ("conv_hr", "conv_hr"),
    ("conv_last", "conv_last"),
)
XINNTAO = Rows(
    ("conv_first", "conv_first"),
    ("RRDB_trunk.{n}.RDB{i}.conv5", "body.{n}.rdb{i}.fusion"),
    ("RRDB_trunk.{n}.RDB{i}.conv{j}", "body.{n}.rdb{i}.dense.denselayer{j}.conv"),
    ("trunk_conv", "conv_body"),
    ("upconv{k+1}", "conv_ups.{k}"),
    ("HRconv", "conv_hr"),
    ("conv_last", "conv_last"),
)
PER_UP = 3  # modules of the first layout's one sequence for each doubling: enlargement, convolution, activation
AROUND = 5  # and besides: first convolution, trunk, convolution, activation, last convolution
MAX_UPS = 3  # 8 times the size


def first_layout(num_blocks: int, num_ups: int) -> Rows:
    """Returns the names of the first ESRGAN, where what a number means depends on how many there are."""
    trunk = "model.1.sub"
    after = PER_UP * num_ups
    return Rows(
        ("model.0", "conv_first"),
        (f"{trunk}.{{n}}.RDB{{i}}.conv1x1", "body.{n}.rdb{i}.shortcut"),
        (f"{trunk}.{{n}}.RDB{{i}}.conv5.0", "body.{n}.rdb{i}.fusion"),
        (f"{trunk}.{{n}}.RDB{{i}}.conv{{j}}.0", "body.{n}.rdb{i}.dense.denselayer{j}.conv"),
        (f"{trunk}.{num_blocks}", "conv_body"),
        *((f"model.{PER_UP * (k + 1)}", f"conv_ups.{k}") for k in range(num_ups)),
        (f"model.{after + 2}", "conv_hr"),
        (f"model.{after + 4}", "conv_last"),
    )


def describe(tensors: Tensors, hints: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the name and arguments of the RRDBNet whose weights these are.

    Four or sixteen times as many channels in as out are pixels that were folded: the scale of x2 and x1 networks,
    which have the two doublings of an x4 network.

    Raises:
        CheckpointError: folded pixels, but not the two doublings that go with them.
    """
    num_features, seen = tensors["conv_first.weight"].shape[:2]
    out_channels = len(tensors["conv_last.weight"])
    num_ups = count(tensors, "conv_ups.")
    fold = {4 * out_channels: 2, 16 * out_channels: 4}.get(seen, 1)
    if fold > 1 and num_ups != 2:
        raise CheckpointError(
            f"an RRDBNet that folds {fold}x{fold} pixels and doubles the size {num_ups} times; expected 2 times"
        )
    scale = 2**num_ups // fold
    arguments = {
        "scale": scale,
        "in_channels": seen // fold**2,
        "out_channels": out_channels,
        "num_features": num_features,
        "num_blocks": count(tensors, "body."),
        "growth_rate": len(tensors["body.0.rdb1.dense.denselayer1.conv.weight"]),
    }
    if scale < 4:
        arguments["unshuffle"] = fold > 1
    if "body.0.rdb1.shortcut.weight" in tensors:
        arguments["plus"] = True
    return "rrdbnet", arguments


def _has(*layers: str) -> Callable[[Mapping[str, Tensor]], bool]:
    return lambda tensors: all(f"{layer}.weight" in tensors for layer in layers)


def _is_plus(tensors: Mapping[str, Tensor]) -> bool:
    return "model.1.sub.0.RDB1.conv1x1.weight" in tensors and "model.0.weight" in tensors


def _is_first(tensors: Mapping[str, Tensor]) -> bool:
    return _has("model.0", "model.1.sub.0.RDB1.conv1.0")(tensors) and not _is_plus(tensors)


def _from_first(tensors: Tensors) -> Translation:
    num_modules = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("model."))
    num_ups, rest = divmod(num_modules - AROUND, PER_UP)
    if rest or not 0 <= num_ups <= MAX_UPS:
        known = ", ".join(str(AROUND + PER_UP * ups) for ups in range(MAX_UPS + 1))
        raise CheckpointError(f"an ESRGAN of {num_modules} modules in a row; expected one of {known}")
    return first_layout(count(tensors, "model.1.sub.") - 1, num_ups).translate(tensors)


def _to_first(tensors: Tensors, card: Card) -> Tensors:
    _check_plus(tensors, "esrgan-old", wanted=False)
    return first_layout(count(tensors, "body."), count(tensors, "conv_ups.")).theirs(tensors)


def _to_plus(tensors: Tensors, card: Card) -> Tensors:
    _check_plus(tensors, "esrgan-plus", wanted=True)
    return first_layout(count(tensors, "body."), count(tensors, "conv_ups.")).theirs(tensors)


def _to_xinntao(tensors: Tensors, card: Card) -> Tensors:
    _check_plus(tensors, "esrgan", wanted=False)
    _check_ups(tensors, "esrgan", (1, 2))
    return XINNTAO.theirs(tensors)


def _to_basicsr(tensors: Tensors, card: Card) -> Tensors:
    _check_plus(tensors, "basicsr", wanted=False)
    _check_ups(tensors, "basicsr", (2,))
    return BASICSR.theirs(tensors)


def _check_plus(tensors: Tensors, name: str, *, wanted: bool) -> None:
    has = "body.0.rdb1.shortcut.weight" in tensors
    if has != wanted:
        raise CheckpointError(
            f"blocks of {name} have {'a' if wanted else 'no'} 1x1 convolution beside their layers, and these have "
            f"{'one' if has else 'none'}; choose {'esrgan-plus' if has else 'basicsr'}"
        )


def _check_ups(tensors: Tensors, name: str, known: tuple[int, ...]) -> None:
    num_ups = count(tensors, "conv_ups.")
    if num_ups not in known:
        raise CheckpointError(
            f"networks of {name} double the size {' or '.join(map(str, known))} times, and this one {num_ups} times; "
            "choose esrgan-old"
        )


DIALECTS = (
    Dialect("esrgan-plus", "rrdbnet", _is_plus, _from_first, _to_plus),
    Dialect("esrgan-old", "rrdbnet", _is_first, _from_first, _to_first),
    Dialect(
        "basicsr",
        "rrdbnet",
        _has("conv_first", "body.0.rdb1.conv1", "conv_body", "conv_last"),
        BASICSR.translate,
        _to_basicsr,
    ),
    Dialect(
        "esrgan",
        "rrdbnet",
        _has("conv_first", "RRDB_trunk.0.RDB1.conv1", "trunk_conv", "conv_last"),
        XINNTAO.translate,
        _to_xinntao,
    ),
)
