from __future__ import annotations

import json
import math
import mmap
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from densekit.errors import ConfigError
from tools.bench import __main__ as command
from tools.bench import child, forms, runner, variants
from tools.bench.cases import INFERENCE, TRAINING, Case, choose_cases, read_cases
from tools.bench.chart import LEFT, RIGHT, WIDTH, to_svg
from tools.bench.clock import interleave
from tools.bench.machine import describe_processor
from tools.bench.networks import build_network, count_flops, make_input
from tools.bench.peers import PEERS
from tools.bench.process import ChildError, Task, run_child
from tools.bench.rows import ABSENT, FAILED, MEASURED, WRONG, is_fault, make_row
from tools.bench.runner import Options, measure_all
from tools.bench.table import columns, milliseconds, to_markdown
from tools.bench.training import saved_bytes
from tools.bench.variants import inference_variants, select, training_variants

ROOT = Path(__file__).parents[1]
RDN = Case("tiny", "rdn", (12, 16), {"num_blocks": 2, "num_layers": 2, "growth_rate": 4, "num_features": 6})
DENSENET = Case(
    "tiny_densenet",
    "densenet",
    (64, 64),
    {"growth_rate": 4, "block_config": (1, 2, 1, 1), "num_classes": 10},
    peers=("torchvision", "timm", "SMP"),
)
ESRGAN = Case("tiny_esrgan", "rrdbnet", (8, 12), {"num_features": 8, "num_blocks": 1}, peers=("spandrel",))
TIRAMISU = Case(
    "tiny_tiramisu",
    "fc_densenet",
    (32, 40),
    {"num_init_features": 8, "growth_rate": 4, "num_pools": 1, "num_layers": 2, "drop_rate": 0.2},
    batch=2,
)


@pytest.fixture
def in_process(monkeypatch):
    """What processes would do is done here, without ceilings that take long; nothing is exported."""
    monkeypatch.setattr("tools.bench.clock.CONV_SIZE", 8)
    monkeypatch.setattr("tools.bench.clock.COPY_BYTES", {"cpu": 2**12})
    monkeypatch.setattr(runner, "run_child", lambda task: child.ACTIONS[task.action](task))
    monkeypatch.setattr(variants, "is_installed", lambda module: module not in variants.RUNTIMES.values())


def run(case: Case, **options) -> list:
    options = {"rounds": 2, "times_only": True, **options}
    return list(measure_all([case], Options(**options), lambda text: None))


def write_cases(path: Path, *cases: Case) -> Path:
    fields = ("name", "model", "size", "arguments", "batch", "in_channels", "peers")
    path.write_text(json.dumps([{field: getattr(case, field) for field in fields} for case in cases]))
    return path


def test_medians_ratio_and_share_of_the_ceiling_are_those_by_hand():
    slow, fast = inference_variants(RDN)[:2]
    together = {
        "variants": {
            slow.name: {"error": 0.0, "samples": [[0.06, 0.1], [0.02, 0.2], [0.04, 0.3]]},
            fast.name: {"error": 2e-7, "samples": [[0.01, 0.02], [0.05, 0.02], [0.02, 0.05]]},
        },
        "ceilings": {
            "conv fp32": {"work": 4e9, "samples": [[0.5, 1], [0.1, 1], [0.4, 1]]},  # 10 GFLOP in a processor second
            "copy": {"work": 3e9, "samples": [[1.5, 1]]},
        },
        "flops": 10**8,
        "load": [0.5, 1.5],
    }
    alone = {"ready": 0.25, "peak": 3 * 2**20, "export": 2.5}
    row = make_row(RDN, fast, "cpu", 2, alone=alone, together=together, baseline=slow.name)
    assert (row.status, row.rounds, row.shape) == (MEASURED, 3, (1, 3, 12, 16))
    assert (row.median_ms, row.min_ms, row.max_ms) == pytest.approx((20, 10, 50))
    assert (row.wall_ms, row.wall_min_ms, row.wall_max_ms) == pytest.approx((20, 20, 50))
    assert row.ratio == pytest.approx(2)
    assert row.fraction == pytest.approx(0.5)  # 0.1 GFLOP need 10 ms and take 20
    assert (row.conv_gflops, row.copy_gbps) == pytest.approx((20, 4))  # of two threads
    assert (row.ready_s, row.export_s, row.peak_mib, row.saved_mib, row.error) == (0.25, 2.5, 3, None, 2e-7)
    assert (row.load_before, row.load_after, row.gflop) == (0.5, 1.5, 0.1)


