from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import nn
from torchvision.models import DenseNet as TorchvisionDenseNet

from densekit.blocks import MEMORY_POLICIES, saved_bytes, set_memory
from densekit.memory import LiveBytes
from densekit.models import create_encoder, create_model

SMALL = {
    "densenet": {"block_config": (2, 2), "growth_rate": 8, "num_classes": 4},
    "densenet_cifar": {"depth": 10, "growth_rate": 4, "drop_rate": 0.2},
    "fc_densenet": {"num_classes": 3, "num_pools": 2, "num_layers": 2, "growth_rate": 4},
    "rdn": {"scale": 2, "num_blocks": 2, "num_layers": 2, "growth_rate": 8, "num_features": 8},
    "rrdbnet": {"scale": 4, "num_blocks": 1, "num_features": 8, "growth_rate": 4},
    "srdensenet": {"num_blocks": 2, "num_layers": 3, "growth_rate": 4, "scale": 2, "bottleneck_features": 16},
}
POLICIES = [*sorted(set(MEMORY_POLICIES) - {"speed"}), "budget"]
pytestmark = pytest.mark.usefixtures("one_thread")


def twins(name, policy, dtype, **arguments):
    """A network that keeps everything, and its equal with a policy."""
    torch.manual_seed(0)
    plain = create_model(name, **{**SMALL[name], **arguments}).to(dtype).train()
    engine = copy.deepcopy(plain)
    set_memory(engine, half_way(plain, picture(name, (33, 47), dtype)) if policy == "budget" else policy)
    return plain, engine


def half_way(net, x):
    """A budget between the most and the least that a network can keep."""
    kept = []
    for policy in ("speed", "min"):
        copied = copy.deepcopy(net)
        set_memory(copied, policy)
        kept.append(saved_bytes(copied, x))
    return f"{sum(kept) // 2000}KB"


def picture(name, size, dtype):
    height, width = (side // 4 for side in size) if name in ("rdn", "rrdbnet", "srdensenet") else size
    return torch.rand(2, 1 if name == "srdensenet" else 3, height, width, dtype=dtype)


def step(net, x, seed=3):
    """Outputs and gradients of one training step."""
    torch.manual_seed(seed)
    net.zero_grad()
    outputs = net(x)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    sum((y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum() for y in outputs).backward()
    return [*(y.detach() for y in outputs), *(p.grad for p in net.parameters())]


def assert_equal_steps(plain, engine, x, rtol=1e-11, seed=3):
    """A gradient that is 0 but for rounding has no digits of its own, so it is judged beside the largest."""
    expected, found = step(plain, x, seed), step(engine, x, seed)
    largest = max(float(a.abs().max()) for a in expected if a is not None)
    for a, b in zip(expected, found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a - b).abs().max() <= rtol * a.abs().max() + 1e-3 * rtol * largest


def assert_equal_statistics(plain, engine):
    theirs = dict(engine.named_buffers())
    assert all(torch.equal(value, theirs[name]) for name, value in plain.named_buffers())


@pytest.mark.parametrize("size", [pytest.param((32, 32), marks=pytest.mark.slow), (33, 47)])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", SMALL)
def test_every_network_learns_the_same_whatever_the_policy(name, policy, size):
    plain, engine = twins(name, policy, torch.float64)
    for seed in range(3):
        assert_equal_steps(plain, engine, picture(name, size, torch.float64), seed=seed)
    assert_equal_statistics(plain, engine)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["densenet", "densenet_cifar", "fc_densenet"])
def test_in_float32_outputs_and_statistics_are_the_same_bits(name, policy):
    plain, engine = twins(name, policy, torch.float32)
    for seed in range(3):
        x = picture(name, (33, 47), torch.float32)
        assert torch.equal(step(plain, x, seed)[0], step(engine, x, seed)[0])
    assert_equal_statistics(plain, engine)


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="torchvision's checkpoints update statistics twice")
def test_torchvisions_memory_efficient_net_has_other_statistics_than_its_plain_one():
    torch.manual_seed(0)
    plain, efficient = (
        TorchvisionDenseNet(8, (2, 2), 16, num_classes=4, memory_efficient=memory_efficient).double().train()
        for memory_efficient in (False, True)
    )
    efficient.load_state_dict(plain.state_dict())
    for seed in range(3):
        assert_equal_steps(plain, efficient, picture("densenet", (32, 32), torch.float64), seed=seed)
    assert_equal_statistics(plain, efficient)


