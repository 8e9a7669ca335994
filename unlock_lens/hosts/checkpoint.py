"""What the name of a model leads to, told before anything is loaded: a folder, the hub's cache, or the hub itself."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from unlock_lens.errors import InvalidInput
from unlock_lens.hosts.identity import ModelIdentity, model_name

PATIENCE = "HF_HUB_ETAG_TIMEOUT"
"""The hub's own environment variable for how long it may take to answer, in seconds."""
_SECONDS = 1.5
_CONFIGS = ("config.json", "adapter_config.json")


def check_name(name: str) -> None:
    """Raise InvalidInput unless a name is a model folder, or a hub id that is in the cache or that the hub knows.

    The hub is asked at most once, and has 1.5 seconds to answer (or HF_HUB_ETAG_TIMEOUT): transformers itself tries
    for half a minute. Where the hub fails in another way, transformers has the last word.
    """
    path = Path(name)
    if path.is_dir():
        if not any((path / config).is_file() for config in _CONFIGS):
            raise InvalidInput(f"{name!r} is not a model folder: it has no config.json{instead(path / 'config.json')}")
    elif path.is_file():
        raise InvalidInput(f"{name!r} is a file; give the model folder that it is in, or a hub id")
    elif name.startswith((".", "~", os.sep)) or name.count("/") > 1 or "\\" in name:
        raise InvalidInput(f"there is no folder {name!r}{instead(path)}")
    else:
        check_hub_id(name)


def check_hub_id(name: str, what: str = "model", files: Sequence[str] = _CONFIGS) -> None:
    """Raise InvalidInput unless a hub id is in the cache, or the hub knows it; waiting and errors are those of `check_name`.

    Args:
        name: namespace/name.
        what: is looked for, for the message.
        files: any of which makes it one.
    """
    if not _is_cached(name, files):
        _ask(name, what, files[0])


@lru_cache(maxsize=64)
def shape_of(name: str) -> ModelIdentity:
    """Depth and width of a folder or hub id, as its config says; no weights are read.

    Raises:
        InvalidInput: as `check_name`; a config that cannot be read, or that is not a decoder's.
    """
    check_name(name)  # before transformers, whose import takes a second
    from transformers import AutoConfig

    return shape_in(read_with(AutoConfig, name), model_name(name))


def shape_in(config: Any, name: str) -> ModelIdentity:
    """Depth and width that a transformers config states.

    Raises:
        InvalidInput: it states none.
    """
    text = config.get_text_config()
    n_layers, d_model = (getattr(text, attribute, None) for attribute in ("num_hidden_layers", "hidden_size"))
    if not n_layers or not d_model:
        raise InvalidInput(f"the config of {name} does not say how many layers of what width it has; a decoder is needed")
    return ModelIdentity(name, n_layers, d_model)


def read_with(auto: Any, name: str) -> Any:
    """What AutoConfig or AutoTokenizer finds under a name.

    Raises:
        InvalidInput: there is no such model, or not this part of it.
    """
    check_name(name)
    try:
        return auto.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:  # what transformers raises where a folder or hub id holds none
        wanted = auto.__name__.removeprefix("Auto").lower()
        raise InvalidInput(
            f"no {wanted} of {name!r} can be read, from a folder or from the hub: {error} "
            "(check the spelling; a gated model needs HF_TOKEN)"
        ) from error


def nearest(path: Path) -> Path | None:
    """What exists and has almost this path: the same but for one misspelt part."""
    for part in reversed((path, *path.parents)):
        if part.exists():
            continue
        beside = [other.name for other in part.parent.iterdir()] if part.parent.is_dir() else []
        for name in get_close_matches(part.name, beside, n=1):
            meant = part.parent / name / path.relative_to(part)
            return meant if meant.exists() else part.parent / name
        return None
    return None


def instead(path: Path, names: Iterable[str] = ()) -> str:
    """The nearest name that exists, as the end of a sentence."""
    near = next(iter(get_close_matches(str(path), list(names), n=1)), None) or nearest(path)
    return f"; did you mean {str(near)!r}?" if near else ""


def _is_cached(name: str, files: Sequence[str]) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return any(isinstance(try_to_load_from_cache(name, file), str) for file in files)
    except HFValidationError:
        raise InvalidInput(
            f"there is no folder {name!r}, and a hub id is written namespace/name{instead(Path(name))}"
        ) from None


def _ask(name: str, what: str, file: str) -> None:
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url

    seconds = constants.HF_HUB_ETAG_TIMEOUT if PATIENCE in os.environ else _SECONDS
    hint = instead(Path(name), _in_cache(Path(constants.HF_HUB_CACHE)))
    try:
        get_hf_file_metadata(hf_hub_url(name, file), timeout=seconds)
    except errors.GatedRepoError:
        raise InvalidInput(
            f"{name!r} is gated: ask for access on its page, and log in (hf auth login) or set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise InvalidInput(
            f"{name!r} is neither a folder here nor a {what} on the hub (or a private one: log in with hf auth login, or "
            f"set HF_TOKEN){hint}"
        ) from None
    except errors.HfHubHTTPError:
        return  # a repository without config.json, or a busy hub: transformers knows what to do
    except (errors.HTTPError, OSError) as error:  # pyright: ignore[reportPrivateImportUsage]
        raise InvalidInput(
            f"{name!r} is neither a folder here nor in the hub's cache, and the hub cannot be asked for it "
            f"({type(error).__name__}; {PATIENCE}=10 gives it ten seconds){hint}"
        ) from None


def _in_cache(cache: Path) -> list[str]:
    """Hub ids of the models in the cache."""
    return [folder.name.removeprefix("models--").replace("--", "/") for folder in cache.glob("models--*")]
