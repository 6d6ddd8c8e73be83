from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from densekit.image import Picture, read_image, write_image, write_mask
from densekit.resize import imresize
from tests.training_data import make_picture, write_masked
from tests.training_data import write_pictures as write_some

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the measuring data, ../shared/data, is not here")

COMMON = {
    "kind",
    "name",
    "protocol",
    "resize",
    "scale",
    "model",
    "model_sha256",
    "bn_mode",
    "device",
    "precision",
    "tile",
}
COMMON |= {"densekit"}
OF_SET = {"pictures", "failed", "complete"}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hr():
    return write_some(Path("some"))


@pytest.fixture
def masked():
    return write_masked(Path("seg"))


def spoil(folder):
    (folder / "bad.png").write_bytes(b"no picture")


def test_a_set_is_one_line_with_its_protocol_and_pictures_go_to_stderr(run, hr, tiny_sr):
    result = run("sr", "eval", "-m", tiny_sr, "--hr", hr)
    assert result.code == 0
    number = r"\d+\.\d\d dB  SSIM 0\.\d{4}"
    assert len(result.out) == 1
    assert re.fullmatch(rf"some x2  PSNR {number}  protocol rdn-y, LR benchmark, 3 pictures", result.out[0])
    head, *rows = result.err
    assert head.startswith(f"densekit 0.1.0  {tiny_sr} (file, sha256 ok)  cpu")
    assert [bool(re.fullmatch(rf"{i}\.png  PSNR {number}", row)) for i, row in enumerate(rows)] == [True] * 3


def test_every_json_line_says_what_was_measured_how(run, hr, tiny_sr):
    result = run(
        "sr", "eval", "-m", tiny_sr, "--hr", hr, "--json", "--explain", "--metrics", "ssim,psnr", "--tile", "32"
    )
    assert result.code == 0
    *pictures, whole = map(json.loads, result.out)
    assert [record["name"] for record in pictures] == ["0.png", "1.png", "2.png"]
    for record in pictures:
        assert record.keys() == COMMON | {"ok", "psnr", "ssim", "self_ensemble"}
        assert (record["kind"], record["ok"], record["tile"], record["scale"]) == ("picture", True, "whole", 2)
    assert whole.keys() == COMMON | OF_SET | {"psnr", "ssim", "explain", "self_ensemble"}
    expected = {"kind": "set", "name": "some", "protocol": "rdn-y", "resize": "benchmark", "scale": 2}
    expected |= {"bn_mode": "none", "tile": "whole", "precision": "fp32", "pictures": 3, "failed": 0, "complete": True}
    assert {key: whole[key] for key in expected} == expected
    assert whole["psnr"] == pytest.approx(np.mean([record["psnr"] for record in pictures]))
    assert whole["explain"]["rdn-y"] == pytest.approx({"psnr": whole["psnr"], "ssim": whole["ssim"]})
    assert {"rgb", "basicsr-y"} <= whole["explain"].keys()


def test_a_mean_over_some_pictures_says_so_and_ends_with_1(run, hr, tiny_sr):
    spoil(hr)
    result = run("sr", "eval", "-m", tiny_sr, "--hr", hr)
    assert result.code == 1
    assert result.out[0].endswith("protocol rdn-y, LR benchmark, mean of 3 of 4 (1 failed)")
    assert [line for line in result.err if line.startswith("error: ")] == [
        "error: some/bad.png: not a PNG, JPEG, TIFF, WebP or BMP image; convert it to one of them"
    ]
    result = run("sr", "eval", "-m", tiny_sr, "--hr", hr, "--json")
    assert result.code == 1
    *pictures, whole = map(json.loads, result.out)
    bad = next(record for record in pictures if not record["ok"])
    assert (bad["name"], bad["error"].split(":")[0]) == ("bad.png", "some/bad.png")
    assert (whole["pictures"], whole["failed"], whole["complete"]) == (4, 1, False)