def test_a_convolutions_operations_are_two_for_each_product():
    conv = nn.Conv2d(3, 8, 3, padding=1)
    assert count_flops(conv, (2, 3, 10, 12)) == 2 * 2 * 8 * 3 * 9 * 10 * 12
    assert count_flops(nn.Sequential(conv, nn.Conv2d(8, 5, 1)), (1, 3, 10, 12)) == 2 * 120 * (8 * 3 * 9 + 5 * 8)
    assert count_flops(nn.Conv2d(3, 8, 3, stride=2), (1, 3, 11, 11)) == 2 * 8 * 3 * 9 * 25
    # The first convolution has no gradient of its input to make, so a step is twice the forward pass.
    assert count_flops(conv, (2, 3, 10, 12), is_training=True) == 2 * count_flops(conv, (2, 3, 10, 12))


def test_known_networks_have_their_known_operations():
    flops = {}
    for case in choose_cases(INFERENCE, ["rdn_light", "fc_densenet56", "densenet121"], None, None):
        with torch.device("meta"):
            flops[case.name] = round(count_flops(build_network(case), case.shape) / 1e9, 1)
    assert flops == {"rdn_light": 102.7, "fc_densenet56": 61.4, "densenet121": 5.7}


def test_every_action_runs_once_in_each_round_and_not_always_after_the_same_one():
    calls = []
    samples = interleave({name: lambda name=name: calls.append(name) for name in "ABCD"}, 6)
    rounds = ["".join(calls[i : i + 4]) for i in range(0, 24, 4)]
    assert {"".join(sorted(one)) for one in rounds} == {"ABCD"}
    assert len(set(rounds)) > 1
    assert {len(found) for found in samples.values()} == {6}
    assert all(busy >= 0 and wall > 0 for found in samples.values() for busy, wall in found)


