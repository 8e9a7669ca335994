"""One call that completes prompts, steered or not, in either framework."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from unlock_lens.core.jobs import Request, check_resumable, collect, in_requests, key_of
from unlock_lens.core.progress import shown
from unlock_lens.core.repetition import caution_of_garbage
from unlock_lens.core.steering import SteeringHook, as_hooks, check_template, edits_for
from unlock_lens.core.tokens import check_last_token, warn_of_last_token
from unlock_lens.core.variant import Variant, variant_of
from unlock_lens.errors import InvalidInput
from unlock_lens.hosts import Batch, Edits, Generation, Server
from unlock_lens.hosts.answers import fault_of_ids
from unlock_lens.hosts.endings import before, text_of
from unlock_lens.hosts.identity import ModelIdentity
from unlock_lens.hosts.remote import Where, remote_of


def generate(
    model: Any,
    prompts: Iterable[str] | Variant | None = None,
    steer: SteeringHook | Sequence[SteeringHook] | None = None,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    add_special_tokens: bool = True,
    use_cache: bool = True,
    temperature: float = 0.0,
    remote: Where = False,
    progress: bool = True,
    resume: str | Path | None = None,
    wait: bool = True,
    stop: Sequence[str] = (),
    top_p: float = 1.0,
    seed: int | None = None,
) -> list[str]:
    """Complete each prompt, and return the completions without the prompt and without special tokens.

    Args:
        model: a TransformerBridge, HookedTransformer, or nnsight TransformersModel; or a `Variant`, if prompts= is omitted.
        prompts: texts, or a `Variant` of this model (chat templates, ids, few-shot prompts).
        steer: a hook, or several, which act in the given order at each layer.
        max_new_tokens: maximum number of tokens; an end-of-sequence token ends a completion earlier.
        batch_size: prompts at a time, of similar length; short ones fill a batch up to the tokens of this many of the longest.
        add_special_tokens: whether the tokenizer adds special tokens.
        use_cache: whether to use the KV cache; the result is the same.
        temperature: 0 is greedy; otherwise tokens are sampled (seed= or torch.manual_seed makes this repeatable).
        remote: for nnsight models: run on NDIF (True), on the server at a URL, as a `Remote` says, or here in the way that
            NDIF would ("local"). All batches go in one request.
        progress: whether to show a progress bar (after a second of work).
        resume: for models on a server: a folder that stores finished requests, so that the same call can resume after a fault.
        wait: for models on a server: if False, requests are sent without waiting, and the same call collects them later.
        stop: a completion ends before the first of these strings, such as ("Question", "\\n\\n"). They are searched for in the
            completion, not in the prompt or special tokens. HookedTransformer generates to the end and then cuts the text.
        top_p: when sampling, choose only among the most likely tokens that together have this probability.
        seed: for sampling; repeatable for the same prompts in the same batches. torch's random state is left as it was.

    Warns:
        UserWarning: at least half of the steered completions repeat themselves from the beginning, as text does under edits
            that are too strong.

    Raises:
        InvalidInput: there are no prompts or an empty one, a number is out of range, a stop string is empty, or resume= is
            given without a server.
        IncompatibleModel: the direction of a hook was made for a different model.
        UnsupportedModel: no backend supports the model, or it cannot run remotely as requested.
        RemoteError: the server does not answer, refuses, or fails; JobsRunning with wait=False.

    Source: docs/method.md, section 3.

    Example:
        >>> import unlock_lens as ul
        >>> from unlock_lens import zoo
        >>> ul.generate(zoo.load("small-base"), ["Q 1 2 3 4 5 6 think A :"])
        ['S 1 3 6 3 1 0 = 0']
    """
    variant = variant_of(model, prompts, add_special_tokens, remote)
    how = (temperature, progress, resume, wait, stop, top_p, seed)
    found = [each.text for each in complete(variant, steer, max_new_tokens, batch_size, use_cache, *how)]
    caution_of_garbage(found, as_hooks(steer))
    return found


Steer: TypeAlias = "SteeringHook | Sequence[SteeringHook] | None"


class Completion(NamedTuple):
    """A completion, and whether it ended by itself: at an end-of-sequence token or a stop string, not at the budget."""

    text: str
    ended: bool


def complete(
    variant: Variant,
    steer: Steer,
    max_new_tokens: int,
    batch_size: int,
    use_cache: bool = True,
    temperature: float = 0.0,
    progress: bool = True,
    resume: str | Path | None = None,
    wait: bool = True,
    stop: Sequence[str] = (),
    top_p: float = 1.0,
    seed: int | None = None,
) -> list[Completion]:
    """`generate`, which also says which completions were cut."""
    check_how(max_new_tokens, stop, temperature, top_p, seed)
    backend, where = variant.backend, remote_of(variant.remote)
    check_resumable(where is not None, resume, wait)
    how = Generation(max_new_tokens, use_cache, temperature, stop=tuple(stop), top_p=top_p)
    if not where:
        with seeded(seed):
            return _of_arms(variant, [steer], how, batch_size, progress)[0]
    server, edits = backend.on(where), _edits(variant, steer)
    if temperature:  # torch.manual_seed here decides there
        how = replace(how, seed=int(torch.randint(2**31, ())) if seed is None else seed)
    order = variant.tokens.batches(batch_size)
    batches = [Batch(of.ids, of.mask) for of in map(variant.tokens.rows, order)]
    written = _on_server(server, backend.identity, batches, edits, how, resume, wait, progress)
    return _in_order(variant, order, written, stop)


def complete_arms(
    variant: Variant,
    steers: Sequence[Steer],
    max_new_tokens: int,
    batch_size: int,
    progress: bool = True,
    stop: Sequence[str] = (),
) -> list[list[Completion]]:
    """`complete` greedily under each of several hooks; prompts are read once for all of them where that gives the same."""
    check_how(max_new_tokens, stop)
    if remote_of(variant.remote):
        return [complete(variant, steer, max_new_tokens, batch_size, progress=progress, stop=stop) for steer in steers]
    return _of_arms(variant, steers, Generation(max_new_tokens, stop=tuple(stop)), batch_size, progress)


def _of_arms(
    variant: Variant, steers: Sequence[Steer], how: Generation, batch_size: int, progress: bool
) -> list[list[Completion]]:
    backend, tokens, new = variant.backend, variant.tokens, how.max_new_tokens
    edits = [_edits(variant, steer) for steer in steers]
    # What is sampled depends on which rows are drawn together.
    order = tokens.batches(batch_size) if how.temperature else tokens.filled(batch_size, new)
    room = batch_size * tokens.most_tokens(new)
    written: list[list[Tensor]] = [[] for _ in steers]
    for rows in shown(order, f"generating with {backend.identity.name}", progress):
        of = tokens.rows(rows)
        at_once = max(1, room // (len(rows) * (of.ids.shape[1] + new)))
        for of_arm, ids in zip(written, backend.generate_arms(Batch(of.ids, of.mask), edits, how, at_once), strict=True):
            of_arm.append(ids)
    return [_in_order(variant, order, of_arm, how.stop) for of_arm in written]


def _edits(variant: Variant, steer: Steer) -> Edits:
    """The edits of hooks, which fit the prompts."""
    hooks = as_hooks(steer)
    check_template(hooks, variant)
    edits = edits_for(variant.backend, hooks)
    check_last_token(variant)
    warn_of_last_token(variant)
    return edits


def _in_order(variant: Variant, order: Sequence[Tensor], written: Sequence[Tensor], stop: Sequence[str]) -> list[Completion]:
    """The completions of each batch, in the order of the prompts."""
    backend = variant.backend
    completions = [Completion("", False)] * len(variant)
    for rows, new in zip(order, written, strict=True):
        for row, ids in zip(rows.tolist(), new.tolist(), strict=True):
            text = text_of(backend.tokenizer, backend.end_tokens, ids)
            kept = before(text, stop)
            completions[row] = Completion(kept, kept != text or not set(backend.end_tokens).isdisjoint(ids))
    return completions


@contextmanager
def seeded(seed: int | None) -> Generator[None, None, None]:
    """Random numbers from a seed, without a trace afterwards; the usual ones without it."""
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def check_how(
    max_new_tokens: int, stop: Sequence[str], temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None
) -> None:
    """Raise InvalidInput unless completions can be made like this: numbers in range, and no stop string that is empty."""
    if max_new_tokens < 1 or not temperature >= 0:
        raise InvalidInput(
            f"max_new_tokens {max_new_tokens} and temperature {temperature} were given; they must be at least 1 and 0"
        )
    if not 0 < top_p <= 1 or (top_p < 1 and not temperature):
        raise InvalidInput(
            f"top_p {top_p} was given with temperature {temperature}; it is a share above 0, at most 1, and greedy "
            "completions (temperature 0) take none"
        )
    if seed is not None and not temperature:
        raise InvalidInput(f"seed={seed} was given at temperature 0, which draws nothing; give a temperature above 0 to sample")
    if isinstance(stop, str):
        raise InvalidInput(f"stop={stop!r} is one text; give a list of stop strings, stop=[{stop!r}]")
    for each in stop:
        if not isinstance(each, str) or not each:  # pyright: ignore[reportUnnecessaryIsInstance]  users have no type checker
            raise InvalidInput(f"the stop string {each!r} was given; give a non-empty text, as in stop=['Question']")


def _on_server(
    server: Server,
    model: ModelIdentity,
    batches: Sequence[Batch],
    edits: Edits,
    how: Generation,
    resume: str | Path | None,
    wait: bool,
    progress: bool,
) -> list[Tensor]:
    """Ids of the completions of each batch."""
    chunks = in_requests(batches, server.remote, resume is not None)
    acts = [(layer, edit) for layer, of_layer in sorted(edits.items()) for edit in of_layer]
    told = {
        "server": server.told,
        "model": asdict(model),
        "edits": [(layer, *edit.told) for layer, edit in acts],
    }
    requests: list[Request] = []
    for i, chunk in enumerate(chunks):
        drawn = how if how.seed is None else replace(how, seed=how.seed + i)
        tensors = [tensor for batch in chunk for tensor in (batch.ids, batch.mask)] + [
            tensor for _, edit in acts for tensor in edit.tensors
        ]
        key = key_of({**told, "how": asdict(drawn)}, tensors)
        fault = partial(fault_of_ids, batches=chunk, new=how.max_new_tokens, vocabulary=server.vocabulary)
        requests.append(Request(server, partial(server.generate, chunk, edits, drawn), key, fault))
    found = collect(requests, resume, wait, progress, f"asking {model.name}")
    return [ids[str(i)] for chunk, ids in zip(chunks, found, strict=True) for i in range(len(chunk))]
