from __future__ import annotations

import numpy as np
import pytest
import torch

from densekit.blocks import saved_bytes
from densekit.encoders import build
from densekit.encoders.comparison import Entrant, LightSegmenter, Settings, compare
from densekit.encoders.costs import macs, parameters
from densekit.errors import ConfigError, DataError
from densekit.image import Picture, write_image, write_mask

SMALL = Settings(steps=3, batch_size=2, crop_size=64, width=8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve pictures with bright discs, and their masks."""
    folder = tmp_path_factory.mktemp("data")
    y, x = np.mgrid[:72, :72]
    for index in range(12):
        rng = np.random.default_rng(index)
        ids = np.zeros((72, 72), np.uint8)
        for top, left in rng.integers(12, 60, (3, 2)):
            ids |= ((y - top) ** 2 + (x - left) ** 2 < 100).astype(np.uint8)
        pixels = np.clip(60 + 120 * ids[..., None] + rng.normal(0, 10, (72, 72, 3)), 0, 255).astype(np.uint8)
        for part in ("images", "masks"):
            (folder / part).mkdir(exist_ok=True)
        write_image(folder / "images" / f"{index}.png", Picture(pixels))
        write_mask(folder / "masks" / f"{index}.png", ids)
    return str(folder)


def test_costs_are_those_of_the_encoders_and_the_first_is_the_measure(tiny, data):
    seen = []
    result = compare(
        [tiny, "timm:test_resnet"], [data], settings=SMALL, follow=lambda step, loss: seen.append((step, loss))
    )
    ours, peer = result.standings
    assert (result.metric, result.steps, result.num_classes) == ("iou", 3, 2)
    assert result.train_pictures + result.held_out_pictures == 12
    assert ours.parameters == parameters(build(tiny))
    assert peer.macs == macs(build("timm:test_resnet"), (1, 3, 64, 64))
    assert (ours.step_ratio, peer.least_bytes) == (1.0, peer.kept_bytes)
    assert ours.least_bytes < ours.kept_bytes
    assert [step for step, _ in seen] == [1, 2, 3]
    assert list(seen[0][1]) == [tiny, "timm:test_resnet"]


def test_kept_bytes_are_those_of_a_real_step(tiny, data):
    standing = compare([tiny], [data], settings=SMALL).standings[0]
    net = LightSegmenter(build(tiny), 2, SMALL.width).train()
    assert standing.kept_bytes == saved_bytes(net, torch.rand(2, 3, 64, 64))


def test_a_seed_decides_everything_but_times(tiny, data):
    first, again, other = (
        compare([tiny], [data], settings=Settings(steps=3, batch_size=2, crop_size=64, width=8, seed=seed)).standings[0]
        for seed in (1, 1, 2)
    )
    assert (first.loss, first.score) == (again.loss, again.score)
    assert first.loss != other.loss


def test_what_is_easy_is_learnt(tiny, data):
    settings = Settings(steps=30, batch_size=4, crop_size=64, width=16, learning_rate=1e-2)
    standing = compare([tiny], [data], settings=settings).standings[0]
    assert standing.score > 0.7
    assert standing.loss < 0.3


def test_minutes_end_training_with_as_many_steps_for_each(tiny, data):
    settings = Settings(steps=50, minutes=1e-9, batch_size=2, crop_size=64, width=8)
    losses = []
    result = compare([tiny, "timm:test_resnet"], [data], settings=settings, follow=lambda _, loss: losses.append(loss))
    assert result.steps == len(losses) == 1
    assert len(losses[0]) == 2


def test_any_size_of_picture_is_segmented(tiny):
    net = LightSegmenter(build(tiny), 3, 8).eval()
    x = torch.rand(1, 3, 50, 75)
    assert net(x).shape == (1, 3, 50, 75)


def test_settled_norms_have_the_mean_statistics_of_the_batches(tiny):
    entrant = Entrant(tiny, 2, SMALL, "cpu")
    batches = [torch.rand(2, 3, 64, 64) for _ in range(3)]
    seen = []
    hook = entrant.net.norm.register_forward_pre_hook(lambda _, given: seen.append(given[0].mean((0, 2, 3))))
    entrant.settle(batches)
    hook.remove()
    torch.testing.assert_close(entrant.net.norm.running_mean, torch.stack(seen).mean(0))


def test_what_cannot_be_compared_is_refused(tiny, data, tmp_path):
    with pytest.raises(ConfigError, match="encoders densenet_tiny, densenet_tiny: expected one or more, each once"):
        compare([tiny, tiny], [data])
    with pytest.raises(ConfigError, match="crop_size=32: these encoders need 64 or more"):
        compare([tiny], [data], settings=Settings(crop_size=32))
    with pytest.raises(ConfigError, match="no such encoder"):
        compare(["densenet_tinny"], [data], settings=SMALL)
    with pytest.raises(DataError, match="no such folder; give one that holds pictures"):
        compare([tiny], [str(tmp_path / "missing")])
