"""Encoders side by side on one small segmentation: the same decoder, pictures, steps and seed for each."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from densekit.datasets.draws import Draws
from densekit.datasets.masks import MaskedImages, pair_masks
from densekit.datasets.split import split_by_name
from densekit.datasets.survey import survey_seg
from densekit.datasets.transforms import Augment
from densekit.encoders.costs import macs, parameters, training_bytes
from densekit.encoders.opening import build, seeded
from densekit.errors import ConfigError, DeviceError
from densekit.losses import IGNORE, segmentation_loss
from densekit.metrics import ConfusionMatrix

MEAN, STD = 0.5, 0.25  # of images in 0..1, for every encoder alike
WARM_UP = 0.2  # share of the steps whose times do not count
SETTLING = 16  # batches that norms are averaged over at the end: the running averages of a short training lag behind

Follow = Callable[[int, dict[str, float]], None]  # the step, and the loss of each encoder


@dataclass(frozen=True)
class Settings:
    """What all encoders of a comparison have in common.

    Attributes:
        steps: of training.
        minutes: after which training ends even before that, with as many steps for each; None, never.
        batch_size, crop_size: of a step.
        width: channels of the decoder.
        learning_rate: of AdamW.
        seed: of weights, pictures and crops.
        held_out: pictures to score with, at most.
    """

    steps: int = 100
    minutes: float | None = None
    batch_size: int = 8
    crop_size: int = 128
    width: int = 64
    learning_rate: float = 1e-3
    seed: int = 0
    held_out: int = 64


@dataclass(frozen=True)
class Standing:
    """An encoder's place in a comparison.

    Attributes:
        name: of the encoder.
        parameters: of the encoder, without the decoder.
        macs: of the encoder, for one crop.
        kept_bytes: activations that a step keeps for its backward pass, decoder included.
        least_bytes: the same with the memory policy "min"; equal where there is none.
        step_ratio: median time of a step by that of the first encoder.
        loss: mean over the last tenth of the steps.
        score: `Comparison.metric` on the held-out pictures, 0..1.
    """

    name: str
    parameters: int
    macs: int
    kept_bytes: int
    least_bytes: int
    step_ratio: float
    loss: float
    score: float


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        metric: "iou" of the foreground for two classes, else "miou".
        steps: that each encoder took.
        train_pictures, held_out_pictures: how many.
        num_classes: background included.
        standings: in the order of the names.
    """

    metric: str
    steps: int
    train_pictures: int
    held_out_pictures: int
    num_classes: int
    standings: tuple[Standing, ...]


class LightSegmenter(nn.Module):
    """An encoder and next to nothing: a 1x1 convolution on each tap, their sum at the finest one's size, classes.

    Args:
        encoder: its taps are all used.
        num_classes: channels of the logits.
        width: channels that taps are brought to.

    Shapes: (B, 3, H, W) in 0..1 -> logits (B, num_classes, H, W), any H and W: the image is continued at the bottom and
    right by its last row and column to multiples that the encoder asks for.
    """

    def __init__(self, encoder: nn.Module, num_classes: int, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.laterals: nn.ModuleList = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in encoder.channels)  # type: ignore[union-attr]
        self.norm: nn.BatchNorm2d = nn.BatchNorm2d(width)
        self.classifier: nn.Conv2d = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        multiple_of: int = self.encoder.multiple_of  # type: ignore[assignment]
        x = F.pad((x - MEAN) / STD, (0, -width % multiple_of, 0, -height % multiple_of), mode="replicate")
        first, *others = [lateral(tap) for lateral, tap in zip(self.laterals, self.encoder(x), strict=True)]
        for other in others:
            first = first + F.interpolate(other, first.shape[-2:], mode="bilinear")
        y = self.classifier(F.relu(self.norm(first)))
        return F.interpolate(y, x.shape[-2:], mode="bilinear")[..., :height, :width]


