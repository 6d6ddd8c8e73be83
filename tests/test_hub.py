"""The hub, as a server on this machine that speaks the part of its protocol that downloads use."""

from __future__ import annotations

import hashlib
import http.server
import json
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import densekit
from densekit import hub
from densekit.cards import Card, read_card
from densekit.checkpoint import load_model, save_model
from densekit.cli import main
from densekit.errors import CheckpointError, ConfigError
from densekit.models import create_model
from densekit.pretrained import find_weights

COMMITS = ("a" * 40, "b" * 40)
ENCODER = Card("encoder", "densenet", {"growth_rate": 4, "block_config": [1, 2], "num_init_features": 8})


class Hub(http.server.ThreadingHTTPServer):
    """Repositories by name: the files of each commit, oldest first; and the requests that came."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.requests: list[str] = []


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        parts = self.path.partition("?")[0].strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if is_api else parts[:2])
        commits = self.server.repositories.get(repo)
        if commits is None:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, with_body)
        revision = (parts[5] if len(parts) > 5 else "main") if is_api else parts[3]
        commit = COMMITS.index(revision) if revision in COMMITS else len(commits) - 1
        if revision not in (*COMMITS[: len(commits)], "main"):
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, with_body)
        files = commits[commit]
        if is_api:
            body = {"id": repo, "sha": COMMITS[commit], "siblings": [{"rfilename": name} for name in files]}
            return self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"}, with_body)
        name = "/".join(parts[4:])
        if name not in files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)
        headers = {"ETag": f'"{hashlib.sha256(files[name]).hexdigest()}"', "X-Repo-Commit": COMMITS[commit]}
        return self._send(200, files[name], headers, with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub on this machine, and a cache of its own."""
    from huggingface_hub import constants

    served = Hub()
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{served.server_port}")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


@pytest.fixture
def published(server, tiny_sr):
    """A hub that has one model, in one commit."""
    server.repositories["lab/rdn"] = [{"README.md": b"# rdn\n", "model.safetensors": tiny_sr.read_bytes()}]
    return server


def test_an_id_is_fetched_once_and_then_needs_no_network(published, tiny_sr):
    path = find_weights("lab/rdn")
    assert path.read_bytes() == tiny_sr.read_bytes()
    published.requests.clear()
    assert find_weights("lab/rdn") == path
    assert published.requests == []
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    torch.testing.assert_close(densekit.load("lab/rdn").predict(image), densekit.load(tiny_sr).predict(image))


def test_an_id_without_a_revision_stays_what_it_was(published, tiny_seg, caplog):
    first = find_weights("lab/rdn")
    published.repositories["lab/rdn"].append({"model.safetensors": tiny_seg.read_bytes()})
    assert find_weights("lab/rdn") == first
    with caplog.at_level("INFO", "densekit"):
        assert read_card(find_weights("lab/rdn@main")).task == "seg"
    assert f"lab/rdn@main: fetched; lab/rdn@{COMMITS[1]} stays the same" in caplog.text
    assert find_weights(f"lab/rdn@{COMMITS[0]}") == first


def test_a_commit_is_fetched_once_for_ever(published):
    path = find_weights(f"lab/rdn@{COMMITS[0]}")
    assert hub.pinned_id(path) == f"lab/rdn@{COMMITS[0]}"
    published.requests.clear()
    assert find_weights(f"lab/rdn@{COMMITS[0]}") == path
    assert published.requests == []


def test_a_branch_falls_back_to_what_was_fetched_where_the_network_is_off(published, monkeypatch, caplog):
    from huggingface_hub import constants

    path = find_weights("lab/rdn@main")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with caplog.at_level("WARNING", "densekit"):
        assert find_weights("lab/rdn@main") == path
    assert f"what was fetched last is used (lab/rdn@{COMMITS[0]})" in caplog.text


def test_an_id_never_fetched_needs_the_network(published, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"lab/rdn: no such file or folder here, and the hub cannot be asked \("):
        find_weights("lab/rdn")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lab/none", r"lab/none: no such file or folder here, nor a repository on the hub"),
        ("lab/rdn@v9", r"lab/rdn@v9: the repository has no revision v9"),
    ],
)
def test_what_the_hub_has_not_is_one_line(published, name, message):
    with pytest.raises(ConfigError, match=message) as error:
        find_weights(name)
    assert "\n" not in str(error.value)


def test_a_repository_of_one_foreign_file_gives_that_file(server):
    server.repositories["lab/foreign"] = [{"README.md": b"x", "4x_net.pth": b"weights"}]
    assert find_weights("lab/foreign").name == "4x_net.pth"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.pth": b"1", "b.pth": b"2"}, r"has 2 files of weights \(a.pth, b.pth\); give the path of one of them"),
        ({"README.md": b"x"}, r"lab/odd: has no file of weights \(.safetensors, "),
    ],
)
def test_a_repository_without_the_one_file_says_so(server, files, message):
    server.repositories["lab/odd"] = [files]
    with pytest.raises(CheckpointError, match=message):
        find_weights("lab/odd")


def test_damaged_weights_of_the_hub_are_refused(published):
    published.repositories["lab/rdn"][0]["model.safetensors"] = (
        published.repositories["lab/rdn"][0]["model.safetensors"][:-4] + b"\0\1\2\3"
    )
    with pytest.raises(CheckpointError, match="damaged file; copy or download it again"):
        densekit.load("lab/rdn")


