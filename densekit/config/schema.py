"""Every key of a config, its range, its default and its meaning; `configs/schema.json` is made from them.

Model keyword arguments have no schema here; a text in exponent notation becomes a number among them too. Whether they
fit the constructor is for `tasks` to say.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from densekit.config.kinds import (
    Augmentation,
    Byte,
    Color,
    Count,
    Decay,
    Factor,
    Float,
    Int,
    Keyword,
    Positive,
    Shrink,
    Step,
    Text,
    Texts,
)
from densekit.config.together import faults_together


class _Section(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(_Section):
    """The network: its name and the keyword arguments of its constructor."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Keyword] = Field(init=False)

    name: Text = Field(description="Name of the network; `densekit models` lists them.")

    @property
    def kwargs(self) -> dict[str, Any]:
        """The constructor's keyword arguments, that is, every key but `name`."""
        return dict(self.__pydantic_extra__)


class DataConfig(_Section):
    """Where the pictures are and what their masks mean."""

    train: Texts = Field(
        min_length=1, description="Folders of training pictures, or .txt lists of their files; one or several."
    )
    val: Texts = Field(default=[], description="Folders or lists of validation pictures; one or several.")
    val_share: Float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the training pictures kept for validation, by a hash of the name.",
    )
    lr: Texts = Field(
        default=[], description="sr: low-resolution pictures of equal names, one for each in train; if empty, made."
    )
    val_lr: Texts = Field(default=[], description="sr: low-resolution pictures, one for each in val; if empty, made.")
    masks: Texts = Field(
        default=[], description="seg: mask folders, one for each in train; if empty, DIR holds images/ and masks/."
    )
    val_masks: Texts = Field(default=[], description="seg: mask folders, one for each in val; if empty, as for train.")
    cache: Text | None = Field(
        default=None, description="Folder for decoded pictures, made once and shared; null keeps them in memory."
    )
    num_workers: Int = Field(default=0, ge=0, le=64, description="Loader processes; 0 loads in the main one.")
    classes: Texts = Field(default=[], description="seg: names of the classes, in the order of their ids.")
    palette: list[Color] = Field(default=[], description="seg: colour of each class, [red, green, blue], 0..255.")
    class_map: dict[Text, Byte] = Field(
        default={}, description="seg: class of each colour, where masks are colours: '#ff0000': 1, '#000000': 255."
    )
    ignore_index: Int = Field(default=255, ge=0, le=255, description="seg: id in the mask files that means void.")
    licence: str = Field(default="", description="Licence of the training data; goes into the checkpoint.")
    augment: Augmentation = Field(
        default="light",
        description="seg: augmentation by name, microscopy being strong in all eight orientations, or a list of "
        "albumentations with their arguments.",
    )
    focus: Literal["none", "foreground", "balanced"] = Field(
        default="none", description="seg: what crops are laid around: any class but 0, or each class as often."
    )
    focus_share: Float = Field(default=0.5, ge=0, le=1, description="seg: share of the crops that focus lays.")
    degradation: Literal["bicubic", "real-esrgan"] = Field(
        default="bicubic", description="sr: how low resolution is made; real-esrgan: blur, noise and JPEG, twice."
    )
    sharpen: bool = Field(
        default=False, description="sr: trains towards sharpened pictures, as Real-ESRGAN does; with real-esrgan."
    )
    shrink: list[Shrink] = Field(
        default=[1.0], min_length=1, description="sr: factors at which each training picture enters, such as [1, 0.7]."
    )


class OptimConfig(_Section):
    """The optimizer and its learning rate over the run."""

    name: Literal["adam", "adamw", "muon", "sgd", "rmsprop"] = Field(default="adamw", description="Optimizer.")
    learning_rate: Float = Field(default=1e-3, gt=0, le=10, description="Highest learning rate.")
    weight_decay: Float = Field(
        default=0.0, ge=0, le=1, description="Weight decay; decoupled in adamw and muon, else L2."
    )
    betas: list[Decay] = Field(
        default=[],
        max_length=2,
        description="Decay of the gradient's mean and of its square's; rmsprop: of the latter alone. Empty: 0.9 and "
        "0.999, rmsprop 0.99.",
    )
    eps: Positive | None = Field(
        default=None, description="Added to the root of the mean square, adam, adamw and rmsprop; null: 1e-8."
    )
    schedule: Literal["constant", "cosine", "onecycle", "step"] = Field(
        default="cosine", description="Course after warm-up; step: times step_factor every step_every steps."
    )
    step_every: Int = Field(default=100_000, ge=1, description="Steps between two reductions of schedule step.")
    step_factor: Float = Field(default=0.5, gt=0, le=1, description="What schedule step multiplies the rate with.")
    warmup_steps: Int = Field(default=0, ge=0, description="Steps of linear warm-up; part of total_steps.")
    min_learning_rate: Float = Field(default=0.0, ge=0, le=10, description="Learning rate at the last step.")
    clip_norm: Positive | None = Field(default=None, description="Largest norm of the gradient; null does not clip.")
    rates: dict[Text, Factor] = Field(
        default={},
        description="Factors of the learning rate by pattern of parameter names, such as 'sfe*': 0.1; 0 freezes. "
        "The first pattern that fits counts.",
    )


