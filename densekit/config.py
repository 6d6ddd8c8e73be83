"""A training run as typed, bounded values, and the reading of them from YAML and `key=value` overrides.

The models below are the only place that knows a key, its range, its default and its meaning; `configs/schema.json` is
made from them by `python -m densekit.config > configs/schema.json`.

Scalars mean what `plain_yaml` says, with one addition: where a number belongs, `1e-4` is one, although PyYAML hands it
over as text. Model keyword arguments have no schema here, so there a text in exponent notation becomes a number too.
Whether they fit the constructor is for `tasks` to say.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

import densekit
from densekit.errors import ConfigError, suggest
from densekit.faults import Faults
from densekit.files import printable
from densekit.plain_yaml import read_yaml, shorten

MAX_BYTES = 1 << 20  # a long config has 10 KiB
SUFFIXES = (".yaml", ".yml")

_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")  # what YAML 1.2 calls a float and PyYAML leaves as text


def _finite(value: object) -> object:
    """Turns exponent notation into the number it is; refuses NaN and infinities."""
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("finite_number", "must be a finite number")
    return value


def _number(value: object) -> object:
    """Refuses true and false, which pydantic would take as 1 and 0; reads `1e-4`."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "must be a number; YAML reads yes, no, on and off as true or false")
    return _finite(value)


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _keyword(value: object) -> object:
    """Lets through what JSON holds without loss: scalars and lists of them, numbers finite."""
    if isinstance(value, list):
        return [_keyword(item) for item in value]
    if value is not None and not isinstance(value, str | int | float):
        raise PydanticCustomError("keyword_type", "must be a number, text, true, false, null or a list of them")
    return _finite(value)


Int = Annotated[int, BeforeValidator(_number)]
Float = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_number)]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[Text], BeforeValidator(_one_or_many, json_schema_input_type=Text | list[Text])]
# inside a list or beside null the range must come before the validator, or the schema does not show it
Byte = Annotated[int, Field(ge=0, le=255), BeforeValidator(_number)]
Count = Annotated[int, Field(ge=1, le=1024), BeforeValidator(_number)]
Step = Annotated[int, Field(ge=0), BeforeValidator(_number)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_number)]
Shrink = Annotated[float, Field(gt=0, le=1), BeforeValidator(_number)]
Factor = Annotated[float, Field(ge=0, le=1000), BeforeValidator(_number)]
Color = Annotated[list[Byte], Field(min_length=3, max_length=3)]
Keyword = Annotated[
    Any,
    BeforeValidator(_keyword),
    WithJsonSchema({"type": ["number", "string", "boolean", "null", "array"]}),
]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(_Section):
    """The network: its name and the keyword arguments of its constructor."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Keyword] = Field(init=False)

    name: Text = Field(description="Name of the network; `densekit models` lists them.")

    @property
    def kwargs(self) -> dict[str, Any]:
        """The constructor's keyword arguments, that is, every key but `name`."""
        return dict(self.__pydantic_extra__)


class DataConfig(_Section):
    """Where the pictures are and what their masks mean."""

    train: Texts = Field(min_length=1, description="Folders of training pictures; one folder or a list.")
    val: Texts = Field(default=[], description="Folders of validation pictures; one folder or a list.")
    masks: Texts = Field(
        default=[], description="seg: mask folders, one for each in train; if empty, DIR holds images/ and masks/."
    )
    val_masks: Texts = Field(default=[], description="seg: mask folders, one for each in val; if empty, as for train.")
    num_workers: Int = Field(default=0, ge=0, le=64, description="Loader processes; 0 loads in the main one.")
    classes: Texts = Field(default=[], description="seg: names of the classes, in the order of their ids.")
    palette: list[Color] = Field(default=[], description="seg: colour of each class, [red, green, blue], 0..255.")
    ignore_index: Int = Field(default=255, ge=0, le=255, description="seg: id in the mask files that means void.")
    licence: str = Field(default="", description="Licence of the training data; goes into the checkpoint.")
    augment: Literal["none", "light", "strong", "microscopy"] = Field(
        default="light", description="seg: augmentation; microscopy is strong in all eight orientations."
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
        description="Losses joined by +, such as ce+0.5*dice. sr: l1, charbonnier, luma, fft; seg: ce, bce, focal, "
        "bfocal, ohem, dice, jaccard, tversky, focal-tversky, lovasz; null takes the task's own.",
    )
    label_smoothing: Float = Field(
        default=0.0, ge=0, lt=1, description="seg: share of the other classes in ce and bce."
    )
    class_weights: Literal["none", "median-freq", "sqrt-median-freq"] = Field(
        default="none", description="seg: class weights in the loss, by frequency in the training masks."
    )
    initial_weights: Text | None = Field(default=None, description="Checkpoint to start from; null: random weights.")


