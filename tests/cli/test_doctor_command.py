from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

from densekit import pretrained
from densekit.cli import installation, machine, selftest

REQUIRED = ["torch>=2.10", "opencv-python-headless>=4.11", "albumentations==2.0.8", 'onnx>=1.18; extra == "export"',
            'ruff>=0.12; extra == "dev"']  # fmt: skip
GOOD = {"torch": "2.15.0+cpu", "opencv-python-headless": "5.0.0.93", "albumentations": "2.0.8"}


@pytest.fixture
def packages(monkeypatch):
    """Makes these the installed packages, and what they ask for."""

    def install(versions, requires=None):
        declared = {"densekit": REQUIRED, **(requires or {})}

        def version(name):
            if name not in versions:
                raise installation.metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(installation.metadata, "version", version)
        monkeypatch.setattr(installation.metadata, "requires", lambda name: declared.get(name))

    return install


def states(findings):
    return [(finding.check, finding.state) for finding in findings]


def test_a_good_installation_has_nothing_to_mend(run):
    result = run("doctor")
    assert result.code == 0, result.out
    checks = {line[6:].split("  ")[0].strip() for line in result.out}
    assert {"densekit", "python", "requirements", "opencv", "configs", "weights", "device", "cpu", "threads",
            "memory", "prediction"} <= checks  # fmt: skip
    assert all(line[:4].strip() in ("ok", "warn", "") for line in result.out)
    assert result.err[-1].endswith(" 0 fail")
    predicted = [line for line in result.out if "  prediction " in line]
    assert len(predicted) == len(pretrained.trained_names())
    assert any("rdn-tiny-x4: 64x48 -> 256x192" in line for line in predicted)


def test_the_json_of_a_check_keeps_its_keys_and_names_no_home(run, monkeypatch, tmp_path):
    monkeypatch.setattr(selftest, "predictions", lambda: ())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "models"))
    result = run("doctor", "--json")
    records = [json.loads(line) for line in result.out]
    assert all(list(record) == ["check", "state", "found", "next"] for record in records)
    told = {record["check"]: record for record in records}
    assert "are kept in ~/models" in told["hub"]["found"]
    assert str(tmp_path) not in "".join(result.out)


FAKES = {
    "cv2.py": "raise ImportError('libGL.so.1: cannot open shared object file')",
    "torch.py": "raise OSError('libtorch.so: no such file')",
    "opencv_python-4.9.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: opencv-python\nVersion: 4.9.0\n",
}


def diagnose(folder, *fakes):
    """Runs the doctor in a process that finds these first: the code, and what it says of each check."""
    for name in fakes:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FAKES[name])
    code = "import sys; from densekit.cli import main; sys.exit(main(['doctor', '--json']))"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, {record["check"]: record for record in map(json.loads, done.stdout.splitlines())}


def test_imports_that_break_are_findings_and_the_other_checks_are_made(tmp_path):
    code, told = diagnose(tmp_path, "cv2.py", "torch.py")
    assert code == 1
    assert told["opencv"]["state"] == told["torch"]["state"] == "fail"
    assert "libGL.so.1" in told["opencv"]["found"]
    assert told["opencv"]["next"].endswith("pip install opencv-python-headless")
    assert "libtorch.so" in told["torch"]["found"]
    assert told["not checked"]["found"] == "device, cpu, memory, prediction, which need torch"
    assert told["configs"]["state"] == told["weights"]["state"] == "ok"


def test_two_opencvs_are_found_and_the_way_out_is_printed(tmp_path):
    code, told = diagnose(tmp_path, "opencv_python-4.9.0.dist-info/METADATA", "torch.py")
    assert code == 1
    assert told["opencv"]["state"] == "fail"
    assert told["opencv"]["next"] == (
        "pip uninstall -y opencv-python-headless opencv-python && pip install opencv-python-headless"
    )


def test_an_installation_as_declared_is_one_line(packages):
    packages(GOOD)
    (finding,) = installation.requirements()
    assert (finding.state, finding.found[:10]) == ("ok", "3 packages")


@pytest.mark.parametrize(
    ("change", "found", "todo"),
    [
        ({"torch": "2.9.1+cu130"}, "2.9.1+cu130 is installed; needed: >=2.10", "pip install -U 'torch>=2.10'"),
        ({"torch": None}, "not installed; needed: >=2.10", "pip install 'torch>=2.10'"),
        ({"albumentations": "2.0.9"}, "2.0.9 is installed; needed: ==2.0.8", "pip install -U 'albumentations==2.0.8'"),
    ],
)
def test_what_is_missing_or_of_another_version_comes_with_its_command(packages, change, found, todo):
    packages({name: version for name, version in {**GOOD, **change}.items() if version})
    (finding,) = installation.requirements()
    assert (finding.check, finding.state) == (next(iter(change)), "fail")
    assert (finding.found, finding.next) == (found, todo)


