from __future__ import annotations

import pytest
import torch

from densekit.blocks.inference import cpu


@pytest.fixture(autouse=True)
def _anew():
    cpu.has_fast_products.cache_clear()
    yield
    cpu.has_fast_products.cache_clear()


@pytest.mark.skipif(not cpu.onednn_types(), reason="torch without oneDNN")
@pytest.mark.parametrize(("share", "expected"), [(0.4, False), (0.8, True), (1.1, True)])
def test_products_of_less_than_three_fifths_of_the_speed_are_slow(monkeypatch, share, expected):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    convolution = 1e-3
    product = convolution * cpu.COUNT * cpu.ROWS / (9 * cpu.SIDE**2) / share
    monkeypatch.setattr(cpu, "shortest", lambda *runs: [product, convolution])
    assert cpu.has_fast_products() is expected


def test_what_is_timed_gives_results_on_one_thread_and_leaves_the_number_as_it_was(monkeypatch):
    if not cpu.onednn_types():
        pytest.skip("torch without oneDNN")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    seen = []

    def shortest(product, convolution):
        seen.append(torch.get_num_threads())
        assert product().shape == (cpu.COUNT, cpu.ROWS, cpu.CHANNELS)
        assert (product() == cpu.CHANNELS).all()
        assert convolution().shape == (1, cpu.CHANNELS, cpu.SIDE, cpu.SIDE)
        raise MemoryError

    monkeypatch.setattr(cpu, "shortest", shortest)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    with pytest.raises(MemoryError):
        cpu.has_fast_products()
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)
    assert seen == [1]


def test_it_is_measured_once(monkeypatch):
    calls = []
    shortest = cpu.shortest
    monkeypatch.setattr(cpu, "shortest", lambda *runs: calls.append(runs) or shortest(*runs))
    assert cpu.has_fast_products() is cpu.has_fast_products()
    assert len(calls) <= 1


def test_without_mkl_products_count_as_slow(monkeypatch):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not cpu.has_fast_products()


def test_the_least_of_several_turns_counts():
    turns = {"first": 0, "second": 0}

    def run(name):
        turns[name] += 1
        return torch.empty(0)

    seconds = cpu.shortest(lambda: run("first"), lambda: run("second"))
    assert turns == {"first": cpu.TURNS + 1, "second": cpu.TURNS + 1}
    assert all(0 < value < 0.1 for value in seconds)
