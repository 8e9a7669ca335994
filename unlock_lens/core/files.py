"""Files: an artifact as one safetensors file, alone, in a folder with a card, or on the Hugging Face hub (docs/hub.md)."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from unlock_lens.core.parsing import in_todays_words, parsed
from unlock_lens.core.writing import discard, sync_file, sync_folder, temporary_of, using, write_new
from unlock_lens.errors import (
    ArtifactError,
    DeadlineExceeded,
    DiskError,
    InvalidInput,
    RemoteFailure,
    RequestRefused,
    ServerUnreachable,
    UnlockLensError,
    plain,
    shown,
)
from unlock_lens.hosts.watchdog import Silent, watched
from unlock_lens.method.crossval import CrossValidation

__all__ = ["Shareable", "load"]

FORMAT_VERSION = 3
"""Version 1 called sinks="rescale" "whiten", and the basis "zero_mean" "centered". Up to version 2, the hash covered only the
numbers; since then it also covers the description."""
_HEADER = 4 * 2**20
"""Maximum bytes of a header: a description has some kilobytes, and parsing JSON takes forty times its size."""
_OUTSIDE = frozenset({"kind", "format_version", "library_version", "created", "content_hash", "shapes"})
"""The metadata of every file, besides the description of its kind."""
_KINDS = ("direction", "aligner", "key", "finished request")
_KEY = "unlock_lens"
_CARD = "README.md"
_LIBRARY = "unlock-lens"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
T = TypeVar("T", bound="Shareable")


def save(path: str | Path, kind: str, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write an artifact to a temporary file, which then replaces `path`."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {
        "kind": kind,
        "format_version": FORMAT_VERSION,
        "library_version": _version(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "shapes": {name: list(tensor.shape) for name, tensor in held.items()},
        **{name: value for name, value in description.items() if name not in _OUTSIDE},
    }
    metadata["content_hash"] = content_hash(held, metadata)
    content = to_bytes(held, metadata={_KEY: json.dumps(metadata)})
    with replacing(path) as temporary:
        write_new(temporary, content)


def _version() -> str:
    try:
        return version(_LIBRARY)
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "unknown"


@contextmanager
def replacing(path: str | Path) -> Generator[Path, None, None]:
    """A temporary file to write in the block, which then replaces `path`; an exception leaves the old file unchanged.

    Raises:
        ArtifactError: the path is a folder, or its folder does not exist.
        DiskError: the disk is full or read-only, or access is denied.
    """
    path = Path(path)
    if path.is_symlink():
        path = path.resolve()  # the link stays, and what it leads to is replaced
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder; give the name of a file")
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path} is a device or a pipe, which saving would replace; give the name of a file")
    if not path.parent.is_dir():
        raise ArtifactError(f"{path.parent} is not a folder; make it first")
    with using(path):
        temporary = temporary_of(path)
        try:
            yield temporary
            sync_file(temporary)  # other libraries that write one do not
            os.replace(temporary, path)
        except BaseException:
            discard(temporary)
            raise
        sync_folder(path.parent)


def load(path: str | Path, kind: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of an artifact, of the given kind or any.

    Raises:
        ArtifactError: the file does not exist, is not an artifact, is damaged, or has another kind or format version.

    Source: docs/hub.md.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from unlock_lens import CapabilityDirection
        >>> from unlock_lens.core import files
        >>> path = Path(tempfile.mkdtemp(), "direction.safetensors")
        >>> CapabilityDirection(torch.eye(2, 8), layers=(0, 1)).save(path)
        >>> tensors, metadata = files.load(path)
        >>> metadata["kind"], tensors["vectors"].shape
        ('direction', torch.Size([2, 8]))
    """
    from unlock_lens.core import schema  # pydantic takes time to import, and few programs read files

    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"there is no file {path}")
    with reading(path):
        content = path.read_bytes()  # once: what is checked is what is used, whatever becomes of the file meanwhile
        metadata = _metadata(path, content)
        _check_version(path, kind, metadata)
        tensors = from_bytes(content)
        _check_content(path, tensors, metadata)
        if metadata["format_version"] < FORMAT_VERSION:
            metadata = in_todays_words(metadata)
        schema.checked(path, metadata["kind"], {k: v for k, v in metadata.items() if k not in _OUTSIDE}, tensors)
    return tensors, metadata


