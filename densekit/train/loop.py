"""The one training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from densekit import ranks
from densekit.blocks.norms import batch_norms
from densekit.config import Config, TrainConfig, config_hash
from densekit.errors import Interrupted
from densekit.files import printable
from densekit.tasks import Task
from densekit.train.guard import Guard
from densekit.train.norms import adopt_statistics, check_norms, freeze_norms, kept_network, scored_network
from densekit.train.optim import clip_gradients, create_average, create_optimizer, learning_rate, set_rate
from densekit.train.progress import Watch
from densekit.train.resume import find_state, restore
from densekit.train.run import Run
from densekit.train.signals import stop_on_signals

REDUCED = {"bf16": torch.bfloat16, "fp16": torch.float16}


def train(task: Task, config: Config, run_dir: Path, *, resume: bool = False, device: str = "cpu") -> dict[str, float]:
    """Trains until `train.total_steps` and returns the last figures; none without validation data.

    The run's clock is the step, and all randomness is a function of (seed, step): a run that is killed at any instant
    and resumed ends with the same bytes as one that was never stopped.

    Args:
        task: model, data, loss and evaluation.
        config: of the run; what the task was made from.
        run_dir: `config.yaml`, `metrics.jsonl`, `checkpoints/`, `best.safetensors`, `last.safetensors` go here.
        resume: continue from the newest state that is whole.
        device: "cpu", "cuda", ...

    Raises:
        ConfigError: the folder is in use, holds a run already, or holds one of another config or other data.
        DataError: loss, gradient or weights stopped being finite, in too many steps in a row.
        CheckpointError: no saved state is whole, or it does not fit.
        Interrupted: SIGINT or SIGTERM, after saving.
    """
    options = config.train
    if options.threads:
        torch.set_num_threads(options.threads)
    run = Run(run_dir, options.keep)
    with run.locked():
        layout = torch.channels_last if options.channels_last else torch.contiguous_format
        net = task.build_model().to(device=device).to(memory_format=layout).train()
        check_norms(net, config)
        average = create_average(net, options.ema_decay)
        optimizer = create_optimizer(net, config.optim)
        scaler = torch.amp.GradScaler(device, enabled=options.precision == "fp16")
        start, best, stale, skipped = 0, -math.inf, 0, 0
        figures: dict[str, float] = {}
        state = find_state(run, config, task.fingerprint, resume)
        if state:
            restore(state, net, average, optimizer, scaler)
            start, best, figures = state["step"], state["best"], state.get("figures", {})
            stale, skipped = state.get("stale", 0), state.get("skipped", 0)
        guard = Guard(run, task, config, skipped)
        run.write_config(config.to_yaml())
        run.truncate_log(start)
        batches = task.train_batches(start * options.accumulate)
        forward = make_forward(net, compiled=options.compile)
        began = time.monotonic()

        with stop_on_signals() as stop, Watch(options.total_steps, start) as watch:
            for step in range(start, options.total_steps if not is_stale(stale, options) else start):
                if step == options.freeze_norm_step:
                    adopt_statistics(net, average.module)
                if options.freeze_norm_step is not None and step >= options.freeze_norm_step:
                    freeze_norms(net)
                rate = learning_rate(config.optim, step, options.total_steps)
                set_rate(optimizer, rate)
                loss = add_gradients(task, forward, batches, scaler, config, device, step)
                norm = clip_gradients(net, optimizer, scaler, config.optim.clip_norm)
                if guard.passes(step, loss, norm, scaler):
                    scaler.step(optimizer)
                    average.update_parameters(net)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)

                done = step + 1
                ends = done == options.total_steps
                evaluate_now = ends or done % options.eval_every == 0
                late = options.max_hours is not None and time.monotonic() - began > 3600 * options.max_hours
                signum, late = max(ranks.gathered((stop.signum, late)))  # all processes end after the same step
                save_now = ends or done % options.checkpoint_every == 0 or late or signum != 0
                if (evaluate_now or save_now) and not has_finite_weights(average):
                    raise guard.error(step, "some weights are not finite")
                if (ends or done % options.log_every == 0) and math.isfinite(loss):
                    speed = (done - start) / (time.monotonic() - began)
                    run.log({"step": done, "loss": loss, "loss_hex": loss.hex(), "lr": rate, "steps_per_s": speed})
                    watch.step(done, f"loss {loss:.4f}")
                if evaluate_now:
                    ranks.shared(average.module.buffers())
                    kept = kept_network(average.module, task, config)
                    figures = evaluate(task, scored_network(kept, config))
                    if figures:
                        run.log({"step": done, **figures})
                        watch.say(f"step {done}: " + "  ".join(f"{key} {value:.4f}" for key, value in figures.items()))
                    are_best = figures.get(task.metric, -math.inf) > best
                    run.write_weights(kept, task.card(done, figures), are_best=are_best)
                    best, stale = (figures[task.metric], 0) if are_best else (best, stale + 1)
                    if is_stale(stale, options) and not ends:
                        watch.say(f"step {done}: no better {task.metric} in {stale} evaluations; training ends")
                        ends = save_now = True
                if save_now:
                    run.save(
                        {
                            "step": done,
                            "best": best,
                            "stale": stale,
                            "skipped": guard.skipped,
                            "figures": figures,
                            "net": net.state_dict(),
                            "average": average.state_dict(),
                            "optimizer": optimizer.state_dict(),
                            "scaler": scaler.state_dict(),
                            "config": config_hash(config),
                            "settings": config.model_dump(mode="json"),
                            "fingerprint": task.fingerprint,
                        }
                    )
                if ends:
                    break
                if signum:
                    raise Interrupted(
                        f"interrupted at step {done}, saved in {printable(run.states)}; continue with --resume",
                        signum,
                    )
                if late:
                    watch.say(f"step {done}: {options.max_hours:g} hours are over, saved; continue with --resume")
                    break
        return figures


def is_stale(evaluations: int, options: TrainConfig) -> bool:
    """Says whether that many evaluations without a better figure end the training."""
    return options.patience is not None and evaluations >= options.patience


def make_forward(net: nn.Module, *, compiled: bool) -> Callable[[Tensor], Tensor]:
    """Returns what calls `net`: itself, or compiled, and where several processes train, with a mean of gradients."""
    forward: Callable[[Tensor], Tensor] = torch.compile(net) if compiled else net
    if ranks.count() > 1:
        assert isinstance(forward, nn.Module)
        has_statistics = bool(batch_norms(net))  # other buffers never change, and torch fails on a lone one
        forward = DistributedDataParallel(forward, broadcast_buffers=has_statistics)
    return forward


def add_gradients(
    task: Task,
    net: Callable[[Tensor], Tensor],
    batches: Iterator[tuple[Tensor, Tensor]],
    scaler: torch.amp.GradScaler,
    config: Config,
    device: str,
    step: int,
) -> float:
    """Adds the scaled gradients of one step's forward passes to the weights; returns the mean loss of the passes.

    Passes are numbered over all processes, and dropout is a function of seed, step and that number: two processes do
    what one does in two passes.
    """
    options = config.train
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    loss = 0.0
    for index in range(options.accumulate):
        number = index * ranks.count() + ranks.rank()
        torch.manual_seed(((options.seed * 1_000_003 + step) * 65_536 + number) % 2**63)  # integers, never hash()
        inputs, targets = (tensor.to(device, non_blocking=True) for tensor in next(batches))
        with torch.autocast(
            torch.device(device).type, REDUCED.get(options.precision), enabled=options.precision in REDUCED
        ):
            part = task.loss(net, (inputs.to(memory_format=layout), targets)) / options.accumulate
        with waiting(net, index + 1 < options.accumulate):
            scaler.scale(part).backward()  # type: ignore[no-untyped-call]
        loss += float(part.detach())
    losses = ranks.gathered(loss)
    return sum(losses) / len(losses)


def waiting(net: Callable[[Tensor], Tensor], more: bool) -> AbstractContextManager[None]:
    """Returns the context in which gradients stay in their process, since `more` passes will add to them."""
    return net.no_sync() if more and isinstance(net, DistributedDataParallel) else nullcontext()


@torch.no_grad()
def evaluate(task: Task, net: nn.Module) -> dict[str, float]:
    """Returns the task's figures for `net` in evaluation mode, but for those that are not finite.

    The PSNR of equal pictures is infinite, the IoU of masks without labels is no number; no file can hold either.
    """
    return {key: value for key, value in task.evaluate(net.eval()).items() if math.isfinite(value)}


def has_finite_weights(average: nn.Module) -> bool:
    """Says whether averaged weights are all finite; once they are not, they stay so, whatever the network's own do."""
    return all(bool(tensor.isfinite().all()) for tensor in average.state_dict().values())
