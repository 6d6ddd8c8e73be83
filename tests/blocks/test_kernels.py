"""The kernels run here in Triton's interpreter, in a process of its own: Triton decides for it when it is imported."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from densekit import create_model
from densekit.blocks import BottleneckLayer, DenseBlock
from densekit.blocks.kernels import (
    bottleneck_forward,
    choice,
    choose,
    layout,
    operations,
    plain,
    pointwise_backward,
    pointwise_measured,
)
from tools import bench_kernels

HALF = torch.float16
SHAPES = [  # batch, height, width, channels read, growth rate, dilation
    (1, 1, 1, 1, 8, 1),
    (2, 7, 5, 37, 12, 1),
    (3, 5, 9, 70, 32, 2),
    (1, 17, 15, 24, 8, 2),
]
CASES = [*((shape, torch.float32) for shape in SHAPES[:3]), (SHAPES[1], HALF)]
CASES.append(pytest.param(SHAPES[3], torch.float32, marks=pytest.mark.slow))
ERRORS = {torch.float64: 1e-12, torch.float32: 2e-6, HALF: 3e-3, torch.bfloat16: 2e-2}  # of the largest value


def start_interpreter():
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def interpreted():
    """Calls a function in a process whose Triton interprets; what it raises is raised here."""
    pytest.importorskip("triton")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), start_interpreter) as pool:
        yield lambda function, *args: pool.submit(function, *args).result()


class Case:
    """Random maps and parameters of a layer, and what it should make of them, computed in float64."""

    def __init__(self, shape, dtype, device="cpu", seed=0):
        batch, height, width, self.c, self.k, self.dilation = shape
        torch.manual_seed(seed)
        n = 4 * self.k
        self.dtype, self.device, self.bias = dtype, device, torch.randn(n, device=device)
        self.a, self.b, self.mean, self.scale = torch.randn(4, self.c, device=device)
        self.a[::5] = 0
        self.weight1 = (torch.randn(n, self.c, 1, 1, device=device) / self.c**0.5).to(dtype)
        self.weight2 = (torch.randn(self.k, n, 3, 3, device=device) / (9 * n) ** 0.5).to(dtype)
        # More channels than the layer reads and writes, and no multiple of anything.
        self.buffer, self.grad = (self.maps(batch, self.c + self.k + 3, height, width) for _ in range(2))
        self.du = self.maps(batch, n, height, width)

    def maps(self, *shape):
        return torch.randn(shape, device=self.device).to(self.dtype).contiguous(memory_format=torch.channels_last)

    def expect(self, found, expected):
        error = (found.double() - expected).abs().max() / expected.abs().max().clamp(min=1)
        assert found.shape == expected.shape
        assert error <= ERRORS[self.dtype] or expected.numel() == 0, error

    def activated(self, x):
        a, b = (vector.double().view(1, -1, 1, 1) for vector in (self.a, self.b))
        return F.relu(a * x + b)

    def check_bottleneck(self, run):
        given = self.buffer.clone(memory_format=torch.preserve_format)
        x, out = given[:, : self.c], given[:, self.c : self.c + self.k]
        y = F.relu(F.conv2d(self.activated(x.double()), self.weight1.double(), self.bias.double()))
        expected = F.conv2d(y, self.weight2.double(), padding=self.dilation, dilation=self.dilation)
        result = run(x, self.a, self.b, self.weight1, self.bias, self.weight2, self.dilation, out)
        assert result is out
        self.expect(out, expected)
        for kept in (slice(None, self.c), slice(self.c + self.k, None)):
            assert torch.equal(given[:, kept], self.buffer[:, kept])

    def check_measured(self, run):
        x = self.buffer[:, : self.c]
        u, mean, variance = run(x, self.a, self.b, self.weight1)
        self.expect(u, F.conv2d(self.activated(x.double()), self.weight1.double()))
        assert u.is_contiguous(memory_format=torch.channels_last)
        made = u.double()  # statistics are of what the next norm reads
        torch.testing.assert_close(mean.double(), made.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(variance.double(), made.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)

    def check_backward(self, run):
        x = self.buffer[:, : self.c].double()
        z = (self.a.double().view(1, -1, 1, 1) * x + self.b.double().view(1, -1, 1, 1)).requires_grad_()
        weight = self.weight1.double().requires_grad_()
        F.conv2d(F.relu(z), weight).backward(self.du.double())
        grad = self.grad.clone(memory_format=torch.preserve_format)
        dw, plain_sum, centred_sum = run(
            self.du, self.buffer[:, : self.c], self.a, self.b, self.weight1, self.mean, self.scale, grad[:, : self.c]
        )
        self.expect(dw, weight.grad)
        self.expect(plain_sum, z.grad.sum((0, 2, 3)))
        self.expect(centred_sum, (z.grad * (x - self.mean.double().view(1, -1, 1, 1))).sum((0, 2, 3)))
        added = z.grad * self.scale.double().view(1, -1, 1, 1)
        self.expect(grad[:, : self.c], self.grad[:, : self.c].double() + added)
        assert torch.equal(grad[:, self.c :], self.grad[:, self.c :])


def bottlenecks():
    from densekit.blocks.kernels import fused, pointwise, window

    def in_two(x, a, b, weight1, bias, weight2, dilation, out):
        return window.convolve(pointwise.bottleneck(x, a, b, weight1, bias, 64), weight2, dilation, out, 64)

    return {"two": in_two, **{f"one, {tall}": partial(fused.bottleneck_forward, tall=tall) for tall in (8, 16)}}


def run_bottleneck(name, *case):
    Case(*case).check_bottleneck(bottlenecks()[name])


def run_measured(rows, *case):
    from densekit.blocks.kernels import pointwise

    Case(*case).check_measured(partial(pointwise.measured, rows=rows))


def run_backward(rows, channels, *case):
    from densekit.blocks.kernels import gradient

    Case(*case).check_backward(partial(gradient.pointwise_backward, rows=rows, channels=channels))


@pytest.mark.parametrize(("shape", "dtype"), CASES)
@pytest.mark.parametrize("name", ["two", "one, 8", "one, 16"])
def test_a_bottleneck_kernel_writes_the_new_channels_and_nothing_else(interpreted, name, shape, dtype):
    interpreted(run_bottleneck, name, shape, dtype)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_a_kernel_measures_the_bottleneck_that_it_makes(interpreted, shape, dtype):
    interpreted(run_measured, 64, shape, dtype)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_a_kernel_gives_autograds_gradients_and_adds_to_the_buffers(interpreted, shape, dtype):
    interpreted(run_backward, 32, 64, shape, dtype)


@settings(max_examples=3, deadline=None)
@given(
    st.tuples(
        st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(1, 70), st.sampled_from([8, 12, 32]),
        st.integers(1, 2),
    ),
    st.integers(0, 2**31),
)  # fmt: skip
def test_kernels_are_right_for_any_shape(interpreted, shape, seed):
    for name in ("two", "one, 8"):
        interpreted(run_bottleneck, name, shape, torch.float32, "cpu", seed)
    interpreted(run_measured, 32, shape, torch.float32, "cpu", seed)
    interpreted(run_backward, 16, 32, shape, torch.float32, "cpu", seed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, HALF, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_torch_path_is_right(shape, dtype):
    case = Case(shape, dtype)
    if dtype == torch.float64:
        for name in ("a", "b", "mean", "scale", "bias"):
            setattr(case, name, getattr(case, name).double())
    case.check_bottleneck(plain.bottleneck_forward)
    case.check_measured(plain.pointwise_measured)
    case.check_backward(plain.pointwise_backward)


def run_boundary():
    """Small whole numbers: z is often 0 exactly, no sum is rounded, and both ways must give the same bits."""
    from densekit.blocks.kernels import gradient, pointwise

    case = Case((2, 5, 7, 20, 8, 1), torch.float32)
    for tensor in (case.buffer, case.weight1, case.bias, case.a, case.b, case.mean, case.scale, case.du, case.grad):
        tensor.copy_(torch.randint(-2, 3, tensor.shape))
    x, first = case.buffer[:, : case.c], (case.a, case.b, case.weight1)
    z = case.a.view(1, -1, 1, 1) * x + case.b.view(1, -1, 1, 1)
    assert (z == 0).sum() > 100
    assert (case.a == 0).any()
    for found, expected in zip(pointwise.measured(x, *first, 16), plain.pointwise_measured(x, *first), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    grads = [case.grad.clone(memory_format=torch.preserve_format) for _ in range(2)]
    rest = (case.mean, case.scale)
    found = gradient.pointwise_backward(case.du, x, *first, *rest, grads[0][:, : case.c], rows=16, channels=16)
    expected = plain.pointwise_backward(case.du, x, *first, *rest, grads[1][:, : case.c])
    assert all(map(torch.equal, (*found, grads[0]), (*expected, grads[1])))


def test_nothing_flows_back_where_the_norm_gives_zero(interpreted):
    interpreted(run_boundary)


def run_not_a_number():
    case = Case((1, 6, 6, 9, 8, 1), torch.float32)
    case.buffer[0, 3, 2, 2] = torch.nan
    kept = torch.ones(6, 6, dtype=torch.bool)
    kept[1:4, 1:4] = False
    for run in bottlenecks().values():
        out = run(
            case.buffer[:, : case.c], case.a, case.b, case.weight1, case.bias, case.weight2, 1, case.maps(1, 8, 6, 6)
        )
        assert torch.equal(~out.isnan(), kept.expand_as(out))


def test_what_is_not_a_number_stays_visible_and_reaches_its_neighbours_only(interpreted):
    interpreted(run_not_a_number)


# The operations


def shaken(net):
    """Random norms, so that none is the identity and some of what they multiply with is negative."""
    with torch.no_grad():
        for norm in net.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                for vector in (norm.weight, norm.bias, norm.running_mean):
                    vector.normal_()
                norm.running_var.uniform_(0.5, 2)
    return net


@pytest.mark.parametrize("dilation", [1, 2])
@torch.no_grad()
def test_a_bottleneck_layer_is_written_into_its_slice(dilation):
    layer = shaken(BottleneckLayer(20, 8, dilation=dilation)).eval()
    buffer = torch.randn(2, 28, 9, 7).contiguous(memory_format=torch.channels_last)
    expected = layer(buffer[:, :20])
    out = bottleneck_forward(buffer, 20, *bench_kernels.folded(layer, torch.float32), buffer[:, 20:])
    assert out.data_ptr() == buffer[:, 20:].data_ptr()
    torch.testing.assert_close(buffer[:, 20:], expected, rtol=1e-5, atol=1e-5)


def test_the_sums_give_the_gradients_of_a_norm_in_training():
    norm, weight = torch.nn.BatchNorm2d(10).double(), torch.randn(16, 10, 1, 1, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight)
    buffer = torch.randn(3, 13, 4, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    x, du = buffer[:, :10].clone().requires_grad_(), torch.randn(3, 16, 4, 5, dtype=torch.float64)
    F.conv2d(F.relu(norm(x)), weight).backward(du)
    variance, mean = torch.var_mean(x.detach(), (0, 2, 3), correction=0)
    inverse, gamma = torch.rsqrt(variance + norm.eps), norm.weight.detach()
    a, b = gamma * inverse, norm.bias.detach() - gamma * inverse * mean
    u, *_ = pointwise_measured(buffer, 10, a, b, weight)
    torch.testing.assert_close(u, F.conv2d(F.relu(norm(x)), weight))
    grad = torch.zeros_like(buffer)
    du = du.contiguous(memory_format=torch.channels_last)
    _, dbeta, centred = pointwise_backward(du, buffer, 10, a, b, weight, mean, gamma, grad)
    dgamma = inverse * centred
    torch.testing.assert_close(dbeta, norm.bias.grad)
    torch.testing.assert_close(dgamma, norm.weight.grad)
    count, normed = x[:, 0].numel(), (x.detach() - mean.view(1, -1, 1, 1)) * inverse.view(1, -1, 1, 1)
    means = [(gamma * total / count).view(1, -1, 1, 1) for total in (dbeta, dgamma)]
    torch.testing.assert_close(inverse.view(1, -1, 1, 1) * (grad[:, :10] - means[0] - normed * means[1]), x.grad)
    assert not grad[:, 10:].any()


def test_maps_that_are_not_stored_channels_last_are_refused():
    case = Case((2, 4, 4, 8, 8, 1), torch.float32)
    with pytest.raises(
        ValueError, match=r"^maps of shape \(2, 19, 4, 4\) and strides \(304, 16, 4, 1\): the kernels read"
    ):
        pointwise_measured(case.buffer.contiguous(), 8, case.a, case.b, case.weight1)


@given(st.tuples(*[st.integers(1, 3)] * 4), st.integers(0, 2), st.integers(0, 2))
def test_pixels_are_the_rows_of_a_matrix_whatever_the_sizes(shape, before, behind):
    batch, channels, height, width = shape
    whole = torch.randn(batch, before + channels + behind, height, width)
    x = whole.contiguous(memory_format=torch.channels_last)[:, before : before + channels]
    matrix = layout.pixels(x)
    assert torch.equal(matrix, x.permute(0, 2, 3, 1).reshape(-1, channels))
    assert matrix.data_ptr() == x.data_ptr()


def test_no_picture_at_all_is_no_error():
    case = Case((0, 4, 4, 8, 8, 1), torch.float32)
    out = case.buffer[:, 8:16]
    assert bottleneck_forward(case.buffer, 8, case.a, case.b, case.weight1, case.bias, case.weight2, 1, out) is out


# The choice


@pytest.fixture(autouse=True)
def _no_choice_is_known(monkeypatch):
    monkeypatch.setattr(choice, "winners", {})


def doubled(x):
    return 2 * x


def doubled_slowly(x):
    time.sleep(0.005)
    return x + x


def test_the_fastest_is_chosen_once():
    calls = []

    def counted(x):
        calls.append(x)
        return doubled(x)

    for order in ({"slow": doubled_slowly, "fast": counted}, {"fast": counted, "slow": doubled_slowly}):
        assert choose(tuple(order), order, torch.ones(3)) == "fast"
    before = len(calls)
    assert choose(("slow", "fast"), {"slow": doubled_slowly, "fast": counted}, torch.ones(3)) == "fast"
    assert len(calls) == before


def test_what_gives_something_else_or_fails_is_left_out():
    def fails(x):
        raise TypeError("no such instruction")

    for wrong, text in (
        (torch.neg, "fast is left out: it gives something else than slow"),
        (lambda x: x * torch.nan, "fast is left out: it gives something else than slow"),
        (fails, "fast is left out: TypeError: no such instruction"),
    ):
        with pytest.warns(UserWarning, match=text):
            assert choose(text + repr(wrong), {"slow": doubled_slowly, "fast": wrong}, torch.ones(3)) == "slow"


def test_what_asks_for_more_than_the_chip_has_is_left_out_quietly():
    class OutOfResources(Exception):
        pass

    def large(x):
        raise OutOfResources("shared memory")

    assert choose("key", {"slow": doubled_slowly, "large": large}, torch.ones(3)) == "slow"


def test_what_candidates_add_to_is_left_as_it_was():
    total = torch.ones(3)

    def added(x, total, pause=0.0):
        time.sleep(pause)
        return x, total.add_(x)

    ways = {"slow": partial(added, pause=0.005), "fast": added}
    assert choose("key", ways, torch.ones(3), total, added=(1,)) == "fast"
    assert torch.equal(total, torch.ones(3))


def test_nothing_is_measured_where_bits_must_repeat():
    ways = {"slow": doubled_slowly, "fast": doubled}
    torch.use_deterministic_algorithms(True)
    try:
        assert choose("key", ways, torch.ones(3)) == "slow"
    finally:
        torch.use_deterministic_algorithms(False)
    assert choose("key", ways, torch.ones(3)) == "fast"


def test_numbers_that_are_not_finite_decide_nothing():
    ways = {"slow": doubled_slowly, "fast": doubled}
    assert choose("key", ways, torch.tensor([1.0, torch.inf])) == "slow"
    assert choose("key", ways, torch.ones(2)) == "fast"


# Without Triton

WITHOUT = """
import sys, torch, densekit, densekit.blocks.kernels as kernels
from densekit.blocks.kernels.layout import has_triton