@pytest.mark.parametrize("case", [RDN, DENSENET, ESRGAN, TIRAMISU], ids=lambda case: case.name)
def test_weights_and_input_are_the_same_each_time_and_hide_nothing(case):
    net, other = build_network(case), build_network(case)
    for (name, one), two in zip(net.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
        assert not one.ndim or one.unique().numel() > 1 or one.numel() == 1, f"{name} is constant"
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not norms or any((norm.weight < 0).any() for norm in norms)
    assert torch.equal(make_input(case), make_input(case))
    assert make_input(case).shape == case.shape


@pytest.mark.parametrize(
    ("case", "peer"), [pytest.param(case, peer, id=peer) for case in (DENSENET, ESRGAN) for peer in case.peers]
)
def test_a_peer_with_our_weights_gives_our_result(case, peer):
    net, x = build_network(case).eval(), make_input(case)
    with torch.inference_mode():
        assert child.difference(PEERS[peer].build(case, net).eval()(x), net(x)) < 1e-6


def test_the_baseline_is_the_first_peer_in_fp32_whatever_is_chosen():
    names = [variant.name for variant in inference_variants(DENSENET, with_compile=True)]
    assert names == [
        "torchvision", "torchvision channels_last", "timm", "timm channels_last", "SMP", "SMP channels_last",
        "densekit", "torch.compile", "ONNX Runtime", "OpenVINO",
    ]  # fmt: skip
    reduced = inference_variants(RDN, "bf16")
    assert [variant.name for variant in reduced[:4]] == [
        "eager",
        "eager bf16",
        "eager bf16 channels_last",
        "densekit bf16",
    ]
    assert [variant.dtype for variant in reduced[:2]] == ["fp32", "bf16"]
    assert [variant.name for variant in select(reduced, ["densekit*"])] == ["eager", "densekit bf16"]


def test_a_peer_that_is_not_installed_hands_the_baseline_on_and_is_named(in_process, monkeypatch):
    missing = ("torchvision", "timm", "segmentation_models_pytorch")
    monkeypatch.setattr(variants, "is_installed", lambda module: module not in (*missing, "openvino", "onnxruntime"))
    rows = {row.variant: row for row in run(DENSENET, variants=("densekit",))}
    assert (rows["eager"].status, rows["eager"].ratio) == (MEASURED, 1)
    assert {name: rows[name].note for name in ("torchvision", "timm", "SMP")} == {
        "torchvision": "not installed: torchvision",
        "timm": "not installed: timm",
        "SMP": "not installed: segmentation_models_pytorch",
    }


def test_missing_runtimes_are_named_and_are_no_fault(in_process):
    rows = {row.variant: row for row in run(RDN)}
    assert rows["ONNX Runtime"].note == "not installed: onnxruntime"
    assert rows["OpenVINO"].note == "not installed: openvino"
    assert {rows[name].status for name in ("ONNX Runtime", "OpenVINO")} == {ABSENT}
    assert {rows[name].status for name in ("eager", "eager channels_last", "densekit")} == {MEASURED}
    assert not any(map(is_fault, rows.values()))


def test_what_cannot_run_anywhere_says_so():
    onnx, openvino = (variant for variant in inference_variants(RDN, "bf16") if variant.form in variants.RUNTIMES)
    assert variants.absent(onnx) == "ONNX Runtime is measured in fp32 alone, not bf16"
    assert variants.absent(openvino, "cuda") == "OpenVINO does not run on cuda"


def test_table_and_json_have_the_same_rows_and_figures(in_process, tmp_path, capsys):
    path = write_cases(tmp_path / "cases.json", RDN, ESRGAN)
    assert command.main(["--cases", str(path), "--rounds", "3", "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert (tmp_path / "out" / "table.md").read_text() == printed.out
    assert "tiny, 1 thread: densekit alone" in printed.err
    lines = [line for line in printed.out.splitlines() if line.startswith("| tiny")]
    records = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(lines) == len(records) == 10
    for line, record in zip(lines, records, strict=True):
        shown = [text.strip() for text in line.strip("|").split("|")]
        assert len(shown) == len(columns(is_training=False))
        assert shown[:2] == [record["network"], record["variant"]]
        assert record["machine"] in printed.out
        if record["status"] == ABSENT:
            assert shown[2] == f"absent: {record['note']}"
            continue
        low, high = f"{milliseconds(record['min_ms'])}", f"{milliseconds(record['max_ms'])}"
        assert shown[2:4] == [milliseconds(record["median_ms"]), f"{low}..{high}"]
        assert shown[4:7] == [f"{record['ratio']:.2f}", f"{record['fraction']:.2f}", f"{record['error']:.1e}"]
        assert shown[7:] == [f"{record['ready_s']:.2f}", f"{record['peak_mib']:.0f}"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda y: y * 1.001, "differs from eager by 0.001, allowed 0.0001"),
        (lambda y: y * math.nan, "differs from eager by nan, allowed 0.0001"),
        (lambda y: y[..., 1:], "differs from eager by inf, allowed 0.0001"),
    ],
    ids=["another value", "not a number", "another size"],
)
def test_a_wrong_result_is_said_never_timed_and_ends_with_code_1(
    in_process, monkeypatch, tmp_path, capsys, fault, said
):
    right = forms.run_channels_last
    monkeypatch.setitem(
        forms.FORMS, "channels_last", lambda *given: (lambda prepared: lambda x: fault(prepared(x)))(right(*given))
    )
    path = write_cases(tmp_path / "cases.json", RDN)
    assert command.main(["--cases", str(path), "--rounds", "2", "--times-only", "-o", str(tmp_path / "out")]) == 1
    assert f"| tiny | eager channels_last | wrong: {said} | – |" in capsys.readouterr().out
    records = {record["variant"]: record for record in json.loads((tmp_path / "out" / "results.json").read_text())}
    assert (records["eager channels_last"]["status"], records["eager channels_last"]["median_ms"]) == (WRONG, None)
    assert records["densekit"]["status"] == MEASURED


def test_a_variant_that_fails_is_one_row_and_ends_with_code_1(in_process, monkeypatch):
    def broken(module, dtype, setup):
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setitem(forms.FORMS, "channels_last", broken)
    rows = {row.variant: row for row in run(RDN)}
    assert (rows["eager channels_last"].status, rows["eager channels_last"].note) == (
        FAILED,
        "RuntimeError: no such kernel",
    )
    assert rows["densekit"].status == MEASURED
    assert is_fault(rows["eager channels_last"])


def test_a_baseline_that_fails_leaves_no_figures(in_process, monkeypatch):
    def killed(task):
        raise ChildError("killed by signal 9 (out of memory?)")

    monkeypatch.setattr(runner, "run_child", killed)
    rows = {row.variant: row for row in run(RDN, times_only=False)}
    assert rows["eager"].note == "killed by signal 9 (out of memory?)"
    assert rows["densekit"].note == "not run: eager failed"
    assert {row.status for row in rows.values()} == {FAILED}


def test_bf16_stands_beside_a_baseline_in_fp32(in_process):
    rows = {row.variant: row for row in run(RDN, dtype="bf16", variants=("eager*", "densekit*"))}
    assert {name: row.dtype for name, row in rows.items()} == {
        "eager": "fp32", "eager bf16": "bf16", "eager bf16 channels_last": "bf16", "densekit bf16": "bf16",
    }  # fmt: skip
    assert all(row.status == MEASURED for row in rows.values())
    assert 1e-4 < rows["densekit bf16"].error < 0.1
    assert rows["densekit bf16"].conv_gflops != rows["eager"].conv_gflops


@pytest.mark.parametrize("case", [pytest.param(TIRAMISU, marks=pytest.mark.slow), DENSENET], ids=lambda case: case.name)
def test_each_memory_policy_is_measured_in_training_with_what_it_keeps(in_process, case):
    rows = {row.variant: row for row in run(case, is_training=True, variants=("densekit*",), times_only=False)}
    assert {row.status for row in rows.values()} == {MEASURED}
    assert next(name for name in rows if name.startswith("densekit")) == "densekit speed"
    assert (
        rows["densekit lean"].saved_mib < rows["densekit balanced"].saved_mib + 1e-9 < rows["densekit speed"].saved_mib
    )
    assert all(row.error < 1e-12 for row in rows.values())
    assert "saved, MiB" in to_markdown(list(rows.values()), "a machine", "training", is_training=True)


def test_wrong_gradients_are_said(in_process, monkeypatch):
    build = child.build_trained

    def wrong(variant, *given):
        trained = build(variant, *given)
        if variant.memory == "lean":
            next(trained.parameters()).register_hook(lambda gradient: 2 * gradient)
        return trained

    monkeypatch.setattr(child, "build_trained", wrong)
    rows = {row.variant: row for row in run(TIRAMISU, is_training=True)}
    assert rows["densekit lean"].status == WRONG
    assert rows["densekit lean"].note.startswith("differs from densekit speed by ")
    assert rows["densekit balanced"].status == MEASURED


def test_training_measures_the_peers_that_have_a_step_of_their_own():
    case = next(case for case in TRAINING if case.name == "densenet121")
    names = [variant.name for variant in training_variants(case)]
    assert names[:4] == ["torchvision", "torchvision channels_last", "torchvision memory_efficient",
                         "torchvision memory_efficient channels_last"]  # fmt: skip
    assert {"timm", "densekit speed", "densekit balanced", "densekit lean"} <= set(names)


def test_saved_bytes_are_those_of_distinct_maps_without_weights_and_input():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    x = torch.rand(2, 3, 5, 7)
    assert saved_bytes(net, x) == 2 * 4 * 5 * 7 * 4  # what ReLU made, for itself and the convolution behind it


def test_the_peak_is_what_a_call_takes_beyond_what_was_there():
    held = torch.ones(2**23)

    def take():  # not by the allocator, which may have kept as much from what ran before
        return torch.frombuffer(mmap.mmap(-1, 2**26), dtype=torch.uint8).fill_(1)

    assert 63 <= child._peak(take, "cpu") / 2**20 < 80  # the system counts pages by the dozen
    assert held.numel() == 2**23


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'Traceback' >&2; echo 'MemoryError: too much' >&2; exit 1", "MemoryError: too much"),
        ("exit 7", "ended with code 7"),
        ("kill -9 $$", "killed by signal 9 (out of memory?)"),
    ],
)
def test_a_process_that_fails_says_how(monkeypatch, tmp_path, script, said):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(ChildError) as error:
        run_child(Task("alone", RDN, tuple(inference_variants(RDN)), 1, "cpu", 1, tmp_path))
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "file: Invalid JSON"),
        ('[{"name": "a", "model": "rdn"}]', "0.size: Field required"),
        ('[{"name": "a", "model": "rdn", "size": [1, 2], "sizes": 3}]', "0.sizes: Unexpected keyword argument"),
    ],
)
def test_a_wrong_file_of_cases_is_refused_in_one_line(tmp_path, text, said):
    path = tmp_path / "cases.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_cases(path)
    assert str(error.value).startswith(f"{path}: {said}")
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read \(No such file or directory\)$"):
        read_cases(tmp_path / "none.json")


