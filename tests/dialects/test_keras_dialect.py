"""DenseNets of Keras, in every file that Keras writes."""

from __future__ import annotations

import dataclasses
import io
import os
import sys

import numpy as np
import pytest
import torch

from densekit.checkpoint import load_model, read_tensors
from densekit.dialects import convert, open_foreign, read_foreign, write_foreign
from densekit.dialects.densenet import describe
from densekit.dialects.keras import ROWS, _shifted, _unshifted
from densekit.errors import CheckpointError
from densekit.models import create_model
from densekit.pretrained import create_encoder
from tests.dialects.conftest import CARD

h5py = pytest.importorskip("h5py")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own
os.environ.setdefault("KERAS_BACKEND", "torch")  # before Keras is imported, which happens inside the functions
BLOCKS = [1, 2, 1, 1]
KERAS = dataclasses.replace(CARD, arguments={"block_config": BLOCKS, "num_classes": 5})
FILES = ("x.weights.h5", "x.keras", "x.h5", "weights.h5")


def build(**options):
    """Returns a small DenseNet of Keras that gives logits."""
    from keras.src.applications.densenet import DenseNet

    options = {"include_top": True, "classes": 5, "input_shape": (64, 64, 3), **options}
    return DenseNet(BLOCKS, weights=None, classifier_activation=None, **options)


def randomize(model):
    rng = np.random.default_rng(0)
    for layer in model.layers:
        weights = layer.get_weights()
        if len(weights) == 4:  # gamma, beta, mean, variance; some of these are as small as Keras' epsilon
            size = weights[0].shape
            variance = rng.choice([0.5, 1.7, 1e-4, 3e-6], size) * rng.uniform(0.5, 2, size)
            layer.set_weights(
                [rng.normal(0.1, 0.02, size), rng.normal(0, 0.3, size), rng.normal(0, 0.3, size), variance]
            )
        elif weights:
            layer.set_weights([rng.normal(0, np.prod(w.shape[:-1]) ** -0.5, w.shape) for w in weights])
    return model


def write(model, folder, name):
    if name == "weights.h5":  # what Keras 2's save_weights writes
        from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

        with h5py.File(folder / name, "w") as file:
            save_weights_to_hdf5_group(file, model)
    elif name.endswith(".weights.h5"):
        model.save_weights(folder / name)
    else:
        model.save(folder / name)
    return folder / name


@pytest.fixture(scope="module")
def theirs():
    return randomize(build())


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(1).random((2, 64, 64, 3), dtype=np.float32)


@pytest.fixture(scope="module")
def logits(theirs, pictures):
    return theirs.predict(pictures, verbose=0)


@pytest.mark.parametrize("name", FILES)
def test_every_file_of_keras_loads_strictly_and_gives_the_same_logits(name, theirs, pictures, logits, tmp_path):
    net, card, report = open_foreign(write(theirs, tmp_path, name))
    assert (report.dialect, card.model, card.arguments) == (
        "keras", "densenet", {"num_classes": 5, "block_config": BLOCKS},
    )  # fmt: skip
    assert report.ignored == {}
    assert set(report.filled.values()) == {"0, a counter of batches that the file lacks"}
    assert report.notes == ("gives logits: the softmax behind Keras' classifier is not part of the network here",)
    with torch.inference_mode():
        ours = net.eval()(torch.from_numpy(pictures).permute(0, 3, 1, 2)).numpy()
    assert np.abs(logits).max() > 0.1
    np.testing.assert_allclose(ours, logits, atol=1e-5 * max(1, np.abs(logits).max()))


def test_the_epsilon_of_keras_is_not_ours_and_counts(theirs, tmp_path):
    tensors = read_foreign(write(theirs, tmp_path, "x.weights.h5"))[0]
    given = theirs.get_layer("conv1_bn").get_weights()[3].astype(np.float64)
    found = tensors["features.norm0.running_var"].double().numpy()
    np.testing.assert_allclose(found + 1e-5, given + 1.001e-5, rtol=1e-7)
    assert np.abs((found + 1e-5) / (given + 1e-5) - 1).max() > 5e-4


def test_a_model_without_its_top_fits_an_encoder(tmp_path):
    model = randomize(build(include_top=False, pooling="avg", input_shape=(32, 32, 3)))
    path = write(model, tmp_path, "x.weights.h5")
    net, card, report = open_foreign(path)
    assert card.arguments == {"num_classes": 0, "block_config": BLOCKS}
    assert "without a classifier" in report.notes[0]
    encoder = create_encoder("densenet", weights=path, block_config=BLOCKS).eval()
    x = np.random.default_rng(2).random((1, 32, 32, 3), dtype=np.float32)
    expected = model.predict(x, verbose=0)
    with torch.inference_mode():
        given = torch.from_numpy(x).permute(0, 3, 1, 2)
        np.testing.assert_allclose(net.eval()(given), expected, atol=1e-5 * max(1, np.abs(expected).max()))
        deepest = encoder(given)[-1].mean((2, 3))
        np.testing.assert_allclose(deepest, expected, atol=1e-5 * max(1, np.abs(expected).max()))


