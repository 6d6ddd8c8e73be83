from __future__ import annotations

import pytest
import torch
from torch import nn

from densekit.blocks.norms import batch_norms
from densekit.cards import Card
from densekit.checkpoint import load_model
from densekit.datasets.pictures import list_pictures
from densekit.errors import ConfigError, DataError, DeviceError, ImageError
from densekit.evaluate import recalibrate
from densekit.evaluate.statistics import with_batch_statistics
from densekit.image import Picture, read_image, write_image
from densekit.models import create_model
from tests.training_data import make_picture

SIZES = {"a.png": (24, 32), "b.png": (17, 23), "c.png": (40, 20)}


@pytest.fixture
def paths(tmp_path, write_pictures):
    return list_pictures([write_pictures(tmp_path / "train", SIZES)])


@pytest.fixture
def trained(tiny_seg):
    net, card = load_model(tiny_seg)
    return net.eval(), card


def statistics(net):
    return [value for norm in batch_norms(net) for value in (norm.running_mean, norm.running_var)]


def test_statistics_are_a_function_of_the_weights_and_the_list(trained, paths):
    net, card = trained
    first, _ = recalibrate(net, card, paths)
    for norm in batch_norms(net):  # what they were before has no say
        norm.running_mean.normal_()
        norm.running_var.uniform_(1, 9)
        norm.momentum = 0.7
    torch.manual_seed(5)
    again, _ = recalibrate(net, card, paths)
    for one, other in zip(statistics(first), statistics(again), strict=True):
        assert torch.equal(one, other)
    fewer, _ = recalibrate(net, card, paths[:2])
    assert not torch.equal(statistics(first)[-1], statistics(fewer)[-1])


def test_weights_stay_and_the_given_network_stays_as_it_is(trained, paths):
    net, card = trained
    before = {name: value.clone() for name, value in net.state_dict().items()}
    result, _ = recalibrate(net, card, paths)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, value in result.named_parameters():
        assert torch.equal(value, before[name]), name
    assert not any(module.training for module in result.modules())
    assert [norm.momentum for norm in batch_norms(result)] == [norm.momentum for norm in batch_norms(net)]


def test_dropout_is_off(paths):
    small = {"num_init_features": 8, "growth_rate": 4, "num_pools": 2, "num_layers": 1}
    net = create_model("fc_densenet", num_classes=3, drop_rate=0.5, **small)
    card = Card("seg", "fc_densenet", {"num_classes": 3})
    torch.manual_seed(0)
    first, _ = recalibrate(net, card, paths)
    torch.manual_seed(1)
    second, _ = recalibrate(net, card, paths)
    assert all(torch.equal(a, b) for a, b in zip(statistics(first), statistics(second), strict=True))


def test_the_card_says_so_and_drops_figures_of_the_former_statistics(trained, paths):
    net, card = trained
    _, new = recalibrate(net, card, paths)
    assert new.bn_mode == "recalibrated"
    assert new.data == "batch norm statistics of 3 pictures in train, batches of 8"
    assert new.metrics == {}
    with_data = Card(card.task, card.model, card.arguments, data="CamVid", metrics={"miou": 0.5})
    assert (
        recalibrate(net, with_data, paths)[1].data
        == "CamVid; batch norm statistics of 3 pictures in train, batches of 8"
    )


def test_pictures_are_told_one_by_one(trained, paths):
    told = []
    recalibrate(*trained, paths, on_picture=told.append)
    assert sorted(told) == paths


def test_statistics_are_the_mean_of_those_of_the_batches(trained, paths):
    net, card = trained
    result, _ = recalibrate(net, card, paths[:1], batch_size=1)
    first = batch_norms(result)[0]
    seen = []
    batch_norms(net)[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for path in paths:
            x = torch.from_numpy(read_image(path).pixels).permute(2, 0, 1)[None] / 255
            net(x)
    torch.testing.assert_close(first.running_mean, seen[0].mean((0, 2, 3)))
    torch.testing.assert_close(first.running_var, seen[0].var((0, 2, 3)))
    whole, _ = recalibrate(net, card, paths, batch_size=1)
    means = torch.stack([x.mean((0, 2, 3)) for x in seen[: len(paths)]])
    torch.testing.assert_close(batch_norms(whole)[0].running_mean, means.mean(0))
    together, _ = recalibrate(net, card, paths, batch_size=3)
    assert not torch.equal(batch_norms(whole)[0].running_var, batch_norms(together)[0].running_var)


def test_what_cannot_be_recalibrated_is_refused(trained, paths, tmp_path):
    net, card = trained
    rdn = create_model("rdn", scale=2, num_features=8, num_blocks=1, num_layers=1, growth_rate=8)
    with pytest.raises(ConfigError, match="rdn has no batch norm, so it has no statistics to recalibrate"):
        recalibrate(rdn, Card("sr", "rdn", {"scale": 2}), paths)
    with pytest.raises(ConfigError, match="no pictures to recalibrate with"):
        recalibrate(net, card, [])
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"broken\.png: not a PNG"):
        recalibrate(net, card, [*paths, broken])
    write_image(tmp_path / "dot.png", Picture(make_picture(3, 1, 0)))
    with pytest.raises(DataError, match=r"dot\.png: 4x4 pixels leave a batch norm only one value a channel"):
        recalibrate(net, card, [tmp_path / "dot.png"])


def test_a_picture_that_does_not_fit_is_named(trained, paths, monkeypatch):
    def fail(self, x):
        raise RuntimeError("[enforce fail] not enough memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(type(trained[0]), "forward", fail)
    with pytest.raises(DeviceError, match=r"\.png: a batch of 3 pictures of 20x17 pixels does not fit the memory"):
        recalibrate(*trained, paths)


def test_running_statistics_give_an_image_alone_what_they_give_it_in_any_batch(trained):
    net, _ = trained
    images = torch.rand(5, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = net(images)
        for index, image in enumerate(images):
            torch.testing.assert_close(net(image[None])[0], together[index], rtol=0, atol=1e-6)


def test_batch_statistics_of_a_single_image_are_those_of_an_instance_norm(trained):
    net, _ = trained
    with_batch = with_batch_statistics(net).eval()
    instance = with_batch_statistics(net)
    for name, norm in list(instance.named_modules()):
        if isinstance(norm, nn.BatchNorm2d):
            other = nn.InstanceNorm2d(norm.num_features, eps=norm.eps, affine=True)
            other.load_state_dict({"weight": norm.weight, "bias": norm.bias})
            parent, _, last = name.rpartition(".")
            setattr(instance.get_submodule(parent), last, other)
    images = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = torch.cat([with_batch(image[None]) for image in images])
        torch.testing.assert_close(alone, instance.eval()(images), rtol=0, atol=1e-5)
        assert (with_batch(images) - alone).abs().max() > 1e-2
        assert (net(images) - alone).abs().max() > 1e-2


def test_batch_statistics_leave_the_given_network_as_it_is_and_need_a_batch_norm(trained):
    net, _ = trained
    with_batch_statistics(net)
    assert all(norm.running_mean is not None for norm in batch_norms(net))
    with pytest.raises(ConfigError, match="the network has no batch norm; leave --bn out"):
        with_batch_statistics(nn.Conv2d(3, 3, 1))
