from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from densekit.train.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(16, 288), (48, 27), (12, 12), (1, 9)])
def test_an_orthogonalised_matrix_keeps_its_singular_vectors_and_has_values_near_one(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    core = u.T @ orthogonalised(matrix) @ vt.T  # diagonal if the vectors are the same
    values = core.diagonal()
    assert ((values > 0.6) & (values < 1.3)).all()
    torch.testing.assert_close(core, values.diag(), atol=2e-4, rtol=0)


def test_a_matrix_of_zeros_stays_so():
    assert (orthogonalised(torch.zeros(3, 5)) == 0).all()


def test_matrices_move_as_in_torchs_muon():
    """torch works in bfloat16, so that single values differ by a percent."""
    torch.manual_seed(0)
    ours = torch.randn(12, 40)
    theirs = ours.clone()
    optimizers = [
        Muon([ours], 0.01, weight_decay=0.1),
        torch.optim.Muon([theirs], 0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(5):
        ours.grad = theirs.grad = torch.randn(12, 40)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)


def test_a_kernel_moves_as_the_matrix_of_its_outputs():
    torch.manual_seed(0)
    kernel = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    matrix = kernel.flatten(1).clone()
    optimizer = Muon([kernel, matrix], 0.01)
    for _ in range(3):
        kernel.grad = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
        matrix.grad = kernel.grad.flatten(1)
        optimizer.step()
    torch.testing.assert_close(kernel.flatten(1), matrix, atol=1e-5, rtol=0)


def test_vectors_move_as_in_adamw():
    torch.manual_seed(0)
    ours = torch.randn(7)
    theirs = ours.clone()
    optimizers = [Muon([ours], 0.01, weight_decay=0.1), torch.optim.AdamW([theirs], 0.01, weight_decay=0.1)]
    for _ in range(5):
        ours.grad = theirs.grad = torch.randn(7)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_an_update_of_a_matrix_has_the_size_of_one_of_adam():
    torch.manual_seed(0)
    weight = torch.zeros(64, 64)
    optimizer = Muon([weight], 1.0, momentum=0.0)
    weight.grad = torch.randn(64, 64)
    optimizer.step()
    assert math.isclose(weight.square().mean().sqrt().item(), 0.2, rel_tol=0.3)


def test_a_parameter_without_a_gradient_stays_and_a_closure_gives_the_loss():
    net = nn.Linear(2, 2)
    before = net.weight.clone()
    assert Muon(net.parameters()).step(lambda: 3.0) == 3.0
    assert torch.equal(net.weight, before)


def test_a_saved_state_goes_on_as_if_never_stopped():
    def run(stop):
        torch.manual_seed(0)
        net = nn.Conv2d(2, 4, 3)
        optimizer = Muon(net.parameters(), 0.01)
        for step in range(6):
            if step == stop:
                state = optimizer.state_dict()
                optimizer = Muon(net.parameters(), 0.01)
                optimizer.load_state_dict(state)
            generator = torch.Generator().manual_seed(step)
            loss = (net(torch.randn(1, 2, 5, 5, generator=generator)) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return net

    for a, b in zip(run(None).parameters(), run(3).parameters(), strict=True):
        assert torch.equal(a, b)
