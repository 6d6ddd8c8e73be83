from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from densekit.checkpoint import load_model, save_model
from densekit.errors import DeviceError
from densekit.image import read_image, read_mask
from densekit.predict import Upscaler

MODEL_KEYS = {"input", "output", "ok", "model", "model_sha256", "size_in", "size_out", "tile", "overlap"}
MODEL_KEYS |= {"device", "precision", "seconds", "warnings"}

UPSCALE = """
import json, sys
from densekit.cli import main
code = main(["sr", "predict", *sys.argv[1:]])
heavy = {"albumentations", "kornia", "segmentation_models_pytorch", "timm", "torchvision", "rich", "pydantic"}
print(json.dumps([code, sorted(heavy & set(sys.modules))]), file=sys.stderr)
"""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def names(folder="."):
    return sorted(path.name for path in Path(folder).iterdir())


def size(path):
    with Image.open(path) as im:
        return im.size


def test_one_photo_takes_two_lines_on_stderr_one_on_stdout_and_no_heavy_import(start, picture, tiny_sr):
    name = os.fsdecode("[b]ä ".encode() + b"\xff" + b"x" * 150)
    picture(Path(f"{name}.png"), (512, 512))
    out, err = start(f"{name}.png", "-m", tiny_sr, "--device", "cpu", code=UPSCALE).communicate(timeout=250)
    assert out == os.fsencode(f"{name}_x2.png\n")
    head, *slow, line, modules = err.decode().splitlines()
    assert head == f"densekit 0.1.0  {tiny_sr} (file, sha256 ok)  cpu, 1 threads, fp32"
    shown = re.escape("[b]ä \\udcff" + "x" * 150 + ".png")
    assert re.fullmatch(rf"{shown}  512x512 -> 1024x1024  tile 192 \+ 2  \d+\.\d s", line)
    assert all(re.fullmatch(rf"{shown}  \d+%  \d+ s left", text) for text in slow)  # after 10 s without a line
    assert json.loads(modules) == [0, []]
    assert size(f"{name}_x2.png") == (1024, 1024)


def test_a_batch_keeps_the_tree_survives_bad_files_and_says_so_in_json(run, picture, tiny_sr):
    picture(Path("p/a.jpg"))
    picture(Path("p/sub/ü b.png"), mode="RGBA")
    Path("p/sub/bad.png").write_bytes(Path("p/sub/ü b.png").read_bytes()[:120])
    result = run("sr", "predict", "p", "gone.png", "-m", tiny_sr, "-o", "out", "--json")
    assert result.code == 1
    records = {record["input"]: record for record in map(json.loads, result.out)}
    assert list(records) == ["p/a.jpg", "p/sub/bad.png", "p/sub/ü b.png", "gone.png"]
    good = records["p/sub/ü b.png"]
    assert good.keys() == MODEL_KEYS | {"scale", "compare"}
    assert (good["output"], good["ok"], good["scale"], good["compare"]) == ("out/sub/ü b_x2.png", True, 2, None)
    assert (good["size_in"], good["size_out"], good["tile"], good["overlap"]) == ([24, 16], [48, 32], None, 0)
    assert (good["model"], good["device"], good["precision"], good["warnings"]) == (str(tiny_sr), "cpu", "fp32", [])
    assert re.fullmatch("[0-9a-f]{64}", good["model_sha256"])
    bad = records["p/sub/bad.png"]
    assert bad.keys() == {"input", "ok", "error", "kind"}
    assert (bad["ok"], bad["kind"]) == (False, "ImageError")
    assert [line for line in result.err if line.startswith("error: ")] == [
        f"error: {bad['error']}",
        "error: gone.png: no such file; check the name",
    ]
    assert bad["error"].startswith("p/sub/bad.png: not a readable image (PNG signature")
    assert result.err[-1] == "2 done, 2 failed"
    assert size("out/a_x2.jpg") == size("out/sub/ü b_x2.png") == (48, 32)
    assert read_image("out/sub/ü b_x2.png").alpha is not None
    assert sorted(path.name for path in Path("out").rglob("*") if path.is_file()) == ["a_x2.jpg", "ü b_x2.png"]


