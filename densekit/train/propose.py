"""A config for the data at hand that takes as long as it may on this machine: measured with the network it names."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from densekit.blocks.norms import batch_norms
from densekit.config import Config
from densekit.datasets.survey import Survey
from densekit.errors import ConfigError, DeviceError
from densekit.predict.device import choose_precision
from densekit.tasks import Task, create_task
from densekit.train.loop import add_gradients, evaluate
from densekit.train.optim import clip_gradients, create_average, create_optimizer, set_rate
from densekit.train.sizes import SIZES, Size, ask_for, choose_size, fitted, is_out_of_memory, start_from

RESERVE = 0.1  # of the time: steps do not all take the same
OVERHEAD = 0.2  # of the time, at most, for evaluations
EVALUATIONS = 10  # at most
REPORT_SECONDS = 0.5  # of the report and the sample pictures after an evaluation, beside the network
LAUNCH_SECONDS = 0.7  # of the interpreter and the command line
FEWEST_STEPS = 60  # 27 steps of the smallest network ended with an IoU of 0.25, 100 with 0.82
SAVE_SECONDS = 120.0  # between two saved states
REHEARSED_SECONDS, REHEARSED_STEPS = 1.0, 20  # whichever is reached first
SETTLED = 1000  # steps, from which on statistics may be frozen, as in seg/fc_densenet_nuclei; frozen at step 135 of 270
# they took the IoU on 8 pictures from 0.86 to 0.75, for the picture that differed most was lost
SHORT_RUN = 500  # steps; with fewer, strong variation costs more than it gives, and the best of many is an early one
RARE = 10  # times as rare as the commonest class: the loss weighs classes, and crops look for them
RARE_FOREGROUND = 0.05  # share of the pixels


class Costs(NamedTuple):
    """Seconds that a run takes here before its first step, for a step, for an evaluation; and with how many threads."""

    start: float
    step: float
    evaluation: float
    threads: int = 1


class Proposal(NamedTuple):
    """A config in sections and what was measured for it."""

    sections: dict[str, Any]
    comments: dict[str, str]
    costs: Costs
    where: str
    parameters: int
    evaluations: int

    @property
    def total_steps(self) -> int:
        steps: int = self.sections["train"]["total_steps"]
        return steps

    @property
    def seconds(self) -> float:
        """What the whole run will take, start-up, evaluations and reports counted."""
        return self.total_steps * self.costs.step + around(self.costs, self.evaluations)


def propose(
    survey: Survey,
    task: str,
    minutes: float,
    device: torch.device,
    *,
    imports: float = 0.0,
    scale: int | None = None,
    name: str | None = None,
    weights: str | None = None,
) -> Proposal:
    """Returns a config that trains for about some minutes.

    Args:
        survey: of the data.
        task: "sr" or "seg".
        minutes: for the whole command, start-up and evaluations counted.
        device: to train on.
        imports: seconds that loading the code has taken in this process.
        scale: sr: between low and high resolution.
        name: of a network, instead of the one that fits the time.
        weights: a trained model, by name or file, to start from, instead of a random network.

    Raises:
        ConfigError: too little time for any training, or no such network.
        CheckpointError: no such weights.
        DataError: the data cannot be used.
        DeviceError: memory does not suffice for a step or an evaluation.
    """
    own = {"scale": scale} if task == "sr" else {"num_classes": 1 if survey.num_classes == 2 else survey.num_classes}
    if weights is not None:
        size = start_from(weights, task)
    elif name is not None:
        size = ask_for(name, task)
    else:
        size = choose_size(SIZES[task], own, 60 * minutes, device)
    size = fitted(size, survey, task, scale or 1)
    sections, comments = describe(survey, task, size, own, device)
    if weights is not None:
        sections["train"]["initial_weights"] = weights
        comments["train.initial_weights"] = "whose data and licence bind the result, too"
    config = Config.model_validate(sections)
    began = time.monotonic()
    made = create_task(config)
    net = made.build_model().to(device).to(memory_format=torch.channels_last).train()
    costs = measure(made, config, net, device, imports + LAUNCH_SECONDS + time.monotonic() - began)

    steps, evaluations = count_steps(costs, 60 * minutes, 1), 1
    if survey.has_validation and steps >= SHORT_RUN:
        evaluations = count_evaluations(costs, 60 * minutes)
        steps = count_steps(costs, 60 * minutes, evaluations)
    spread_out(sections, comments, steps, evaluations, costs.step)
    if task == "seg" and steps // 2 >= SETTLED and batch_norms(net):
        sections["train"]["freeze_norm_step"] = steps // 2
        comments["train.freeze_norm_step"] = "from here on it trains with the statistics that it will predict with"
    if device.type == "cpu" and costs.threads != torch.get_num_threads():
        sections["train"]["threads"] = costs.threads
        comments["train.threads"] = f"{torch.get_num_threads()} were slower here, as where others compute, too"
    parameters = sum(p.numel() for p in net.parameters())
    return Proposal(sections, comments, costs, named(device, costs.threads), parameters, evaluations)


def describe(
    survey: Survey, task: str, size: Size, own: Mapping[str, Any], device: torch.device
) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the sections of a config and comments to its keys, but for what depends on the number of steps."""
    optimizer, rate, decay = size.optim
    data = dict(survey.data)
    if device.type == "cuda":
        data["num_workers"] = min(8, max(1, torch.multiprocessing.cpu_count() // 2))
    optim = {"name": optimizer, "learning_rate": rate, "weight_decay": decay, "schedule": "cosine", "warmup_steps": 0}
    optim["clip_norm"] = 0.5 if task == "sr" else 5.0
    train: dict[str, Any] = {"total_steps": FEWEST_STEPS, "batch_size": size.batch_size, "crop_size": size.crop_size}
    comments = {f"data.{key}": text for key, text in survey.why.items()}
    comments["train.crop_size"] = "pixels, of the low resolution" if task == "sr" else "pixels"
    if task == "seg":
        describe_masks(survey, data, train, comments)
        if (precision := choose_precision("auto", device, task)) != "fp32":
            train["precision"] = precision
    comments["train.total_steps"] = "more are better; the time is given above"
    model = {**size.model, **own}
    comments |= {"model.scale": "between low and high resolution"} if task == "sr" else {}
    return {"task": task, "model": model, "data": data, "optim": optim, "train": train}, comments


def describe_masks(survey: Survey, data: dict[str, Any], train: dict[str, Any], comments: dict[str, str]) -> None:
    """Adds what the masks ask for: augmentation, loss, class weights, and what crops are laid around."""
    binary = survey.num_classes == 2
    data["augment"] = "microscopy" if survey.is_fluorescence else "light"
    comments["data.augment"] = (
        "the pictures are dark and grey, so taken for fluorescence; others: none, light, strong"
        if survey.is_fluorescence
        else "others: none, strong; microscopy where no side is up and any colour may come"
    )
    train["loss"] = "bce+dice" if binary else "ce+dice"
    if binary:
        comments["model.num_classes"] = "one logit tells foreground and background apart"
    shares = [share for share in survey.shares if share]
    if binary and survey.shares[1] < RARE_FOREGROUND:
        data["focus"] = "foreground"
        comments["data.focus"] = f"{survey.shares[1]:.1%} of the pixels: half of the crops are laid around some"
    if not binary and max(shares) > RARE * min(shares):
        data["focus"] = "balanced"
        comments["data.focus"] = "some classes are rare: half of the crops are laid around each class as often"
        train["class_weights"] = "sqrt-median-freq"
        comments["train.class_weights"] = f"the rarest class has {min(shares):.2%} of the pixels"


def measure(task: Task, config: Config, net: nn.Module, device: torch.device, start: float) -> Costs:
    """Returns what steps on the data cost, and an evaluation; the weights of `net` stay as they are.

    Args:
        task: with the data.
        config: what it was made from.
        net: to train.
        device: where it is.
        start: seconds before the first step.

    Raises:
        DeviceError: memory does not suffice.
    """
    try:
        return _measure(task, config, copy.deepcopy(net), device, start)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"{config.train.batch_size} crops of {config.train.crop_size} pixels, or a whole validation picture, do "
            f"not fit {device.type} memory with {config.model.name}; choose another --model, or cut the pictures into "
            "parts"
        ) from error


def _measure(task: Task, config: Config, net: nn.Module, device: torch.device, start: float) -> Costs:
    first = seconds = math.inf
    threads = own = torch.get_num_threads()
    # Where a core is shared, threads wait for each other by spinning, and one is up to 80 times as fast as two.
    for count in (1, own) if device.type == "cpu" and own > 1 else (own,):
        torch.set_num_threads(count)
        passed = list(seconds_of_steps(task, config, copy.deepcopy(net), device))
        typical = statistics.median(passed[1:])
        if typical < seconds:
            first, seconds, threads = passed[0], typical, count
    torch.set_num_threads(threads)
    began = time.monotonic()
    evaluate(task, net)
    evaluation = time.monotonic() - began
    torch.set_num_threads(own)
    return Costs(start + first, seconds, evaluation, threads)


def seconds_of_steps(task: Task, config: Config, net: nn.Module, device: torch.device) -> Iterator[float]:
    """Yields the seconds of steps, the first of which warms up, until enough is known: two at least."""
    optimizer = create_optimizer(net, config.optim)
    average = create_average(net, config.train.ema_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    batches = task.train_batches(0)
    set_rate(optimizer, config.optim.learning_rate * 1e-3)
    total = 0.0
    for step in range(REHEARSED_STEPS):
        began = time.monotonic()
        add_gradients(task, net, batches, scaler, config, device.type, step)
        clip_gradients(net, optimizer, scaler, config.optim.clip_norm)
        optimizer.step()
        average.update_parameters(net)
        optimizer.zero_grad(set_to_none=True)
        passed = time.monotonic() - began
        yield passed
        total += passed
        if step and total > REHEARSED_SECONDS:
            return


def named(device: torch.device, threads: int) -> str:
    """Returns what a run computes on, such as "cpu with 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} with {threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else device.type


def around(costs: Costs, evaluations: int) -> float:
    """Returns the seconds of a run beside its steps: start-up, evaluations with their samples, the last report."""
    return costs.start + (evaluations + 1) * (2 * costs.evaluation + REPORT_SECONDS)


def count_evaluations(costs: Costs, seconds: float) -> int:
    """Returns how many evaluations take no more than `OVERHEAD` of the time, 1 to `EVALUATIONS`."""
    room = OVERHEAD * (seconds - costs.start)
    most = int(room / (2 * costs.evaluation + REPORT_SECONDS)) - 1
    return max(1, min(EVALUATIONS, most))


def count_steps(costs: Costs, seconds: float, evaluations: int) -> int:
    """Returns how many steps fit into the time, rounded down to two digits.

    Raises:
        ConfigError: hardly any.
    """
    room = (1 - RESERVE) * seconds - around(costs, evaluations)
    steps = int(room / costs.step)
    if steps < FEWEST_STEPS:
        least = (around(costs, evaluations) + 2 * FEWEST_STEPS * costs.step) / (1 - RESERVE) / 60
        raise ConfigError(
            f"--minutes {seconds / 60:g}: start-up and evaluation take {around(costs, evaluations):.0f} s and a step "
            f"{costs.step:.2f} s here, which leaves no time to learn; give {math.ceil(10 * least) / 10:g} or more"
        )
    digits = 10 ** max(0, len(str(steps)) - 2)
    return steps // digits * digits


def spread_out(
    sections: dict[str, Any], comments: dict[str, str], steps: int, evaluations: int, step_seconds: float
) -> None:
    """Puts into a config what follows from the number of steps and what one costs."""
    sections["optim"]["warmup_steps"] = steps // 20
    sections["train"] |= {
        "total_steps": steps,
        "ema_decay": round(min(0.999, max(0.9, 1 - 10 / steps)), 4),
        "log_every": max(1, steps // 20),
        "eval_every": math.ceil(steps / evaluations),
        "checkpoint_every": min(steps, max(1, int(SAVE_SECONDS / step_seconds))),
        "seed": 1,
    }
    if sections["data"].get("augment") == "microscopy" and steps < SHORT_RUN:
        sections["data"]["augment"] = "light"
        comments["data.augment"] = f"microscopy for {SHORT_RUN} steps and more, since the pictures are dark and grey"