class EvalConfig(_Section):
    """How a validation picture is scored."""

    protocol: Literal["rdn-y", "rgb", "camvid11-360x480", "voc21", "cityscapes19", "dataset-iou", "binary"] | None = (
        Field(default=None, description="sr: rdn-y or rgb; seg: the others; null takes the task's own.")
    )


_TASK_LOSSES = {
    "sr": ("l1", "charbonnier", "luma", "fft"),
    "seg": ("ce", "bce", "focal", "bfocal", "ohem", "dice", "jaccard", "tversky", "focal-tversky", "lovasz"),
}
_LOSS = re.compile(r"(?:(\d+(?:\.\d+)?|\.\d+) *\* *)?([\w-]+)")  # 0.5*dice
_TASK_PROTOCOLS = {
    "sr": ("rdn-y", "rgb"),
    "seg": ("camvid11-360x480", "voc21", "cityscapes19", "dataset-iou", "binary"),
}
_SEG_ONLY = ("masks", "val_masks", "classes", "palette")


class Config(_Section):
    """One reproducible run."""

    task: Literal["sr", "seg"] = Field(description="sr: super-resolution; seg: segmentation.")
    model: ModelConfig
    data: DataConfig
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig
    eval: EvalConfig = Field(default_factory=EvalConfig)

    @model_validator(mode="after")
    def _check_together(self) -> Config:
        """Checks what no key can be asked alone; runs once each key is right by itself."""
        if faults := list(_faults_together(self)):
            raise PydanticCustomError("together", "{faults}", {"faults": faults})
        return self

    def to_yaml(self) -> str:
        """Returns the config with every default written out; reading it again gives an equal config."""
        # ASCII alone: with allow_unicode PyYAML writes U+0085 and its like so that they come back as a blank
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=120)


def _faults_together(config: Config) -> Iterator[tuple[str, str]]:
    """Yields (key, what is wrong) for values that do not go together."""
    task, data, optim, train = config.task, config.data, config.optim, config.train
    if task == "sr":
        scale = config.model.kwargs.get("scale")
        if scale is None:
            yield "model.scale", "missing; task sr needs the factor, such as 2"
        elif isinstance(scale, bool) or not isinstance(scale, int) or not 1 <= scale <= 8:
            yield "model.scale", "must be a whole number from 1 to 8"
        for key in _SEG_ONLY:
            if getattr(data, key):
                yield f"data.{key}", "belongs to task seg, but the task is sr; remove it"
    elif data.shrink != [1]:
        yield "data.shrink", "belongs to task sr, but the task is seg; remove it"
    for masks, pictures in (("masks", "train"), ("val_masks", "val")):
        given, needed = len(getattr(data, masks)), len(getattr(data, pictures))
        if task == "seg" and given not in (0, needed):
            yield f"data.{masks}", f"has {given} folders, but data.{pictures} has {needed}; give one for each, or none"
    if data.palette and len(data.palette) != len(data.classes):
        yield "data.palette", f"has {len(data.palette)} colours, but data.classes has {len(data.classes)} names"
    if train.patience is not None and not data.val:
        yield "train.patience", "needs data.val, whose figures tell whether training gets better"
    if optim.warmup_steps >= train.total_steps:
        yield "optim.warmup_steps", f"must be less than train.total_steps ({train.total_steps})"
    if optim.min_learning_rate > optim.learning_rate:
        yield "optim.min_learning_rate", f"must not exceed optim.learning_rate ({optim.learning_rate})"
    protocol, protocols = config.eval.protocol, _TASK_PROTOCOLS[task]
    if protocol is not None and protocol not in protocols:
        yield "eval.protocol", f"does not fit task {task}; use {' or '.join(map(repr, protocols))}"
    for part in train.loss.split("+") if train.loss is not None else ():
        found, known = _LOSS.fullmatch(part.strip()), _TASK_LOSSES[task]
        if found is None or found[2] not in known:
            name = found[2] if found else part.strip()
            hint = suggest(name, known) or f"; use {' or '.join(map(repr, known))}"
            yield "train.loss", f"task {task} has no loss {shorten(name)}{hint}"