def test_depth_grey_and_float_stay_what_they_are(run, tiny_sr):
    rng = np.random.default_rng(3)
    deep = rng.integers(0, 65536, (16, 24, 3), np.uint16)
    cv2.imwrite("deep.png", deep)
    cv2.imwrite("grey.tif", deep[..., 0])
    tifffile.imwrite("float.tif", rng.random((16, 24, 3), np.float32), photometric="rgb")
    assert run("sr", "predict", "deep.png", "grey.tif", "float.tif", "-m", tiny_sr).code == 0
    found = {name: read_image(f"{name}_x2{suffix}").pixels for name, suffix in
             (("deep", ".png"), ("grey", ".tif"), ("float", ".tif"))}  # fmt: skip
    assert {name: (pixels.shape, pixels.dtype.name) for name, pixels in found.items()} == {
        "deep": ((32, 48, 3), "uint16"),
        "grey": ((32, 48, 1), "uint16"),
        "float": ((32, 48, 3), "float32"),
    }
    assert len(np.unique(found["deep"])) > 1000


def test_tiles_do_not_show_and_compare_writes_a_second_picture(run, picture, tiny_sr):
    picture(Path("a.png"), (90, 50))
    assert run("sr", "predict", "a.png", "-m", tiny_sr, "--tile", "off", "-o", "whole.png").code == 0
    tiled = run("sr", "predict", "a.png", "-m", tiny_sr, "--tile", "16", "-o", "t", "--compare", "--self-ensemble")
    assert tiled.out == ["t/a_x2.png", "t/a_compare.png"]
    assert "90x50 -> 180x100  tile 16 + 2" in tiled.err[1]
    tiled = run("sr", "predict", "a.png", "-m", tiny_sr, "--tile", "16", "-o", "tiled.png")
    whole, parts = (read_image(path).pixels.astype(int) for path in ("whole.png", "tiled.png"))
    assert np.abs(whole - parts).max() <= 1
    assert np.ptp(whole) > 50


def test_what_was_lost_is_a_warning_line(run, picture, tiny_sr):
    Image.new("RGB", (24, 16), (9, 99, 199)).save("a.png", icc_profile=b"\0" * 16 + b"CMYK" + b"\0" * 200)
    result = run("sr", "predict", "a.png", "-m", tiny_sr)
    assert result.code == 0
    assert result.err[1] == "warning: a.png: the CMYK colour profile does not fit RGB pixels: dropped"


def test_frames_and_pixel_caps_are_options(run, picture, tiny_sr):
    picture(Path("a.gif"))
    picture(Path("b.png"))
    refused = run("sr", "predict", "a.gif", "b.png", "-m", tiny_sr, "--max-pixels", "100")
    assert refused.code == 3
    assert "a GIF; expected PNG" in refused.err[1]
    assert "24x16 = 384 pixels; expected at most 100" in refused.err[2]
    assert run("sr", "predict", "a.gif", "-m", tiny_sr, "--first-frame").out == ["a_x2.png"]


def test_a_mask_holds_class_numbers_in_the_palette_of_the_model(run, picture, tiny_seg):
    picture(Path("p/a.jpg"), (40, 30))
    result = run("seg", "predict", "p/*.jpg", "-m", tiny_seg, "-o", "m", "--overlay", "--json")
    assert result.code == 0
    [record] = map(json.loads, result.out)
    assert record.keys() == MODEL_KEYS | {"num_classes", "overlay"}
    assert (record["output"], record["overlay"], record["num_classes"]) == ("m/a_mask.png", "m/a_overlay.png", 3)
    assert re.fullmatch(r"p/a.jpg  40x30  whole  \d+\.\d s", result.err[1])
    ids = read_mask("m/a_mask.png")
    assert ids.shape == (30, 40)
    assert set(np.unique(ids)) <= {0, 1, 2}
    with Image.open("m/a_mask.png") as im:
        assert im.getpalette()[:9] == [128, 64, 128, 128, 128, 128, 128, 128, 0]
    assert read_image("m/a_overlay.png").width >= 40