class TrainConfig(_Section):
    """The loop: its length, batches, precision and what it writes."""

    total_steps: Int = Field(ge=1, le=100_000_000, description="Optimizer steps in the whole run.")
    batch_size: Int = Field(default=16, ge=1, le=65536, description="Crops in one forward pass, over all processes.")
    crop_size: Int = Field(ge=8, le=8192, description="Side of a training crop in pixels; sr: low-resolution pixels.")
    accumulate: Int = Field(default=1, ge=1, le=1024, description="Forward passes to one optimizer step.")
    ema_decay: Float = Field(default=0.999, ge=0, lt=1, description="Averaged weights' decay in a step; 0: none.")
    freeze_norm_step: Step | None = Field(
        default=None, description="From this step on batch norms keep their averaged statistics; null: never."
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="Number format of the forward pass; fp16 scales the loss."
    )
    compile: bool = Field(
        default=False, description="Forward and backward through torch.compile; needs a C++ compiler."
    )
    channels_last: bool = Field(default=True, description="Layout of activations; true is mostly faster.")
    threads: Count | None = Field(default=None, description="CPU threads; null leaves torch's choice.")
    seed: Int = Field(default=0, ge=0, le=2**32 - 1, description="Seed of weights, order of pictures and augmentation.")
    log_every: Int = Field(default=50, ge=1, description="Steps between two lines of metrics.jsonl.")
    eval_every: Int = Field(default=1000, ge=1, description="Steps between two evaluations.")
    checkpoint_every: Int = Field(default=500, ge=1, description="Steps between two saved states.")
    max_skipped: Int = Field(
        default=10, ge=0, description="Steps in a row that may be skipped since loss or gradient is not finite."
    )
    max_hours: Positive | None = Field(
        default=None, description="Hours after which a run is saved and ends, to go on with --resume; null: no limit."
    )
    patience: Count | None = Field(
        default=None, description="Evaluations without a better figure after which training ends; null: never."
    )
    keep: Int = Field(default=2, ge=1, le=1000, description="Saved states that are kept, the newest ones.")
    loss: Text | None = Field(
        default=None,
        description="Losses joined by +, such as ce+0.5*dice. sr: l1, charbonnier, luma, fft, perceptual; seg: ce, "
        "bce, focal, bfocal, ohem, dice, jaccard, tversky, focal-tversky, lovasz; null takes the task's own.",
    )
    label_smoothing: Float = Field(
        default=0.0, ge=0, lt=1, description="seg: share of the other classes in ce and bce."
    )
    class_weights: Literal["none", "median-freq", "sqrt-median-freq"] = Field(
        default="none", description="seg: class weights in the loss, by frequency in the training masks."
    )
    perceptual_weights: Text | None = Field(
        default=None, description="sr: file of VGG19's weights for the loss perceptual, or imagenet; null: random ones."
    )
    perceptual_layers: dict[Text, Factor] = Field(
        default={}, description="sr: weight of each layer of VGG19 in perceptual; empty: conv5_4 alone, as ESRGAN."
    )
    initial_weights: Text | None = Field(default=None, description="Checkpoint to start from; null: random weights.")
    parallel: Literal["ddp", "fsdp"] = Field(
        default="ddp", description="Of several processes: ddp holds all weights in each, fsdp a part in each."
    )
    sync_norm: bool = Field(default=False, description="Batch statistics over all processes; needs GPUs.")
    samples: Int = Field(default=4, ge=0, le=64, description="Validation pictures kept with their results; 0: none.")
    trackers: list[Literal["tensorboard", "trackio", "wandb"]] = Field(
        default=[], description="Where figures go besides metrics.jsonl; each is an extra to install."
    )


class GanConfig(_Section):
    """The discriminator that judges super-resolved pictures, and how much its opinion weighs; as Real-ESRGAN has it."""

    discriminator: Literal["unet", "vgg"] = Field(
        default="unet", description="unet judges each pixel (Real-ESRGAN); vgg the crop as a whole (ESRGAN)."
    )
    num_features: Int = Field(default=64, ge=4, le=512, description="Channels of its first layer.")
    loss: Literal["ragan", "vanilla", "lsgan", "hinge"] = Field(default="vanilla", description="Adversarial loss.")
    weight: Float = Field(default=0.1, gt=0, le=100, description="Factor of the adversarial loss.")
    learning_rate: Float = Field(default=1e-4, gt=0, le=10, description="Of the discriminator; follows the schedule.")
    start_step: Int = Field(default=0, ge=0, description="Step from which on its opinion counts; it learns before.")


class EvalConfig(_Section):
    """How a validation picture is scored."""

    protocol: Literal["rdn-y", "rgb", "camvid11-360x480", "voc21", "cityscapes19", "dataset-iou", "binary"] | None = (
        Field(default=None, description="sr: rdn-y or rgb; seg: the others; null takes the task's own.")
    )
    bn_mode: Literal["running", "recalibrated", "batch"] = Field(
        default="running",
        description="Statistics of batch norms in evaluation and in the checkpoint: running averages, averages over "
        "training crops taken anew, or those of each picture.",
    )
    bn_batches: Int = Field(default=50, ge=1, le=100_000, description="Batches of crops for bn_mode recalibrated.")


class Config(_Section):
    """One reproducible run."""

    task: Literal["sr", "seg"] = Field(description="sr: super-resolution; seg: segmentation.")
    model: ModelConfig
    data: DataConfig
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig
    gan: GanConfig | None = Field(default=None, description="sr: trains against a discriminator; null does not.")
    eval: EvalConfig = Field(default_factory=EvalConfig)

    @model_validator(mode="after")
    def _check_together(self) -> Config:
        """Checks what no key can be asked alone; runs once each key is right by itself."""
        if faults := list(faults_together(self)):
            raise PydanticCustomError("together", "{faults}", {"faults": faults})
        return self

    def to_yaml(self) -> str:
        """Returns the config with every default written out; reading it again gives an equal config."""
        # ASCII alone: with allow_unicode PyYAML writes U+0085 and its like so that they come back as a blank
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=120)