def test_the_successor_of_albumentations_is_warned_of(packages):
    packages({**GOOD, "albumentationsx": "2.1"})
    assert states(installation.requirements()) == [("requirements", "ok"), ("albumentations", "warn")]


def test_another_opencv_alone_will_do(packages):
    packages({"torch": "2.15.0", "albumentations": "2.0.8", "opencv-contrib-python": "4.12.0"})
    assert states(installation.requirements()) == [("requirements", "ok")]
    assert states(installation.opencv()) == [("opencv", "ok")]


@pytest.mark.parametrize(("torch", "state"), [("2.15.0+cu132", "ok"), ("2.14.1", "fail"), ("2.15.1", "fail")])
def test_torchvision_has_to_be_built_for_this_torch(packages, torch, state):
    packages({"torch": torch, "torchvision": "0.29.0"}, {"torchvision": ["numpy", "torch==2.15.0"]})
    (finding,) = installation.torchvision()
    assert finding.state == state
    assert finding.next == ("pip install -U torch torchvision" if state == "fail" else "")
    packages({"torch": torch})
    assert not list(installation.torchvision())


def test_extras_are_optional_and_named_with_their_command(packages):
    packages(GOOD)
    (finding,) = installation.extras()
    assert (finding.check, finding.state, finding.found) == ("[export]", "ok", "optional, without onnx")
    assert finding.next == "pip install 'densekit[export]' if you need it"
    packages({**GOOD, "onnx": "1.20"})
    assert [finding.found for finding in installation.extras()] == ["onnx 1.20"]


def test_weights_that_changed_on_the_disk_fail(tmp_path, monkeypatch):
    for name in ("rdn-tiny-x2", "rdn-tiny-x4"):
        shutil.copy(pretrained.WEIGHTS / f"{name}.safetensors", tmp_path)
    path = tmp_path / "rdn-tiny-x4.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path)
    good, bad = selftest.seals()
    assert (good.state, bad.state) == ("ok", "fail")
    assert "damaged file" in bad.found
    assert bad.next == "pip install --force-reinstall densekit"


def test_a_model_that_predicts_nonsense_fails(tmp_path, monkeypatch):
    import torch

    from densekit.checkpoint import load_model, save_model

    net, card = load_model(pretrained.WEIGHTS / "rdn-tiny-x2.safetensors")
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(3)
    save_model(tmp_path / "rdn-tiny-x2.safetensors", net, card)
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path)
    (finding,) = selftest.predictions()
    assert finding.state == "fail"
    assert "from bicubic in the mean" in finding.found


def test_little_memory_and_disk_are_warned_of(monkeypatch, tmp_path):
    from densekit import memory

    monkeypatch.chdir(tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage(10, 5, 5 << 20))
    assert states(machine.storage())[:2] == [("temporary", "warn"), ("this folder", "warn")]
    monkeypatch.setattr(memory, "available_memory", lambda _: 3 << 20)
    (finding,) = machine.memory()
    assert (finding.state, finding.found) == ("warn", "3 MiB available")


def test_more_threads_than_cores_are_warned_of(monkeypatch):
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(machine, "_cores", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    findings = {finding.check: finding for finding in machine.processor()}
    assert findings["threads"].state == "warn"
    assert findings["threads"].found == "64 for 2 cores (OMP_NUM_THREADS=64)"
    assert findings["threads"].next.startswith("set OMP_NUM_THREADS=2: ")


def test_a_folder_that_cannot_be_written_is_told(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", refuse)
    temporary, here = list(machine.storage())[:2]
    assert (temporary.state, temporary.next) == ("fail", "set TMPDIR to another")
    assert (here.state, here.next) == ("warn", "write elsewhere with -o")
    assert here.found.endswith(": Permission denied")


def test_a_check_that_breaks_is_a_finding_itself(run, monkeypatch):
    def broken():
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(machine, "storage", broken)
    monkeypatch.setattr(selftest, "predictions", lambda: ())
    result = run("doctor")
    assert result.code == 1
    assert any(line.startswith("fail  storage       unexpected RuntimeError: two\\nlines") for line in result.out)