def load_config(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Returns the config in a YAML file, or the shipped one of that name, such as "sr/rdn_tiny_x2".

    `overrides` are `section.key=value`, where value is read as the file would be: `train.seed=1`, `data.train=[a, b]`.

    Raises:
        ConfigError: no such config, or the faults of file and overrides: all of them, one line each.
    """
    path, text = find_and_read(name_or_path)
    return parse_config(text, overrides, source=printable(path))


def find_and_read(name_or_path: str | Path) -> tuple[Path, str]:
    """Returns the path and the text of a config file, or of the shipped config of that name.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    path = _find_config(str(name_or_path))
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{printable(path)}: larger than {MAX_BYTES} bytes, so not a config")
        return path, path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{printable(path)}: cannot be read as a config: {reason}") from error


def parse_config(text: str, overrides: Sequence[str] = (), *, source: str = "config") -> Config:
    """Returns the config that YAML `text` holds; see `load_config`. `source` is the file's name in messages."""
    document = read_yaml(text)
    faults = Faults(source, document.lines, Config)
    for line, message in document.faults:
        faults.add_line(line, message)
    data = {} if document.value is None else document.value
    if not isinstance(data, dict):
        faults.add_line(1, "must hold sections of keys, such as model: and train:")
    if not document.readable or not isinstance(data, dict):  # each key would be missing, which says nothing new
        raise faults.error()
    for override in overrides:
        _apply_override(data, override, faults)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            faults.add_details(details)
        raise faults.error() from None
    if faults.entries:
        raise faults.error()
    return config


def list_configs() -> list[str]:
    """Returns the names of the shipped configs, sorted: "seg/fc_densenet_camvid", "sr/rdn_tiny_x2", ..."""
    root = _shipped_root()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.glob("*/*.yaml"))


def config_hash(config: Config) -> str:
    """Returns the SHA-256 (hexadecimal) of the config as canonical JSON: equal configs, equal hashes."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def schema_json() -> str:
    """Returns the JSON schema of a config file, for editors: what `configs/schema.json` holds."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _shipped_root() -> Path:
    package = Path(densekit.__file__).parent
    wheel, checkout = package / "configs", package.parent / "configs"
    return wheel if wheel.is_dir() else checkout


def _find_config(name: str) -> Path:
    path = Path(name)
    if path.suffix in SUFFIXES and path.exists():
        return path
    names = list_configs()
    if name in names:
        return _shipped_root() / f"{name}.yaml"
    what = f"{printable(name)}: no such file" if path.suffix in SUFFIXES else f"no config named {name!r}"
    raise ConfigError(f"{what}{suggest(name, names)} (a path or one of: {', '.join(names)})")


def _apply_override(data: dict[str, Any], override: str, faults: Faults) -> None:
    """Sets one `section.key=value` in `data`, or notes why it cannot."""
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(part.isidentifier() for part in parts):
        faults.add_override(f"{shorten(override)}: must be key=value, such as train.seed=1")
        return
    document = read_yaml(text)
    for _, message in document.faults:
        faults.add_override(f"{printable(override)}: {message}")
    if document.faults:
        return
    section = data
    for depth, part in enumerate(parts[:-1], start=1):
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            faults.add_override(f"{printable(override)}: {'.'.join(parts[:depth])} is a value, not a section of keys")
            return
    section[parts[-1]] = document.value
    faults.overridden.add(tuple(parts))


if __name__ == "__main__":
    sys.stdout.write(schema_json())
