"""The networks of other libraries, with our weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from densekit.models import MODELS
from tools.bench.cases import Case

# Names of the first ESRGAN, which spandrel keeps -> ours; the number of the upsampling steps decides the rest.
ESRGAN_NAMES = (
    (r"model\.0\.", r"conv_first."),
    (r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv5\.0\.", r"body.\1.rdb\2.fusion."),
    (r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.", r"body.\1.rdb\2.dense.denselayer\3.conv."),
    (r"model\.1\.sub\.(\d+)\.", r"conv_body."),
)


class Peer(NamedTuple):
    """The module that must be installed, and what builds the network: `build(case, net)` with the weights of `net`."""

    module: str
    build: Callable[[Case, nn.Module], nn.Module]


def densenet_arguments(case: Case) -> dict[str, Any]:
    """Returns what torchvision and timm call as we do, of a DenseNet that they have too."""
    given = {**MODELS[case.model].arguments, **case.arguments}
    return {key: given[key] for key in ("growth_rate", "block_config", "num_classes") if key in given}


def build_torchvision(case: Case, net: nn.Module, **options: Any) -> nn.Module:
    from torchvision.models import DenseNet

    arguments = densenet_arguments(case)
    peer = DenseNet(**arguments, num_init_features=2 * arguments["growth_rate"], **options)
    peer.load_state_dict(net.state_dict())
    return peer


def build_timm(case: Case, net: nn.Module) -> nn.Module:
    from timm.models.densenet import DenseNet

    peer: nn.Module = DenseNet(**densenet_arguments(case))
    peer.load_state_dict(net.state_dict())
    return peer


class EncoderWithHead(nn.Module):
    """SMP's encoder ends before the last ReLU; with our head it gives the logits that the others give."""

    def __init__(self, encoder: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.encoder, self.classifier = encoder, classifier

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.encoder(x)[-1], inplace=True)
        return self.classifier(F.adaptive_avg_pool2d(features, 1).flatten(1))


def build_smp(case: Case, net: nn.Module) -> nn.Module:
    from segmentation_models_pytorch.encoders.densenet import DenseNetEncoder

    arguments = densenet_arguments(case)
    arguments.pop("num_classes", None)
    width = 2 * arguments["growth_rate"]
    encoder = DenseNetEncoder(out_channels=[], **arguments, num_init_features=width)
    encoder.load_state_dict(dict(net.state_dict()))  # which takes the classifier out of what it is given
    return EncoderWithHead(encoder, net.get_submodule("classifier"))


def build_spandrel(case: Case, net: nn.Module) -> nn.Module:
    from spandrel.architectures.ESRGAN import ESRGAN

    factor, scale, ours = net.multiple_of, net.scale, net.state_dict()
    assert isinstance(factor, int)
    assert isinstance(scale, int)
    first = ours["conv_first.weight"]
    peer: nn.Module = ESRGAN(
        in_nc=first.shape[1],
        out_nc=len(ours["conv_last.weight"]),
        num_filters=len(first),
        num_blocks=len(net.get_submodule("body")._modules),
        scale=scale * factor,
        shuffle_factor=factor if factor > 1 else None,
    )
    num_ups = len(net.get_submodule("conv_ups")._modules)
    peer.load_state_dict({key: ours[esrgan_name(key, num_ups)] for key in peer.state_dict()})
    return peer


def esrgan_name(key: str, num_ups: int) -> str:
    """Returns our name for a weight of the first ESRGAN with `num_ups` upsampling steps."""
    ups = [(rf"model\.{3 * (i + 1)}\.", f"conv_ups.{i}.") for i in range(num_ups)]
    tail = [(rf"model\.{3 * num_ups + 2}\.", "conv_hr."), (rf"model\.{3 * num_ups + 4}\.", "conv_last.")]
    for pattern, name in (*ESRGAN_NAMES, *ups, *tail):
        if re.match(pattern, key):
            return re.sub(pattern, name, key)
    raise KeyError(key)


PEERS = {
    "torchvision": Peer("torchvision", build_torchvision),
    "torchvision memory_efficient": Peer("torchvision", partial(build_torchvision, memory_efficient=True)),
    "timm": Peer("timm", build_timm),
    "SMP": Peer("segmentation_models_pytorch", build_smp),
    "spandrel": Peer("spandrel", build_spandrel),
}
