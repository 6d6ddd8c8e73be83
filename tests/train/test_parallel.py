from __future__ import annotations

import copy
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import torch._dynamo  # the first step of an optimizer imports it, and forked processes would each do so
from torch import nn
from torch.distributed.tensor import DTensor

from densekit import ranks
from densekit.blocks import MEMORY_POLICIES
from densekit.blocks.norms import batch_norms
from densekit.config import GanConfig, OptimConfig
from densekit.errors import CheckpointError, ConfigError, DeviceError, Interrupted
from densekit.models import create_model
from densekit.tasks import create_task
from densekit.train import rehearse, train
from densekit.train.optim import create_average, create_optimizer
from densekit.train.parallel import is_finite, shard, synchronize_norms, units, whole
from densekit.train.resume import restore
from densekit.train.state import load_state
from tests.processes import together
from tests.training_data import seg_config, sr_config, write_masked, write_pictures

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def config_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    folders = {"sr": write_pictures(folder / "pictures"), "seg": write_masked(folder / "masked")}
    torch.set_num_threads(1)

    def make(task, optim=None, gan=None, **options):
        options = {"total_steps": 6, "keep": 9, "samples": 0} | options
        config = (sr_config if task == "sr" else seg_config)(folders[task], **options)
        return config.model_copy(update={"optim": config.optim.model_copy(update=optim or {}), "gan": gan})

    return make


def train_together(folder, config, **options):
    """Trains in two processes; returns the figures of both."""
    task = create_task(config)
    return together(folder.with_name(f"{folder.name}-ranks"), lambda: train(task, config, folder, **options))


def state_of(folder, step=6):
    return load_state(folder / "checkpoints" / f"state-{step:08d}.dk")


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line.get("loss_hex") or line for line in lines]


def distance(a, b) -> float:
    """The largest difference between the tensors of two states, relative to the largest value of each tensor."""
    if isinstance(a, torch.Tensor):
        assert a.shape == b.shape
        return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-30))
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return max((distance(a[key], b[key]) for key in a), default=0)
    if isinstance(a, list):
        assert len(a) == len(b)
        return max(map(distance, a, b), default=0)
    assert a == b
    return 0


TRAINED = ("net", "average", "optimizer")


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("task", "parallel", "most"),
    [
        ("sr", "ddp", 0),
        ("sr", "fsdp", 1e-5),  # with AVX-512 a loss may round otherwise
        pytest.param("seg", "fsdp", 1e-5, marks=pytest.mark.slow),
    ],
)
def test_two_processes_equal_one_that_accumulates_two_passes(tmp_path, config_of, task, parallel, most):
    frozen = {"freeze_norm_step": 0} if task == "seg" else {}  # batch norm sees the crops of its own process alone
    one = config_of(task, batch_size=2, accumulate=2, **frozen)
    train(create_task(one), one, tmp_path / "one")
    train_together(tmp_path / "two", config_of(task, batch_size=4, parallel=parallel, **frozen))
    assert all(distance(state_of(tmp_path / "two")[key], state_of(tmp_path / "one")[key]) <= most for key in TRAINED)
    of_two, of_one = losses(tmp_path / "two"), losses(tmp_path / "one")
    if most:
        assert list(map(float.fromhex, of_two[:-1])) == pytest.approx(list(map(float.fromhex, of_one[:-1])), rel=most)
        return
    assert of_two == of_one
    for name in ("last.safetensors", "best.safetensors"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "optim", "options", "most"),
    [
        ("sr", {"clip_norm": 0.01}, {}, 1e-5),  # the norm is a sum over parts, which rounds otherwise
        ("sr", {}, {"accumulate": 2}, 0),
        slow("sr", {"name": "sgd", "learning_rate": 0.1, "rates": {"sfe*": 0.0, "tail*": 0.1}}, {}, 0),
        slow("sr", {}, {"precision": "fp16"}, 0.05),
        slow("seg", {}, {"freeze_norm_step": 3}, 0),
        slow("sr", {}, {"model": {"memory": "lean"}}, 0),
        slow("sr", {}, {"gan": GanConfig(num_features=4, weight=0.1)}, 1e-5),
    ],
)
def test_parts_train_as_whole_weights_do(tmp_path, config_of, task, optim, options, most):
    for parallel in ("ddp", "fsdp"):
        train_together(tmp_path / parallel, config_of(task, optim, batch_size=4, parallel=parallel, **options))
    ddp, fsdp = state_of(tmp_path / "ddp"), state_of(tmp_path / "fsdp")
    assert max(distance(fsdp[key], ddp[key]) for key in (*TRAINED, "scaler", "adversary")) <= most