def _metadata(path: Path, content: bytes) -> dict[str, Any]:
    """The contents of the header, before any tensor is created."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(len(content) - 8, _HEADER):
        raise ValueError(f"its header claims {length} bytes, but the file has {len(content)}")
    told = parsed(content[8 : 8 + length]).get("__metadata__")
    raw = told.get(_KEY) if isinstance(told, dict) else None
    if not isinstance(raw, str):
        raise ArtifactError(f"{path} was not written by unlock-lens; expected a saved direction, aligner or key")
    return parsed(raw)


@contextmanager
def reading(path: str | Path) -> Generator[None, None, None]:
    """Turn the errors of damaged or foreign files into an ArtifactError that names the file."""
    try:
        yield
    except ArtifactError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path} is not a readable unlock-lens artifact ({error}); save it again") from error


def _check_version(path: Path, kind: str | None, metadata: Mapping[str, Any]) -> None:
    found = metadata.get("format_version")
    if type(found) is not int or not 1 <= found <= FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {shown(found)}, but this library reads 1 to {FORMAT_VERSION}; "
            f"it was written by unlock-lens {shown(metadata.get('library_version', '?'))}"
        )
    if metadata.get("kind") not in _KINDS:
        raise ArtifactError(f"{path} holds: {shown(metadata.get('kind'))}; expected: {' or '.join(_KINDS)}")
    if kind is not None and metadata["kind"] != kind:
        raise ArtifactError(f"{path} holds: {metadata['kind']}; expected: {kind}")


def _check_content(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    if metadata["shapes"] != {name: list(tensor.shape) for name, tensor in tensors.items()}:
        raise ArtifactError(f"the shapes in {path} differ from those in its metadata; save it again")
    described = metadata if metadata["format_version"] > 2 else None
    if metadata["content_hash"] != content_hash(tensors, described):
        raise ArtifactError(f"{path} differs from what was saved (its content hash does not match); save it again")


def content_hash(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> str:
    """Hash of names, numbers and the whole description; up to version 2, of the numbers only."""
    digest = hashlib.sha256()
    if metadata is not None:
        rest = {name: value for name, value in metadata.items() if name != "content_hash"}
        digest.update(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode() if metadata is None else f"{name} {tensors[name].dtype}".encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class Shareable(ABC):
    """An artifact that can be saved in a folder or a hub repository, with a card.

    Each kind has a different file name, so one folder can hold a direction and the aligner that transported it.

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
        cls._kind = kind or cls._kind  # a subclass of a direction is a direction

    @abstractmethod
    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""

    @classmethod
    @abstractmethod
    def load(cls, path: str | Path) -> Any:
        """Read what `save` wrote."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the artifact and its card to a folder, which is created if needed.

        Args:
            folder: receives `direction.safetensors`, `aligner.safetensors` or `key.safetensors`, and a section in `README.md`,
                whose other text is kept.

        Raises:
            InvalidInput: the folder is a file, or the aligner is not fitted.
            ArtifactError: the existing card cannot be read.
        """
        folder = Path(folder).expanduser()
        if folder.is_file():
            raise InvalidInput(f"{folder} is a file; give a folder, or write one file with save()")
        file, content, metadata = self._packed()
        card = _card(folder.resolve().name, metadata, folder / _CARD)
        with using(folder, "made"):
            folder.mkdir(parents=True, exist_ok=True)
        for name, new in ((file, content), (_CARD, card)):
            with replacing(folder / name) as temporary:
                write_new(temporary, new)

    @classmethod
    def from_pretrained(
        cls: type[T],
        name_or_folder: str | Path,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        deadline: float = 600.0,
    ) -> T:
        """Read what `save_pretrained` or `push_to_hub` wrote; from the hub, only the safetensors file is downloaded.

        Args:
            name_or_folder: an existing folder, or else a hub id, namespace/name.
            revision: branch, tag or commit on the hub; None is main.
            token: token for private repositories; None is the one from `hf auth login`.
            cache_dir: where downloaded files are kept for use without network; None is huggingface_hub's cache.
            deadline: seconds for the whole call.

        Raises:
            InvalidInput: the name is a file, or neither a folder nor a hub id; a revision was given for a folder.
            ArtifactError: the repository, revision or file does not exist, or is of another kind, not an artifact, or damaged.
            RequestRefused: the repository is gated, or the token is refused.
            ServerUnreachable: the hub does not answer, and the file is not in the cache.
            RemoteFailure: the hub fails, or the transfer is interrupted.
            DeadlineExceeded: the hub takes longer.
        """
        from huggingface_hub import hf_hub_download

        folder, file = Path(name_or_folder).expanduser(), f"{cls._kind}.safetensors"
        if folder.is_file():
            raise InvalidInput(f"{folder} is a file; read it with {cls.__name__}.load()")
        if folder.is_dir():
            if revision is not None:
                raise InvalidInput(f"{folder} is a local folder, which has no revision {revision!r}; leave revision= out")
            return cls.load(folder / file)
        name = str(name_or_folder)
        asked: dict[str, Any] = {"revision": revision, "token": _clean(token), "cache_dir": cache_dir, "library_name": _LIBRARY}
        with _asking(f"reading {file} from {name!r}", deadline):
            fetched = watched(partial(hf_hub_download, name, file, **asked), seconds=deadline)
        return cls.load(fetched)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | bool | None = None,
        commit_message: str | None = None,
        revision: str | None = None,
        deadline: float = 600.0,
    ) -> str:
        """Write the artifact and its card to a repository of the hub in one commit, and return the repository's URL.

        Args:
            repo_id: namespace/name; without a namespace it is your own. The repository is created if needed.
            private: whether a new repository is private.
            token: token that may write; None is the one from `hf auth login`.
            commit_message: None is "Upload" and the file.
            revision: branch to write to, created if needed; None is main.
            deadline: seconds for the whole call.

        Raises:
            InvalidInput: the name is not a hub id, private=True and the repository is public, or the aligner is not fitted.
            ArtifactError: the card in the repository cannot be read.
            RequestRefused: the token is missing or may not write there, or somebody else committed in the meantime.
            ServerUnreachable: the hub does not answer.
            RemoteFailure: the hub fails, or the transfer is interrupted.
            DeadlineExceeded: the hub takes longer; what it has received by then may be stored.
        """
        packed = self._packed()
        with _asking(f"sending {packed[0]} to {repo_id!r}", deadline):
            return watched(_pushed, packed, repo_id, private, _clean(token), commit_message, revision, seconds=deadline)

    def _packed(self) -> tuple[str, bytes, dict[str, Any]]:
        """Name and content of the artifact's file, and its metadata."""
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch, f"{self._kind}.safetensors")
            self.save(file)
            return file.name, file.read_bytes(), load(file)[1]