def test_a_set_of_which_nothing_could_be_scored_has_no_line_and_ends_with_3(run, tiny_sr):
    Path("hr").mkdir()
    spoil(Path("hr"))
    result = run("sr", "eval", "-m", tiny_sr, "--hr", "hr", "--report", "r.md")
    assert (result.code, result.out) == (3, [])
    assert result.err[-1] == "error: none of 1 pictures could be scored; see the lines above"
    assert not Path("r.md").exists()
    result = run("sr", "eval", "-m", tiny_sr, "--hr", "hr", "--json")
    assert result.code == 3
    whole = json.loads(result.out[-1])
    assert (whole["psnr"], whole["failed"], whole["complete"]) == (None, 1, False)


def test_two_folders_need_no_model(run, hr):
    Path("out").mkdir()
    for path in hr.iterdir():
        pixels = imresize(imresize(read_image(path).pixels, 1 / 2), 2)
        write_image(f"out/{path.stem}_x2.png", Picture(pixels))
    result = run("sr", "eval", "--sr", "out", "--hr", hr, "--scale", "2")
    assert result.code == 0
    assert re.fullmatch(r"some x2  PSNR \d+\.\d\d dB  SSIM 0\.\d{4}  protocol rdn-y, 3 pictures", result.out[0])
    whole = json.loads(run("sr", "eval", "--sr", "out", "--hr", hr, "--scale", "2", "--json").out[-1])
    assert [whole[key] for key in ("model", "model_sha256", "resize", "tile", "scale")] == [None, None, None, None, 2]


def test_explain_shows_every_protocol_on_stderr(run, hr, tiny_sr):
    result = run("sr", "eval", "-m", tiny_sr, "--hr", hr, "--explain")
    assert len(result.out) == 1
    assert any(re.fullmatch(r"  full-range-y +PSNR \d+\.\d\d dB  SSIM 0\.\d{4}", line) for line in result.err)


def test_reports_are_written_and_their_paths_go_to_stderr(run, hr, tiny_sr):
    reports = [Path(f"r.{kind}") for kind in ("html", "md", "json")]
    words = [word for report in reports for word in ("--report", report)]
    result = run("sr", "eval", "-m", tiny_sr, "--hr", hr, *words)
    assert result.code == 0
    assert len(result.out) == 1
    assert result.err[-3:] == [f"report: {report}" for report in reports]
    for report in reports:
        assert "rdn-y" in report.read_text("utf-8")
    assert f"densekit sr eval --model {tiny_sr} --report r.html --report r.md" in Path("r.html").read_text("utf-8")


@pytest.mark.parametrize("report", ["r.pdf", "gone/r.html", "r"])
def test_a_report_that_cannot_be_written_is_refused_before_any_work(run, hr, tiny_sr, report):
    result = run("sr", "eval", "-m", tiny_sr, "--hr", hr, "--report", report)
    assert (result.code, result.out) == (2, [])
    assert len(result.err) == 1
    assert result.err[0].startswith(f"error: {report}: ")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--hr", "some"], 2, "sr eval needs either -m MODEL or --sr DIR, a folder of results"),
        (["-m", "M", "--sr", "some", "--hr", "some"], 2, "sr eval needs either -m MODEL or --sr DIR"),
        (
            ["-m", "M", "--hr", "Set5"],
            3,
            "Set5: no pictures in data/set5/images; put its high-resolution pictures there",
        ),
        (["-m", "M", "--hr", "some", "--protocol", "rdn"], 2, "protocol 'rdn': expected one of rdn-y"),
        (["-m", "M", "--hr", "some", "--metrics", "psnr,mse"], 2, "metric 'mse': expected one of psnr"),
        (["-m", "M", "--hr", "some", "--tile", "3"], 2, "tile 3: expected auto, off or a size of at least 16 pixels"),
        (["-m", "M", "--hr", "some", "--lr", "gone"], 3, "gone: no such folder"),
        (["-m", "gone.safetensors", "--hr", "some"], 5, "gone.safetensors: no such file"),
        (["--sr", "some", "--hr", "some"], 2, "two folders of pictures do not say their scale; give --scale N"),
    ],
)
def test_wrong_words_are_one_line_and_their_code(run, hr, tiny_sr, words, code, message):
    result = run("sr", "eval", *(str(tiny_sr) if word == "M" else word for word in words))
    assert (result.code, result.out) == (code, [])
    assert result.err[-1].startswith(f"error: {message}")


