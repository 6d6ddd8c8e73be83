"""What every trained network can do besides predicting."""

from __future__ import annotations

import os

from torch import nn

from densekit import hub
from densekit.cards import Card


class Trained:
    """A network with its weights and what is known about it."""

    net: nn.Module
    card: Card

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes weights and a model card into a folder, which `densekit.load` takes.

        Raises:
            OSError: the folder cannot be written.
        """
        hub.save_pretrained(os.fspath(folder), self.net, self.card)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Puts weights and a model card onto the hub and returns its pinned id, "org/name@commit".

        Args:
            repo_id: "org/name"; made if missing.
            private: whether a new repository is closed to others.
            token: of Hugging Face; the one of `hf auth login` if None.

        Raises:
            ConfigError: no such id, a card without the licence of its data, or a hub that refuses.
        """
        return hub.push_to_hub(repo_id, self.net, self.card, private=private, token=token)
