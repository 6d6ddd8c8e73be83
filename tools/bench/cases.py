"""The networks that are measured. They are data, so that anyone can hand in others as a JSON file of such entries."""

from __future__ import annotations

from dataclasses import field, replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from densekit.errors import ConfigError, suggest


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Case:
    """One network and its input.

    Args:
        name: in the table and on the command line.
        model: as in `densekit.create_model`.
        size: height and width of the input, pixels.
        arguments: of the model.
        batch: pictures at once.
        in_channels: of the pictures.
        peers: the other implementations, of `tools.bench.peers.PEERS`; the first installed one is the baseline, and
            without any that is our own network as plain modules.
    """

    name: str
    model: str
    size: tuple[int, int]
    arguments: dict[str, Any] = field(default_factory=dict)
    batch: int = 1
    in_channels: int = 3
    peers: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the input: (B, C, H, W)."""
        return (self.batch, self.in_channels, *self.size)


RDN_LIGHT = {"scale": 2, "num_blocks": 8, "num_layers": 4, "growth_rate": 32, "num_features": 64}
CAMVID = (360, 480)

INFERENCE = (
    Case("rdn", "rdn", (96, 96), {"scale": 2}),
    Case("rdn_light", "rdn", (192, 192), RDN_LIGHT),
    Case("rrdbnet", "rrdbnet", (64, 64), {"scale": 4}, peers=("spandrel",)),
    Case("srdensenet", "srdensenet", (64, 64), {"scale": 4}, in_channels=1),
    Case("fc_densenet56", "fc_densenet56", CAMVID, {"num_classes": 11}),
    Case("fc_densenet103", "fc_densenet103", CAMVID, {"num_classes": 11}),
    Case("densenet121", "densenet121", (224, 224), peers=("torchvision", "timm", "SMP")),
)
TRAINING = (
    Case("rdn", "rdn", (48, 48), {"scale": 2}, batch=2),
    Case("fc_densenet103", "fc_densenet103", (224, 224), {"num_classes": 11, "drop_rate": 0.2}, batch=1),
    Case(
        "densenet121",
        "densenet121",
        (224, 224),
        batch=8,
        peers=("torchvision", "torchvision memory_efficient", "timm"),
    ),
)


def choose_cases(cases: tuple[Case, ...], names: list[str] | None, batch: int | None, crop: int | None) -> list[Case]:
    """Returns the cases of these names, or all, with another batch size and a square input where those are given.

    Raises:
        ConfigError: no such name.
    """
    known = {case.name: case for case in cases}
    for name in names or ():
        if name not in known:
            raise ConfigError(f"network {name!r}: not in the list{suggest(name, known)} ({', '.join(known)})")
    changes: dict[str, Any] = {} if batch is None else {"batch": batch}
    if crop is not None:
        changes["size"] = (crop, crop)
    return [replace(known[name], **changes) for name in names or known]


def read_cases(path: Path) -> tuple[Case, ...]:
    """Returns the cases of a JSON file, a list of objects with the fields of `Case`.

    Raises:
        ConfigError: it cannot be read, or an entry is not a case.
    """
    try:
        return TypeAdapter(tuple[Case, ...]).validate_json(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {place or 'file'}: {first['msg']}; expected a list of cases") from error