def test_a_binary_mask_can_be_named_and_made_of_windows(run, picture, tiny_binary):
    picture(Path("a.png"), (60, 40))
    result = run("seg", "predict", "a.png", "-m", tiny_binary, "-o", "new/mask.png", "--tile", "32")
    assert (result.code, result.out) == (0, ["new/mask.png"])
    assert "60x40  tile 32 + 8" in result.err[1]
    assert set(np.unique(read_mask("new/mask.png"))) <= {0, 1}


def test_a_model_that_needs_its_batch_is_refused_with_what_to_do(run, picture, tiny_seg):
    net, card = load_model(tiny_seg)
    save_model(Path("batch.safetensors"), net, dataclasses.replace(card, bn_mode="batch"))
    picture(Path("a.png"), (16, 16))
    result = run("seg", "predict", "a.png", "-m", "batch.safetensors")
    assert (result.code, result.out) == (2, [])
    assert result.err[-1].endswith("(bn_mode batch); make running ones with densekit bn recalibrate")
    assert names() == ["a.png", "batch.safetensors"]


def test_clashes_are_refused_before_anything_is_computed(run, picture, tiny_sr, tiny_seg):
    picture(Path("a.png"))
    picture(Path("a.jpg"))
    picture(Path("a_x2.jpg"))
    clash = run("seg", "predict", "a.jpg", "a.png", "-m", tiny_seg)
    assert (clash.code, clash.out) == (2, [])
    assert clash.err == ["error: a.jpg and a.png would both become a_mask.png; use separate folders or -o per file"]
    exists = run("sr", "predict", "a.png", "a.jpg", "-m", tiny_sr)
    assert exists.code == 2
    assert exists.err == ["error: a_x2.jpg already exists; add --overwrite or choose another -o"]
    assert names() == ["a.jpg", "a.png", "a_x2.jpg"]
    before = Path("a_x2.jpg").read_bytes()
    assert run("sr", "predict", "a.png", "a.jpg", "-m", tiny_sr, "--overwrite").code == 0
    assert Path("a_x2.jpg").read_bytes() != before


@pytest.mark.parametrize(
    ("args", "code", "line"),
    [
        (["-o", "file/out"], 2, "error: file is not a folder; choose another -o"),
        (["--tile", "5"], 2, "error: tile 5: expected auto, off or a size of at least 16 pixels"),
        (["--device", "cupu"], 2, "error: device 'cupu': expected auto, cpu"),
        (["-m", "no-such-model"], 2, "error: model 'no-such-model': no such model"),
        (["-m", "gone.safetensors"], 5, "error: gone.safetensors: no such file"),
        (["-m", "damaged.safetensors"], 5, "error: damaged.safetensors: SHA-256 of its bytes is"),
        (["-m", "pickled.pth"], 5, "error: pickled.pth: holds more than tensors, such as a pickled module, and"),
    ],
)
def test_what_cannot_work_is_one_line_a_code_and_no_output(run, picture, tiny_sr, args, code, line):
    picture(Path("a.png"))
    Path("file").touch()
    data = bytearray(tiny_sr.read_bytes())
    data[-9] ^= 4
    Path("damaged.safetensors").write_bytes(data)
    Path("pickled.pth").write_bytes(pickle.dumps({"weight": [1.0]}))
    before = names()
    result = run("sr", "predict", "a.png", "-m", tiny_sr, *args)
    assert (result.code, result.out, len(result.err)) == (code, [], 1)
    assert result.err[0].startswith(line)
    assert names() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there_is_named(run, picture, tiny_sr):
    picture(Path("a.png"))
    result = run("sr", "predict", "a.png", "-m", tiny_sr, "--device", "cuda")
    assert result.code == 4
    assert re.fullmatch(r"error: device cuda: torch .* sees no CUDA device; use --device cpu", result.err[0])


def test_no_usable_input_is_a_fault_of_the_data(run, tiny_sr):
    gone = run("sr", "predict", "gone.png", "-m", tiny_sr)
    assert (gone.code, gone.out) == (3, [])
    assert gone.err[1:] == ["error: gone.png: no such file; check the name"]
    Path("empty").mkdir()
    empty = run("sr", "predict", "empty", "-m", tiny_sr)
    assert empty.code == 3
    assert empty.err[0].startswith("error: empty: no pictures in this folder")