def test_a_segmentation_is_one_line_with_its_protocol_and_bn_mode(run, masked, tiny_seg):
    result = run("seg", "eval", "-m", tiny_seg, "--images", masked / "images", "--masks", masked / "masks")
    assert result.code == 0
    assert len(result.out) == 1
    pattern = r"seg  mIoU 0\.\d{4}  accuracy 0\.\d{4}  protocol dataset-iou, bn running, 3 pictures"
    assert re.fullmatch(pattern, result.out[0])
    assert [line.split()[0] for line in result.err[1:]] == ["0.png", "1.png", "2.png", "road", "sky", "tree"]


def test_every_json_line_of_a_segmentation_says_its_bn_mode(run, masked, tiny_seg):
    words = ["-m", tiny_seg, "--images", masked / "images", "--masks", masked / "masks", "--json"]
    *pictures, whole = map(json.loads, run("seg", "eval", *words, "--calibration", "--boundary", "2").out)
    extra = {"ignore_index", "batch_size"}
    for record in pictures:
        assert record.keys() == COMMON | extra | {"ok", "miou", "accuracy"}
        assert record["bn_mode"] == "running"
    assert {"miou", "accuracy", "mean_dice", "kappa", "ece", "boundary_miou", "per_class", "classes"} <= whole.keys()
    assert whole.keys() > COMMON | OF_SET | extra
    assert (whole["kind"], whole["name"], whole["bn_mode"], whole["complete"]) == ("set", "seg", "running", True)
    assert len(whole["per_class"]["iou"]) == len(whole["classes"]) == 3


def test_a_temperature_is_fitted_on_held_out_pictures_and_said(run, masked, tiny_seg):
    others = write_masked(Path("others"), seed=9)
    words = ["-m", tiny_seg, "--images", masked / "images", "--masks", masked / "masks"]
    result = run("seg", "eval", *words, "--held-out", others / "images", others / "masks")
    assert result.code == 0
    assert re.search(r"  ece 0\.\d{4}  tempered ece 0\.\d{4}  ", result.out[0], re.IGNORECASE)
    result = run("seg", "eval", *words, "--held-out", masked / "images", masked / "masks")
    assert (result.code, result.out) == (2, [])
    assert result.err[-1].endswith("images: the pictures that are scored; fit the temperature on others")


def test_batch_statistics_warn_that_a_result_depends_on_its_neighbours(run, masked, tiny_seg):
    words = ["-m", tiny_seg, "--images", masked / "images", "--masks", masked / "masks", "--bn", "batch"]
    result = run("seg", "eval", *words, "--batch-size", "3")
    assert result.code == 0
    assert "warning: --bn batch: a result depends on the other pictures of its batch" in result.err
    assert result.out[0].endswith("protocol dataset-iou, bn batch, batches of 3, 3 pictures")


def test_a_segmentation_with_failures_says_of_how_many_it_is(run, masked, tiny_seg):
    spoil(masked / "images")
    write_mask(masked / "masks" / "bad.png", np.zeros((4, 4), np.uint8))
    result = run("seg", "eval", "-m", tiny_seg, "--images", masked / "images", "--masks", masked / "masks")
    assert result.code == 1
    assert result.out[0].endswith("bn running, mean of 3 of 4 (1 failed)")
    shutil.rmtree(masked / "masks")
    write_some(masked / "masks", 1)
    result = run("seg", "eval", "-m", tiny_seg, "--images", masked / "images", "--masks", masked / "masks")
    assert (result.code, result.out) == (3, [])


