"""Steered generation against the host's own, unsteered: in time, and in calls of ours per decoded token."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from measure import Work, all_calls, calls_into, interleaved
from speed_models import HOSTS, prompts, random_direction
from speed_rows import Row, Setup

import unlock_lens as ul
from unlock_lens.core.variant import tokenize

TOKENS = 128
ALPHA = 0.1
_PACKAGE = Path(ul.__file__).parent


def generate_rows(setup: Setup) -> list[Row]:
    """One prompt, 128 tokens, every layer edited."""
    found: list[Row] = []
    for host in HOSTS:
        model = setup.models.of_host(host)
        works: dict[str, Work] = {
            f"generate, last_prompt, {host}": steered(model, "last_prompt"),
            f"generate, every token, {host}": steered(model, "all"),
            "unsteered, the host's own generate": unsteered(model, host),
        }
        times = interleaved(works, setup.rounds, setup.tell)
        last, everywhere, plain = works
        found += [Row.timed(times, last, plain, 1.01), Row.timed(times, everywhere, plain, 1.05), *_counted(model, host)]
    return found


def steered(model: Any, positions: Literal["last_prompt", "all"], tokens: int = TOKENS) -> Work:
    """One call of `unlock_lens.generate`, everything in it."""
    steer = ul.SteeringHook(random_direction(), ALPHA, positions=positions)
    return partial(ul.generate, model, _prompt(), steer, tokens, progress=False)


def unsteered(model: Any, host: str) -> Work:
    """What the host does without this library: greedy, with its KV cache, the same ids."""
    tokens = tokenize(model.tokenizer, _prompt())
    if host == "TransformerBridge":
        options: dict[str, Any] = {"do_sample": False, "stop_at_eos": False, "prepend_bos": False, "verbose": False}
        return partial(
            model.generate, tokens.ids, max_new_tokens=TOKENS, attention_mask=tokens.mask, return_type="tokens", **options
        )
    inputs = {"input_ids": tokens.ids, "attention_mask": tokens.mask}

    def nnsight_generate() -> torch.Tensor:
        with model.generate(inputs, max_new_tokens=TOKENS, do_sample=False) as tracer:
            ids = tracer.result.save()
        return ids

    return nnsight_generate


def _counted(model: Any, host: str) -> list[Row]:
    """The same in every run: what of ours 24 further tokens enter, each; and all that 128 tokens enter."""
    steered(model, "last_prompt", 1)()  # what a first call alone does is not meant
    few, many = (calls_into(_PACKAGE, steered(model, "last_prompt", tokens)) for tokens in (8, 32))
    last, everywhere, plain = (
        all_calls(work) for work in (steered(model, "last_prompt"), steered(model, "all"), unsteered(model, host))
    )
    return [
        Row.counted(f"our calls per decoded token, last_prompt, {host}", "none", (many - few) / 24, 0),
        Row.counted(f"all calls, last_prompt, {host}", "unsteered, the host's own generate", last / plain, 1.01),
        Row.counted(f"all calls, every token, {host}", "unsteered, the host's own generate", everywhere / plain),
    ]


def _prompt() -> list[str]:
    return prompts(1, 24, 24)