def test_an_unknown_network_is_refused_with_a_suggestion(capsys):
    assert command.main(["--networks", "rdn_ligth"]) == 2
    assert capsys.readouterr().err.startswith("network 'rdn_ligth': not in the list; did you mean 'rdn_light'?")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_before_anything_runs(capsys):
    assert command.main(["--device", "cuda"]) == 4
    assert capsys.readouterr().err.startswith("device cuda: torch ")


def test_batch_and_crop_change_the_input():
    (case,) = choose_cases(TRAINING, ["densenet121"], batch=3, crop=64)
    assert case.shape == (3, 3, 64, 64)
    assert choose_cases(INFERENCE, None, None, None) == list(INFERENCE)


def test_the_chart_is_xml_with_bars_as_long_as_the_ratios(in_process):
    rows = run(RDN)
    svg = ElementTree.fromstring(to_svg(rows, "inference & more"))
    names = {"s": "http://www.w3.org/2000/svg"}
    bars = [bar for bar in svg.findall("s:rect", names) if bar.get("class") in ("ours", "others")]
    measured = [row for row in rows if row.status == MEASURED]
    assert [bar.get("class") for bar in bars] == ["others", "others", "ours"]
    lengths = [float(bar.get("width")) for bar in bars]
    for row, length in zip(measured, lengths, strict=True):
        assert length / lengths[0] == pytest.approx(row.ratio, rel=0.01)
    assert max(lengths) <= WIDTH - LEFT - RIGHT
    assert svg.find("s:title", names).text == "inference & more"


