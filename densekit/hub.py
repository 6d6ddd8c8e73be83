"""Models on the hub of Hugging Face, and folders that look like its repositories."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densekit.cards import FORMAT, Card
from densekit.errors import CheckpointError, ConfigError
from densekit.files import atomic_write, printable
from densekit.model_card import describe_model

if TYPE_CHECKING:
    from torch import nn

FILE, README = "model.safetensors", "README.md"
# What a repository or a folder may hold in place of it, in the order of preference.
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".npz", ".h5", ".onnx")
_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w.-]+))?")
logger: logging.Logger = logging.getLogger("densekit")


def is_hub_id(text: str) -> bool:
    """Says whether `text` is "org/name" or "org/name@revision" and no path into a folder that is here."""
    path = Path(text)
    return bool(_ID.fullmatch(text)) and path.suffix.lower() not in SUFFIXES and not path.parent.is_dir()


def fetch(text: str) -> Path:
    """Returns the file of weights behind a hub id, from the local cache if it has been fetched before.

    An id without a revision stays what it was when it was first fetched: nothing is asked again. With one, a commit
    already fetched needs no network either; a branch or tag is asked for, and what was fetched of it last serves where
    the network is off.

    Raises:
        ConfigError: no such repository or revision, one that is closed, or no network and nothing fetched.
        CheckpointError: a repository without weights, or with several files and none named model.safetensors.
    """
    found = _ID.fullmatch(text)
    assert found, text
    repo, revision = found["repo"], found["revision"]
    cached = _cached(repo, revision or "main")
    if cached is not None and (revision is None or re.fullmatch("[0-9a-f]{40}", revision)):
        return cached
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        names = [file.rfilename for file in HfApi().model_info(repo, revision=revision).siblings or ()]
        path = Path(hf_hub_download(repo, choose_file(names, text), revision=revision))
    except (CheckpointError, HFValidationError) as error:
        raise CheckpointError(printable(error)) from error
    except GatedRepoError as error:
        raise ConfigError(f"{text}: its owner grants access one by one; ask there, then `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"{text}: no such file or folder here, nor a repository on the hub that you may read (`hf auth login`)"
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigError(f"{text}: the repository has no revision {revision}") from error
    except Exception as error:  # the network's own kinds: no route, no name, offline by choice, a server's fault
        if cached is None:
            raise ConfigError(
                f"{text}: no such file or folder here, and the hub cannot be asked ({printable(_first_line(error))})"
            ) from error
        logger.warning("%s: the hub cannot be asked, what was fetched last is used (%s)", text, pinned_id(cached))
        return cached
    logger.info("%s: fetched; %s stays the same", text, pinned_id(path))
    return path


def pinned_id(path: Path) -> str:
    """Returns the id of a fetched file with its commit, which names these bytes for ever."""
    folder = next(part for part in path.parents if part.parent.name == "snapshots")
    return f"{folder.parents[1].name.removeprefix('models--').replace('--', '/', 1)}@{folder.name}"


def choose_file(names: Sequence[str], source: str) -> str:
    """Returns the file of weights among the files of a repository or folder.

    Raises:
        CheckpointError: none, or more than one and none of them `model.safetensors`.
    """
    if FILE in names:
        return FILE
    for suffix in SUFFIXES:
        fitting = sorted(name for name in names if name.lower().endswith(suffix) and "/" not in name)
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            shown = ", ".join(fitting[:3]) + (", ..." if len(fitting) > 3 else "")
            raise CheckpointError(
                f"{printable(source)}: has {len(fitting)} files of weights ({shown}); give the path of one of them"
            )
    raise CheckpointError(f"{printable(source)}: has no file of weights ({', '.join(SUFFIXES)})")


def _cached(repo: str, revision: str) -> Path | None:
    """Returns the file of weights that was fetched of a revision, or None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        return folder / choose_file([path.name for path in folder.iterdir()], repo)
    except (OSError, CheckpointError, HFValidationError):  # LocalEntryNotFoundError is an OSError
        return None


def save_pretrained(folder: str | Path, net: nn.Module, card: Card, *, name: str = "") -> Path:
    """Writes a folder that `densekit.load` takes, and that can be a repository of the hub; returns its weights' file.

    Args:
        folder: made if missing. Its `model.safetensors` and `README.md`, the model card, are replaced.
        net: with the weights.
        card: what its checkpoint says about it.
        name: of the model in its card; that of the folder if empty.

    Raises:
        CheckpointError: a weight is not finite.
        OSError: the folder cannot be written.
    """
    from densekit.checkpoint import save_model

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder / FILE, net, card)
    parameters = sum(p.numel() for p in net.parameters())
    atomic_write(folder / README, describe_model(name or folder.resolve().name, card, parameters).encode())
    return folder / FILE


def push_to_hub(
    repo_id: str,
    net: nn.Module,
    card: Card,
    *,
    private: bool = False,
    token: str | None = None,
    message: str = "",
) -> str:
    """Puts a model and its card onto the hub; returns its pinned id, "org/name@commit", for `densekit.load`.

    Args:
        repo_id: "org/name"; made if missing.
        net: with the weights.
        card: what its checkpoint says about it. One without a licence of its data is refused: whoever fetches the
            weights is bound by it.
        private: whether a new repository is closed to others.
        token: of Hugging Face; the one of `hf auth login` if None.
        message: of the commit.

    Raises:
        ConfigError: no such id, a card without a licence, or a hub that refuses or cannot be reached.
        CheckpointError: a weight is not finite.
    """
    found = _ID.fullmatch(repo_id)
    if not found or found["revision"]:
        raise ConfigError(f"{printable(repo_id)}: expected a repository of the hub, org/name")
    if not card.licence:
        raise ConfigError(
            f"{repo_id}: the card says no licence of the training data, which binds the weights; set Card.licence "
            "(data.licence in a config)"
        )
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(folder, net, card, name=repo_id)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            done: Any = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=message or f"densekit, format {FORMAT}"
            )
        except Exception as error:  # the hub's and the network's own kinds
            raise ConfigError(f"{repo_id}: not on the hub ({printable(_first_line(error))})") from error
    return f"{repo_id}@{done.oid}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
