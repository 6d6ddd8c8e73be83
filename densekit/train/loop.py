"""The one training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from densekit.checkpoint import save_model
from densekit.config import Config, config_hash
from densekit.errors import DataError, Interrupted
from densekit.files import atomic_write, printable
from densekit.tasks import Task
from densekit.train.optim import create_average, create_optimizer, learning_rate
from densekit.train.progress import Watch
from densekit.train.resume import find_state, restore
from densekit.train.run import Run
from densekit.train.signals import stop_on_signals


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
        DataError: the loss or the weights stopped being finite.
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
        average = create_average(net, options.ema_decay)
        optimizer = create_optimizer(net, config.optim)
        start, best = 0, -math.inf
        figures: dict[str, float] = {}
        state = find_state(run, config, task.fingerprint, resume)
        if state:
            restore(state, net, average, optimizer)
            start, best, figures = state["step"], state["best"], state.get("figures", {})
        run.write_config(config.to_yaml())
        run.truncate_log(start)
        batches = task.train_batches(start * options.accumulate)

        with stop_on_signals() as stop, Watch(options.total_steps, start) as watch:
            began = time.monotonic()
            for step in range(start, options.total_steps):
                rate = learning_rate(config.optim, step, options.total_steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                torch.manual_seed(options.seed * 1_000_003 + step)  # dropout; integer arithmetic, never hash()
                loss = add_gradients(task, net, batches, config, device)
                if not math.isfinite(loss):
                    raise not_finite(f"the loss is {loss}", step, config, run)
                if config.optim.clip_norm:
                    nn.utils.clip_grad_norm_(net.parameters(), config.optim.clip_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                average.update_parameters(net)

                done = step + 1
                is_last = done == options.total_steps
                log_now = is_last or done % options.log_every == 0
                evaluate_now = is_last or done % options.eval_every == 0
                save_now = is_last or done % options.checkpoint_every == 0 or stop.signum != 0
                if (evaluate_now or save_now) and not has_finite_weights(average):
                    raise not_finite("some weights are not finite", step, config, run)
                if log_now:
                    speed = (done - start) / (time.monotonic() - began)
                    run.log({"step": done, "loss": loss, "loss_hex": loss.hex(), "lr": rate, "steps_per_s": speed})
                    watch.step(done, f"loss {loss:.4f}")
                if evaluate_now:
                    figures = evaluate(task, average.module)
                    if figures:
                        run.log({"step": done, **figures})
                        watch.say(f"step {done}: " + "  ".join(f"{key} {value:.4f}" for key, value in figures.items()))
                    save_model(run_dir / "last.safetensors", average.module, task.card(done, figures))
                    if figures.get(task.metric, -math.inf) > best:
                        best = figures[task.metric]
                        atomic_write(run_dir / "best.safetensors", (run_dir / "last.safetensors").read_bytes())
                if save_now:
                    run.save(
                        {
                            "step": done,
                            "best": best,
                            "figures": figures,
                            "net": net.state_dict(),
                            "average": average.state_dict(),
                            "optimizer": optimizer.state_dict(),
                            "config": config_hash(config),
                            "settings": config.model_dump(mode="json"),
                            "fingerprint": task.fingerprint,
                        }
                    )
                if stop.signum and save_now and not is_last:
                    raise Interrupted(
                        f"interrupted at step {done}, saved in {printable(run.states)}; continue with --resume",
                        stop.signum,
                    )
        return figures


def add_gradients(
    task: Task, net: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], config: Config, device: str
) -> float:
    """Adds the gradients of one step's forward passes to those of `net`; returns the mean loss of the passes."""
    options = config.train
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    loss = 0.0
    for _ in range(options.accumulate):
        inputs, targets = (tensor.to(device, non_blocking=True) for tensor in next(batches))
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=options.precision == "bf16"):
            part = task.loss(net, (inputs.to(memory_format=layout), targets)) / options.accumulate
        part.backward()  # type: ignore[no-untyped-call]
        loss += float(part.detach())
    return loss


@torch.no_grad()
def evaluate(task: Task, net: nn.Module) -> dict[str, float]:
    """Returns the task's figures for `net` in evaluation mode, but for those that are not finite.

    The PSNR of equal pictures is infinite, the IoU of masks without labels is no number; no file can hold either.
    """
    return {key: value for key, value in task.evaluate(net.eval()).items() if math.isfinite(value)}


def has_finite_weights(average: nn.Module) -> bool:
    """Says whether averaged weights are all finite; once they are not, they stay so, whatever the network's own do."""
    return all(bool(tensor.isfinite().all()) for tensor in average.state_dict().values())


def not_finite(what: str, step: int, config: Config, run: Run) -> DataError:
    """Returns the error that ends a run whose numbers ran away; nothing of this step has been saved."""
    count = config.train.batch_size * config.train.accumulate
    return DataError(
        f"step {step}, draws {step * count} to {(step + 1) * count - 1}: {what}; the last whole state stays in "
        f"{printable(run.states)}; start another --run with a lower optim.learning_rate or with optim.clip_norm"
    )
