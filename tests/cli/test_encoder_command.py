from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from densekit import models
from densekit.cards import Card
from densekit.checkpoint import save_model
from densekit.image import Picture, write_image, write_mask
from densekit.models import Entry, create_model

TINY = {"growth_rate": 4, "block_config": [1, 2, 2, 1], "num_init_features": 8, "bn_size": 2}


@pytest.fixture
def tiny(monkeypatch):
    entry = Entry("encoder", "densenet:DenseNet", {**TINY, "num_classes": 5}, "densenet:DenseNetEncoder")
    monkeypatch.setitem(models.MODELS, "densenet_tiny", entry)
    return "densenet_tiny"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint of a small DenseNet."""
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    card = Card("encoder", "densenet", TINY, step=7, data="data/seen", licence="free")
    save_model(path, create_model("densenet", **TINY), card)
    return path


@pytest.fixture
def pictures(tmp_path, picture):
    folder = tmp_path / "pictures"
    picture(folder / "a.png", (64, 64))
    picture(folder / "b.jpg", (96, 64))
    picture(folder / "below" / "c.png", (64, 80), "L")
    return folder


@pytest.mark.usefixtures("tiny")
def test_the_list_names_what_encoders_cost(run):
    result = run("encoder", "list", "densenet_t*")
    assert (result.code, result.err) == (0, [])
    heads, row = result.out
    assert heads.split() == ["encoder", "parameters", "MACs", "size", "channels", "strides"]
    assert row.split()[:2] == ["densenet_tiny", "3,885"]
    assert "224x224  12 14 15 11  4 8 16 32" in row
    record = json.loads(run("encoder", "list", "densenet_tiny", "--json").out[0])
    assert list(record) == ["kind", "name", "shape", "parameters", "macs", "channels", "reductions"]
    assert record["shape"] == [1, 3, 224, 224]


def test_a_pattern_without_an_encoder_names_the_nearest(run):
    result = run("encoder", "list", "densenet1211")
    assert (result.code, result.out) == (2, [])
    assert result.err[0].startswith("error: no encoder matches 'densenet1211'; did you mean 'densenet121'? (")


def test_info_tells_taps_and_costs(run, tiny):
    result = run("encoder", "info", tiny, "--size", "64x96")
    assert (result.code, result.err) == (0, [])
    facts = {line.split("  ")[0]: line for line in result.out}
    assert facts["parameters"].endswith("3,885, with classifier or decoder 3,945")
    assert "64x96, 3 channels; sides multiples of 32" in facts["picture"]
    assert all(policy in facts["training"] for policy in ("speed", "balanced", "lean", "min"))
    taps = [line.split() for line in result.out[result.out.index("") + 2 :]]
    assert [tap[0] for tap in taps] == ["0", "1", "2", "3", "4"]
    assert taps[4][1:5] == ["features.relu5", "11", "2x3", "32"]


def test_info_of_a_file_begins_with_its_card(run, weights):
    result = run("encoder", "info", weights, "--size", "64", "--out-indices", "2,3")
    assert result.code == 0
    assert result.out[0].split() == ["task", "encoder"]
    assert any(line.split() == ["licence", "free"] for line in result.out)
    record = json.loads(run("encoder", "info", weights, "--size", "64", "--json").out[0])
    assert record["card"]["data"] == "data/seen"
    assert record["network_parameters"] - record["parameters"] == 11 * 1000 + 1000
    assert [tap["index"] for tap in record["taps"]] == [0, 1, 2, 3, 4]


def test_info_of_a_network_without_an_encoder_is_its_card(run, tiny_sr):
    result = run("encoder", "info", tiny_sr)
    assert (result.code, result.out[0].split()) == (0, ["task", "sr"])
    assert result.out[-1] == "this network has no encoder (densekit encoder list names those)"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--size", "0"], "'0' is no size; expected N or HxW in pixels, such as 224 or 480x640"),
        (["--size", "1x2x3"], "'1x2x3' is no size"),
        (["--out-indices", "a"], "'a' are no taps; expected numbers between commas, such as 1,2,3,4"),
        (["--out-indices", "3,2"], "error: out_indices=(3, 2): expected ascending numbers"),
        (["--output-stride", "7"], "error: output_stride=7: expected 8, 16 or 32"),
    ],
)
def test_what_info_cannot_take_is_refused(run, tiny, args, said):
    result = run("encoder", "info", tiny, *args)
    assert (result.code, result.out) == (2, [])
    assert said in result.err[-1]


@pytest.mark.parametrize("name", ["f.npz", "f.safetensors"])
def test_features_of_a_folder_go_into_one_file_with_their_names(run, weights, pictures, tmp_path, name):
    out = tmp_path / name
    result = run("encoder", "features", pictures, "-m", weights, "-o", out, "--tap", "4", "--tap", "2")
    assert (result.code, result.out) == (0, [str(out)])
    assert "net.safetensors (densenet, trained)  tap 2, tap 4" in result.err[0]
    assert result.err[-1] == "3 done, 0 failed"
    if name.endswith(".npz"):
        with np.load(out) as file:
            arrays, about = {key: file[key] for key in ("tap2", "tap4")}, json.loads(str(file["densekit"]))
    else:
        from safetensors import safe_open

        with safe_open(out, "np") as file:
            arrays = {key: file.get_tensor(key) for key in ("tap2", "tap4")}
            about = json.loads(file.metadata()["densekit"])
    assert {key: array.shape for key, array in arrays.items()} == {"tap2": (3, 14), "tap4": (3, 11)}
    assert about["names"] == ["a.png", "b.jpg", "below/c.png"]
    assert (about["taps"], about["pool"], about["random_weights"]) == ([2, 4], "avg", None)


def test_a_bad_picture_is_one_line_and_the_others_have_their_features(run, weights, pictures, tmp_path):
    (pictures / "b.jpg").write_bytes(b"no picture")
    out = tmp_path / "f.npz"
    result = run("encoder", "features", pictures, "-m", weights, "-o", out)
    assert (result.code, result.out) == (1, [str(out)])
    assert sum(line.startswith("error: ") for line in result.err) == 1
    with np.load(out) as file:
        assert json.loads(str(file["densekit"]))["names"] == ["a.png", "below/c.png"]
        assert file["tap4"].shape == (2, 11)


def test_maps_go_into_a_folder_one_file_for_each_picture(run, weights, pictures, tmp_path):
    out = tmp_path / "maps"
    result = run("encoder", "features", pictures, "-m", weights, "-o", out, "--pool", "none")
    assert (result.code, result.out) == (0, [str(out / name) for name in ("a.npz", "b.npz", "below/c.npz")])
    with np.load(out / "b.npz") as file:
        assert file["tap4"].shape == (11, 2, 3)
    again = run("encoder", "features", pictures, "-m", weights, "-o", out)
    assert again.code == 2
    assert again.err[0] == f"error: {out}/a.npz already exists; add --overwrite or choose another -o"


def test_the_json_of_features_keeps_its_keys(run, weights, pictures, tmp_path):
    out = tmp_path / "f.npz"
    result = run("encoder", "features", pictures / "a.png", "-m", weights, "-o", out, "--size", "64", "--json")
    record = json.loads(result.out[0])
    assert len(result.out) == 1
    assert list(record) == [
        "input", "output", "ok", "densekit", "model", "random_weights", "pool", "size", "taps", "row", "features",
        "seconds", "warnings",
    ]  # fmt: skip
    assert (record["output"], record["row"], record["features"]) == (str(out), 0, {"tap4": [11]})


def test_random_weights_are_used_only_on_request(run, tiny, pictures, tmp_path):
    out = tmp_path / "f.npz"
    refused = run("encoder", "features", pictures, "-m", tiny, "-o", out)
    assert (refused.code, out.exists()) == (2, False)
    assert refused.err == [
        "error: densenet_tiny is an encoder without weights; give a file of weights, or --random-weights SEED for "
        "features that nothing was learnt for"
    ]
    result = run("encoder", "features", pictures, "-m", tiny, "-o", out, "--random-weights", "3")
    assert result.code == 0
    assert "(densenet_tiny, random weights, seed 3)" in result.err[0]


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (
            ["-o", "f.npz", "--pool", "none"],
            2,
            "--pool none gives maps as large as their pictures; add --size, or give",
        ),
        (["-o", "missing/f.npz"], 2, "-o missing/f.npz: the folder missing is missing; create it first"),
        (["-o", "f.npz", "--tap", "9"], 2, "densenet: no tap 9; there are 0, 1, 2, 3, 4"),
        (["-o", "folder.npz"], 2, "-o folder.npz is a folder; give the name of a file"),
        (["-o", "there.npz"], 2, "-o there.npz already exists; add --overwrite or choose another name"),
    ],
)
def test_features_that_cannot_be_made_are_refused_before_any_work(
    run, weights, pictures, tmp_path, monkeypatch, args, code, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.npz").touch()
    (tmp_path / "folder.npz").mkdir()
    result = run("encoder", "features", pictures, "-m", weights, *args)
    assert (result.code, result.out, len(result.err)) == (code, [], 1)
    assert said in result.err[0]


def test_feature_reuse_is_drawn_and_told(run, weights, tmp_path):
    out = tmp_path / "reuse.svg"
    result = run("encoder", "reuse", "-m", weights, "-o", out)
    assert (result.code, result.out, result.err) == (0, [str(out)], [])
    assert "net.safetensors: feature reuse" in ElementTree.parse(out).getroot()[0].text
    records = [json.loads(line) for line in run("encoder", "reuse", "-m", weights, "--json").out]
    assert [record["name"] for record in records] == [f"features.denseblock{i}" for i in range(1, 5)]
    assert records[1]["weights"][2][0] is None  # a later layer is not read by an earlier one


def test_gradients_of_several_networks_are_drawn(run, tiny, tiny_seg, pictures, tmp_path):
    out = tmp_path / "gradients.svg"
    args = ("-m", tiny, "--beside", "timm:test_resnet", "--beside", tiny_seg, "-o", out)
    result = run("encoder", "gradients", *args)
    assert (result.code, result.out) == (0, [str(out)])
    assert result.err[0].startswith("densenet_tiny: 17 layers; first quarter / last quarter ")
    assert len(result.err) == 3
    assert len(list(ElementTree.parse(out).getroot().iter("{http://www.w3.org/2000/svg}polyline"))) == 3
    given = run("encoder", "gradients", "-m", tiny, "--images", pictures, "--size", "64", "--json")
    record = json.loads(given.out[0])
    assert list(record) == ["kind", "model", "early_share", "layers"]
    assert record["layers"][0]["name"] == "features.conv0"
    assert list(record["layers"][0]) == ["name", "norm", "weights"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["reuse", "-m", "rdn-tiny-x2"], "encoder reuse needs -o OUT.svg, or --json"),
        (["reuse", "-m", "rdn-tiny-x2", "-o", "a.png"], "-o a.png: expected a name that ends with .svg"),
        (["gradients", "-m", "densenet_tiny"], "encoder gradients needs -o OUT.svg, or --json"),
        (["gradients", "-m", "a", "--json", *["--beside", "b"] * 3], "found 3 of --beside; give at most two"),
        (["gradients", "-m", "timm:resnt18", "--json"], "timm:resnt18: timm knows no such model; did you mean"),
        (
            ["gradients", "-m", "densenet_tiny", "--json", "--images", "one"],
            "--images one: one picture; norms need two",
        ),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_what_cannot_be_drawn_is_refused(run, picture, tmp_path, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "one" / "a.png")
    result = run("encoder", *args)
    assert (result.code, result.out) == (2, [])
    assert said in result.err[-1]


@pytest.fixture
def masked(tmp_path):
    """Ten pictures with bright squares, and their masks."""
    for index in range(10):
        rng = np.random.default_rng(index)
        ids = np.zeros((72, 72), np.uint8)
        top, left = rng.integers(0, 40, 2)
        ids[top : top + 30, left : left + 30] = 1
        pixels = (60 + 120 * ids[..., None] + rng.integers(0, 20, (72, 72, 3))).astype(np.uint8)
        for part in ("images", "masks"):
            (tmp_path / "data" / part).mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / "data" / "images" / f"{index}.png", Picture(pixels))
        write_mask(tmp_path / "data" / "masks" / f"{index}.png", ids)
    return tmp_path / "data"


@pytest.mark.parametrize("suffix", [".md", ".json", ".svg"])
def test_encoders_are_compared_on_data_at_hand(run, tiny, masked, tmp_path, suffix):
    out = tmp_path / f"report{suffix}"
    args = ("--data", masked, "--steps", 2, "--batch-size", 2, "--crop-size", 64, "-o", out)
    result = run("encoder", "compare", tiny, "timm:test_resnet", *args)
    assert result.code == 0, result.err
    heads, ours, peer = result.out
    assert heads.split() == ["encoder", "parameters", "MACs", "kept", "(min)", "step", "time", "loss", "IoU"]
    assert ours.split()[:2] == [tiny, "3,885"]
    assert peer.startswith("timm:test_resnet")
    assert "2 steps of 2 crops of 64 from 8 pictures; scored on 2 others" in result.err
    if suffix == ".md":
        lines = out.read_text().splitlines()
        assert lines[0] == "# Encoders compared"
        assert sum(line.startswith("| ") for line in lines) == 4
        assert any(line.startswith("- command: densekit encoder compare ") for line in lines)
    elif suffix == ".svg":
        texts = [element.text for element in ElementTree.parse(out).iter("{http://www.w3.org/2000/svg}text")]
        assert texts[0] == "2 steps of 2 crops of 64 from 8 pictures; scored on 2 others"
        assert {"parameters, millions", "time of a step, first encoder = 1"} <= set(texts)
    else:
        report = json.loads(out.read_text())
        assert [standing["name"] for standing in report["standings"]] == [tiny, "timm:test_resnet"]
        assert report["settings"]["crop_size"] == 64
        assert report["conditions"]["device"] == "cpu"


def test_the_json_of_a_comparison_keeps_its_keys(run, tiny, masked):
    args = ("--data", masked, "--steps", 2, "--batch-size", 2, "--crop-size", 64, "--json")
    (line,) = run("encoder", "compare", tiny, *args).out
    assert list(json.loads(line)) == [
        "kind", "name", "parameters", "macs", "kept_bytes", "least_bytes", "step_ratio", "loss", "score"
    ]  # fmt: skip


def test_the_group_has_all_its_commands(run):
    text = "\n".join(run("encoder", "-h").out)
    assert all(
        f"  {name} " in text for name in ("list", "info", "features", "reuse", "gradients", "compare", "convert")
    )