@pytest.mark.parametrize("frozen", ["norms", "weights"])
@pytest.mark.parametrize("name", ["densenet", "fc_densenet"])
def test_what_is_frozen_between_blocks_stays_so(name, frozen):
    plain, engine = twins(name, "min", torch.float64)
    for net in (plain, engine):
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train(frozen != "norms")
                module.weight.requires_grad_(frozen != "weights")
    x = picture(name, (32, 32), torch.float64)
    step(plain.train(), x), step(engine.train(), x)  # statistics to be frozen
    for net in (plain, engine):
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train(frozen != "norms")
    assert_equal_steps(plain, engine, x)
    assert_equal_statistics(plain, engine)


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
@pytest.mark.parametrize("taps", ["act", "raw"])
@pytest.mark.parametrize("out_indices", [(0,), (1,), (0, 1, 2), (0, 3), (2, 3)])
def test_whatever_is_tapped_has_the_same_gradients(out_indices, taps, stem):
    torch.manual_seed(0)
    plain = create_encoder(
        "densenet", block_config=(1, 2, 1), growth_rate=4, out_indices=out_indices, taps=taps, stem=stem
    )
    engine = copy.deepcopy(plain.double().train())
    set_memory(engine, "min")
    assert_equal_steps(plain, engine, picture("densenet", (33, 47), torch.float64))
    assert_equal_statistics(plain, engine)


@pytest.mark.parametrize("index", range(4))
def test_a_tap_that_no_loss_reads_changes_nothing(index):
    torch.manual_seed(0)
    plain = create_encoder("densenet", block_config=(1, 2, 1), growth_rate=4, out_indices=(0, 1, 2, 3)).double().train()
    engine = copy.deepcopy(plain)
    set_memory(engine, "min")
    x = picture("densenet", (32, 32), torch.float64)
    for net in (plain, engine):
        net(x)[index].square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), engine.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            assert (a.grad - b.grad).abs().max() <= 1e-11 * max(1, a.grad.abs().max()), name


def test_a_hook_between_blocks_is_called_all_the_same():
    net = create_model("densenet", memory="min", **SMALL["densenet"])
    called = []
    for path in ("relu0", "norm5", "transition1.conv"):
        net.features.get_submodule(path).register_forward_hook(lambda *_, path=path: called.append(path))
    step(net, torch.rand(2, 3, 32, 32))
    assert called == ["relu0", "transition1.conv", "norm5"]


