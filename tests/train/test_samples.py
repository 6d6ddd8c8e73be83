from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densekit import ranks
from densekit.metrics import psnr
from densekit.predict.compare import GAP, LINE
from densekit.predict.overlay import PALETTE, overlay
from densekit.resize import imresize
from densekit.tasks import Sample, create_task
from densekit.train import train
from densekit.train.run import Run
from densekit.train.samples import SIDE, classes_of, draw, keep_samples
from densekit.train.summary import conclude, show_progress
from tests.train.test_loop import Disturbed, crash, results
from tests.training_data import make_masked, make_picture, seg_config, sr_config, write_masked, write_pictures


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return {"sr": write_pictures(root / "pictures", 5), "seg": write_masked(root / "masked", 5)}


def config_of(folders, task, **options):
    return sr_config(folders["sr"], **options) if task == "sr" else seg_config(folders["seg"], **options)


def cell(sheet, number, height, width):
    """The picture in one of the three columns of a sheet."""
    left = GAP + number * (SIDE + GAP)
    return sheet[LINE : LINE + height, left : left + width]


def sr_sample(height, width, scale=2, name="a"):
    truth = make_picture(height, width, 1)
    result = make_picture(height, width, 2)
    return Sample(Path(f"{name}.png"), make_picture(height // scale, width // scale, 3), result, truth)


@pytest.mark.parametrize("size", [(48, 64), (600, 1000)])
def test_a_super_resolved_sheet_shows_the_middle_pixel_by_pixel(folders, size):
    sample = sr_sample(*size)
    sheet = draw(sample, config_of(folders, "sr"), 7)
    assert sheet.shape == (LINE + min(SIDE, size[0]) + GAP, 3 * SIDE + 4 * GAP, 3)
    top, left = (max(0, side - SIDE) // 2 for side in size)
    middle = np.s_[top : top + SIDE, left : left + SIDE]
    height, width = (min(side, SIDE) for side in size)
    for number, pixels in enumerate((imresize(sample.given, 2), sample.result, sample.truth)):
        np.testing.assert_array_equal(cell(sheet, number, height, width), pixels[middle])


def test_a_segmented_sheet_paints_prediction_and_truth_in_the_colours_of_the_classes(folders):
    image, ids = make_masked(40, 48, 1)
    wrong = np.roll(ids, 5, axis=1)
    names, palette = ["road", "sky", "tree"], [[250, 0, 0], [0, 250, 0], [0, 0, 250]]
    config = config_of(folders, "seg", data={"classes": names, "palette": palette})
    sheet = draw(Sample(Path("a.png"), image, wrong, ids), config, 7)
    np.testing.assert_array_equal(cell(sheet, 0, 40, 48), image)
    for number, shown in ((1, wrong), (2, ids)):
        expected = overlay(image, shown, names, [tuple(colour) for colour in palette])
        np.testing.assert_array_equal(cell(sheet, number, *expected.shape[:2]), expected)


def test_long_sides_of_a_segmentation_are_reduced_without_inventing_classes(folders):
    image, ids = make_masked(600, 1024, 1, classes=3)
    void = ids.copy()
    void[:300] = 255
    sheet = draw(Sample(Path("a.png"), image, ids, void), config_of(folders, "seg"), 7)
    assert sheet.shape[0] >= LINE + 300
    reduced = np.asarray(Image.fromarray(image).resize((512, 300), Image.Resampling.BOX))
    np.testing.assert_array_equal(cell(sheet, 0, 300, 512), reduced)
    np.testing.assert_array_equal(cell(sheet, 2, 149, 512), reduced[:149])  # void is not painted


def test_classes_without_names_and_colours_get_numbers_and_the_palette(folders):
    assert classes_of(seg_config(folders["seg"], num_classes=1)) == (["class 0", "class 1"], list(PALETTE[:2]))
    config = seg_config(folders["seg"], num_classes=30)
    names, palette = classes_of(config)
    assert (len(names), len(palette), names[29]) == (30, 30, "class 29")


def test_pictures_of_one_name_do_not_overwrite_each_other(folders, tmp_path):
    samples = [sr_sample(16, 24), sr_sample(16, 32), sr_sample(16, 40, name="b")]
    sheets = keep_samples(samples, config_of(folders, "sr"), tmp_path, 3)
    names = sorted(path.name for path in (tmp_path / "step-00000003").iterdir())
    assert names == ["a-2.webp", "a.webp", "b.webp"]
    assert [*sheets] == ["a", "a-2", "b"]
    for name, pixels in sheets.items():
        with Image.open(tmp_path / "step-00000003" / f"{name}.webp") as image:
            assert np.abs(np.asarray(image, int) - pixels).mean() < 6  # compressed


@pytest.mark.parametrize("task", ["sr", "seg"])
def test_the_first_pictures_are_kept_at_each_evaluation_and_change_no_weights(folders, tmp_path, task):
    for count in (0, 2):
        config = config_of(folders, task, samples=count, total_steps=8, eval_every=4)
        train(create_task(config), config, tmp_path / str(count))
    found = sorted(str(path.relative_to(tmp_path / "2")) for path in (tmp_path / "2").rglob("samples/*/*"))
    assert found == [f"samples/step-0000000{step}/{name}.webp" for step in (4, 8) for name in (0, 1)]
    assert not (tmp_path / "0" / "samples").exists()
    (without, log), (with_them, same_log) = (results(tmp_path / name) for name in ("0", "2"))
    assert log == same_log
    for name in ("last.safetensors", "best.safetensors"):
        assert without[name] == with_them[name]


def test_a_run_that_crashes_in_a_write_and_goes_on_leaves_no_torn_files(folders, tmp_path):
    config = config_of(folders, "sr")
    with pytest.raises(MemoryError):
        train(Disturbed(create_task(config), 10, crash), config, tmp_path)
    kept = (tmp_path / "samples" / "step-00000006" / "0.webp").read_bytes()
    torn = tmp_path / "samples" / "step-00000012" / ".0.webp.tmp77"
    torn.parent.mkdir()
    torn.write_bytes(b"half")
    train(create_task(config), config, tmp_path, resume=True)
    assert (tmp_path / "samples" / "step-00000006" / "0.webp").read_bytes() == kept
    assert [path.name for path in torn.parent.iterdir()] == ["0.webp"]


def test_the_network_runs_once_on_each_sample(folders):
    task = create_task(config_of(folders, "sr"))
    net = task.build_model()
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    samples = task.samples(net)
    assert [next(samples).path.name, next(samples).path.name, len(calls)] == ["0.png", "1.png", 2]
    assert [sample.path.name for sample in task.samples(net, 3)] == ["3.png", "4.png"]


@pytest.mark.parametrize("task", ["sr", "seg"])
def test_samples_are_what_evaluation_scores(folders, task):
    made = create_task(config_of(folders, task))
    net = made.build_model().eval()
    if task == "sr":
        scores = [psnr(s.result, s.truth, protocol="rdn-y", scale=2) for s in made.samples(net)]
        assert made.evaluate(net)["psnr"] == pytest.approx(np.mean(scores))
    else:
        right = [s.result == s.truth for s in made.samples(net)]
        assert made.evaluate(net)["accuracy"] == pytest.approx(np.mean(right))


def test_only_the_process_that_writes_keeps_samples(folders, tmp_path, monkeypatch):
    config = config_of(folders, "sr")
    task = create_task(config)
    net = task.build_model()
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    run = Run(tmp_path, 1)
    show_progress(task, net, config, run, 4, {"psnr": 1.0})
    conclude(task, net, config, run, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
