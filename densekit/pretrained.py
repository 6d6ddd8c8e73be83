"""Trained weights by name: the ones inside the package, and any file."""

from __future__ import annotations

import fnmatch
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densekit.cards import Card, digest_of, is_ours, read_card
from densekit.errors import CheckpointError, ConfigError, suggest
from densekit.files import printable
from densekit.models import MODELS, model_names

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "weights"
RUNTIME_SUFFIXES = (".onnx", ".xml", ".pt2")  # ONNX, OpenVINO and torch.export: graphs that a runtime runs
ENCODER = "encoder."  # in front of the names of an encoder's weights in a network over one
RGB = 3  # channels, where nothing else is said
_DIGEST = re.compile("[0-9a-fA-F]{8,64}")
logger: logging.Logger = logging.getLogger("densekit")


def trained_names(pattern: str = "*") -> list[str]:
    """Returns the names of the embedded models that match a shell pattern."""
    return sorted(fnmatch.filter((path.stem for path in WEIGHTS.glob("*.safetensors")), pattern))


def trained_cards(pattern: str = "*") -> dict[str, Card]:
    """Returns the card of each embedded model that matches a shell pattern, by name."""
    return {name: read_card(WEIGHTS / f"{name}.safetensors") for name in trained_names(pattern)}


def find_weights(name_or_path: str | Path) -> Path:
    """Returns the file behind the name of an embedded model, a path, a folder or a hub id.

    A folder is one of `densekit.hub.save_pretrained` or of a run, whose best weights are taken, or holds one file of
    weights. An id, "org/name" or "org/name@revision", is fetched once; see `densekit.hub.fetch`. `name#sha256` is any
    of these, and the file's SHA-256 has to begin with those digits, eight or more.

    Raises:
        ConfigError: none of these; an architecture, which has no weights, is named as such.
        CheckpointError: a path to a file that is missing, a folder without weights, or another SHA-256.
    """
    text = str(name_or_path)
    name, _, digest = text.rpartition("#")
    if name and _DIGEST.fullmatch(digest) and not Path(text).exists():
        return _check_digest(find_weights(name), digest.lower(), text)
    if text in trained_names():
        return WEIGHTS / f"{text}.safetensors"
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir() and text not in MODELS:
        from densekit.hub import choose_file

        best = path / "best.safetensors"
        return best if best.is_file() else path / choose_file([item.name for item in path.iterdir()], text)
    from densekit.hub import fetch, is_hub_id

    if is_hub_id(text):
        return fetch(text)
    if path.suffix or "/" in text:
        raise CheckpointError(
            f"{printable(text)}: no such file; give a file of weights, a name from densekit models or a hub id"
        )
    known = trained_names()
    if text in MODELS:
        near = [name for name in known if name.startswith(text.split("_")[0])] or known or ["none"]
        raise ConfigError(f"{text} is an architecture without weights; trained models: {', '.join(near)}")
    raise ConfigError(f"model {printable(text)!r}: no such model{suggest(text, known)} (densekit models lists all)")


def card_of(name_or_path: str | Path) -> Card:
    """Returns the card of a model as `open_model` does, without its weights where they need not be read.

    Raises:
        ConfigError, CheckpointError: as `open_model`.
    """
    path = find_weights(name_or_path)
    return read_card(path) if is_ours(path) else open_model(path)[1]


def open_model(name_or_path: str | Path) -> tuple[nn.Module, Card]:
    """Returns the network behind a name or a file of any kind, with its weights in float32, and its card.

    A file that others wrote is read by `densekit.dialects`, and what became of its tensors is logged. An exported graph
    runs in its own runtime.

    Raises:
        ConfigError: no such model.
        CheckpointError: missing, damaged, unsafe, or not all of a network known here.
    """
    path = find_weights(name_or_path)
    if path.suffix in RUNTIME_SUFFIXES:
        from densekit.runtimes import open_exported

        return open_exported(path)
    if is_ours(path):
        from densekit.checkpoint import load_model

        return load_model(path)
    from densekit.dialects import open_foreign

    net, card, report = open_foreign(path)
    for line in (report, *report.notes):
        logger.info("%s", line)
    return net, card


