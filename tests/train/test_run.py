from __future__ import annotations

import json
import os

import pytest

from densekit.errors import ConfigError
from densekit.train.run import Run


def state(step):
    return {"step": step, "best": 0.0, "net": {}, "average": {}, "optimizer": {}, "config": ""}


def names(run):
    return [path.name for path in run._paths()]


def test_the_newest_states_stay(tmp_path):
    run = Run(tmp_path / "a" / "run", keep=2)
    for step in (1, 5, 12, 99_999_999, 100_000_000):
        run.save(state(step))
        assert run.load() == (state(step), [])
    assert names(run) == ["state-99999999.dk", "state-100000000.dk"]


def test_a_run_without_a_state_has_none_to_load(tmp_path):
    assert Run(tmp_path, keep=2).load() == (None, [])


def test_damaged_newer_states_do_not_push_out_whole_ones(tmp_path):
    run = Run(tmp_path, keep=3)
    for step in (1, 2, 3):
        run.save(state(step))
    run._paths()[-1].write_bytes(b"torn")
    found, warnings = run.load()
    assert found == state(2)
    assert len(warnings) == 1
    again = Run(tmp_path, keep=1)  # the next part of the run keeps fewer, and saves more often
    again.save(state(2))
    assert names(again) == ["state-00000002.dk"]


def test_leftovers_of_a_killed_write_go_once_the_folder_is_held(tmp_path):
    run = Run(tmp_path, keep=1)
    leftovers = [tmp_path / ".last.safetensors.tmp123", run.states / ".state-00000001.dk.tmp123"]
    for path in leftovers:
        path.write_bytes(b"half")
    with run.locked():
        assert not any(path.exists() for path in leftovers)


def test_a_folder_is_held_once_even_within_a_process(tmp_path):
    first, second = Run(tmp_path, 1), Run(tmp_path, 1)
    with first.locked(), pytest.raises(ConfigError, match="in use by process"), second.locked():
        pass
    with second.locked():
        assert (tmp_path / ".holder").read_text() == str(os.getpid())


def test_a_folder_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), Run(tmp_path, 1).locked():
        1 / 0  # noqa: B018
    with Run(tmp_path, 1).locked():
        pass
    assert not (tmp_path / ".holder").exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/run: cannot be made or written: Not a directory"):
        Run(tmp_path / "file" / "run", 1)


def test_the_log_loses_what_will_be_written_again(tmp_path):
    run = Run(tmp_path, 1)
    run.truncate_log(3)
    assert not (tmp_path / "metrics.jsonl").exists()
    for step in range(1, 6):
        run.log({"step": step, "loss": step / 10})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'[]\n\xff\xfe\n{"loss": 1}\n{"step": 2, "lo')  # torn by a kill, and by a disk
    run.truncate_log(3)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": step, "loss": step / 10} for step in (1, 2, 3)]
