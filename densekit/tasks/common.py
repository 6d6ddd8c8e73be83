"""What both tasks do alike."""

from __future__ import annotations

import hashlib
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from densekit import ranks
from densekit.config import Config
from densekit.datasets.draws import Draws
from densekit.datasets.masks import MaskedImages
from densekit.datasets.pairs import Pairs
from densekit.errors import CheckpointError, ConfigError, DensekitError, DeviceError
from densekit.files import printable
from densekit.models import create_model
from densekit.pretrained import ENCODER, card_of, open_model

RESTARTS = 3  # of the loader in one run
WORKER_DIED = re.compile(r"DataLoader worker .*(killed by signal|exited unexpectedly)")


def check_network(config: Config, scale: int, out_channels: int) -> None:
    """Builds the network of a config without its memory, and refuses one that is not for RGB crops of this task.

    Raises:
        ConfigError: no such network, an argument it does not take, or crops that it does not map to
            (B, out_channels, scale crop, scale crop).
    """
    name, size = config.model.name, config.train.crop_size
    try:
        with torch.device("meta"), torch.no_grad():
            net = create_model(name, **config.model.kwargs).to("meta").eval()
            result = net(torch.empty(1, 3, size, size))
    except ConfigError:
        raise
    except Exception as error:  # each constructor and layer has its own kind
        raise ConfigError(
            f"model {name}: cannot be built, or cannot take RGB crops of {size}x{size} (train.crop_size): "
            f"{printable(error)}"
        ) from error
    wanted = (1, out_channels, scale * size, scale * size)
    if not isinstance(result, Tensor) or result.shape != wanted:
        found = tuple(result.shape) if isinstance(result, Tensor) else "a list of features"
        raise ConfigError(
            f"model {name}: makes {found} of a crop (1, 3, {size}, {size}), but task {config.task} needs {wanted}; "
            "choose another network or other arguments"
        )


def rebuilding(config: Config) -> dict[str, Any]:
    """Returns the arguments with which a checkpoint rebuilds the network; how it spends training memory is none."""
    return {key: value for key, value in config.model.kwargs.items() if key != "memory"}


def new_model(config: Config) -> nn.Module:
    """Returns the network a config names, with weights from `train.seed` or from `train.initial_weights`.

    From the initial weights comes every tensor of the same name and shape; the rest stays random, so that a x4 network
    may start from a x2 one. Weights of a DenseNet fit the encoder of a network that has one.

    Raises:
        ConfigError: no such network, or an argument it does not take.
        CheckpointError: the initial weights cannot be read, or less than a quarter of the network's are among them.
    """
    torch.manual_seed(config.train.seed)
    net = create_model(config.model.name, **config.model.kwargs)
    if config.train.initial_weights:
        own, given = net.state_dict(), open_model(config.train.initial_weights)[0].state_dict()
        given |= {f"{ENCODER}{name}": tensor for name, tensor in given.items()}
        fitting = {name: given[name] for name in own if name in given and given[name].shape == own[name].shape}
        share = sum(t.numel() for t in fitting.values()) / sum(t.numel() for t in own.values())
        if share < 0.25:
            raise CheckpointError(
                f"{printable(config.train.initial_weights)}: holds {share:.0%} of the weights of {config.model.name} "
                "by name and shape, but train.initial_weights needs at least a quarter; use weights of a network with "
                "the same arguments"
            )
        net.load_state_dict({**own, **fitting})
    return net


def trained_on(config: Config) -> tuple[str, str]:
    """Returns data and licence of a checkpoint: the config's, and those of the weights that it starts from."""
    cards = [card_of(config.train.initial_weights)] if config.train.initial_weights else []
    data = [*(card.data for card in cards), ", ".join(dict.fromkeys(config.data.train))]
    licences = [*(card.licence for card in cards), config.data.licence]
    return "; ".join(dict.fromkeys(filter(None, data))), "; ".join(dict.fromkeys(filter(None, licences)))


def scored_on(config: Config) -> str:
    """Returns the data that a checkpoint's figures are measured on."""
    data = config.data
    return ", ".join(data.val) or f"{data.val_share:.2g} of {', '.join(data.train)}, by name"


def batches(data: Pairs | MaskedImages, config: Config, start: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields batches from the forward pass `start` on, or this process's slices; the same with any number of workers.

    Where a worker dies, new ones go on at the batch that is missing, at most `RESTARTS` times.

    Raises:
        ConfigError: a batch that the processes cannot share equally.
        DeviceError: a worker died once more.
    """
    size, deaths = config.train.batch_size, 0
    if size % ranks.count():
        raise ConfigError(
            f"train.batch_size={size}: cannot be divided among {ranks.count()} processes; make it a multiple"
        )
    while True:
        loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
            data,
            size // ranks.count(),
            sampler=Draws(
                len(data), config.train.seed, start * size, batch_size=size, part=(ranks.rank(), ranks.count())
            ),
            num_workers=config.data.num_workers,
            worker_init_fn=leave_signals,
            generator=torch.Generator(),  # its own: the loader must not move the random state that dropout uses
        )
        iterator = None
        try:
            iterator = iter(loader)
            if config.data.num_workers:
                ignore_deaths()
            for batch in iterator:
                yield batch
                start += 1
        except DensekitError as error:
            raise unwrapped(error) from error
        except (RuntimeError, ConnectionError, EOFError) as error:
            if not worker_died(error):
                raise
            deaths += 1
            if deaths > RESTARTS:
                raise DeviceError(
                    f"loader processes died {deaths} times, which is mostly for want of memory; lower data.num_workers "
                    f"(now {config.data.num_workers})"
                ) from error
            sys.stderr.write(f"warning: a loader process died; starting new ones ({deaths} of {RESTARTS} times)\n")
        finally:
            stop_workers(iterator)


def stop_workers(iterator: object) -> None:
    """Ends the loader processes of an iterator.

    torch does so by itself once nothing refers to the iterator; but the traceback of an error does, and then the exit
    of the process would wait for them for ever.
    """
    if hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()


def unwrapped(error: DensekitError) -> DensekitError:
    """Returns an error without the traceback that torch puts before the message of one from a loader process."""
    kind, line = type(error), str(error).rstrip().rpartition("\n")[2]
    return kind(line.removeprefix(f"{kind.__module__}.{kind.__qualname__}: "))


def worker_died(error: Exception) -> bool:
    """Tells the death of a loader process, or of one whose batch was still to be fetched, from its other errors."""
    text = str(error)
    lost = isinstance(error, ConnectionError | EOFError) and "in DataLoader worker process" not in text
    return lost or WORKER_DIED.search(text) is not None


def ignore_deaths() -> None:
    """Takes back torch's handler of SIGCHLD, which raises wherever the process is, in the middle of a step too.

    The loader itself finds out within seconds, when it waits for a batch that does not come.
    """
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def sources(data: Pairs | MaskedImages, config: Config, draws: Iterable[int]) -> list[Path]:
    """Returns the file of each draw."""
    order = Draws(len(data), config.train.seed)
    return [data.origins[order.index_of(draw)] for draw in draws]


def leave_signals(worker: int) -> None:
    """Lets SIGINT and SIGTERM, which reach the whole process group, be answered by the main process alone."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


def fingerprint(paths: Iterable[Path]) -> str:
    """Returns the number of files and a hash of their sorted names: what a resumed run must find again."""
    names = sorted(path.name for path in paths)
    return f"{len(names)} files {hashlib.sha256(chr(0).join(names).encode('utf-8', 'replace')).hexdigest()[:16]}"