class Entrant:
    """One encoder of a comparison while it trains."""

    def __init__(self, name: str, num_classes: int, settings: Settings, device: torch.device | str) -> None:
        with seeded(settings.seed):
            self.net: LightSegmenter = LightSegmenter(build(name), num_classes, settings.width).to(device)
        self.name = name
        self.optimizer: torch.optim.AdamW = torch.optim.AdamW(self.net.parameters(), settings.learning_rate)
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def step(self, criterion: nn.Module | Callable[[Tensor, Tensor], Tensor], x: Tensor, ids: Tensor) -> None:
        """Takes a step on a batch, and notes its loss and time.

        Raises:
            DeviceError: not enough memory.
        """
        _wait(x.device)
        began = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        try:
            loss = criterion(self.net(x), ids)
            loss.backward()
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"{self.name}: a step does not fit {x.device}; lower --batch-size or --crop-size"
            ) from error
        self.optimizer.step()
        self.losses.append(float(loss.detach()))
        _wait(x.device)
        self.seconds.append(time.perf_counter() - began)

    def settle(self, batches: Iterable[Tensor]) -> None:
        """Gives batch norms the mean statistics of batches under the weights as they are now."""
        norms = [module for module in self.net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        with torch.no_grad():
            for x in batches:
                self.net(x)

    def median_seconds(self) -> float:
        """Returns the median time of the steps that count."""
        return statistics.median(self.seconds[int(WARM_UP * len(self.seconds)) :])


def compare(
    names: Sequence[str],
    folders: Sequence[str],
    *,
    val: Sequence[str] = (),
    settings: Settings | None = None,
    device: torch.device | str = "cpu",
    follow: Follow | None = None,
) -> Comparison:
    """Trains encoders from random weights on images with masks, step by step in turn, and scores them.

    Every encoder sees the same batches, under the same decoder and optimizer. Since they take turns, whatever else the
    machine does meets all alike, and ratios of times hold.

    Args:
        names: of ours, or of timm's after "timm:"; the first one is what times are divided by.
        folders: of images and masks, as `densekit.datasets.survey.survey_seg` takes them.
        val: others to score with; if there are none, a fifth of the pictures is.
        settings: None takes the defaults.
        device: where they train.
        follow: called after each step.

    Raises:
        ConfigError: no such encoder, one named twice, or crops that are too small.
        DataError: data that cannot be used, or a single picture.
        DeviceError: not enough memory.
    """
    settings = settings or Settings()
    if len(set(names)) < len(names) or not names:
        raise ConfigError(f"encoders {', '.join(names) or 'none'}: expected one or more, each once")
    train, held_out, num_classes = _load(folders, val, settings)
    entrants = [Entrant(name, num_classes, settings, device) for name in names]
    largest = max(int(entrant.net.encoder.multiple_of) for entrant in entrants)  # type: ignore[arg-type]
    if settings.crop_size < 2 * largest:
        raise ConfigError(f"crop_size={settings.crop_size}: these encoders need {2 * largest} or more")
    criterion = segmentation_loss("ce")
    deadline = time.monotonic() + 60 * settings.minutes if settings.minutes else None
    recent: deque[Tensor] = deque(maxlen=SETTLING)
    steps = 0
    for images, ids in islice(_batches(train, settings), settings.steps):
        x, target = images.to(device).float() / 255, ids.to(device).long()
        for entrant in entrants:
            entrant.step(criterion, x, target)
        recent.append(x)
        steps += 1
        if follow:
            follow(steps, {entrant.name: entrant.losses[-1] for entrant in entrants})
        if deadline and time.monotonic() > deadline:
            break
    for entrant in entrants:
        entrant.settle(recent)
    reference = entrants[0].median_seconds()
    standings = tuple(_standing(entrant, reference, held_out, num_classes, settings, device) for entrant in entrants)
    metric = "iou" if num_classes == 2 else "miou"
    return Comparison(metric, steps, len(train), len(held_out), num_classes, standings)


def _load(folders: Sequence[str], val: Sequence[str], settings: Settings) -> tuple[MaskedImages, MaskedImages, int]:
    survey = survey_seg(folders, val=val)
    data = survey.data
    pairs = pair_masks(data["train"], data.get("masks", []))
    held_out = pair_masks(data["val"], data.get("val_masks", [])) if data.get("val") else []
    if not held_out:
        pairs, held_out = split_by_name(pairs, data.get("val_share", 0.2))
    stride = max(1, -(-len(held_out) // settings.held_out))
    ignore, class_map = data.get("ignore_index", IGNORE), data.get("class_map")
    augment = Augment("light", settings.crop_size, settings.seed)
    train = MaskedImages(pairs, survey.num_classes, ignore, augment, class_map=class_map)
    scored = MaskedImages(held_out[::stride], survey.num_classes, ignore, class_map=class_map)
    return train, scored, survey.num_classes


def _batches(train: MaskedImages, settings: Settings) -> Iterator[tuple[Tensor, Tensor]]:
    draws = Draws(len(train), settings.seed, batch_size=settings.batch_size)
    generator = torch.Generator()  # its own: the loader must not move the random state that dropout uses
    yield from DataLoader(train, settings.batch_size, sampler=draws, generator=generator)


def _standing(
    entrant: Entrant,
    reference: float,
    held_out: MaskedImages,
    num_classes: int,
    settings: Settings,
    device: torch.device | str,
) -> Standing:
    net, side = entrant.net.eval(), settings.crop_size
    matrix = ConfusionMatrix(num_classes, ignore_index=IGNORE)
    with torch.inference_mode():
        for index in range(len(held_out)):
            image, ids = held_out[0, index]
            matrix.update(net(image[None].to(device).float() / 255)[0].argmax(dim=0).cpu(), ids)
    kept = training_bytes(net, (settings.batch_size, 3, side, side), ("speed", "min"))
    tail = entrant.losses[-max(1, len(entrant.losses) // 10) :]
    return Standing(
        entrant.name,
        parameters(net.encoder),
        macs(net.encoder, (1, 3, side, side)),
        kept["speed"],
        kept.get("min", kept["speed"]),
        entrant.median_seconds() / reference,
        statistics.fmean(tail),
        float(matrix.iou()[1]) if num_classes == 2 else matrix.miou(),
    )


def _wait(device: torch.device) -> None:
    """Waits until a GPU has done what it was asked for, so that a time is that of the work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
