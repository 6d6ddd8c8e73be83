from __future__ import annotations

import subprocess
import sys

import pytest

from densekit.errors import ConfigError
from densekit.models import (
    MODELS,
    constructor_arguments,
    create_encoder,
    create_model,
    encoder_class,
    model_class,
    model_names,
)
from densekit.models.network import Network

ENCODERS = (
    "(densenet, densenet121, densenet161, densenet169, densenet201, densenet264, densenet_bc_cifar, densenet_cifar, "
    "fc_densenet, fc_densenet103, fc_densenet56, fc_densenet67, rdnet_base, rdnet_large, rdnet_small, rdnet_tiny)"
)


def test_importing_the_table_loads_no_torch():
    code = "import sys, densekit.models; densekit.models.model_names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["rdn", "srdensenet", "rrdbnet_6b", "fc_densenet", "densenet", "densenet_cifar"])
def test_a_name_builds_a_network_that_says_what_callers_need(name, on_meta):
    net = on_meta(create_model, name)
    assert isinstance(net, model_class(name))
    for attribute in ("scale", "multiple_of", "receptive_field"):
        assert isinstance(getattr(net, attribute), int), attribute


def test_what_a_name_stands_for_is_what_its_constructor_takes():
    for name, entry in MODELS.items():
        assert entry.arguments.keys() <= set(constructor_arguments(model_class(name)))
        assert entry.task in ("sr", "seg", "encoder")
        assert entry.encoder or entry.task != "encoder"
        assert not entry.encoder or issubclass(encoder_class(name), Network)


def test_names_are_listed_by_pattern_and_task():
    assert model_names("rdn_*") == ["rdn_a", "rdn_b"]
    assert model_names(task="seg") == [
        *("deeplabv3", "deeplabv3plus", "fc_densenet", "fc_densenet103", "fc_densenet56", "fc_densenet67", "fpn"),
        *("linknet", "manet", "pan", "pspnet", "segformer", "unet", "unetplusplus", "upernet"),
    ]
    assert model_names("rdnet*") == ["rdnet_base", "rdnet_large", "rdnet_small", "rdnet_tiny"]
    assert model_names("*cifar") == ["densenet_bc_cifar", "densenet_cifar"]
    assert model_names("resnet*") == []


def test_given_arguments_win_over_those_of_the_name(on_meta):
    net = on_meta(create_model, "densenet_bc_cifar", depth=16, growth_rate=8, num_classes=3)
    assert net.classifier.out_features == 3
    assert net.features.conv0.out_channels == 16
    assert net.features.denseblock1.out_channels == 16 + 2 * 8


@pytest.mark.parametrize(
    ("create", "name", "arguments", "message"),
    [
        (create_model, "rnd", {}, "model 'rnd': no such architecture; did you mean 'rdn'? (densekit models lists all)"),
        (create_model, "xyz", {}, "model 'xyz': no such architecture (densekit models lists all)"),
        (
            create_model,
            "rdn",
            {"num_block": 4},
            "model.num_block: rdn takes no such argument; did you mean 'num_blocks'? (scale, in_channels, "
            "out_channels, num_features, num_blocks, num_layers, growth_rate, upsampler, bicubic_skip, memory)",
        ),
        (
            create_encoder,
            "densenet12",
            {},
            f"encoder 'densenet12': no such encoder; did you mean 'densenet121'? {ENCODERS}",
        ),
        (create_encoder, "rdn", {}, f"encoder 'rdn': no such encoder {ENCODERS}"),
        (
            create_encoder,
            "densenet121",
            {"num_classes": 10},
            "model.num_classes: densenet121 takes no such argument (in_channels, out_indices, taps, output_stride, "
            "growth_rate, block_config, depth, num_init_features, bn_size, compression, stem, drop_rate, dropout, "
            "mean, std, memory)",
        ),
    ],
)
def test_a_wrong_name_or_argument_is_answered_with_the_right_ones(create, name, arguments, message):
    with pytest.raises(ConfigError) as error:
        create(name, **arguments)
    assert str(error.value) == message
    assert error.value.exit_code == 2
