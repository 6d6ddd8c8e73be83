from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from densekit.cards import Card
from densekit.checkpoint import save_model
from densekit.errors import CheckpointError, ConfigError, DataError
from densekit.image import Picture, write_image
from densekit.models import create_model
from densekit.tasks import create_task
from tests.training_data import make_picture, sr_config, write_pictures

SET5 = Path(__file__).resolve().parents[3] / "shared" / "data" / "set5" / "HR"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("sr") / "pictures")


def bicubic(task):
    """The task's network without its last convolution: the bicubic enlargement alone."""
    net = task.build_model().eval().requires_grad_(False)
    for parameter in net.tail.parameters():
        parameter.zero_()
    return net


@pytest.mark.skipif(not SET5.is_dir(), reason="needs ../shared/data/set5")
@pytest.mark.parametrize(("scale", "known"), [(2, 33.67), (3, 30.40), (4, 28.43)])
def test_bicubic_enlargement_scores_what_the_papers_say(pictures, scale, known):
    task = create_task(sr_config(pictures, model={"scale": scale}, data={"val": [str(SET5)]}, crop_size=8))
    with torch.no_grad():
        assert task.evaluate(bicubic(task))["psnr"] == pytest.approx(known, abs=0.02)  # they round between the passes


def test_the_figure_is_the_mean_over_pictures_and_follows_the_protocol(pictures):
    task = create_task(sr_config(pictures))
    with torch.no_grad():
        net = bicubic(task)
        whole = task.evaluate(net)["psnr"]
        pairs, parts = task.val, []
        for pair in pairs:
            task.val = [pair]
            parts.append(task.evaluate(net)["psnr"])
        assert whole == pytest.approx(np.mean(parts))
        task.protocol = "rgb"
        assert task.evaluate(net)["psnr"] != parts[-1]


def test_the_loss_is_the_mean_absolute_difference_of_values_up_to_one(pictures):
    task = create_task(sr_config(pictures))
    net = task.build_model()
    lr, hr = next(task.train_batches(0))
    expected = (net(lr / 255) - hr / 255).abs().mean()
    torch.testing.assert_close(task.loss(net, (lr, hr)), expected)


def test_weights_are_a_function_of_the_seed(pictures):
    first, second, third = (create_task(sr_config(pictures, seed=seed)).build_model() for seed in (1, 1, 2))
    assert torch.equal(first.sfe1.weight, second.sfe1.weight)
    assert not torch.equal(first.sfe1.weight, third.sfe1.weight)


def test_the_card_rebuilds_the_network_and_says_how_it_was_scored(pictures):
    config = sr_config(pictures, data={"licence": "CC0"})
    card = create_task(config).card(7, {"psnr": 30.5})
    assert (card.task, card.model, card.step, card.licence) == ("sr", "rdn", 7, "CC0")
    assert card.metrics == {"psnr": 30.5, "protocol": "rdn-y", "data": str(pictures)}
    create_model(card.model, **card.arguments).load_state_dict(create_task(config).build_model().state_dict())
    assert create_task(config).card(7, {}).metrics == {}


@pytest.fixture
def x2_weights(pictures, tmp_path):
    config = sr_config(pictures, seed=99)
    save_model(tmp_path / "x2.safetensors", create_task(config).build_model(), Card("sr", "rdn", config.model.kwargs))
    return tmp_path / "x2.safetensors"


def test_a_x4_network_starts_from_x2_weights(pictures, x2_weights):
    x2 = create_task(sr_config(pictures, seed=99)).build_model().state_dict()
    options = {"model": {"scale": 4}, "crop_size": 8}
    random = create_task(sr_config(pictures, **options)).build_model().state_dict()
    x4 = create_task(sr_config(pictures, **options, initial_weights=str(x2_weights))).build_model().state_dict()
    for name, value in x4.items():
        source = random if name.startswith("tail") else x2  # the one convolution to 4 4 3 channels has no counterpart
        assert torch.equal(value, source[name]), name


def test_weights_of_another_network_are_no_start(pictures, x2_weights, tiny_seg):
    wide = {"model": {"num_features": 12}}
    message = r"x2\.safetensors: holds \d+% of the weights of rdn by name and shape, but train\.initial_weights needs"
    with pytest.raises(CheckpointError, match=message):
        create_task(sr_config(pictures, **wide, initial_weights=str(x2_weights))).build_model()
    with pytest.raises(CheckpointError, match="holds 0% of the weights of rdn"):
        create_task(sr_config(pictures, initial_weights=str(tiny_seg))).build_model()
    with pytest.raises(ConfigError, match="no such model"):
        create_task(sr_config(pictures, initial_weights="rdn-tiny-x9")).build_model()


def test_a_validation_picture_that_is_too_small_to_score_is_refused_at_once(pictures, tmp_path):
    for height, width in ((3, 40), (1, 1)):
        write_image(tmp_path / "small.png", Picture(make_picture(height, width, 0)))
        with pytest.raises(DataError, match=r"small\.png: cannot be scored: "):
            create_task(sr_config(pictures, data={"val": [str(tmp_path)]}))


def test_pictures_left_out_are_told(tmp_path, capsys):
    write_pictures(tmp_path)
    write_image(tmp_path / "small.png", Picture(make_picture(20, 20, 0)))
    create_task(sr_config(tmp_path, data={"val": []}))
    line = f"warning: 1 of 4 training pictures are smaller than a crop and left out, the first {tmp_path}/small.png"
    assert line in capsys.readouterr().err