def test_what_is_written_loads_in_keras_in_order_and_by_name(theirs, pictures, logits, tmp_path):
    convert(write(theirs, tmp_path, "x.weights.h5"), tmp_path / "own.safetensors")
    convert(tmp_path / "own.safetensors", tmp_path / "there.h5", to="keras")
    for options in ({}, {"by_name": True}):
        again = build()
        again.load_weights(tmp_path / "there.h5", **options)
        np.testing.assert_allclose(again.predict(pictures, verbose=0), logits, rtol=1e-5, atol=1e-6)
    with h5py.File(tmp_path / "there.h5") as file:
        given = [layer.name for layer in theirs.layers if layer.weights]
        assert list(file.attrs["layer_names"]) == given


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("num_classes", [0, 5])
def test_there_and_back_gives_the_same_bytes(num_classes, half, own, tmp_path):
    source = own(dataclasses.replace(KERAS, arguments={**KERAS.arguments, "num_classes": num_classes}), half=half)
    convert(source, tmp_path / "there.h5", to="keras")
    convert(tmp_path / "there.h5", tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == source.read_bytes()


def test_a_network_that_keras_does_not_have_is_not_written_for_it(own, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"networks of keras have growth rate 32, bottlenecks of 4 k and a stem of 64"
    ):
        convert(own(), tmp_path / "there.h5", to="keras")
    assert not (tmp_path / "there.h5").exists()


def test_variances_come_back_to_the_bit_whatever_their_size():
    generator = torch.Generator().manual_seed(0)
    for exponent in range(-6, 6):
        variance = 10.0**exponent * (0.02 + torch.rand(100_000, generator=generator))
        assert torch.equal(_shifted(_unshifted(variance)), variance)


def test_variances_of_dead_channels_come_back_too(own, tmp_path):
    tensors, card = read_tensors(own(KERAS))
    tiny = [0.0, 1e-45, 3e-40, 1e-30, 1e-20, 1e-15, 1e-12, 1e-10, 1e-9, 1e-8, 1.1e-8, 2e-8, 1e-7, 1e-6, 1e-5, 1.0]
    tensors["features.norm0.running_var"] = torch.tensor(tiny * 4)
    write_foreign(tensors, card, "keras", tmp_path / "there.h5")
    back = read_foreign(tmp_path / "there.h5")[0]
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_names_of_keras_applications_are_known_too(own, tmp_path):
    """The package that Keras took in had a slash in the first names, and another name for the classifier."""
    source = own(KERAS)
    convert(source, tmp_path / "there.h5", to="keras")
    early = {"conv1_conv": "conv1/conv", "conv1_bn": "conv1/bn", "predictions": "fc1000"}
    with h5py.File(tmp_path / "there.h5") as new, h5py.File(tmp_path / "early.h5", "w") as old:
        for layer in new.attrs["layer_names"]:
            name = early.get(layer, layer)
            for weight, values in new[layer][layer].items():
                old.create_dataset(f"{name}/{name}/{weight}:0", data=values[...])
    net, _, report = open_foreign(tmp_path / "early.h5")
    assert report.renamed["conv1/conv/kernel"] == "features.conv0.weight"
    expected = load_model(source)[0].state_dict()
    found = net.state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in found.items() if "num_batches_tracked" not in n)


@pytest.mark.slow  # Keras takes 5 s to build one
@pytest.mark.parametrize(("name", "file"), [("densenet121", 121), ("densenet201", 201)])
def test_layers_are_named_as_in_the_whole_networks(name, file):
    import keras

    model = getattr(keras.applications, f"DenseNet{file}")(weights=None)
    layers = {layer.name for layer in model.layers if layer.weights}
    with torch.device("meta"):
        state = create_model(name).state_dict()
    ours = {key.rpartition(".")[0]: value for key, value in state.items()}
    assert {key.rpartition(".")[0] for key in ROWS.theirs({f"{key}.weight": t for key, t in ours.items()})} == layers
    assert describe(state, {}) == (name, {})


def test_a_layer_that_densenets_do_not_have_is_named(theirs, tmp_path):
    path = write(theirs, tmp_path, "weights.h5")
    with h5py.File(path, "r+") as file:
        file.create_dataset("attention/attention/kernel", data=np.ones((1, 1, 3, 3), np.float32))
    with pytest.raises(
        CheckpointError, match=r"weights\.h5: has the unknown attention\.weight \(1 in all\) for densenet"
    ):
        open_foreign(path)


def test_a_damaged_file_of_keras_is_one_line(theirs, tmp_path):
    data = write(theirs, tmp_path, "x.weights.h5").read_bytes()
    for part in (data[:1000], data[: len(data) // 2], data[:-1]):
        (tmp_path / "cut.h5").write_bytes(part)
        with pytest.raises(
            CheckpointError, match=r"cut\.h5: a damaged or cut HDF5 file \(.*\); copy or download it again$"
        ):
            open_foreign(tmp_path / "cut.h5")


def test_an_hdf5_file_without_layers_is_said_so(tmp_path):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("labels", data=np.arange(3))
    (tmp_path / "x.h5").write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match=r"x\.h5: holds no weights; expected layers of Keras$"):
        open_foreign(tmp_path / "x.h5")


def test_without_h5py_the_way_to_it_is_named(theirs, tmp_path, monkeypatch):
    path = write(theirs, tmp_path, "x.weights.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(
        CheckpointError, match=r"x\.weights\.h5: a file of Keras needs h5py: pip install 'densekit\[keras\]'$"
    ):
        open_foreign(path)
