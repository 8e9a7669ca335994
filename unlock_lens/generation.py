"""One call that completes prompts, steered or not, in either framework."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from unlock_lens.backends import Batch, Generation, backend_of
from unlock_lens.errors import InvalidInput
from unlock_lens.progress import shown
from unlock_lens.steering import SteeringHook, as_hooks, edits_for
from unlock_lens.variant import check_prompts, tokenize


def generate(
    model: Any,
    prompts: Sequence[str],
    steer: SteeringHook | Sequence[SteeringHook] | None = None,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    add_special_tokens: bool = True,
    use_cache: bool = True,
    temperature: float = 0.0,
    remote: bool | str = False,
    progress: bool = True,
) -> list[str]:
    """Complete each prompt; the completions come without it, and without special tokens.

    Args:
        model: a TransformerBridge, HookedTransformer, or nnsight TransformersModel.
        prompts: texts.
        steer: a hook, or several, which act in the given order at each layer.
        max_new_tokens: tokens at most; an end-of-sequence token ends a completion before.
        batch_size: prompts at a time, of like length.
        add_special_tokens: whether the tokenizer adds its own.
        use_cache: whether to use the KV cache; the result is the same.
        temperature: 0 is greedy; otherwise sampled (torch.manual_seed makes it repeatable).
        remote: for nnsight models: run on NDIF (True), or here as NDIF would ("local").
        progress: whether to show a progress bar (after a second of work).

    Raises:
        InvalidInput: no prompts, an empty one, a number out of range.
        IncompatibleModel: a hook whose direction was made for another model.
        UnsupportedModel: a model that no backend serves, or that cannot run remotely as asked.

    Example:
        >>> import unlock_lens as ul
        >>> from unlock_lens import zoo
        >>> ul.generate(zoo.load("small-base"), ["Q 1 2 3 4 5 6 think A :"])
        ['S 1 3 6 3 1 0 = 0']
    """
    check_prompts(prompts)
    if max_new_tokens < 1 or not temperature >= 0:
        raise InvalidInput(
            f"max_new_tokens {max_new_tokens} and temperature {temperature} were given; at least 1 and 0 are needed"
        )
    backend = backend_of(model)
    if remote:
        backend.check_remote(remote)
    edits = edits_for(backend, as_hooks(steer))
    tokens = tokenize(backend.tokenizer, prompts, add_special_tokens)
    how = Generation(max_new_tokens, use_cache, temperature, remote)
    completions = [""] * len(prompts)
    for rows in shown(tokens.batches(batch_size), f"generating with {backend.identity.name}", progress):
        batch = tokens.rows(rows)
        new = backend.generate(Batch(batch.ids, batch.mask), edits, how)
        for row, ids in zip(rows.tolist(), new, strict=True):
            completions[row] = _text(backend.tokenizer, backend.end_tokens, ids)
    return completions


def _text(tokenizer: Any, end_tokens: Sequence[int], ids: Int[Tensor, " new_token"]) -> str:
    written = ids.tolist()
    ends = [i for i, token in enumerate(written) if token in end_tokens]
    return tokenizer.decode(written[: ends[0]] if ends else written, skip_special_tokens=True)