def _pushed(
    packed: tuple[str, bytes, dict[str, Any]],
    repo_id: str,
    private: bool,
    token: str | bool | None,
    commit_message: str | None,
    revision: str | None,
) -> str:
    """Write a file and its card to a repository in one commit, and return the repository's URL."""
    from huggingface_hub import CommitOperationAdd, HfApi

    file, content, metadata = packed
    api = HfApi(token=token, library_name=_LIBRARY)
    with tempfile.TemporaryDirectory() as scratch:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        if revision and not api.revision_exists(url.repo_id, revision):
            api.create_branch(url.repo_id, branch=revision)
        there = api.model_info(url.repo_id, revision=revision)
        if private and not there.private:
            raise InvalidInput(f"{repo_id} exists and is public; make it private on the hub first, or use another name")
        if any(sibling.rfilename == _CARD for sibling in there.siblings or ()):
            api.hf_hub_download(url.repo_id, _CARD, revision=there.sha, local_dir=scratch)
        card = _card(url.repo_id, metadata, Path(scratch, _CARD))
        api.create_commit(
            url.repo_id,
            [CommitOperationAdd(file, content), CommitOperationAdd(_CARD, card)],
            commit_message=commit_message or f"Upload {file}",
            revision=revision,
            parent_commit=there.sha,
        )
    return str(url)


