"""Every network, in every runtime, on sizes from 17x23 to 512x300."""

from __future__ import annotations

import pytest
import torch

from densekit.export.comparing import compare, judge, runs_of
from densekit.export.pictures import SIZES
from densekit.export.pooling import PartMeans
from densekit.export.tracing import Root, describe, on_cpu, trace
from densekit.export.writing import onnx_bytes, openvino_bytes, pt2_bytes, to_onnx
from tests.export.networks import ENCODERS, NETWORKS, make, make_encoder

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


def check_everywhere(net, card, **options):
    net = on_cpu(net)
    options = {"pad": True, "argmax": False, "uint8": False, "opset": 18, **options}
    graph = describe(net, card, **options)
    program, graph = trace(net, graph, upscales=card.task == "sr")
    model = to_onnx(program, graph)
    files = {
        "onnx": onnx_bytes(model, card, graph),
        "openvino": openvino_bytes(model, card, graph),
        "pt2": pt2_bytes(program, card, graph),
    }
    found = []
    for kind, file in files.items():
        found += compare(runs_of(kind, file.data, file.weights, kind), net, graph, card.task)
    judge(found, card.model)
    assert [one.runtime for one in found] == ["ONNX Runtime", "OpenVINO", "OpenVINO", "torch.export"]
    assert all(one.images == 2 * sum(number for number, _, _ in SIZES) for one in found)
    assert all(b"/home/" not in file.data and b"site-packages" not in file.data for file in files.values())
    return graph


@pytest.mark.slow
@pytest.mark.parametrize("key", NETWORKS)
def test_every_runtime_gives_what_the_network_gives_on_every_size(key):
    net, card = make(key)
    graph = check_everywhere(net, card)
    assert graph.any_size == (card.task != "encoder")


@pytest.mark.slow
@pytest.mark.parametrize("key", ENCODERS)
def test_an_encoder_gives_all_its_feature_maps(key):
    assert check_everywhere(*make_encoder(key)).num_outputs == 3


@pytest.mark.slow
@pytest.mark.parametrize("key", ["rrdbnet x2 unshuffle", "unet", "fc_densenet"])
def test_without_padding_a_graph_takes_the_sizes_of_its_network(key):
    assert not check_everywhere(*make(key), pad=False).any_size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "options"), [("rdn", {"uint8": True}), ("fc_densenet", {"uint8": True, "argmax": True})]
)
def test_bytes_go_in_and_bytes_come_out(key, options):
    check_everywhere(*make(key), **options)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, 23])
def test_newer_opsets_do_the_same(opset):
    check_everywhere(*make("rrdbnet x2 unshuffle"), opset=opset)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (12, 6), (13, 40)])
def test_means_of_parts_are_those_of_adaptive_pooling(size):
    x = torch.rand(2, 3, *size)
    for parts in ((2, 2), (3, 6)):
        assert torch.allclose(PartMeans(*parts)(x), torch.nn.AdaptiveAvgPool2d(parts)(x), atol=1e-6)


@pytest.mark.parametrize("key", ["rrdbnet x2 unshuffle", "fc_densenet", "pan"])
def test_what_the_graph_holds_takes_any_size(key):
    net, card = make(key)
    graph = describe(net, card, pad=True, argmax=False, uint8=False, opset=18)
    x = torch.rand(2, 3, 17, 23)
    with torch.no_grad():
        y = Root(net, graph, upscales=card.task == "sr")(x)
        missing = [max(-side % graph.multiple_of, graph.min_size - side) for side in (23, 17)]
        wanted = net(torch.nn.functional.pad(x, (0, missing[0], 0, missing[1]), mode="replicate"))
    assert y.shape[-2:] == (17 * graph.scale, 23 * graph.scale)
    assert torch.equal(y, wanted[..., : y.shape[-2], : y.shape[-1]])