def make():
    x = torch.randn(2, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    return kernels.pointwise_measured(x, 6, torch.ones(6), torch.zeros(6), torch.ones(4, 6, 1, 1))[0].shape

print(*make(), "triton" in sys.modules)
sys.modules["triton"] = None  # as where it is not installed
print(*make(), has_triton())
"""


def test_the_operations_work_without_triton_and_load_it_for_no_cpu():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert done.stdout == "2 4 3 3 False\n2 4 3 3 False\n"


# The program that measures them


def test_a_dense_block_by_the_kernels_gives_what_the_block_gives():
    block = shaken(DenseBlock(10, 3, 8, lambda channels: BottleneckLayer(channels, 8, dilation=2))).eval()
    x = torch.randn(2, 10, 7, 5).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(bench_kernels.KernelBlock(block, x.dtype)(x), block(x).detach(), rtol=1e-5, atol=1e-5)


def test_the_least_bytes_and_operations_of_densenet_121_are_the_papers():
    net = create_model("densenet121")
    sides = {"denseblock1": 56, "denseblock2": 28, "denseblock3": 14, "denseblock4": 7}
    costs = [bench_kernels.cost(getattr(net.features, name), side * side, 2) for name, side in sides.items()]
    transitions = 2 * sum(c * c // 2 * side * side for c, side in ((256, 56), (512, 28), (1024, 14)))
    stem, classifier = 2 * 3 * 64 * 49 * 112 * 112, 2 * 1024 * 1000
    assert sum(operations for _, operations in costs) + transitions + stem + classifier == pytest.approx(
        2 * 2.834e9, rel=1e-3
    )


def test_no_gpu_is_one_line_and_code_4(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench_kernels"])
    assert bench_kernels.main() == 4
    assert capsys.readouterr().err == "error: no CUDA device: the kernels are measured on a GPU, with Triton\n"


# On a GPU, and for one


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Compiles a kernel where it would be launched; a list of what came of it, filled later. Needs no GPU."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    made = []

    def compile_for(capability):
        def run(self, *args, grid, warmup, **options):
            values = dict(zip([parameter.name for parameter in self.params], args, strict=False))
            values |= {name: options.pop(name) for name in list(options) if name in self.arg_names}
            signature, constants, aligned = {}, {}, {}
            for index, parameter in enumerate(self.params):
                name, value = parameter.name, values[parameter.name]
                signature[name] = "i32"
                if isinstance(value, torch.Tensor):
                    signature[name] = "*" + {torch.float32: "fp32", HALF: "fp16", torch.bfloat16: "bf16"}[value.dtype]
                elif parameter.is_constexpr or value in (None, 1):
                    signature[name], constants[name] = "constexpr", value
                if signature[name] != "constexpr" and (signature[name] != "i32" or value % 16 == 0):
                    aligned[index,] = [["tt.divisibility", 16]]
            source = ASTSource(self, signature, constants, aligned)
            made.append(triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options))

        monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", run)
        return made

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return compile_for


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "dtype", "shared"), [(80, torch.bfloat16, 163 * 1024), (90, HALF, 227 * 1024)])
def test_the_kernels_compile_for_gpus_and_fit_them(compiled, capability, dtype, shared):
    made = compiled(capability)
    case = Case((2, 14, 14, 96, 32, 1), dtype)
    x, grad = case.buffer[:, : case.c], case.grad[:, : case.c]
    layer = (x, case.a, case.b, case.weight1, case.bias, case.weight2, 1, case.maps(2, 32, 14, 14))
    for run in operations.bottleneck_ways(case.k, case.dilation).values():
        run(*layer)
    for run in operations.measured_ways().values():
        run(x, case.a, case.b, case.weight1)
    for run in operations.backward_ways(4 * case.k).values():
        run(case.du, x, case.a, case.b, case.weight1, case.mean, case.scale, grad)
    assert {kernel.metadata.name for kernel in made} == {
        "pointwise_kernel", "window_kernel", "fused_kernel", "gradient_kernel",
    }  # fmt: skip
    assert len(made) == 10
    assert max(kernel.metadata.shared for kernel in made) <= shared


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [HALF, torch.bfloat16])
@pytest.mark.parametrize("shape", [*SHAPES, (4, 28, 28, 128, 32, 1), (2, 14, 14, 100, 48, 2)])
def test_a_gpu_computes_what_the_interpreter_computes(shape, dtype):
    case = Case(shape, dtype, "cuda")
    for run in operations.bottleneck_ways(case.k, case.dilation).values():
        case.check_bottleneck(run)
    for run in operations.measured_ways().values():
        case.check_measured(run)
    for run in operations.backward_ways(4 * case.k).values():
        case.check_backward(run)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_bits_each_time():
    case = Case((8, 28, 28, 256, 32, 1), HALF, "cuda")
    x, first = case.buffer[:, : case.c], (case.a, case.b, case.weight1)
    for run in operations.measured_ways().values():
        assert all(map(torch.equal, run(x, *first), run(x, *first)))
    for run in operations.backward_ways(4 * case.k).values():
        grads = [case.grad.clone(memory_format=torch.preserve_format) for _ in range(2)]
        results = [run(case.du, x, *first, case.mean, case.scale, grad[:, : case.c]) for grad in grads]
        assert all(map(torch.equal, (*results[0], grads[0]), (*results[1], grads[1])))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [HALF, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 7, 7, 512, 32, 1), (32, 14, 14, 256, 32, 1), (32, 56, 56, 64, 32, 1)])
def test_a_gpu_is_never_slower_with_the_kernels_than_without(shape, dtype):
    case = Case(shape, dtype, "cuda")
    c, first = case.c, (case.a, case.b, case.weight1)
    x, grad, out = case.buffer[:, :c], case.grad[:, :c], case.buffer[:, c : c + case.k]
    layer = (*first, case.bias, case.weight2, case.dilation, out)
    rest = (*first, case.mean, case.scale)
    for ours, torchs in (
        (lambda: bottleneck_forward(case.buffer, c, *layer), lambda: plain.bottleneck_forward(x, *layer)),
        (lambda: pointwise_measured(case.buffer, c, *first), lambda: plain.pointwise_measured(x, *first)),
        (
            lambda: pointwise_backward(case.du, case.buffer, c, *rest, case.grad),
            lambda: plain.pointwise_backward(case.du, x, *rest, grad),
        ),
    ):
        device, times = torch.device("cuda"), {ours: [], torchs: []}
        for run in (*times, *(list(times) * 7)):
            times[run].append(choice.seconds(run, (), 20, device))
        found, allowed = (statistics.median(times[run][1:]) for run in times)
        assert found <= 1.1 * allowed + 2e-5, (found, allowed)  # noise of some percent, and looking the choice up