def _check_digest(path: Path, digest: str, source: str) -> Path:
    found = digest_of(path)
    if not found.startswith(digest):
        raise CheckpointError(
            f"{printable(source)}: SHA-256 of {printable(path)} is {found[: len(digest)]}..; not the file asked for"
        )
    return path


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names that match a shell pattern: architectures (`create_model`), then trained models (`load`)."""
    return model_names(pattern) + trained_names(pattern)


def create_encoder(name: str, *, weights: str | Path | None = None, **arguments: Any) -> nn.Module:
    """Returns an encoder: a module whose output is the list of feature maps that `out_indices` names.

    Weights bring the mean and standard deviation that their network subtracts and divides, unless `arguments` have
    others. Where `in_channels` is not that of the weights, the first convolution is adapted and that is logged: summed
    over its channels for one, else repeated channel by channel and scaled, so that its outputs keep their size.

    Args:
        name: "densenet121", ...; see `list_models("densenet*")`.
        weights: a trained model by name, a checkpoint of densekit, or a file that others wrote
            (`densekit.dialects`); what else it holds, such as a classifier, is left out. None for random weights.
        arguments: of the encoder, such as `densekit.models.densenet.DenseNetEncoder`: `in_channels`, `out_indices`,
            `taps`, `output_stride`, `memory`.

    Raises:
        ConfigError: no such encoder or argument.
        CheckpointError: weights that are damaged or unsafe, or lack a tensor of this encoder, or hold it in another
            shape.

    Source: the rule for channels is that of timm and segmentation_models_pytorch.
    """
    from densekit.models import create_encoder as create
    from densekit.models import encoder_class

    encoder_class(name)  # refuses a name before weights are read
    if weights is None:
        return create(name, **arguments)
    given, card = _read_weights(weights)
    source = printable(weights)
    for key in ("mean", "std"):
        values = card.arguments.get(key)
        if values is not None and key not in arguments:
            arguments[key] = _fitted(values, arguments.get("in_channels", RGB))
    encoder = create(name, **arguments)
    wanted = encoder.state_dict()
    if not wanted.keys() & given.keys():  # a network over an encoder, such as a U-Net
        given = {key.removeprefix(ENCODER): tensor for key, tensor in given.items() if key.startswith(ENCODER)}
    if "in_channels" in arguments:
        _adapt_first(given, wanted, source)
    wrong = [key for key, value in wanted.items() if key not in given or given[key].shape != value.shape]
    if wrong:
        key = wrong[0]
        found = f"{key} is {tuple(given[key].shape)}, but {name} needs" if key in given else f"lacks {key}, which"
        needs = str(tuple(wanted[key].shape)) if key in given else f"{name} needs"
        raise CheckpointError(
            f"{source}: {found} {needs} ({len(wrong)} of its {len(wanted)} tensors do not fit); it holds {card.model}"
        )
    encoder.load_state_dict({key: given[key] for key in wanted})
    return encoder


def _read_weights(name_or_path: str | Path) -> tuple[dict[str, Tensor], Card]:
    """Returns the tensors behind a name or a file, by our names, and their card.

    Raises:
        ConfigError: no such model.
        CheckpointError: damaged, unsafe, or of no network known here.
    """
    path = find_weights(name_or_path)
    if path.suffix in RUNTIME_SUFFIXES:
        raise CheckpointError(f"{printable(path)}: a graph that was exported, not weights; give what it came from")
    if is_ours(path):
        from densekit.checkpoint import load_model

        net, card = load_model(path)
        return net.state_dict(), card
    from densekit.dialects import read_foreign

    tensors, card, report = read_foreign(path)
    logger.info("%s", report)
    return tensors, card


def _fitted(values: Sequence[float], channels: int) -> list[float]:
    """Returns the statistics of channels for another number of them, as `_adapt_first` uses the channels."""
    if channels == 1:
        return [sum(values) / len(values)]
    return [values[i % len(values)] for i in range(channels)]


def _adapt_first(given: dict[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    """Replaces the first convolution in `given` by one for as many input channels as `wanted` has."""
    key = next((key for key, value in wanted.items() if value.ndim == 4), None)
    if key is None or key not in given or given[key].ndim != 4:
        return
    found, channels = given[key].shape[1], wanted[key].shape[1]
    if found == channels:
        return
    if channels == 1:
        given[key] = given[key].sum(1, keepdim=True)
    else:
        given[key] = given[key][:, [i % found for i in range(channels)]] * (found / channels)
    how = "summed" if channels == 1 else f"repeated and scaled by {found}/{channels}"
    logger.info("%s: %s goes from %d channels to %d: %s", source, key, found, channels, how)
