from __future__ import annotations

import pytest
import torch

from densekit import ranks
from densekit.errors import ConfigError

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "2901"}
SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "node[03-04,11]",
    "SLURM_JOB_ID": "77",
}


def test_a_process_alone_is_the_first_of_one():
    assert (ranks.rank(), ranks.count()) == (0, 1)
    assert ranks.gathered("item") == ["item"]
    tensor = torch.ones(2)
    ranks.shared([tensor])
    ranks.wait()
    assert torch.equal(tensor, torch.ones(2))


def test_what_torchrun_says_is_taken():
    assert ranks.find_place({**TORCHRUN, **SLURM, "HOME": "/"}) == TORCHRUN


@pytest.mark.parametrize(
    ("nodes", "first"), [("node[03-04,11]", "node03"), ("alpha,beta", "alpha"), ("n7", "n7"), ("gpu-[1,5]", "gpu-1")]
)
def test_a_step_of_slurm_says_where_the_first_process_is(nodes, first):
    place = ranks.find_place({**SLURM, "SLURM_STEP_NODELIST": nodes})
    assert place == {
        "RANK": "3",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": first,
        "MASTER_PORT": "15077",
    }
    assert ranks.find_place({**SLURM, "MASTER_PORT": "29500"})["MASTER_PORT"] == "29500"


@pytest.mark.parametrize("environment", [{}, {"SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}, {"SLURM_NTASKS": "4"}])
def test_other_environments_are_those_of_a_process_alone(environment):
    assert ranks.find_place(environment) is None


def test_half_of_torchruns_variables_are_an_error():
    with pytest.raises(ConfigError, match="RANK is set, but not LOCAL_RANK, MASTER_ADDR, MASTER_PORT; start with"):
        ranks.find_place({"RANK": "0", "WORLD_SIZE": "2"})
