"""Every dialect and every family, in one literal table each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from densekit.dialects import densenet, keras, rdn, rdnet, rrdbnet, smp, srdensenet, tiramisu
from densekit.dialects.dialect import Dialect, Tensors
from densekit.errors import ConfigError, suggest

# From our tensors and a dialect's hints to the name and arguments of the network, for `create_model`.
Describe = Callable[[Tensors, Mapping[str, Any]], tuple[str, dict[str, Any]]]

# By the module of `densekit.models` that the networks of a family are in.
FAMILIES: dict[str, Describe] = {
    "densenet": densenet.describe,
    "rdnet": rdnet.describe,
    "rdn": rdn.describe,
    "rrdbnet": rrdbnet.describe,
    "srdensenet": srdensenet.describe,
    "fc_densenet": tiramisu.describe,
    "smp": smp.describe,
}

# Asked in this order, so that a dialect whose names contain another's comes first.
DIALECTS: tuple[Dialect, ...] = (
    *densenet.DIALECTS,
    *keras.DIALECTS,
    *rdnet.DIALECTS,
    *rrdbnet.DIALECTS,
    *rdn.DIALECTS,
    *srdensenet.DIALECTS,
    *tiramisu.DIALECTS,
    *smp.DIALECTS,
)


def dialect_names(family: str | None = None, *, written: bool = False) -> list[str]:
    """Returns the names of all dialects, or of those of one family, or of those that can be written."""
    fitting = (d for d in DIALECTS if family in (None, d.family) and (d.to_theirs or not written))
    return list(dict.fromkeys(dialect.name for dialect in fitting))


def find_dialect(name: str, family: str) -> Dialect:
    """Returns the dialect of this name for a family, to write it.

    Raises:
        ConfigError: there is none that can be written.
    """
    for dialect in DIALECTS:
        if (dialect.name, dialect.family) == (name, family) and dialect.to_theirs:
            return dialect
    known = dialect_names(family, written=True)
    raise ConfigError(f"dialect {name!r}: none of {family}{suggest(name, known)} (known: {', '.join(known) or 'none'})")


def recognise(tensors: Mapping[str, Tensor]) -> Dialect | None:
    """Returns the dialect that foreign tensors are in, or None."""
    return next((dialect for dialect in DIALECTS if dialect.recognises(tensors)), None)