def _clean(token: str | bool | None) -> str | bool | None:
    """The token without a trailing line break, which HTTP would refuse with a message that shows the token."""
    return token.strip() if isinstance(token, str) else token


@contextmanager
def _asking(doing: str, deadline: float) -> Generator[None, None, None]:
    """Turn errors of huggingface_hub into the library's own; the original is the cause."""
    from huggingface_hub import errors

    silences = errors.HTTPError, ConnectionError, errors.LocalEntryNotFoundError  # pyright: ignore[reportPrivateImportUsage]
    try:
        yield
    except Silent:
        told = f"{doing} was not done after {deadline:g} s; try again, or give it more time with deadline="
        raise DeadlineExceeded(told) from None
    except (*silences, errors.HFValidationError, errors.LocalTokenNotFoundError, RuntimeError) as error:
        own, advice = _translated(error)
        raise own(f"{doing} failed ({type(error).__name__}): {advice}") from error
    except OSError as error:
        place = error.filename or "a file of the cache"
        raise DiskError(f"{doing} failed: {place} cannot be used ({error.strerror or error})") from error


def _translated(error: BaseException) -> tuple[type[UnlockLensError], str]:
    """The library's own error for one of huggingface_hub, and what to do about it."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, errors.HfHubHTTPError):
        error = error.__cause__  # the hub did answer
    if isinstance(error, errors.HFValidationError):
        return InvalidInput, "the name is neither a local folder nor a hub id (namespace/name)"
    if isinstance(error, (errors.GatedRepoError, errors.LocalTokenNotFoundError)):
        return RequestRefused, "log in (hf auth login) or give token=; access to a gated repository is granted on its page"
    if isinstance(error, (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError)):
        return ArtifactError, "check the name and revision; if the repository is private, log in (hf auth login) or give token="
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code < 500:
        return RequestRefused, f"status {error.response.status_code}; check the token's rights, or call again"
    if isinstance(error, (errors.HfHubHTTPError, RuntimeError)):  # RuntimeError is how the transfer of large files fails
        return RemoteFailure, "the hub failed, or the transfer was interrupted; try again"
    return ServerUnreachable, "the hub does not answer, and there is no copy in the cache; check the network and HF_ENDPOINT"


_USES: Mapping[str, str] = {
    "direction": """direction = ul.CapabilityDirection.from_pretrained("{name}")
steer = ul.SteeringHook(direction, alpha=0.3)  # choose the strength on problems that you do not report
completions = ul.generate(model, prompts, steer=steer)""",
    "aligner": """aligner = ul.SubspaceAligner.from_pretrained("{name}")
moved = aligner.transport(direction)  # from the source model to the target model""",
    "key": """steer = ul.SteeringHook.from_pretrained("{name}")  # refused by any model but the one in the table
completions = ul.generate(model, prompts, steer=steer)""",
}
_SECTION = """<!-- unlock-lens: {kind}. This part is rewritten by every save; write above or below it. -->

## {kind}.safetensors

```python
import unlock_lens as ul

{use}
```

| what | value |
|---|---|
{rows}

A change of text under steering does not prove a transfer. Compare the gain with random directions and with "away from the
target's mean state" at the same strength (`unlock-lens sweep` runs these controls). Layer l is the output of block l; the
method is UNLOCK, NeurIPS 2026, [arXiv:2604.06377](https://arxiv.org/abs/2604.06377).

<!-- unlock-lens: end of {kind} -->"""
_HIDDEN = ("kind", "format_version", "shapes", "own_layer_map", "provenance", "direction", "evidence")


