"""The one training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from densekit import ranks
from densekit.config import Config, TrainConfig, config_hash
from densekit.errors import Interrupted
from densekit.files import printable
from densekit.memory import peak_memory
from densekit.tasks import Task
from densekit.train.guard import Guard
from densekit.train.norms import adopt_statistics, check_norms, freeze_norms, kept_network, scored_network
from densekit.train.optim import clip_gradients, create_average, create_optimizer, learning_rate, set_rate
from densekit.train.parallel import is_finite, make_forward, shard, synchronize_norms, waiting, whole, whole_state
from densekit.train.progress import Watch
from densekit.train.resume import find_state, restore
from densekit.train.run import Run
from densekit.train.signals import stop_on_signals
from densekit.train.summary import conclude, show_progress
from densekit.train.trackers import check_trackers, tracked

REDUCED = {"bf16": torch.bfloat16, "fp16": torch.float16}


def train(task: Task, config: Config, run_dir: Path, *, resume: bool = False, device: str = "cpu") -> dict[str, float]:
    """Trains until `train.total_steps` and returns the last figures; none without validation data.

    The run's clock is the step, and all randomness is a function of (seed, step): a run that is killed at any instant
    and resumed ends with the same bytes as one that was never stopped.

    Args:
        task: model, data, loss and evaluation.
        config: of the run; what the task was made from.
        run_dir: `config.yaml`, `metrics.jsonl`, `report.html`, `samples/`, `checkpoints/`, `best.safetensors` and
            `last.safetensors` go here.
        resume: continue from the newest state that is whole.
        device: "cpu", "cuda", ...

    Raises:
        ConfigError: the folder is in use, holds a run already, or holds one of another config or other data; or a
            tracker is not installed.
        DataError: loss, gradient or weights stopped being finite, in too many steps in a row.
        CheckpointError: no saved state is whole, or it does not fit.
        Interrupted: SIGINT or SIGTERM, after saving.
    """
    options = config.train
    check_trackers(options.trackers)
    if options.threads:
        torch.set_num_threads(options.threads)
    run = Run(run_dir, options.keep)
    with run.locked():
        layout = torch.channels_last if options.channels_last else torch.contiguous_format
        net = task.build_model().to(device=device).to(memory_format=layout).train()
        check_norms(net, config)
        average = create_average(net, options.ema_decay)
        if options.sync_norm:
            net = synchronize_norms(net, device)
        if options.parallel == "fsdp":
            shard(net, device, average.module)
        optimizer = create_optimizer(net, config.optim)
        scaler = torch.amp.GradScaler(device, enabled=options.precision == "fp16")
        adversary = task.adversary
        if adversary:
            adversary.begin(device)
        start, best, stale, skipped = 0, -math.inf, 0, 0
        figures: dict[str, float] = {}
        state = find_state(run, config, task.fingerprint, resume)
        if state:
            restore(state, net, average, optimizer, scaler, adversary)
            start, best, figures = state["step"], state["best"], state.get("figures", {})
            stale, skipped = state.get("stale", 0), state.get("skipped", 0)
        guard = Guard(run, task, config, skipped)
        doubts = state.get("doubts", 0) if state else 0
        doubt = Guard(run, task, config, doubts, whose="the discriminator's", remedy="gan.learning_rate")
        run.write_config(config.to_yaml())
        run.truncate_log(start)
        batches = task.train_batches(start * options.accumulate)
        forward = make_forward(net, compiled=options.compile)
        began, done = time.monotonic(), start

        with stop_on_signals() as stop, tracked(run, config, start), Watch(options.total_steps, start) as watch:
            for step in range(start, options.total_steps if not is_stale(stale, options) else start):
                if step == options.freeze_norm_step:
                    ranks.shared(average.module.buffers())
                    adopt_statistics(net, average.module)
                if options.freeze_norm_step is not None and step >= options.freeze_norm_step:
                    freeze_norms(net)
                rate = learning_rate(config.optim, step, options.total_steps)
                share = rate / config.optim.learning_rate
                set_rate(optimizer, rate)
                loss = add_gradients(task, forward, batches, scaler, config, device, step)
                norm = clip_gradients(net, optimizer, scaler, config.optim.clip_norm)
                if guard.passes(step, loss, norm, scaler):
                    scaler.step(optimizer)
                    average.update_parameters(net)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
                judged = adversary.step(share, partial(doubt.passes, step)) if adversary else {}

                done = step + 1
                ends = done == options.total_steps
                evaluate_now = ends or done % options.eval_every == 0
                late = options.max_hours is not None and time.monotonic() - began > 3600 * options.max_hours
                signum, late = max(ranks.gathered((stop.signum, late)))  # all processes end after the same step
                save_now = ends or done % options.checkpoint_every == 0 or late or signum != 0
                if (evaluate_now or save_now) and not is_finite(average):
                    raise guard.error(step, "some weights are not finite")
                if (ends or done % options.log_every == 0) and math.isfinite(loss):
                    passed, memory = time.monotonic() - began, peak_memory(device)
                    costs = {"steps_per_s": (done - start) / passed, "seconds": run.seconds + passed, "memory": memory}
                    run.log({"step": done, "loss": loss, "loss_hex": loss.hex(), "lr": rate, **judged, **costs})
                    watch.step(done, f"loss {loss:.4f}  {memory / 2**30:.2f} GiB")
                watch.step(done)
                if evaluate_now:
                    ranks.shared(average.module.buffers())
                    with whole(average.module) as averaged:
                        kept = kept_network(averaged, task, config)
                        scored = scored_network(kept, config)
                        figures = evaluate(task, scored)
                        are_best = figures.get(task.metric, -math.inf) > best
                        run.write_weights(kept, task.card(done, figures), are_best=are_best)
                        if figures:
                            run.log({"step": done, **figures})
                            watch.say(f"step {done}: " + "  ".join(f"{k} {value:.4f}" for k, value in figures.items()))
                        show_progress(task, scored, config, run, done, figures)
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
                            "doubts": doubt.skipped,
                            "figures": figures,
                            "net": whole_state(net.state_dict()),
                            "average": whole_state(average.state_dict()),
                            "optimizer": whole_state(optimizer.state_dict()),
                            "scaler": scaler.state_dict(),
                            "adversary": adversary.state_dict() if adversary else None,
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
            if done == options.total_steps or is_stale(stale, options):
                with whole(average.module) as averaged:
                    conclude(task, scored_network(kept_network(averaged, task, config), config), config, run, done)
        return figures


def is_stale(evaluations: int, options: TrainConfig) -> bool:
    """Says whether that many evaluations without a better figure end the training."""
    return options.patience is not None and evaluations >= options.patience


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
        reduced = torch.autocast(
            torch.device(device).type, REDUCED.get(options.precision), enabled=options.precision in REDUCED
        )
        with waiting(net, index + 1 < options.accumulate):
            with reduced:
                part = task.loss(net, (inputs.to(memory_format=layout), targets)) / options.accumulate
            scaler.scale(part).backward()  # type: ignore[no-untyped-call]
        loss += float(part.detach())
    losses = ranks.gathered(loss)
    return sum(losses) / len(losses)


@torch.no_grad()
def evaluate(task: Task, net: nn.Module) -> dict[str, float]:
    """Returns the task's figures for `net` in evaluation mode, but for those that are not finite.

    The PSNR of equal pictures is infinite, the IoU of masks without labels is no number; no file can hold either.
    """
    return {key: value for key, value in task.evaluate(net.eval()).items() if math.isfinite(value)}
