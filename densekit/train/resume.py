"""Continuing a run: which state, whether it may be continued with this config and data, and putting it back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from densekit.config import Config, config_hash
from densekit.errors import CheckpointError, ConfigError
from densekit.files import printable
from densekit.tasks.adversary import Adversary
from densekit.train.parallel import load, load_optimizer
from densekit.train.progress import warn
from densekit.train.run import Run

# What may change between two parts of a run: none of these has a part in the weights, but for `threads` and `parallel`,
# which may change the last bits, and `eval_every`, which decides among which weights the best are chosen.
FREE = {
    "data.num_workers",
    "data.cache",
    "train.threads",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep",
    "train.max_hours",
    "train.parallel",
    "train.samples",
    "train.trackers",
}


def find_state(run: Run, config: Config, fingerprint: str, resume: bool) -> dict[str, Any] | None:
    """Returns the state to continue from, or None for a new run; warns of damaged ones.

    Raises:
        ConfigError: there is a state but no `resume`, or it belongs to another config or to other data.
        CheckpointError: no saved state is whole.
    """
    state, damaged = run.load()
    for line in damaged:
        warn(line)
    if state is None:
        return None
    where = printable(run.folder)
    if not resume:
        raise ConfigError(f"{where} already holds a run at step {state['step']}; add --resume or choose another --run")
    if state["config"] != config_hash(config):
        changes = list(changed_keys(state.get("settings"), config))
        if changes:
            raise ConfigError(
                f"{where}: began with another config: {', '.join(changes)}; take these back or choose another --run "
                f"(free to change: {', '.join(sorted(FREE))})"
            )
    if state.get("fingerprint", fingerprint) != fingerprint:
        raise ConfigError(
            f"{where}: began with other data: {state['fingerprint']}, now {fingerprint} (hash of their names); "
            "restore the data or choose another --run"
        )
    return state


def changed_keys(settings: Mapping[str, Any] | None, config: Config) -> Iterator[str]:
    """Yields "key (old -> new)" for each key that differs from the settings a run began with and is not `FREE`.

    Keys that did not exist then count as their defaults.
    """
    try:
        before = flat(Config.model_validate(settings).model_dump(mode="json"))
    except ValidationError:  # none in the state, or of a densekit whose configs were others
        yield "see config.yaml in the run"
        return
    now = flat(config.model_dump(mode="json"))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and key not in FREE:
            yield f"{key} ({printable(before.get(key))} -> {printable(now.get(key))})"


def flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {"train": {"seed": 1}} as {"train.seed": 1}."""
    result: dict[str, Any] = {}
    for name, value in sections.items():
        if isinstance(value, dict):
            result |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            result[name] = value
    return result


def restore(
    state: Mapping[str, Any],
    net: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    adversary: Adversary | None = None,
) -> None:
    """Puts a state back.

    Raises:
        CheckpointError: it is that of another network or optimizer, so of another densekit, or it has no adversary.
    """
    if adversary and not state.get("adversary"):
        raise CheckpointError(
            f"the state of step {state['step']} holds no discriminator, but the config has a section gan; start "
            "another --run, with the weights of this one as train.initial_weights"
        )
    try:
        if adversary:
            adversary.load_state_dict(state["adversary"])
        load(net, state["net"])
        load(average, state["average"])
        load_optimizer(optimizer, state["optimizer"])
        scaler.load_state_dict(state.get("scaler", {}))
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = printable(error).split(r"\n")[0]
        raise CheckpointError(f"the state of step {state['step']} does not fit this densekit: {reason}") from error
