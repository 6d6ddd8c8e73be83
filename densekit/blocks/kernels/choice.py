"""Which of several ways to compute the same thing is the fastest here: measured once, then remembered."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Candidate = Callable[..., Any]

ROUNDS = 5
ROUND_SECONDS = 2e-3  # of each candidate in a round: far above a clock's tick and the cost of a launch
MOST_CALLS = 20
TOLERANCE = 1e-2  # relative, root mean square: far above bfloat16's rounding, far below one wrong row of sixteen

winners: dict[Hashable, str] = {}


def choose(key: Hashable, candidates: Mapping[str, Candidate], *args: Any, added: Sequence[int] = ()) -> str:
    """Returns the name of the candidate that is fastest for these arguments, and gives what the first one gives.

    Measured the first time a key is seen, in turn, after a warm-up, with the device idle before and after; then known
    for the rest of the process. A candidate that fails or gives something else is out, with a warning, except where it
    asks for more of the chip than there is. The first candidate is taken unmeasured where nothing can be measured (a
    graph is being captured or compiled; numbers that are not finite, as in the first steps with a scaled loss), and
    where bits must repeat from one process to the next (`torch.use_deterministic_algorithms`).

    Args:
        key: what the speed depends on: the operation, device, dtype, shapes.
        candidates: by name; each is called with `args` and returns a tensor or a tuple of them.
        args: may be overwritten, but those in `added`.
        added: positions of the tensors that candidates add to; they are measured on copies.
    """
    first = next(iter(candidates))
    if len(candidates) == 1 or torch.compiler.is_compiling() or torch.are_deterministic_algorithms_enabled():
        return first
    if key not in winners:
        device = next((arg.device for arg in args if isinstance(arg, Tensor)), torch.device("cpu"))
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return first
        name = fastest(candidates, args, added, device)
        if name is None:
            return first
        winners[key] = name
    return winners[key]


def fastest(
    candidates: Mapping[str, Candidate], args: Sequence[Any], added: Sequence[int], device: torch.device
) -> str | None:
    """Returns the name of the candidate with the least median of times, among those that agree with the first.

    None where the first gives numbers that are not finite, so that nothing can be said of the others.
    """

    def copied() -> list[Any]:
        return [arg.clone() if position in added else arg for position, arg in enumerate(args)]

    first, *others = candidates
    own = copied()
    expected = [tensor.clone() for tensor in tensors(candidates[first](*own), own, added)]
    if not all(tensor.isfinite().all() for tensor in expected):
        return None
    sound = {first: candidates[first]}
    for name in others:
        own = copied()
        try:
            found = tensors(candidates[name](*own), own, added)
        except Exception as error:  # a compiler's, whatever its class
            if type(error).__name__ != "OutOfResources":
                warnings.warn(f"{name} is left out: {type(error).__name__}: {error}", stacklevel=3)
            continue
        if all(map(agrees, found, expected)):
            sound[name] = candidates[name]
        else:
            warnings.warn(f"{name} is left out: it gives something else than {first}", stacklevel=3)
    del expected
    own = copied()
    times: dict[str, list[float]] = {name: [] for name in sound}
    calls = {
        name: max(1, min(MOST_CALLS, int(ROUND_SECONDS / seconds(run, own, 1, device)))) for name, run in sound.items()
    }
    for _ in range(ROUNDS):
        for name, run in sound.items():
            times[name].append(seconds(run, own, calls[name], device))
    return min(times, key=lambda name: statistics.median(times[name]))


def seconds(run: Candidate, args: Sequence[Any], calls: int, device: torch.device) -> float:
    """Returns how long a call takes, the mean of `calls`, with the device idle before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(calls):
        run(*args)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return max(time.perf_counter() - began, 1e-9) / calls


def tensors(result: Any, args: Sequence[Any], added: Sequence[int]) -> list[Tensor]:
    """Returns what a candidate made: its results, and what it added to."""
    return [*(result if isinstance(result, tuple) else (result,)), *(args[position] for position in added)]


def agrees(found: Tensor, expected: Tensor) -> bool:
    """Says whether two tensors are the same but for rounding; one that is not a number agrees with nothing."""
    wide = torch.float64 if expected.dtype == torch.float64 else torch.float32
    difference = torch.linalg.vector_norm(found - expected, dtype=wide)
    return bool(difference <= TOLERANCE * torch.linalg.vector_norm(expected, dtype=wide))