def test_a_memory_budget_for_a_network_in_parts_is_refused(tmp_path):
    def refused():
        with pytest.raises(
            ConfigError, match=r"model.memory: .* train.parallel=fsdp name a policy: balanced, lean or min"
        ):
            shard(create_model("rdn", num_features=8, num_blocks=1, num_layers=1, growth_rate=8, memory="1GiB"), "cpu")
        return True

    assert together(tmp_path, refused) == [True, True]


def test_each_process_holds_half_of_weights_gradients_and_states(tmp_path):
    def local_and_whole():
        torch.manual_seed(0)
        net = create_model("rdn", scale=2, num_features=16, num_blocks=3, num_layers=3, growth_rate=8)
        average = create_average(net, 0.9)
        shard(net, "cpu", average.module)
        optimizer = create_optimizer(net, OptimConfig(name="adam"))
        net(torch.rand(1, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        average.update_parameters(net)
        moments = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
        kinds = [[*net.parameters()], [p.grad for p in net.parameters()], [*average.module.parameters()], moments]
        assert all(isinstance(tensor, DTensor) for tensors in kinds for tensor in tensors)
        return [
            (sum(t.to_local().nbytes for t in tensors), sum(t.numel() * t.element_size() for t in tensors))
            for tensors in kinds
        ]

    first, second = together(tmp_path, local_and_whole)
    for (own, total), (other, same) in zip(first, second, strict=True):
        assert own + other == total == same
        assert max(own, other) <= 0.51 * total


def test_weights_in_parts_are_whole_for_a_while(tmp_path):
    torch.manual_seed(0)
    net = create_model("fc_densenet", num_classes=3, num_init_features=8, growth_rate=4, num_pools=1, num_layers=2)
    x, expected = torch.rand(1, 3, 16, 16), copy.deepcopy(net).eval()

    def compare():
        average = create_average(net, 0.9)
        shard(net, "cpu", average.module)
        before = dict(average.module.named_parameters())
        with whole(average.module) as full, torch.no_grad():
            if ranks.rank() == 1:  # as often as it likes
                full.eval()(x)
            difference = full.eval()(x) - expected(x)
            equal = all(torch.equal(a, b) for a, b in zip(full.parameters(), expected.parameters(), strict=True))
        after = dict(average.module.named_parameters())
        return [float(difference.abs().max()), equal, all(after[name] is before[name] for name in before)]

    assert together(tmp_path, compare) == [[0.0, True, True]] * 2


def test_a_weight_that_is_not_finite_is_seen_in_every_process(tmp_path):
    def look():
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        shard(net, "cpu")
        before = is_finite(net)
        if ranks.rank() == 1:
            net[0].weight.detach().to_local().fill_(math.inf)
        return [before, is_finite(net)]

    assert together(tmp_path, look) == [[True, False]] * 2


def copied(folder, to, step):
    """A copy of a run as it was after `step`."""
    shutil.copytree(folder, to)
    for path in to.glob("checkpoints/*"):
        if path.name > f"state-{step:08d}.dk":
            path.unlink()
    return to


@pytest.mark.slow
def test_a_run_goes_on_with_other_processes_and_with_other_parts(tmp_path, config_of):
    """To the same bytes with as many processes; to rounding with others, whose forward passes have other batches."""
    fsdp, ddp = (config_of("sr", batch_size=4, checkpoint_every=3, parallel=kind) for kind in ("fsdp", "ddp"))
    figures = train_together(tmp_path / "fsdp", fsdp)[0]
    after = copied(tmp_path / "fsdp", tmp_path / "fsdp-fsdp", 3)
    assert train_together(after, fsdp, resume=True) == [figures] * 2
    files = ("checkpoints/state-00000006.dk", "best.safetensors", "last.safetensors")
    assert all((after / name).read_bytes() == (tmp_path / "fsdp" / name).read_bytes() for name in files)
    assert losses(after) == losses(tmp_path / "fsdp")

    train_together(copied(tmp_path / "fsdp", tmp_path / "fsdp-ddp", 3), ddp, resume=True)
    train(create_task(ddp), ddp, copied(tmp_path / "fsdp", tmp_path / "fsdp-one", 3), resume=True)
    train(create_task(fsdp), fsdp, tmp_path / "one")
    train_together(copied(tmp_path / "one", tmp_path / "one-fsdp", 3), fsdp, resume=True)
    for name, most in {"fsdp-ddp": 0, "fsdp-one": 1e-4, "one": 1e-4, "one-fsdp": 1e-4}.items():
        end, expected = state_of(tmp_path / name), state_of(tmp_path / "fsdp")
        assert max(distance(end[key], expected[key]) for key in ("net", "average")) <= most, name


@pytest.mark.slow
def test_a_signal_to_one_process_ends_all_after_the_same_step_and_they_go_on_to_the_same_bytes(tmp_path, config_of):
    config = config_of("seg", batch_size=4, parallel="fsdp")
    task = create_task(config)

    def interrupted():
        calls = itertools.count()

        def loss(net, batch, original=task.loss):
            if next(calls) == 2 and ranks.rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(net, batch)

        task.loss = loss
        try:
            train(task, config, tmp_path / "run")
        except Interrupted as error:
            return [str(error).split(",")[0], error.exit_code]

    assert together(tmp_path / "ranks", interrupted) == [["interrupted at step 3", 143]] * 2
    train_together(tmp_path / "run", config, resume=True)
    train_together(tmp_path / "whole", config)
    for name in ("checkpoints/state-00000006.dk", "last.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_state_of_another_network_is_refused_in_parts_too(tmp_path):
    def refused():
        net, other = (nn.Conv2d(3, features, 3) for features in (8, 6))
        average = create_average(net, 0.9)
        shard(net, "cpu", average.module)
        state = {"step": 1, "net": other.state_dict(), "average": {}, "optimizer": {}}
        try:
            restore(state, net, average, create_optimizer(net, OptimConfig()), torch.amp.GradScaler("cpu"))
        except CheckpointError as error:
            return str(error)

    first, second = together(tmp_path, refused)
    assert first == second
    assert first.startswith("the state of step 1 does not fit this densekit: ")


def test_a_rehearsal_counts_all_parameters(tmp_path, config_of):
    config = config_of("sr", batch_size=4, parallel="fsdp")
    task = create_task(config)
    first, second = together(tmp_path, lambda: list(rehearse(task, config)))
    expected = sum(parameter.numel() for parameter in task.build_model().parameters())
    assert first[0] == second[0] == f"rdn: {expected:,} parameters"
    assert first[2].split(",")[0] == second[2].split(",")[0]  # the loss


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("rdn", {"scale": 2, "num_blocks": 3, "num_layers": 2}, 3),
        ("rrdbnet", {"scale": 4, "num_blocks": 2}, 2),
        ("srdensenet", {"scale": 4}, 8),
        ("densenet121", {}, 4),
        ("fc_densenet56", {"num_classes": 2}, 11),
    ],
)
def test_blocks_are_the_units_that_are_whole_only_while_they_compute(name, options, count):
    with torch.device("meta"):
        net = create_model(name, **options)
    found = list(units(net))
    assert len(found) == count
    assert len({id(p) for unit in found for p in unit.parameters()}) == sum(len([*unit.parameters()]) for unit in found)


def test_synchronized_norms_are_for_gpus(tmp_path, config_of):
    task = create_task(config_of("seg"))
    net = task.build_model()
    assert synchronize_norms(net, "cpu") is net  # of one process there is nothing to synchronize
    with pytest.raises(ConfigError, match=r"train\.sync_norm: the network has no batch norm; remove the key"):
        synchronize_norms(create_task(config_of("sr")).build_model(), "cpu")
    config = config_of("seg", batch_size=4, sync_norm=True)

    def refused():
        try:
            train(task, config, tmp_path / "run")
        except DeviceError as error:
            return str(error)

    expected = (
        "train.sync_norm: batch norms are synchronized on GPUs alone, but 2 processes train on cpu; leave it out, or "
        "let the norms keep their statistics with train.freeze_norm_step"
    )
    assert together(tmp_path / "ranks", refused) == [expected] * 2
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_synchronized_norms_are_batch_norms_of_the_same_names(config_of, monkeypatch):
    net = create_task(config_of("seg")).build_model()
    names, count = list(net.state_dict()), len(batch_norms(net))
    monkeypatch.setattr(ranks, "count", lambda: 2)
    net = synchronize_norms(net, "cuda")
    assert list(net.state_dict()) == names
    assert [type(norm) for norm in batch_norms(net)] == [nn.SyncBatchNorm] * count


SYNCHRONIZED = """
import sys, datetime, torch, torch.distributed as dist
from densekit import ranks
from densekit.blocks.norms import batch_norms
from densekit.models import create_model
from densekit.train.parallel import make_forward, synchronize_norms
store = dist.FileStore(sys.argv[2], 2)
number = int(sys.argv[1])
dist.init_process_group("gloo", store=store, rank=number, world_size=2, timeout=datetime.timedelta(seconds=60))
torch.manual_seed(0)
arguments = {"num_classes": 3, "num_init_features": 8, "growth_rate": 4, "num_pools": 1, "num_layers": 2}
net = create_model("fc_densenet", **arguments, memory=sys.argv[3])
x = torch.rand(4, 3, 32, 32).cuda()
alone = create_model("fc_densenet", **arguments)
alone.load_state_dict(net.state_dict())
net, alone = synchronize_norms(net.cuda(), "cuda").train(), alone.cuda().train()
for module in [*net.modules(), *alone.modules()]:
    if isinstance(module, torch.nn.Dropout2d | torch.nn.Dropout):
        module.p = 0
make_forward(net, compiled=False)(x[2 * number : 2 * number + 2]).square().mean().backward()
alone(x).square().mean().backward()
for (name, own), expected in zip(net.named_parameters(), alone.parameters(), strict=True):
    torch.testing.assert_close(own.grad, expected.grad, rtol=1e-3, atol=1e-6, msg=name)
for own, expected in zip(batch_norms(net), batch_norms(alone), strict=True):
    torch.testing.assert_close(own.running_mean, expected.running_mean, rtol=1e-4, atol=1e-6)
dist.destroy_process_group()
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("memory", MEMORY_POLICIES)
def test_synchronized_norms_take_the_step_of_the_whole_batch(tmp_path, memory):
    """Two processes on one GPU, which gloo allows and NCCL does not."""
    meeting = str(tmp_path / "meeting")
    arguments = [[sys.executable, "-c", SYNCHRONIZED, str(rank), meeting, memory] for rank in range(2)]
    processes = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for words in arguments]
    for process in processes:
        assert process.wait(120) == 0, process.stderr.read()