def _card(name: str, metadata: Mapping[str, Any], existing: Path) -> bytes:
    """The existing card, or a new one, with the section of this kind of artifact rewritten from its metadata."""
    from huggingface_hub import ModelCard

    try:
        text = existing.read_text(encoding="utf-8-sig") if existing.is_file() else f"# {name.rsplit('/', 1)[-1]}\n"
        _check_front(text)
        card = ModelCard(text if text.lstrip().startswith("---") else f"---\nlibrary_name: {_LIBRARY}\n---\n\n{text}")
    except Exception as error:  # whatever a reader of foreign text meets
        told = f"the metadata of {name}'s {_CARD} cannot be read ({plain(str(error), 300)}); fix or remove the file"
        raise ArtifactError(told) from error
    rows = _rows(metadata)
    if rows.get("cross_validation"):
        rows["cross_validation"] = "chose rank {}, ridge {:g}".format(*CrossValidation.from_json(rows["cross_validation"]).best)
    rows = {key: value for key, value in rows.items() if key not in _HIDDEN and value not in (None, [])}
    kind = metadata["kind"]
    table = "\n".join(f"| {key} | {_shown(value)} |" for key, value in rows.items())
    section = _SECTION.format(kind=kind, use=_USES[kind].format(name=name), rows=table)
    begin, *_, end = section.splitlines()
    above, begun, rest = card.text.rpartition(begin)
    _, ended, below = rest.partition(end)
    card.text = above + section + below if begun and ended else f"{card.text.rstrip()}\n\n{section}\n"
    models = [value["name"] for value in rows.values() if isinstance(value, dict) and _HUB_ID.fullmatch(value.get("name", ""))]
    card.data["library_name"] = card.data.get("library_name") or _LIBRARY
    for key, ours in (("tags", (_LIBRARY, "activation-steering", "interpretability")), ("base_model", models)):
        own = card.data.get(key) or []
        if merged := list(dict.fromkeys([*([own] if isinstance(own, str) else own), *ours])):
            card.data[key] = merged
    return str(card).encode()


def _check_front(text: str) -> None:
    """Raise ValueError unless the YAML in front of a card is plain, and what is merged into has the kind that it must have."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    from unlock_lens.core.yaml_files import parse_yaml

    block = REGEX_YAML_BLOCK.search(text)
    front = parse_yaml(block.group(2).encode(), "it") if block else None
    if front is None:
        return
    if not isinstance(front, dict) or not all(isinstance(key, str) for key in front):
        raise ValueError("expected names with values")
    for key, kinds in {"library_name": str, "tags": str | list, "base_model": str | list}.items():
        value = front.get(key)
        listed = value if isinstance(value, list) else ()
        if value is not None and not (isinstance(value, kinds) and all(isinstance(each, str) for each in listed)):
            raise ValueError(f"{key} is {shown(value)}; expected text{' or a list of texts' if key != 'library_name' else ''}")


def _rows(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What the card's table shows; of a key its evidence first."""
    direction = metadata.get("direction", {})
    gate, evidence = metadata.get("gate"), metadata.get("evidence")
    rows = {
        **{f"evidence: {name}": value for name, value in (evidence or {}).items()},
        **metadata,
        **direction,
        **metadata.get("provenance", direction.get("provenance", {})),
    }
    if gate:
        rows["gate"] = {"layer": gate["direction"]["layers"][0], **{k: v for k, v in gate.items() if k != "direction"}}
    if direction and metadata["layers"] is not None:
        rows["layers"] = metadata["layers"]
    return rows


def _shown(value: Any) -> str:
    """A value of the metadata in one line; of a model's name that looks like a path only the last part."""
    if isinstance(value, dict):
        if name := value.get("name"):
            shown = name if _HUB_ID.fullmatch(name) else re.split(r"[/\\]", name)[-1]
            value = {**value, "name": f"`{shown}`"}
        value = [f"{key} {_shown(item)}" for key, item in value.items() if item not in (None, [])]
    if isinstance(value, list):
        value = ", ".join(": ".join(map(str, item)) if isinstance(item, list) else str(item) for item in value)
    return " ".join(str(value).split()).replace("|", "\\|")
