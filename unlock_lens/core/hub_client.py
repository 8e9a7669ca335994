"""The hub's client, asked so that what it raises comes as the library's own errors (docs/hub.md)."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from unlock_lens.core.card import Told
from unlock_lens.errors import (
    ArtifactError,
    InvalidInput,
    RemoteError,
    RemoteFailure,
    RequestRefused,
    ServerUnreachable,
    UnlockLensError,
)

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_LISTED = 10
"""Files of a repository that a message names."""


def api_of(repo_id: str, token: str | bool | None) -> HfApi:
    """The hub's client, for a name and a token that can be ones."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repo_id)
    sent = token if isinstance(token, str) else None if token is False else get_token()
    if sent is not None and not (sent and sent.isascii() and sent.isprintable() and " " not in sent):
        raise InvalidInput(
            "the token (of token=, HF_TOKEN or hf auth login) is empty, or holds blanks or signs that no token has; copy it "
            "again from the hub's settings"
        )
    return HfApi(token=token, library_name="unlock-lens")


def fetched(repo_id: str, file: str, revision: str | None, token: str | bool | None, cache_dir: str | Path | None) -> Path:
    """One file of a repository, in the cache; a hub that does not answer is told at once where the cache does not have it."""
    from huggingface_hub import constants, errors

    with asking(repo_id, revision, f"reading {repo_id} broke off; call again"):
        api = api_of(repo_id, token)
        fetch = partial(api.hf_hub_download, repo_id, file, revision=revision, cache_dir=cache_dir)
        try:
            there = api.model_info(repo_id, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except _silences() as error:
            if isinstance(error, errors.HfHubHTTPError) and error.response.status_code < 500:
                raise
            try:
                return Path(fetch(local_files_only=True))
            except errors.LocalEntryNotFoundError:
                raise error from None
        files = [sibling.rfilename for sibling in there.siblings or ()]
        if file not in files:
            raise ArtifactError(lacking(repo_id, file, files))
        return Path(fetch())


def made_ready(api: HfApi, repo_id: str, private: bool, revision: str | None) -> tuple[str, list[str]]:
    """A repository, and a branch of it, to write to: its last commit and its files."""
    from huggingface_hub import constants, errors

    timeout = constants.HF_HUB_ETAG_TIMEOUT
    try:
        if api.model_info(repo_id, timeout=timeout).private is False and private:
            raise InvalidInput(f"{repo_id} is there and public; make it private on the hub first, or take another name")
    except errors.RepositoryNotFoundError:
        api.create_repo(repo_id, private=private)
    if revision is not None and not revision.startswith("refs/"):  # the hub makes those
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    there = api.model_info(repo_id, revision=revision, timeout=timeout)
    return str(there.sha), [sibling.rfilename for sibling in there.siblings or ()]


def told_there(api: HfApi, repo_id: str, file: str, commit: str) -> Told:
    """What an artifact of a repository tells of itself; its tensors are not fetched."""
    from huggingface_hub import errors

    try:
        told = (api.parse_safetensors_file_metadata(repo_id, file, revision=commit).metadata or {})["unlock_lens"]
        return json.loads(told)
    except (errors.SafetensorsParsingError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{file} of {repo_id} is no unlock-lens artifact; rename or remove it there") from error


def lacking(where: str, file: str, files: Sequence[str]) -> str:
    """What to say of a folder or a repository without the file."""
    there = sorted(name for name in files if not name.startswith("."))
    more = f" and {len(there) - _LISTED} more" if len(there) > _LISTED else ""
    return f"{where} has no {file}; it has: {', '.join(there[:_LISTED]) or 'nothing'}{more}"


@contextmanager
def asking(repo_id: str, revision: str | None, broke_off: str) -> Generator[None, None, None]:
    """Turn what the hub's client raises into the library's own errors. What came over the wire is told by status alone.

    `broke_off` says what it means when a transfer ends before all is there.
    """
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    try:
        yield
    except UnlockLensError:
        raise
    except errors.HFValidationError as error:
        raise InvalidInput(f"{repo_id!r} is neither a folder here nor a hub id; a hub id is namespace/name") from error
    except errors.GatedRepoError as error:
        raise RequestRefused(
            f"{repo_id} is gated: ask for access at {hub}/{repo_id}, then log in (hf auth login) or give token="
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ArtifactError(
            f"{hub} has no repository {repo_id} that you may see, and there is no such folder here; check the name, and if it "
            "is private log in (hf auth login) or give token="
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ArtifactError(f"{repo_id} has no revision {revision!r}; give a branch, a tag or a commit of it") from error
    except errors.HfHubHTTPError as error:
        raise _refused(hub, repo_id, error.response.status_code) from error
    except errors.LocalTokenNotFoundError as error:
        raise RequestRefused("token=True is the token of hf auth login, and there is none here; log in, or give it") from error
    except _silences() as error:
        raise ServerUnreachable(
            f"{hub} gives no answer on {repo_id} ({type(error).__name__}), and there is no earlier copy that would do; check "
            "the network, set HF_ENDPOINT to a hub that answers, or use a folder"
        ) from error
    except (RuntimeError, ConnectionError) as error:  # of the protocol for large files
        raise RemoteFailure(f"{broke_off} ({type(error).__name__})") from error
    except (ValueError, KeyError) as error:  # metadata of a card that the hub refuses; answers that are no hub's
        raise RemoteFailure(f"asking {hub} for {repo_id} came to nothing: {error}") from error


def _silences() -> tuple[type[Exception], ...]:
    """What the client raises where no hub answers: errors of httpx or httpx2, as its version has it."""
    from huggingface_hub import errors

    return errors.HTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError  # pyright: ignore[reportPrivateImportUsage]


def _refused(hub: str, repo_id: str, status: int) -> RemoteError:
    """What the hub's answer means; its own words are in the cause, not in the message."""
    if status in (401, 402, 403):
        return RequestRefused(f"{hub} refuses {repo_id} with the token that it got (status {status}); give one that may do it")
    if status in (409, 412):
        return RequestRefused(f"somebody else wrote to {repo_id} meanwhile; nothing was committed, call again")
    if status >= 500:
        return RemoteFailure(f"{hub} failed at {repo_id} (status {status}); try again later")
    return RequestRefused(f"{hub} refuses what was asked of {repo_id} (status {status}); look at the cause of this error")