def test_a_disk_that_is_full_leaves_nothing_behind(run, picture, tiny_sr, monkeypatch):
    for name in "ab":
        picture(Path(f"{name}.png"))

    def full(descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    result = run("sr", "predict", "a.png", "b.png", "-m", tiny_sr, "-o", "out")
    assert result.code == 1
    assert result.err[1:] == [
        "error: out/a_x2.png: cannot be written (No space left on device); free some space and run again",
        "0 done, 1 failed, 1 not started",
    ]
    assert names("out") == []


def test_a_tiff_is_written_as_it_is_made_and_holds_what_a_png_holds(run, picture, tiny_sr, monkeypatch):
    picture(Path("a.png"), (90, 50), mode="RGBA")
    monkeypatch.setattr("densekit.predict.upscale.SMALLEST_PART", 16)
    monkeypatch.setattr("densekit.predict.upscale.FIELDS_A_PART", 4)
    placed = []
    real = Upscaler.upscale_into

    def counted(self, place, picture, **options):
        def count(top, left, samples):
            placed.append(samples.shape)
            place(top, left, samples)

        return real(self, count, picture, **options)

    monkeypatch.setattr(Upscaler, "upscale_into", counted)
    assert run("sr", "predict", "a.png", "-m", tiny_sr, "--tile", "16", "-o", "a.tif").out == ["a.tif"]
    assert len(placed) >= 8
    assert {shape[2] for shape in placed} == {4}
    assert run("sr", "predict", "a.png", "-m", tiny_sr, "--tile", "16", "-o", "b.png").code == 0
    tiff, png = read_image("a.tif"), read_image("b.png")
    assert np.array_equal(tiff.pixels, png.pixels)
    assert np.array_equal(tiff.alpha, png.alpha)


def test_a_tiff_that_fails_half_way_leaves_no_file_and_keeps_the_code_of_its_fault(run, picture, tiny_sr, monkeypatch):
    picture(Path("a.png"), (90, 50))

    def fail(self, place, picture, **options):
        place(0, 0, np.zeros((4, 4, 3), np.uint8))
        raise DeviceError("90x50 does not fit cpu memory even at tile 64; free memory or use --precision bf16")

    monkeypatch.setattr(Upscaler, "upscale_into", fail)
    result = run("sr", "predict", "a.png", "-m", tiny_sr, "-o", "out/a.tif")
    assert (result.code, result.out) == (4, [])
    assert result.err[1].startswith("error: a.png: 90x50 does not fit cpu memory even at tile 64")
    assert names("out") == []


def test_a_result_that_does_not_fit_says_what_would(run, picture, tiny_sr, monkeypatch):
    picture(Path("a.png"), (90, 50))
    monkeypatch.setattr("densekit.memory.available_memory", lambda device: 100_000)
    refused = run("sr", "predict", "a.png", "-m", tiny_sr, "-o", "b.png")
    assert (refused.code, refused.out) == (4, [])
    assert refused.err[1] == (
        "error: a.png: the 180x100 result needs 0.000162 GB of memory; use -o NAME.tif, written as it is made"
    )
    compared = run("sr", "predict", "a.png", "-m", tiny_sr, "-o", "a.tif", "--compare")
    assert compared.code == 4
    assert compared.err[1].endswith("needs 0.000162 GB of memory; leave out --compare")
    assert run("sr", "predict", "a.png", "-m", tiny_sr, "-o", "a.tif").code == 0
    assert names() == ["a.png", "a.tif"]


def test_an_interrupted_command_leaves_whole_files_only(start, picture, tiny_sr):
    data = picture(Path("p/0.png"), (200, 150)).read_bytes()
    for index in range(1, 300):
        Path(f"p/{index}.png").write_bytes(data)
    process = start("sr", "predict", "p", "-m", tiny_sr, "-o", "out", "--tile", "16")
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=250)
    assert process.returncode == 130
    *_, last = err.decode().splitlines()
    done = (first + rest).decode().split()
    assert last == f"error: interrupted: {len(done)} of 300 done, and those are whole"
    assert "Traceback" not in err.decode()
    written = sorted(map(str, Path("out").iterdir()))
    assert set(done) <= set(written)
    assert len(written) <= len(done) + 1  # the signal may come between a file and its line
    assert all(read_image(path).width == 400 for path in written)
