from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

import densekit
from densekit.errors import ConfigError, DataError, DeviceError
from densekit.evaluate import evaluate_sr
from densekit.evaluate.views import error_map
from densekit.image import Picture, read_image, write_image
from densekit.metrics import PROTOCOLS, psnr, ssim
from densekit.resize import imresize
from tests.training_data import make_picture

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the measuring data, ../shared/data, is not here")

SIZES = {"a.png": (40, 48), "b.png": (41, 35), "c.png": (32, 32)}


@pytest.fixture
def originals(tmp_path, write_pictures):
    return write_pictures(tmp_path / "hr", SIZES)


@pytest.fixture(scope="module")
def upscaler(tiny_sr):
    return densekit.load(tiny_sr, device="cpu")


def enlarge(folder, originals, scale=2, suffix=""):
    """Writes the bicubic enlargements of reduced originals, as results of some other tool."""
    folder.mkdir()
    for path in sorted(originals.iterdir()):
        hr = read_image(path).pixels
        hr = hr[: hr.shape[0] // scale * scale, : hr.shape[1] // scale * scale]
        pixels = imresize(imresize(hr, 1 / scale), scale)
        write_image(folder / f"{path.stem}{suffix}.png", Picture(pixels))
    return folder


@needs_data
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_two_folders_give_the_table_of_rdns_authors(scale):
    results, lows = DATA / "rdn_set5_sr" / f"x{scale}", DATA / "set5" / f"LRx{scale}"
    evaluation = evaluate_sr(None, DATA / "set5" / "HR", sr=results, lr=lows)
    with (DATA / "rdn_set5_sr" / "psnr_ssim.csv").open() as file:
        table = {row["image"]: row for row in csv.DictReader(file) if int(row["scale"]) == scale}
    assert len(evaluation.rows) == 5
    for row in evaluation.rows:
        known = table[Path(row.name).stem]
        assert row.figures["psnr"] == pytest.approx(float(known["psnr_y"]), abs=1e-6)
        assert row.figures["ssim"] == pytest.approx(float(known["ssim_y"]), abs=1e-6)
    means = {2: (38.241919, 0.961363), 3: (34.705790, 0.929570), 4: (32.468907, 0.898957)}[scale]
    assert (evaluation.summary["psnr"], evaluation.summary["ssim"]) == pytest.approx(means, abs=1e-6)
    assert evaluation.conditions["resize"] == "files, as benchmark"
    assert evaluation.conditions["scale"] == str(scale)


@needs_data
@pytest.mark.parametrize(
    ("protocol", "known", "treatment"), [("rdn-y", 26.091, "replicated to RGB"), ("grey-y", 25.997, "as Y")]
)
def test_both_treatments_of_the_grey_picture_of_set14_give_their_known_figures(tmp_path, protocol, known, treatment):
    results = tmp_path / "sr"
    results.mkdir()
    for path in (DATA / "set14" / "LRx4").iterdir():
        write_image(results / path.name, Picture(imresize(read_image(path).pixels, 4)))
    evaluation = evaluate_sr(None, DATA / "set14" / "HR", sr=results, scale=4, metrics=["psnr"], protocol=protocol)
    assert evaluation.summary["psnr"] == pytest.approx(known, abs=0.001)
    assert evaluation.conditions["grey"] == f"1 grey picture {treatment}"


def test_a_model_is_scored_on_what_predict_makes_of_the_reduced_original(upscaler, originals):
    evaluation = evaluate_sr(upscaler, originals)
    for row in evaluation.rows:
        hr = read_image(originals / row.name).pixels
        hr = hr[: hr.shape[0] // 2 * 2, : hr.shape[1] // 2 * 2]
        sr = upscaler.predict(imresize(hr, 1 / 2, mode="benchmark"))
        assert row.figures == {"psnr": psnr(sr, hr, scale=2), "ssim": ssim(sr, hr, scale=2)}
    assert [row.name for row in evaluation.rows] == ["a.png", "b.png", "c.png"]
    assert evaluation.summary == {
        key: np.mean([row.figures[key] for row in evaluation.rows]) for key in ("psnr", "ssim")
    }
    told = evaluation.conditions
    assert next(iter(told)) == "protocol"
    expected = {"protocol": "rdn-y", "resize": "benchmark", "scale": "2", "pictures": "3 pictures", "model": "rdn"}
    expected |= {"bn_mode": "none", "tile": "whole", "device": "cpu", "precision": "fp32", "densekit": "0.1.0"}
    assert {key: told[key] for key in expected} == expected
    assert (evaluation.task, evaluation.metric) == ("sr", "psnr")


def test_tiles_and_self_ensemble_are_used_and_recorded(upscaler, originals):
    whole = evaluate_sr(upscaler, originals)
    tiled = evaluate_sr(upscaler, originals, tile=16)
    assert tiled.conditions["tile"] == "16, whole"  # c.png is 16 x 16 when reduced
    assert tiled.summary["psnr"] == pytest.approx(whole.summary["psnr"], abs=1e-3)
    ensemble = evaluate_sr(upscaler, originals, self_ensemble=True)
    assert ensemble.conditions["self_ensemble"]
    assert ensemble.summary != whole.summary


def test_given_low_resolution_pictures_are_used_and_compared_with_the_benchmarks(upscaler, originals, tmp_path):
    lows = tmp_path / "lr"
    lows.mkdir()
    for path in originals.iterdir():
        hr = read_image(path).pixels
        hr = hr[: hr.shape[0] // 2 * 2, : hr.shape[1] // 2 * 2]
        write_image(lows / f"{path.stem}x2.png", Picture(imresize(hr, 1 / 2)))
    same = evaluate_sr(upscaler, originals, lr=lows)
    assert same.conditions["resize"] == "files, as benchmark"
    assert same.summary == evaluate_sr(upscaler, originals).summary
    write_image(lows / "ax2.png", Picture(read_image(originals / "a.png").pixels[::2, ::2]))
    other = evaluate_sr(upscaler, originals, lr=lows)
    assert other.conditions["resize"] == "files, 1 of 3 unlike benchmark"
    assert other.rows[0].figures != same.rows[0].figures


def test_what_is_wrong_with_a_picture_is_its_error_alone(upscaler, originals, tmp_path, write_pictures):
    good = evaluate_sr(upscaler, originals)
    (originals / "aa.png").write_bytes(b"no picture")
    write_pictures(originals, {"tiny.png": (1, 30), "small.png": (10, 10)})
    evaluation = evaluate_sr(upscaler, originals)
    errors = {row.name: row.error for row in evaluation.rows if row.error}
    assert list(errors) == ["aa.png", "small.png", "tiny.png"]
    assert errors["aa.png"].startswith(f"{originals}/aa.png: not a PNG, JPEG, TIFF")
    assert errors["small.png"].startswith(f"{originals}/small.png: found pictures of 10 x 10 pixels; expected at least")
    assert errors["tiny.png"] == f"{originals}/tiny.png: 30x1 pixels; expected at least 2 each way, the scale"
    assert evaluation.summary == good.summary
    assert evaluation.conditions["pictures"] == "mean of 3 of 6 (3 failed)"


def test_pairs_that_do_not_fit_are_errors_of_their_picture(upscaler, originals, tmp_path, write_pictures):
    results = enlarge(tmp_path / "sr", originals, suffix="_x2")
    write_pictures(results, {"a_x2.png": (40, 47)})
    (results / "b_x2.png").unlink()
    rows = evaluate_sr(None, originals, sr=results, scale=2).rows
    assert rows[0].error == (
        f"{originals}/a.png: the result is 47x40, but the original is 48x40 after its crop to a multiple of 2; "
        "expected the same size"
    )
    assert rows[1].error == f"{originals}/b.png: no picture of that name in {results}; add one, or remove this"
    assert not rows[2].error
    lows = write_pictures(tmp_path / "lr", {"a.png": (19, 24), "b.png": (20, 17), "c.png": (16, 16)})
    rows = evaluate_sr(upscaler, originals, lr=lows).rows
    assert rows[0].error == (
        f"{originals}/a.png: its low-resolution picture a.png is 24x19; expected 24x20 for 48x40 at scale 2"
    )
    assert [bool(row.error) for row in rows] == [True, False, False]


def test_too_little_memory_for_one_picture_is_its_error(upscaler, originals, monkeypatch):
    real = type(upscaler).upscale_picture

    def fail(self, picture, **options):
        if picture.width == 24:
            raise DeviceError("does not fit cpu memory")
        return real(self, picture, **options)

    monkeypatch.setattr(type(upscaler), "upscale_picture", fail)
    rows = evaluate_sr(upscaler, originals).rows
    assert [row.error for row in rows] == [f"{originals}/a.png: does not fit cpu memory", "", ""]


def test_without_any_good_picture_there_is_no_figure(upscaler, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    evaluation = evaluate_sr(upscaler, tmp_path)
    assert evaluation.summary == {"psnr": None, "ssim": None}


def test_equal_pictures_have_an_infinite_psnr(originals):
    evaluation = evaluate_sr(None, originals / ".", sr=originals, scale=1)
    assert evaluation.summary == {"psnr": math.inf, "ssim": 1.0}


def test_the_scale_of_two_folders_comes_from_the_low_resolution_pictures_or_is_asked_for(originals, tmp_path):
    results = enlarge(tmp_path / "sr", originals)
    lows = tmp_path / "lr"
    lows.mkdir()
    for path in originals.iterdir():
        write_image(lows / path.name, Picture(imresize(read_image(path).pixels[:40, :34], 1 / 2)))
    assert evaluate_sr(None, originals, sr=results, lr=lows).conditions["scale"] == "2"
    with pytest.raises(ConfigError, match=r"^two folders of pictures do not say their scale; give --scale N"):
        evaluate_sr(None, originals, sr=results)


def test_explain_scores_by_every_protocol(originals, tmp_path):
    results = enlarge(tmp_path / "sr", originals)
    write_image(originals / "d.png", Picture(make_picture(64, 64, 9)))  # without a result
    summary = evaluate_sr(None, originals, sr=results, scale=2, explain=True).summary
    assert {f"psnr@{name}" for name in PROTOCOLS} | {f"ssim@{name}" for name in PROTOCOLS} <= summary.keys()
    assert summary["psnr@rdn-y"] == pytest.approx(summary["psnr"])
    assert summary["psnr@rgb"] == evaluate_sr(None, originals, sr=results, scale=2, protocol="rgb").summary["psnr"]


def test_agreement_with_the_input_is_measured_if_asked_for(originals, tmp_path):
    results = enlarge(tmp_path / "sr", originals)
    summary = evaluate_sr(None, originals, sr=results, scale=2, metrics=["lr_psnr", "lr_max_difference"]).summary
    assert summary["lr_psnr"] > 30
    assert summary["lr_max_difference"] > 0
    same = evaluate_sr(None, originals / ".", sr=originals, scale=1, metrics=["lr_psnr"]).summary
    assert same == {"lr_psnr": math.inf}


def test_what_there_is_to_see_is_made_when_it_is_asked_for(upscaler, originals):
    row = evaluate_sr(upscaler, originals).rows[1]
    parts = row.pictures()
    assert {key: value.shape for key, value in parts.items()} == {
        "lr": (20, 17, 3), **dict.fromkeys(("bicubic", "sr", "hr", "error"), (40, 34, 3))
    }  # fmt: skip
    assert all(value.dtype == np.uint8 for value in parts.values())
    assert psnr(parts["sr"], parts["hr"], scale=2) == row.figures["psnr"]
    assert not error_map(parts["hr"], parts["hr"])[..., 1].any()
    assert error_map(parts["hr"] // 2, parts["hr"])[..., 1].max() > 200


def test_grey_pictures_go_through_and_count_as_asked(upscaler, tmp_path):
    write_image(tmp_path / "grey.png", Picture(make_picture(40, 40, 1)[..., :1]))
    replicated = evaluate_sr(upscaler, tmp_path)
    luma = evaluate_sr(upscaler, tmp_path, protocol="grey-y", explain=True)
    # the luma of grey spans 219 of 255: 20 log10(255 / 219) dB lie between the two, but for the network's own colours
    gap = replicated.summary["psnr"] - luma.summary["psnr"]
    assert gap == pytest.approx(20 * math.log10(255 / 219), abs=0.2)
    assert luma.rows[0].pictures()["sr"].shape == (40, 40, 3)
    assert luma.conditions["grey"] == "1 grey picture as Y"
    other = evaluate_sr(upscaler, tmp_path, explain=True).summary
    assert other["psnr@grey-y"] == pytest.approx(luma.summary["psnr"], abs=0.05)
    assert other["psnr@rdn-y"] == other["psnr"] == replicated.summary["psnr"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "rdn-x"}, r"protocol 'rdn-x': expected one of .*did you mean 'rdn-y'\?"),
        ({"metrics": ["psnr", "sim"]}, r"metric 'sim': expected one of psnr, .*did you mean 'ssim'\?"),
        ({"metrics": []}, "no metrics; give some of psnr"),
        ({"scale": 3}, "scale 3: the model's is 2; leave it out"),
        ({"sr": "there"}, "give either a model or a folder of results"),
    ],
)
def test_wrong_options_are_refused_before_any_work(upscaler, originals, options, message):
    with pytest.raises(ConfigError, match=message):
        evaluate_sr(upscaler, originals, **options)


def test_a_folder_that_is_not_there_is_named(upscaler, originals, tmp_path):
    with pytest.raises(DataError, match="gone: no such folder"):
        evaluate_sr(upscaler, originals, lr=tmp_path / "gone")
    with pytest.raises(DataError, match="gone: no such folder"):
        evaluate_sr(upscaler, tmp_path / "gone")


def test_a_part_of_a_test_set_does_not_pass_for_it(upscaler, tmp_path, write_pictures):
    write_pictures(tmp_path / "data/set5/images", {"a.png": (32, 32)})
    evaluation = evaluate_sr(upscaler, "Set5", root=tmp_path)
    assert evaluation.conditions["set"] == "Set5 (1 of its 5 pictures)"