def test_the_processor_is_named_with_what_it_can(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("model name\t: Some CPU @ 2 GHz\nflags\t\t: sse avx2 avx512f\n\nmodel name\t: Some CPU @ 2 GHz\n")
    text = describe_processor(path)
    assert text.startswith("Some CPU @ 2 GHz, ")
    assert text.endswith(" cores, avx2, avx512f")


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tools.bench", *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_the_command_measures_in_a_process_of_its_own(tmp_path):
    path = write_cases(tmp_path / "cases.json", RDN)
    done = start("--cases", str(path), "--rounds", "2", "--variants", "densekit", "--times-only")
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ")[1:3] for line in done.stdout.splitlines() if line.startswith("| tiny")]
    assert [name for name, _ in rows] == ["eager", "densekit"]
    assert all(float(milliseconds) > 0 for _, milliseconds in rows)


@pytest.mark.slow
def test_the_command_measures_every_form(tmp_path):
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    path = write_cases(tmp_path / "cases.json", RDN)
    done = start("inference", "--cases", str(path), "--rounds", "2", "--compile", "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    records = {record["variant"]: record for record in json.loads((tmp_path / "out" / "results.json").read_text())}
    assert {record["status"] for record in records.values()} == {MEASURED}
    assert list(records)[-3:] == ["torch.compile", "ONNX Runtime", "OpenVINO"]
    assert all(record["ready_s"] > 0 and record["peak_mib"] >= 0 for record in records.values())
    assert records["OpenVINO"]["export_s"] == records["ONNX Runtime"]["export_s"] > 0
