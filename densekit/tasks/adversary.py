"""The opponent of a network that super-resolves: a discriminator, judging its pictures and learning from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from densekit import ranks
from densekit.config import Config, GanConfig
from densekit.errors import ConfigError
from densekit.losses import discriminator_loss, generator_loss
from densekit.models.discriminators import SpectralConv, UNetDiscriminator, VGGDiscriminator

SMALLEST = {"unet": 8, "vgg": 32}  # pixels of a crop
BETAS = (0.9, 0.99)  # of Adam, as in ESRGAN and Real-ESRGAN


class Adversary:
    """The discriminator of a run, with its optimizer.

    In each forward pass of the network it judges the pictures and collects gradients of its own from them, detached;
    it takes its step after the network's. How it judges does not change within a step, so that passes in several
    processes are the same as accumulated ones. The relativistic loss compares with the mean of a pass, and batch norms
    see the pictures of a pass: for these alone a pass is not the same as a part of a larger one.

    Args:
        config: a run's, with a section `gan`.

    Raises:
        ConfigError: crops too small for the discriminator.
    """

    net: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler

    def __init__(self, config: Config) -> None:
        assert config.gan is not None
        self.config: Config = config
        self.options: GanConfig = config.gan
        scale, crop = config.model.kwargs["scale"], config.train.crop_size
        kind = config.gan.discriminator
        self.crop_size: int = crop * scale
        if self.crop_size < SMALLEST[kind]:
            raise ConfigError(
                f"train.crop_size={crop}: gives pictures of {self.crop_size} pixels at scale {scale}, but "
                f"gan.discriminator={kind} needs {SMALLEST[kind]}; raise it to {-(-SMALLEST[kind] // scale)} or more"
            )

    def begin(self, device: str) -> None:
        """Makes a new discriminator, its weights a function of `train.seed`, that has taken no step."""
        options, train = self.options, self.config.train
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(train.seed)
            net: nn.Module
            if options.discriminator == "unet":
                net = UNetDiscriminator(num_features=options.num_features)
            else:
                net = VGGDiscriminator(self.crop_size, num_features=options.num_features)
        layout = torch.channels_last if train.channels_last else torch.contiguous_format
        self.net = net.to(device=device).to(memory_format=layout).train()
        self.optimizer = torch.optim.Adam(self.net.parameters(), options.learning_rate, betas=BETAS)
        self.scaler = torch.amp.GradScaler(device, enabled=train.precision == "fp16")
        self.steps: int = 0
        self.said: list[Tensor] = []

    def judge(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Returns what the network is to minimise besides its other losses; adds to the discriminator's gradients.

        Args:
            sr: pictures the network made, (B, 3, H, W), about 0..1, from which gradients go back to it.
            hr: the real ones.
        """
        kind, passes = self.options.loss, self.config.train.accumulate
        real, fake = self.net(hr).float(), self.net(sr.detach()).float()
        loss = discriminator_loss(real, fake, kind) / passes
        with torch.autocast(sr.device.type, enabled=False):
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        real, fake = real.detach(), fake.detach()
        if self.steps >= self.options.start_step:
            self.net.requires_grad_(False)  # its own gradients are complete: these are the network's alone
            fake = self.net(sr).float()
            self.net.requires_grad_(True)
        opinion = generator_loss(real, fake, kind)
        self.said.append(torch.stack([loss.detach(), opinion.detach() / passes]))
        return self.options.weight * opinion if opinion.requires_grad else sr.new_zeros(())

    def step(
        self, share: float, passes: Callable[[float, Tensor, torch.amp.GradScaler], bool]
    ) -> dict[str, float | str]:
        """Takes the discriminator's step; returns its loss and its opinion for the log, if they are finite.

        Args:
            share: of its learning rate, as the schedule has it.
            passes: says of loss, norm of the gradient and scaler whether the gradient may be used.
        """
        own = [sum(column) for column in zip(*(pair.tolist() for pair in self.said), strict=True)]
        loss, opinion = (sum(column) / ranks.count() for column in zip(*ranks.gathered(own), strict=True))
        gradients = [parameter.grad for parameter in self.net.parameters() if parameter.grad is not None]
        average(gradients)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm(gradients)
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * share
        if passes(loss, norm, self.scaler):
            self.scaler.step(self.optimizer)
            for module in self.net.modules():
                if isinstance(module, SpectralConv):
                    module.iterate()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        self.said.clear()
        if not math.isfinite(loss + opinion):
            return {}
        return {"d_loss": loss, "d_loss_hex": loss.hex(), "gan_loss": opinion}

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a resumed run needs."""
        return {
            "steps": self.steps,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` returned, after `begin`.

        Raises:
            KeyError, RuntimeError, ValueError: it is another discriminator's.
        """
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.steps = state["steps"]


def average(tensors: list[Tensor]) -> None:
    """Overwrites tensors with their means over all processes."""
    if ranks.count() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors]) / ranks.count()  # first: as accumulation divides
    dist.all_reduce(flat)
    for tensor, mean in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view(tensor.shape))
