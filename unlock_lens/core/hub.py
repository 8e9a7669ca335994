"""Sharing: a folder, or a repository of the Hugging Face hub, with artifacts and a card that tells of them (docs/hub.md)."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from unlock_lens.core import artifact
from unlock_lens.core.card import CARD, ENCODING, KINDS, Told, card_of, file_of
from unlock_lens.core.hub_client import api_of, asking, fetched, lacking, made_ready, told_there
from unlock_lens.errors import ArtifactError, InvalidInput

T = TypeVar("T", bound="Shareable")
_COMMIT = re.compile(r"[0-9a-fA-F]{40}")


class Shareable:
    """What goes into a folder or a repository of the hub, with a card, and comes back.

    Each kind has one file there, so that a folder may hold a direction and the aligner that carried it.

    Source: docs/hub.md.

    Example:
        >>> import tempfile, torch
        >>> from unlock_lens import CapabilityDirection
        >>> folder = tempfile.mkdtemp()
        >>> CapabilityDirection(torch.eye(2, 8), layers=(0, 1)).save_pretrained(folder)
        >>> CapabilityDirection.from_pretrained(folder).layers
        (0, 1)
    """

    _kind: ClassVar[str]

    def __init_subclass__(cls, kind: str | None = None, **others: Any) -> None:
        super().__init_subclass__(**others)
        if kind:
            cls._kind = kind

    def save(self, path: str | Path) -> None:
        raise NotImplementedError

    @classmethod
    def load(cls, path: str | Path) -> Any:
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the artifact and its card, README.md, to a folder, which is made if need be.

        The card lists every artifact of the folder. What you write into it above or below the part that is made stays.

        Args:
            folder: it gets `direction.safetensors` or `aligner.safetensors`, and `README.md`.

        Raises:
            InvalidInput: no folder is named, or it is a file; an aligner that is not fitted.
            ArtifactError: another artifact or the card in the folder cannot be read; nothing is written then.

        Example:
            >>> import tempfile, torch
            >>> from unlock_lens import CapabilityDirection
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     CapabilityDirection(torch.eye(2, 8), layers=(0, 1)).save_pretrained(folder)
            ...     CapabilityDirection.from_pretrained(folder)
            CapabilityDirection(of no known model; layers [0, 1], d_model 8)
        """
        folder, file = _folder(folder), file_of(self._kind)
        if _in_a_file(folder):
            raise InvalidInput(f"{folder} is a file, or in one; give a folder, or write one file with save()")
        content, told = self._packed()
        card = folder / CARD
        with artifact.reading(card):
            written = card.read_text(encoding=ENCODING) if card.is_file() else None
        others = [kind for kind in KINDS if kind != self._kind and (folder / file_of(kind)).is_file()]
        all_told = {kind: artifact.load(folder / file_of(kind), kind)[1] for kind in others}
        made = card_of(folder.resolve().name, {**all_told, self._kind: told}, written)
        folder.mkdir(parents=True, exist_ok=True)
        with artifact.replacing(folder / file) as new_file, artifact.replacing(card) as new_card:
            new_file.write_bytes(content)
            new_card.write_text(made, encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls: type[T],
        name_or_folder: str | Path,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
    ) -> T:
        """Read what `save_pretrained` or `push_to_hub` wrote; of a repository, one safetensors file is fetched.

        Args:
            name_or_folder: a folder, which goes first, or a hub id, namespace/name.
            revision: branch, tag or commit on the hub; None for main.
            token: for private repositories; None is the one of `hf auth login`.
            cache_dir: where the hub's files are kept; None for huggingface_hub's own cache, which also serves without network.

        Raises:
            InvalidInput: neither a folder nor a hub id; a revision of a folder; a cache_dir that is a file; a token that cannot
                be one.
            ArtifactError: no such repository, revision or file; a file of another kind, foreign or damaged.
            RequestRefused: a gated repository, or a token that the hub does not take.
            ServerUnreachable: the hub does not answer, and the file is not in the cache.
            RemoteFailure: the hub fails, or the transfer breaks off.
        """
        folder, file = _folder(name_or_folder), file_of(cls._kind)
        if folder.is_file():
            raise InvalidInput(f"{folder} is a file; read it with {cls.__name__}.load()")
        if not folder.is_dir():
            cache = None if cache_dir is None else _folder(cache_dir)
            if cache and _in_a_file(cache):
                raise InvalidInput(
                    f"cache_dir={str(cache_dir)!r} is a file, or in one; give a folder, which need not be there yet"
                )
            return cls.load(fetched(str(name_or_folder), file, revision, token, cache))
        if revision is not None:
            raise InvalidInput(f"{folder} is a folder here, which has no revision {revision!r}; leave revision= out")
        if not (folder / file).is_file():
            raise ArtifactError(lacking(str(folder), file, [found.name for found in folder.iterdir()]))
        return cls.load(folder / file)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | bool | None = None,
        commit_message: str | None = None,
        revision: str | None = None,
    ) -> str:
        """Write the artifact and its card to a repository of the hub in one commit; returns the repository's URL.

        The card lists every artifact of the repository. What was written into it above or below the part that is made stays.

        Args:
            repo_id: namespace/name; the repository is made if need be.
            private: whether a new repository is private. One that exists stays as it is, and if public is refused.
            token: one that may write; None is the one of `hf auth login`.
            commit_message: None for "Upload" and the file.
            revision: branch to write to, which is made if need be; None for main.

        Raises:
            InvalidInput: no namespace/name; private=True for a repository that is public; a commit as revision; a token that
                cannot be one; an aligner that is not fitted.
            ArtifactError: another artifact or the card of the repository cannot be read; nothing is written then.
            RequestRefused: no token, or one that may not write there; somebody else wrote meanwhile.
            ServerUnreachable: the hub does not answer.
            RemoteFailure: the hub fails, refuses the card's metadata, or the transfer breaks off.
        """
        from huggingface_hub import CommitOperationAdd

        if "/" not in repo_id:
            raise InvalidInput(f"{repo_id!r} names no namespace; give namespace/name, your user name first")
        if revision is not None and _COMMIT.fullmatch(revision):
            raise InvalidInput(f"revision {revision} is a commit, which stays as it is; give a branch to write to")
        content, told = self._packed()
        file = file_of(self._kind)
        with asking(repo_id, revision, f"sending to {repo_id} broke off; nothing was committed"):
            api = api_of(repo_id, token)
            commit, files = made_ready(api, repo_id, private, revision)
            card = Path(api.hf_hub_download(repo_id, CARD, revision=commit)) if CARD in files else None
            with artifact.reading(f"{CARD} of {repo_id}"):
                written = card.read_text(encoding=ENCODING) if card else None
            others = [kind for kind in KINDS if kind != self._kind and file_of(kind) in files]
            all_told = {kind: told_there(api, repo_id, file_of(kind), commit) for kind in others}
            made = card_of(repo_id, {**all_told, self._kind: told}, written).encode()
            api.create_commit(
                repo_id,
                [CommitOperationAdd(file, content), CommitOperationAdd(CARD, made)],
                commit_message=commit_message or f"Upload {file}",
                revision=revision,
                parent_commit=commit,
            )
        return f"{api.endpoint}/{repo_id}"

    def _packed(self) -> tuple[bytes, Told]:
        """The artifact's bytes, and what they tell of it."""
        with tempfile.TemporaryDirectory() as made:
            file = Path(made) / file_of(self._kind)
            self.save(file)
            return file.read_bytes(), artifact.load(file, self._kind)[1]


def _folder(given: str | Path) -> Path:
    """The folder that is meant; ~ is the user's own."""
    if given == "":
        raise InvalidInput("'' names no folder and no repository; '.' is the current folder")
    try:
        return Path(given).expanduser()
    except RuntimeError as error:
        raise InvalidInput(f"{str(given)!r} starts with a user's folder that is not known here; give the whole path") from error


def _in_a_file(folder: Path) -> bool:
    return any(part.is_file() for part in (folder, *folder.parents))
