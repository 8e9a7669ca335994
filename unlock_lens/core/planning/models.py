"""Models of which no weights are needed: a config, and a tokenizer where texts are counted."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from unlock_lens.core.planning.flops import PassCost
from unlock_lens.core.variant import Tokens, Variant
from unlock_lens.errors import InvalidInput, UnsupportedModel
from unlock_lens.hosts import backend_of
from unlock_lens.hosts.identity import ModelIdentity, model_name
from unlock_lens.hosts.remote import Remote


@dataclass(frozen=True, eq=False)
class PlannedModel:
    """What a plan needs of a model, under the names that a `Backend` gives them.

    Attributes:
        identity: its name and shape.
        config: its transformers config, of the text model.
        tokenizer: None where lengths are assumed.
    """

    identity: ModelIdentity
    config: Any
    tokenizer: Any

    @cached_property
    def cost(self) -> PassCost:
        """Of its passes, counted when it is first asked for."""
        return PassCost.of(self.config)

    def on(self, server: Any) -> None:
        """It is asked for nothing."""


@dataclass(frozen=True, eq=False)
class PlannedVariant(Variant):
    """A variant that is never read; `length` is the assumed number of tokens of each prompt, or None for real ones."""

    length: int | None = None

    @cached_property
    def backend(self) -> Any:
        """The `PlannedModel` itself, which runs nothing."""
        return self.model

    @cached_property
    def tokens(self) -> Tokens:
        """Counted by the tokenizer, or assumed."""
        if self.length is None:
            return super().tokens
        ids = torch.zeros(1, 1, dtype=torch.long).expand(len(self), self.length)
        return Tokens(ids, torch.ones_like(ids))


def planned(model: PlannedModel, prompts: Any, length: int | None, remote: Remote, add_special_tokens: bool) -> PlannedVariant:
    """A variant of real prompts, or of a number of assumed ones."""
    given = ("assumed",) * prompts if isinstance(prompts, int) else prompts
    return PlannedVariant(model, given, add_special_tokens, remote, length)


def model_of(given: Any, with_tokenizer: bool) -> PlannedModel:
    """Read the config of a hub id or folder, and its tokenizer if it is needed; or take those of a model that is open.

    Raises:
        InvalidInput: no such model, no tokenizer where one is needed, a config that does not tell the model's shape.
        UnsupportedModel: an object that is no model, or has no transformers config.
    """
    from transformers import PretrainedConfig

    if isinstance(given, str | os.PathLike):
        name = model_name(os.fspath(given))
        config, tokenizer = _loaded(os.fspath(given), with_tokenizer)
    elif isinstance(given, PretrainedConfig):
        name, config, tokenizer = str(given.name_or_path or given.model_type), given, None
        if with_tokenizer:
            raise InvalidInput(
                "a config has no tokenizer to count these texts with; give a folder or hub id that has one, or counts: "
                "prompts=512, prompt_tokens=120"
            )
    else:
        backend = given.backend if isinstance(given, Variant) else backend_of(given)
        name, config, tokenizer = backend.identity.name, getattr(backend.model, "config", None), backend.tokenizer
    if not isinstance(config, PretrainedConfig):
        raise UnsupportedModel(f"{name} is open without its transformers config; give its hub id or folder")
    text = config.get_text_config()
    shape = [getattr(text, attribute, None) for attribute in ("num_hidden_layers", "hidden_size")]
    if not all(isinstance(size, int) and size > 0 for size in shape):
        raise InvalidInput(f"the config of {name} does not say how many layers of what width there are; a decoder is needed")
    return PlannedModel(ModelIdentity(name, shape[0] or 0, shape[1] or 0), text, tokenizer)


def _loaded(name: str, with_tokenizer: bool) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoTokenizer

    try:
        return AutoConfig.from_pretrained(name), AutoTokenizer.from_pretrained(name) if with_tokenizer else None
    except (OSError, ValueError, KeyError) as error:  # what transformers raises where a folder or hub id holds none
        wanted = "config and tokenizer" if with_tokenizer else "config"
        raise InvalidInput(
            f"{name!r} has no {wanted} that can be read, as a folder or from the hub: {error} "
            "(check the spelling; a gated model needs HF_TOKEN)"
        ) from error
