"""Our networks as models of timm.

Importing this registers every encoder:

    import densekit.models.timm
    import timm

    net = timm.create_model("densekit_densenet121", num_classes=10)
    features = timm.create_model("densekit_rdnet_tiny", features_only=True, output_stride=8, in_chans=4)

and so `smp.Unet("tu-densekit_densenet121")`. Where timm has weights for the same network, `pretrained=True` fetches
those; `pretrained_cfg_overlay={"file": path}` takes a file in their place, with the keys of our networks.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import timm
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import NormMlpClassifierHead, create_classifier
from timm.models import (
    DefaultCfg,
    FeatureInfo,
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    register_model,
)
from torch import Tensor, nn

from densekit.blocks import set_memory
from densekit.errors import ConfigError
from densekit.models import MODELS, constructor_arguments, encoder_class
from densekit.models.densenet import DenseNet, DenseNetEncoder
from densekit.models.fc_densenet import FCDenseNet, FCDenseNetEncoder
from densekit.models.network import Network
from densekit.models.part import keep_part
from densekit.models.rdnet import RDNet, RDNetEncoder


class TimmModel(Network):
    """What timm asks of a model; the encoder that it is comes next in the order of its bases.

    Args:
        num_classes: logits; 0 for what the classifier would read.
        in_chans: of the images.
        global_pool: as in timm: "avg", "max" and so on.
        drop_rate: share of pooled features set to zero in training, 0..1.
        proj_drop_rate: the encoder's own `drop_rate`; None takes its default.
        deepest: the last of `feature_info` to be built; None builds all.
        has_head: whether anything follows the features.
        arguments: of the encoder, `output_stride` among them; `taps="raw"` gives timm's own features of a DenseNet.

    Shapes: (B, in_chans, H, W), normalised as timm does it -> logits (B, num_classes).

    Raises:
        ConfigError: an argument with an impossible value.
    """

    channels: tuple[int, ...]
    reductions: tuple[int, ...]
    whole: ClassVar[type[nn.Module]]  # of which the encoder is a part
    first_conv: ClassVar[str]
    last_layer: ClassVar[str] = "classifier"

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float | None = None,
        deepest: int | None = None,
        has_head: bool = True,
        **arguments: Any,
    ) -> None:
        if proj_drop_rate is not None:
            arguments["drop_rate"] = proj_drop_rate
        super().__init__(in_channels=in_chans, out_indices=self.taps_of(deepest, arguments), **arguments)
        self.in_chans: int
        self.num_features: int
        self.in_chans, self.num_features = in_chans, self.channels[-1]
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": channels, "reduction": reduction, "module": module}
            for channels, reduction, module in zip(self.channels, self.reductions, self.tapped_modules(), strict=True)
        ]
        self.arguments: dict[str, Any] = {
            key: value for key, value in arguments.items() if key not in ("taps", "output_stride")
        }
        self.make_head(num_classes, global_pool, drop_rate)
        if not has_head:
            self.drop_head()

    @staticmethod
    def taps_of(deepest: int | None, arguments: dict[str, Any]) -> Sequence[int] | None:
        """Returns the `out_indices` of the encoder; None is the encoder's word for every block."""
        raise NotImplementedError

    def tapped_modules(self) -> list[str]:
        """Returns the names of the modules that make the features."""
        raise NotImplementedError

    def make_head(self, num_classes: int, global_pool: str, drop_rate: float) -> None:
        """Builds what follows the features."""
        self.num_classes = num_classes
        self.classifier: Any
        self.global_pool: Any
        self.global_pool, self.classifier = create_classifier(self.num_features, num_classes, pool_type=global_pool)
        self.head_drop: nn.Dropout = nn.Dropout(drop_rate)
        self.head_hidden_size: int = self.num_features * self.global_pool.feat_mult()
        if num_classes > 0:
            nn.init.zeros_(self.classifier.bias)

    def drop_head(self) -> None:
        """Removes what has weights behind the features."""
        self.reset_classifier(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def features_of(self, x: Tensor) -> list[Tensor]:
        """Returns the features of `feature_info`."""
        features: list[Tensor] = super().forward(x)
        return features

    def forward_features(self, x: Tensor) -> Tensor:
        """Returns the deepest feature, (B, num_features, H / reduction, W / reduction)."""
        return self.features_of(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Returns the logits of the deepest feature, or what its classifier reads."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.classifier(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Returns the deepest feature, and those at `indices` of `feature_info`; or the latter alone.

        Args:
            x: images.
            indices: the last so many, or a list; None for all.
            norm: changes nothing: `feature_info` says what a feature is.
            stop_early: changes nothing: all features are computed.
            output_fmt: "NCHW".
            intermediates_only: whether to leave out the first.

        Raises:
            ConfigError: another format, or no such feature.
        """
        if output_fmt != "NCHW":
            raise ConfigError(f"output_fmt={str(output_fmt)!r}: expected 'NCHW'")
        features = self.features_of(x)
        chosen = [features[i] for i in positions(len(features), indices)]
        return chosen if intermediates_only else (features[-1], chosen)

    def get_classifier(self) -> nn.Module:
        """Returns the last layer."""
        return self.get_submodule(self.last_layer)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the last layer by one for `num_classes`, by none for 0, and the pool if another is named."""
        like = next(self.parameters())
        self.make_head(num_classes, global_pool or self.global_pool.pool_type, self.head_drop.p)
        self.classifier.to(like).train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Spends the least training memory, or the least time; batch statistics are those of a model without it."""
        set_memory(self, "min" if enable else "speed")


class TimmDenseNet(TimmModel, DenseNetEncoder):  # type: ignore[misc]
    """A DenseNet; its features are the stem's and the blocks', those of a net for CIFAR the blocks' alone."""

    whole: ClassVar[type[nn.Module]] = DenseNet
    first_conv: ClassVar[str] = "features.conv0"

    @staticmethod
    def taps_of(deepest: int | None, arguments: dict[str, Any]) -> Sequence[int] | None:
        first = int(arguments.get("stem") == "cifar")  # where the stem has the size of the first block
        last = 3 if arguments.get("depth") else len(arguments.get("block_config", range(4)))
        return range(first, last + 1 if deepest is None else first + deepest + 1)

    def tapped_modules(self) -> list[str]:
        names = [name for name, _ in self.features.named_children() if name in self.tap_names]
        return [f"features.{name}.norm" if "transition" in name else f"features.{name}" for name in names]


class TimmFCDenseNet(TimmModel, FCDenseNetEncoder):  # type: ignore[misc]
    """The way down of an FC-DenseNet; its features begin at the image's size."""

    whole: ClassVar[type[nn.Module]] = FCDenseNet
    first_conv: ClassVar[str] = "conv0"

    @staticmethod
    def taps_of(deepest: int | None, arguments: dict[str, Any]) -> Sequence[int] | None:
        return None if deepest is None else range(deepest + 1)

    def tapped_modules(self) -> list[str]:
        names = [f"down_blocks.{i}" for i in range(len(self.down_blocks))]
        return [*names, "bottleneck"][: len(self.channels)]


class TimmRDNet(TimmModel, RDNetEncoder):  # type: ignore[misc]
    """An RDNet; its features begin at a quarter of the image's size, as timm's do."""

    whole: ClassVar[type[nn.Module]] = RDNet
    first_conv: ClassVar[str] = "stem.0"
    last_layer: ClassVar[str] = "head.fc"

    @staticmethod
    def taps_of(deepest: int | None, arguments: dict[str, Any]) -> Sequence[int] | None:
        return None if deepest is None else range(1, deepest + 2)

    def tapped_modules(self) -> list[str]:
        return [f"dense_stages.{end - 1}" for end in self.ends[1:]]

    def make_head(self, num_classes: int, global_pool: str, drop_rate: float) -> None:
        """Builds what follows the features: pool, norm, linear layer."""
        self.head_hidden_size: int
        self.num_classes, self.head_hidden_size = num_classes, self.num_features
        self.head: Any = NormMlpClassifierHead(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate
        )
        if num_classes > 0:
            nn.init.zeros_(self.head.fc.bias)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        logits: Tensor = self.head(x, pre_logits=pre_logits)
        return logits

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes: int = num_classes
        self.head.reset(num_classes, global_pool)

    def drop_head(self) -> None:
        self.reset_classifier(0)
        self.head.norm = nn.Identity()


class Features(nn.Module):
    """A list of features of a model, at `out_indices` of its `feature_info` or all; (B, C, H, W) -> list.

    Raises:
        ConfigError: no such feature.
    """

    def __init__(self, model: TimmModel, out_indices: int | Sequence[int] | None = None) -> None:
        super().__init__()
        self.out_indices: tuple[int, ...] = positions(len(model.feature_info), out_indices)
        self.feature_info: list[dict[str, Any]] = FeatureInfo(model.feature_info, self.out_indices)
        self.model = model

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.model.features_of(x)
        return [features[i] for i in self.out_indices]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As the model's."""
        self.model.set_grad_checkpointing(enable)


def positions(count: int, indices: int | Sequence[int] | None) -> tuple[int, ...]:
    """Returns which of `count` features are meant: the last so many, those of a list, or None for all.

    Raises:
        ConfigError: more than there are.
    """
    if indices is None or isinstance(indices, int):
        found: Sequence[int] = range(count - (count if indices is None else indices), count)
    else:
        found = [i + count if i < 0 else i for i in indices]
    if not found or min(found) < 0 or max(found) >= count:
        raise ConfigError(f"out_indices={indices}: expected some of the {count} features 0 to {count - 1}")
    return tuple(found)


TYPES: dict[type[nn.Module], type[TimmModel]] = {
    DenseNetEncoder: TimmDenseNet,
    RDNetEncoder: TimmRDNet,
    FCDenseNetEncoder: TimmFCDenseNet,
}


def part_of(state: dict[str, Any], model: TimmModel) -> dict[str, Any]:
    """Returns what a model needs of the weights of the whole network."""
    state = dict(state)
    keep_part(state, model, model.whole, model.arguments)
    return state


def pretrained_cfgs(name: str, kind: type[TimmModel]) -> dict[str, PretrainedCfg]:
    """Returns what timm wants to know of an encoder's weights: of its own for the same network, by tag, if it has."""
    is_small = MODELS[name].arguments.get("stem") == "cifar"
    plain = PretrainedCfg(
        num_classes=MODELS[name].arguments.get("num_classes", 0 if kind is TimmFCDenseNet else 1000),
        input_size=(3, 32, 32) if is_small else (3, 224, 224),
        pool_size=(8, 8) if is_small else (7, 7),
        crop_pct=0.875,
        interpolation="bicubic",
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
    )
    theirs = {f"densekit_{tagged}": get_pretrained_cfg(tagged) for tagged in timm.list_pretrained(f"{name}.*")}
    return {
        tagged: dataclasses.replace(cfg, first_conv=kind.first_conv, classifier=kind.last_layer)
        for tagged, cfg in (theirs or {f"densekit_{name}": plain}).items()
    }


def entry_point(name: str, kind: type[TimmModel]) -> Callable[..., nn.Module]:
    """Returns the function that timm calls to build an encoder."""
    known = constructor_arguments(encoder_class(name))
    defaults = {key: value for key, value in MODELS[name].arguments.items() if key in known}

    def build(pretrained: bool = False, **arguments: Any) -> nn.Module:
        if arguments.get("features_only"):
            arguments["has_head"] = False
            indices = arguments.get("out_indices")
            if isinstance(indices, Sequence) and min(indices) >= 0:  # else they count from the deepest there is
                arguments["deepest"] = max(indices)
        model: nn.Module = build_model_with_cfg(
            kind,
            build.__name__,
            pretrained,
            pretrained_filter_fn=part_of,
            feature_cfg={"feature_cls": Features, "out_indices": None},
            **{**defaults, **arguments},
        )
        return model

    build.__name__ = build.__qualname__ = f"densekit_{name}"
    build.__doc__ = f"Returns {name} of densekit as a model of timm; arguments as in `{kind.__name__}`."
    return build


default_cfgs: dict[str, DefaultCfg] = {}  # by this name timm looks for it
__all__ = ["Features", "TimmDenseNet", "TimmFCDenseNet", "TimmModel", "TimmRDNet", "register"]


def register() -> None:
    """Puts our encoders into timm's table as "densekit_densenet121" and so on; importing this module has done it."""
    for name, entry in MODELS.items():
        if not entry.encoder or timm.is_model(f"densekit_{name}"):
            continue
        kind = TYPES[encoder_class(name)]
        default_cfgs.update(generate_default_cfgs(pretrained_cfgs(name, kind)))
        setattr(sys.modules[__name__], f"densekit_{name}", register_model(entry_point(name, kind)))


register()
