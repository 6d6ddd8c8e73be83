from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from densekit import memory


def bytes_per_pixel(module: nn.Module, in_channels: int = 3) -> float:
    return memory.activation_bytes_per_pixel(module.eval(), in_channels)


def conv(in_channels: int, out_channels: int, size: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, size, padding=size // 2, **options)


class Dense(nn.Module):
    """Three layers of 8 on 16 channels, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(conv(16 + 8 * i, 8) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], dim=1)
        return x


class Unshuffled(nn.Sequential):
    multiple_of = 48


@pytest.mark.parametrize(
    ("module", "channels"),
    [
        (nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 8)), 3 + 16 + 16),
        (nn.Sequential(conv(3, 16), nn.ReLU(inplace=True), conv(16, 8)), 3 + 16 + 8),
        (nn.Sequential(conv(3, 12), nn.PixelShuffle(2), conv(3, 3)), 3 + 12 + 12),  # conv: 12 in, 12 out, shuffled gone
        (nn.Sequential(conv(3, 32, stride=2), conv(32, 32)), 3 + 8 + 8),  # a quarter of the pixels
        (Unshuffled(nn.PixelUnshuffle(4), conv(48, 48)), 3 + 3 + 3),
    ],
)
def test_the_peak_is_that_counted_by_hand(module, channels):
    assert bytes_per_pixel(module) == 4 * channels
    assert bytes_per_pixel(module.to(torch.bfloat16)) == 2 * channels


def test_a_dense_block_counts_its_widest_concatenation():
    # While the last concatenation is made: the block's input, its two parts (32 and 8 channels) and the result of 40.
    assert bytes_per_pixel(Dense(), in_channels=16) == 4 * (16 + 32 + 8 + 40)


def test_available_memory_is_a_part_of_the_machine():
    assert 2**20 < memory.available_memory("cpu") < 2**50


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A made-up /proc and /sys/fs/cgroup; returns a function that writes a file there."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "cgroup")

    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    write("proc/meminfo", "MemTotal:       16000 kB\nMemFree:  1000 kB\nMemAvailable:    8000 kB\n")
    return write


def test_without_limits_all_available_memory_counts(machine):
    assert memory.available_memory("cpu") == 8000 * 1024


def test_a_container_limit_counts_with_droppable_cache_as_free(machine):
    machine("proc/self/cgroup", "0::/job/step\n")
    machine("cgroup/job/step/memory.max", "max\n")
    machine("cgroup/job/step/memory.current", "900\n")
    machine("cgroup/job/step/memory.stat", "anon 1\n")
    machine("cgroup/job/memory.max", "5000000\n")
    machine("cgroup/job/memory.current", "3000000\n")
    machine("cgroup/job/memory.stat", "anon 5\ninactive_file 1000000\n")
    assert memory.available_memory("cpu") == 3_000_000


def test_a_limit_of_the_first_cgroup_version_counts_seen_from_inside_a_container(machine):
    machine("proc/self/cgroup", "5:cpu,cpuacct:/docker/1f\n4:memory:/docker/1f\n0::/\n")
    machine("cgroup/memory/memory.limit_in_bytes", "4000000\n")
    machine("cgroup/memory/memory.usage_in_bytes", "3900000\n")
    machine("cgroup/memory/memory.stat", "inactive_file 7\ntotal_inactive_file 400000\n")
    assert memory.available_memory("cpu") == 500_000


def test_a_system_without_proc_offers_half_of_its_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "PROC", tmp_path)
    assert 2**20 < memory.available_memory("cpu") < 2**50