def test_under_autocast_gradients_are_those_of_the_plain_net():
    plain, engine = twins("densenet", "min", torch.float32, drop_rate=0.1)
    x = torch.rand(4, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        for net in (plain, engine):
            torch.manual_seed(1)
            net(x).float().square().mean().backward()
    largest = max(float(parameter.grad.norm()) for parameter in plain.parameters())
    for (name, a), b in zip(plain.named_parameters(), engine.parameters(), strict=True):
        assert a.grad.dtype == b.grad.dtype == torch.float32
        assert (a.grad - b.grad).norm() <= 0.1 * a.grad.norm() + 0.01 * largest, name


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layouts_pass_between_blocks_unchanged(layout):
    net = create_model("densenet", memory="min", **SMALL["densenet"]).to(memory_format=layout)
    seen = []
    net.features.denseblock2.register_forward_hook(lambda _, inputs, output: seen.extend([*inputs, output]))
    net(torch.rand(2, 3, 32, 32).contiguous(memory_format=layout)).sum().backward()
    assert len(seen) == 2
    assert all(x.is_contiguous(memory_format=layout) for x in seen)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", SMALL)
def test_every_network_has_a_second_derivative(name, policy):
    plain, engine = twins(name, policy, torch.float64)
    found = []
    for net in (plain, engine):
        torch.manual_seed(3)
        x = picture(name, (33, 47), torch.float64).requires_grad_()
        given = contextlib.nullcontext() if net is plain else pytest.warns(UserWarning, match="a second derivative")
        with given:
            (slope,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        slope.square().sum().backward()
        found.append([slope.detach(), x.grad, *(parameter.grad for parameter in net.parameters())])
    largest = max(float(a.abs().max()) for a in found[0] if a is not None)
    for a, b in zip(*found, strict=True):
        assert (a is None or not a.any()) == (b is None or not b.any())
        assert a is None or b is None or (a - b).abs().max() <= 1e-9 * a.abs().max() + 1e-12 * largest
    assert_equal_statistics(plain, engine)


def test_an_average_of_the_weights_may_be_copied_from_a_network_with_any_policy():
    for policy in (*MEMORY_POLICIES, "2GiB"):
        net = create_model("densenet", memory=policy, **SMALL["densenet"])
        average = torch.optim.swa_utils.AveragedModel(net)
        average.update_parameters(net)
        assert average.module.state_dict().keys() == net.state_dict().keys()
        assert torch.equal(average.module.eval()(x := torch.rand(1, 3, 32, 32)), net.eval()(x))


CONFIGURATIONS = [
    ("densenet121", {}, 224),
    ("densenet161", {}, 224),
    ("densenet169", {}, 224),
    ("densenet201", {}, 224),
    ("densenet264", {}, 224),
    ("densenet264", {"growth_rate": 48}, 224),
    ("densenet_cifar", {"depth": 40, "growth_rate": 12}, 32),
    ("densenet_cifar", {"depth": 100, "growth_rate": 24}, 32),
    ("densenet_bc_cifar", {"depth": 100, "growth_rate": 12}, 32),
    ("densenet_bc_cifar", {"depth": 250, "growth_rate": 24}, 32),
    ("densenet_bc_cifar", {"depth": 190, "growth_rate": 40}, 32),
]
QUICK = ("densenet121", "densenet_cifar")


@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [pytest.param(*row, marks=[] if row[0] in QUICK else pytest.mark.slow) for row in CONFIGURATIONS],
)
def test_every_block_keeps_each_map_once(name, arguments, size):
    with torch.device("meta"):
        net = create_model(name, memory="min", **arguments).train()
        side = size if "cifar" in name else size // 4
        for index, block in enumerate(m for key, m in net.features.named_children() if key.startswith("denseblock")):
            x = torch.empty(8, block.in_channels, side >> index, side >> index)
            maps = block.out_channels * 8 * (side >> index) ** 2 * 4
            statistics = 4 * (block.out_channels - block.growth_rate) * 4  # of the maps that a layer reads
            assert saved_bytes(block, x) == maps + statistics


@pytest.mark.parametrize(
    ("name", "shape", "limits"),
    [
        ("densenet121", (8, 3, 224, 224), {"speed": 996, "balanced": 310, "lean": 180, "min": 80}),
        ("fc_densenet103", (1, 3, 224, 224), {"min": 110}),
    ],
)
def test_a_network_keeps_no_more_than_these_mebibytes(name, shape, limits):
    with torch.device("meta"):
        net = create_model(name).train()
        for policy, limit in limits.items():
            set_memory(net, policy)
            assert 0.85 * limit < saved_bytes(net, torch.empty(shape)) / 2**20 <= limit


def test_a_step_on_a_whole_frame_of_camvid_never_has_more_than_a_gigabyte_at_once():
    with torch.device("meta"):
        net, x = create_model("fc_densenet103", memory="min").train(), torch.empty(1, 3, 360, 480)
        with LiveBytes([]) as live:
            net(x).square().mean().backward()
    weights = sum(parameter.nbytes for parameter in net.parameters())
    assert 0.9e9 < live.peak + weights < 1.05e9


def test_rdn_keeps_a_fifth_of_what_autograd_asks_for():
    with torch.device("meta"):
        net = create_model("rdn", num_blocks=16, num_layers=8, growth_rate=64).train()
        kept = {}
        for policy in ("speed", "lean"):
            set_memory(net, policy)
            kept[policy] = saved_bytes(net, torch.empty(1, 3, 48, 48))
    assert kept["speed"] >= 5 * kept["lean"]