def test_a_path_that_is_missing_never_goes_to_the_hub(published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("runs/mine", "lab/rdn.pth", "./lab/rdn", "/lab/rdn"):
        with pytest.raises((CheckpointError, ConfigError), match="no such"):
            find_weights(name)
    assert published.requests == []


def test_a_digest_pins_the_bytes(published, tiny_sr):
    digest = hashlib.sha256(tiny_sr.read_bytes()).hexdigest()
    assert find_weights(f"lab/rdn#{digest}").is_file()
    assert find_weights(f"{tiny_sr}#{digest[:12].upper()}") == tiny_sr
    with pytest.raises(CheckpointError, match=rf"#00000000: SHA-256 of .* is {digest[:8]}\.\.; not the file asked for"):
        find_weights("lab/rdn#00000000")


def test_a_folder_is_a_model(tmp_path, tiny_sr, tiny_seg):
    densekit.load(tiny_sr).save_pretrained(tmp_path / "mine")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["README.md", "model.safetensors"]
    again, card = load_model(find_weights(tmp_path / "mine"))
    original, its_card = load_model(tiny_sr)
    assert card == its_card
    for name, tensor in original.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    run = tmp_path / "run"
    run.mkdir()
    (run / "best.safetensors").write_bytes(tiny_seg.read_bytes())
    (run / "last.safetensors").write_bytes(tiny_sr.read_bytes())
    assert densekit.load(run).card.task == "seg"
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty: has no file of weights"):
        densekit.load(tmp_path / "empty")


def test_an_encoder_comes_from_an_id(server, tmp_path):
    torch.manual_seed(0)
    net = create_model(ENCODER.model, **ENCODER.arguments)
    save_model(tmp_path / "model.safetensors", net, ENCODER)
    server.repositories["lab/net"] = [{"model.safetensors": (tmp_path / "model.safetensors").read_bytes()}]
    encoder = densekit.create_encoder("densenet", weights="lab/net", **ENCODER.arguments)
    assert torch.equal(encoder.features.conv0.weight, net.features.conv0.weight)


def test_the_card_on_the_hub_gives_figures_with_protocol_data_and_licence(tmp_path):
    densekit.load("rdn-tiny-x2").save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text("utf-8")
    assert "| psnr | 37.65 | Set5 (5 images) | rdn-y |" in text
    assert "**BSDS500: non-commercial research; T91: none stated**" in text
    assert "scale=2, num_features=32" in text
    from huggingface_hub import ModelCard

    header = ModelCard(text).data
    assert header.license == "other"
    assert header.library_name == "densekit"
    assert [(r.metric_type, r.metric_value) for r in header.eval_results] == [("psnr", 37.6501)]


class FakeApi:
    """What `push_to_hub` calls; it remembers the files that were uploaded."""

    def __init__(self, token=None) -> None:
        self.token = token

    def create_repo(self, repo_id, *, private, exist_ok):
        FakeApi.made = (repo_id, private, exist_ok, self.token)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        from pathlib import Path

        FakeApi.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        return SimpleNamespace(oid=COMMITS[0])


def test_pushing_uploads_weights_and_card_and_returns_the_pinned_id(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    model = densekit.load("fc-densenet-nuclei")
    assert model.push_to_hub("lab/nuclei", private=True, token="t") == f"lab/nuclei@{COMMITS[0]}"
    assert FakeApi.made == ("lab/nuclei", True, True, "t")
    (tmp_path / "model.safetensors").write_bytes(FakeApi.files["model.safetensors"])
    assert load_model(tmp_path / "model.safetensors")[1] == model.card
    assert b'densekit.load("lab/nuclei")' in FakeApi.files["README.md"]


def test_pushing_without_a_licence_is_refused(tiny_sr):
    with pytest.raises(ConfigError, match=r"lab/rdn: the card says no licence of the training data"):
        densekit.load(tiny_sr).push_to_hub("lab/rdn")
    with pytest.raises(ConfigError, match=r"nonsense: expected a repository of the hub, org/name"):
        densekit.load("rdn-tiny-x2").push_to_hub("nonsense")


def test_a_hub_that_refuses_is_one_line(monkeypatch):
    def refuse(self, *args, **kwargs):
        raise OSError("401 Client Error\nmore")

    monkeypatch.setattr(FakeApi, "create_repo", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    with pytest.raises(ConfigError, match=r"^lab/rdn: not on the hub \(401 Client Error\)$"):
        densekit.load("rdn-tiny-x2").push_to_hub("lab/rdn")


def test_the_command_line_takes_an_id(published, tmp_path, capsys):
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    assert main(["sr", "predict", str(tmp_path / "a.png"), "-m", "lab/rdn"]) == 0
    told = capsys.readouterr()
    assert told.out == f"{tmp_path / 'a_x2.png'}\n"
    assert "lab/rdn: fetched; " in told.err


@pytest.mark.parametrize(
    "code",
    [
        "import densekit; densekit.list_models(); densekit.load('rdn-tiny-x2')",
        "import densekit; densekit.create_encoder('densenet121')",
        "from densekit.cli import main; raise SystemExit(main(['models']))",
    ],
)
def test_nothing_asks_the_network_unasked(code):
    blocked = (
        "import socket\n"
        "def refuse(*args, **kwargs): raise RuntimeError('a network call')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
    )
    done = subprocess.run([sys.executable, "-c", blocked + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
