"""Where super-resolution's pictures may come from, and that it makes no difference to what is learned."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from densekit.datasets.pairs import make_pair
from densekit.datasets.pictures import read_rgb
from densekit.datasets.split import split_by_name
from densekit.errors import DataError
from densekit.image import Picture, write_image
from densekit.tasks import create_task
from densekit.train import train
from tests.training_data import make_picture, sr_config, write_pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """hr/ and lrx2/, of which the second is what would be made of the first."""
    folder = tmp_path_factory.mktemp("sr")
    (folder / "lrx2").mkdir()
    for path in write_pictures(folder / "hr", 4).iterdir():
        write_image(folder / "lrx2" / f"{path.stem}x2.png", Picture(make_pair(read_rgb(path), 2)[0]))
    return folder


def results(config, run):
    train(create_task(config), config, run)
    return {path.name: path.read_bytes() for path in run.glob("*.safetensors")}


@pytest.fixture(scope="module")
def expected(folder, tmp_path_factory):
    return results(sr_config(folder / "hr"), tmp_path_factory.mktemp("run"))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("kind", ["cache", "cache and workers", "lr", "lr and cache"])
def test_a_training_ends_with_the_same_bytes_wherever_its_pixels_come_from(folder, expected, tmp_path, kind):
    data = {}
    if "cache" in kind:
        data |= {"cache": str(tmp_path / "cache")}
    if "workers" in kind:
        data |= {"num_workers": 2}
    if "lr" in kind:
        data |= {"lr": [str(folder / "lrx2")], "val_lr": [str(folder / "lrx2")]}
    config = sr_config(folder / "hr", data=data)
    assert results(config, tmp_path / "run") == expected


def test_a_list_gives_what_its_folder_gives(folder):
    (folder / "hr.txt").write_text("".join(f"hr/{number}.png\n" for number in range(4)))
    task, other = (create_task(sr_config(folder / name)) for name in ("hr", "hr.txt"))
    for one, two in zip(islice(task.train_batches(0), 4), islice(other.train_batches(0), 4), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert task.val_paths == other.val_paths
    assert task.fingerprint == other.fingerprint


def test_low_resolution_that_is_given_is_the_one_that_is_used(folder, tmp_path):
    for path in (folder / "hr").iterdir():
        write_image(write_pictures(tmp_path / "lr", 0) / path.name, Picture(make_picture(20, 24, 99)))
    task = create_task(sr_config(folder / "hr", data={"lr": [str(tmp_path / "lr")], "val_lr": [str(tmp_path / "lr")]}))
    assert all((pair[0] == make_picture(20, 24, 99)).all() for pair in [*task.data.pairs, *task.val])
    assert create_task(sr_config(folder / "hr")).fingerprint.startswith("8 files ")
    assert task.fingerprint.startswith("16 files ")  # low resolution belongs to the data that a resumed run must find


def test_a_share_of_the_pictures_validates_and_trains_no_more(folder):
    config = sr_config(folder / "hr", data={"val": [], "val_share": 0.3})
    task = create_task(config)
    train_part, val_part = split_by_name([(path,) for path in sorted((folder / "hr").iterdir())], 0.3)
    assert [(path,) for path in task.data.paths] == train_part
    assert [(path,) for path in task.val_paths] == val_part
    assert (len(task.data), len(task.val)) == (2, 2)
    assert task.describe_data() == "data: 2 pictures as 2 pairs to train on, 2 to evaluate on"
    assert task.card(1, {"psnr": 30.0}).metrics["data"] == f"0.3 of {folder / 'hr'}, by name"
    with torch.no_grad():
        assert task.evaluate(task.build_model().eval())["psnr"] > 0
    paired = create_task(sr_config(folder / "hr", data={"lr": [str(folder / "lrx2")], "val": [], "val_share": 0.3}))
    assert paired.val_paths == task.val_paths
    assert all((pair[0] == other[0]).all() for pair, other in zip(paired.val, task.val, strict=True))


def test_faults_of_paired_folders_come_before_any_picture_is_decoded(folder, tmp_path):
    write_pictures(tmp_path / "lr", 4, height=20, width=22)
    with pytest.raises(
        DataError, match=r"^4 low-resolution pictures do not fit: .*0\.png is 22x20 but .*hr/0\.png is 48x40"
    ):
        create_task(sr_config(folder / "hr", data={"lr": [str(tmp_path / "lr")]}))


def test_a_validation_picture_below_the_scale_is_refused(folder, tmp_path):
    write_image(write_pictures(tmp_path / "val", 0) / "tiny.png", Picture(make_picture(1, 1, 0)))
    with pytest.raises(DataError, match=r"tiny\.png: cannot be scored: smaller than 2x2 pixels"):
        create_task(sr_config(folder / "hr", data={"val": [str(tmp_path / "val")]}))