def test_predicted_masks_need_no_model(run, masked):
    result = run("seg", "eval", "--predictions", masked / "masks", "--masks", masked / "masks", "--num-classes", "3")
    assert result.code == 0
    assert result.out == ["seg  mIoU 1.0000  accuracy 1.0000  protocol dataset-iou, 3 pictures"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--masks", "seg/masks"], "seg eval needs either -m MODEL or --predictions DIR, a folder of masks"),
        (["-m", "M", "--masks", "seg/masks"], "seg eval -m needs --images DIR, the pictures that belong to the masks"),
        (
            ["--predictions", "seg/masks", "--masks", "seg/masks"],
            "the number of classes is not known; give --num-classes",
        ),
        (
            ["--predictions", "seg/masks", "--masks", "seg/masks", "--num-classes", "3", "--calibration"],
            "calibration needs a model",
        ),
    ],
)
def test_wrong_words_of_a_segmentation_are_one_line(run, masked, tiny_seg, words, message):
    result = run("seg", "eval", *(str(tiny_seg) if word == "M" else word for word in words))
    assert (result.code, result.out) == (2, [])
    assert result.err[-1].startswith(f"error: {message}")


def test_a_signal_leaves_no_figure_for_the_set(start, tiny_sr):
    write_some(Path("hr"), 60, 200, 200)
    process = start("sr", "eval", "-m", tiny_sr, "--hr", "hr", "--self-ensemble", "--device", "cpu")
    assert process.stderr.readline().startswith(b"densekit 0.1.0")
    process.stderr.readline()  # the first picture
    process.terminate()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143
    assert out == b""
    assert re.search(rb"error: interrupted: \d+ of 60 scored, so there is no figure for the set\n$", err)


def test_hostile_names_stay_on_one_line(run, tiny_sr):
    name = "a\n<script>\udcff.png"
    write_image("plain.png", Picture(make_picture(40, 40, 0)))
    Path("hr").mkdir()
    Path("plain.png").rename(Path("hr", name))
    result = run("sr", "eval", "-m", tiny_sr, "--hr", "hr", "--json", "--report", "r.html")
    assert result.code == 0
    assert json.loads(result.out[0])["name"] == "a\n<script>\\xff.png"
    result = run("sr", "eval", "-m", tiny_sr, "--hr", "hr")
    assert result.err[-1].split("  ")[0] == "a\\n<script>\\xff.png"


@needs_data
@pytest.mark.parametrize("scale", [2, 4])
def test_set5_by_name_gives_the_figure_on_the_shipped_models_card(run, scale):
    from densekit.pretrained import trained_cards

    Path("data/set5").mkdir(parents=True)
    Path("data/set5/images").symlink_to(DATA / "set5" / "HR")
    result = run("sr", "eval", "-m", f"rdn-tiny-x{scale}", "--hr", "set5", "--device", "cpu", "--metrics", "psnr")
    assert result.code == 0
    stated = trained_cards()[f"rdn-tiny-x{scale}"].metrics["psnr"]
    match = re.fullmatch(
        rf"Set5 x{scale}  PSNR (\d+\.\d\d) dB  protocol rdn-y, LR benchmark, 5 pictures", result.out[0]
    )
    assert float(match[1]) == pytest.approx(stated, abs=0.01)


@pytest.mark.slow
@needs_data
def test_the_nuclei_models_figure_is_that_of_its_card(run):
    from densekit.pretrained import trained_cards

    folder = DATA / "nuclei" / "val"
    result = run(
        "seg", "eval", "-m", "fc-densenet-nuclei", "--images", folder / "image", "--masks", folder / "mask", "--json"
    )
    whole = json.loads(result.out[-1])
    assert (whole["name"], whole["protocol"]) == ("nuclei/val", "binary")
    assert whole["iou"] == pytest.approx(trained_cards()["fc-densenet-nuclei"].metrics["iou"], abs=0.002)
