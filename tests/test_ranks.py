from __future__ import annotations

import datetime
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from densekit import ranks
from densekit.errors import ConfigError, DeviceError
from tests.processes import start

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


def words(store, count):
    with ThreadPoolExecutor(count) as pool:
        return set(pool.map(lambda rank: ranks.shared_word(store, rank, count), range(count)))


def test_the_processes_of_each_start_share_a_word_of_their_own():
    store = dist.HashStore()  # as torchrun's, it keeps what earlier starts have written
    store.set("densekit asks 1", "of a process that was killed before it was answered")
    found = [words(store, count) for count in (3, 2, 3, 1, 3)]
    assert all(len(each) == 1 for each in found)
    assert len(set.union(*found)) == len(found)


def test_a_process_that_does_not_come_is_not_waited_for_without_end():
    with pytest.raises(RuntimeError, match="process 1 does not come"):
        ranks.shared_word(dist.HashStore(), 0, 2, datetime.timedelta(seconds=0.1))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_one_that_takes_long_is_waited_for_longer_than_one_that_does_not_come(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "TIMEOUT", datetime.timedelta(seconds=3))
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]

    def rank(number):
        def join(tell):
            place = {
                "RANK": number,
                "WORLD_SIZE": 2,
                "LOCAL_RANK": number,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            os.environ.update({name: str(value) for name, value in place.items()})
            with ranks.joined("cpu"):
                time.sleep(0.0 if number else 4.0)
                found = ranks.gathered(number)
                ranks.wait()
            (tmp_path / str(number)).write_text(str(found))

        return join

    children = [start(rank(number)) for number in range(2)]
    for pid, reader in children:
        os.close(reader)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert [(tmp_path / str(number)).read_text() for number in range(2)] == ["[0, 1]"] * 2


def test_the_loss_of_another_process_is_a_line(monkeypatch, tmp_path):
    def lose(text):
        for name, value in {**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(ranks, "meeting_point", lambda *_: dist.HashStore())
        with ranks.joined("cpu"):
            raise RuntimeError(text)

    with pytest.raises(
        DeviceError, match=r"process 0 of 1 has lost the others: one of them ended, .* continue with --resume"
    ):
        lose("[/build/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:45755")
    with pytest.raises(RuntimeError, match="another fault"):
        lose("another fault")
    assert not dist.is_initialized()
