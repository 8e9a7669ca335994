"""Next-token distributions, steered and unsteered: what steering sharpens, and its price (docs/evidence.md).

Arguments and errors of functions that take a model are those of `generate`; prompts and texts may be a `Variant` of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unlock_lens.core.steering import SteeringHook, as_hooks, edits_for
from unlock_lens.core.variant import Variant, variant_of
from unlock_lens.errors import InvalidInput
from unlock_lens.evidence._pairs import AT_ONCE, Pairs, Scored, Steer
from unlock_lens.hosts import Batch, placed
from unlock_lens.hosts.remote import Where

FARTHEST = 16
"""Number of tokens after an edit for which the price is reported one by one."""


@dataclass(frozen=True)
class Price:
    """What steering does to text that has nothing to do with the capability.

    Attributes:
        kl: mean of KL(unsteered || steered) over next-token distributions, in nats per token.
        perplexity: perplexity of the text, steered.
        perplexity_unsteered: perplexity of the text, unsteered.
        kl_of_prompt: the same KL summed over the tokens that follow one prompt, mean over prompts, in nats.
        kl_worst: its mean over the 5% of tokens where it is highest, in nats.
        kl_by_distance: its mean at the first, second, ... token after the edit, up to the 16th.
    """

    kl: float
    perplexity: float
    perplexity_unsteered: float
    kl_of_prompt: float = 0.0
    kl_worst: float = 0.0
    kl_by_distance: tuple[float, ...] = ()


def next_token_log_probs(
    model: Any,
    prompts: Iterable[str] | Variant | None = None,
    steer: Steer = None,
    batch_size: int = 8,
    add_special_tokens: bool = True,
    remote: Where = False,
) -> Float[Tensor, "prompt vocabulary"]:
    """Log-probabilities (nats) of the first token of each completion; one forward pass, nothing is generated.

    Example:
        >>> from unlock_lens import distributions, zoo
        >>> model = zoo.load("small-base")
        >>> likeliest = distributions.next_token_log_probs(model, ["Q 1 2 3 4 5 6 think A :"]).argmax()
        >>> model.tokenizer.decode([int(likeliest)])
        'S'
    """
    variant = variant_of(model, prompts, add_special_tokens, remote)
    tokens, host = variant.tokens, placed(variant.backend, variant.remote)
    edits = edits_for(variant.backend, as_hooks(steer))
    found: list[Tensor] = [torch.empty(0)] * len(variant)
    for rows in tokens.batches(batch_size):
        batch = tokens.rows(rows)
        predicted = host.log_probs(Batch(batch.ids, batch.mask), edits, batch.ids.shape[1])[:, 0]
        for row, log_probs in zip(rows.tolist(), predicted, strict=True):
            found[row] = log_probs
    return torch.stack(found)


def kl_divergence(p: Float[Tensor, "*batch vocabulary"], q: Float[Tensor, "*batch vocabulary"]) -> Float[Tensor, "*batch"]:
    """KL(p || q) in nats, both given as log-probabilities."""
    return (p.exp() * (p - q)).sum(-1).clamp_min(0)  # rounding may go below


def entropy(log_probs: Float[Tensor, "*batch vocabulary"]) -> Float[Tensor, "*batch"]:
    """The entropy of each distribution, in nats, given as log-probabilities."""
    return -(log_probs.exp() * log_probs).sum(-1)


def first_token_entropies(
    model: Any,
    prompts: Iterable[str] | Variant,
    completions: Iterable[str],
    steer: Steer = None,
    n_tokens: int = 8,
    batch_size: int = 8,
    add_special_tokens: bool = True,
    remote: Where = False,
) -> list[float]:
    """Mean entropy (nats) of the next-token distribution at each of the first tokens of the completions, which are read back.

    Positions beyond the longest completion are left out.
    """
    pairs = Pairs.of(variant_of(model, prompts, add_special_tokens, remote), completions)
    pairs = replace(pairs, following=[ids[:n_tokens] for ids in pairs.following])
    sums, counts = torch.zeros(n_tokens), torch.zeros(n_tokens)
    for scored in pairs.scored(steer, batch_size):
        values, reached = entropy(scored.log_probs), scored.mask.float()
        width = values.shape[1]
        sums[:width] += (values * reached).sum(0)
        counts[:width] += reached.sum(0)
    return (sums / counts)[counts > 0].tolist()


def completion_log_probs(
    model: Any,
    prompts: Iterable[str] | Variant,
    completions: Iterable[str],
    steer: Steer = None,
    batch_size: int = 8,
    add_special_tokens: bool = True,
    remote: Where = False,
) -> Float[Tensor, " prompt"]:
    """Log-probability (nats) of each completion given its prompt: how much the model concentrates on it.

    The end of a completion is not counted, because it may have been cut off there.
    """
    pairs = Pairs.of(variant_of(model, prompts, add_special_tokens, remote), completions)
    found = torch.zeros(len(pairs.following))
    for scored in pairs.scored(steer, batch_size):
        found[scored.rows] = (scored.of_tokens() * scored.mask).sum(1)
    return found


def price(
    model: Any,
    texts: Iterable[str] | Variant,
    steer: SteeringHook | Sequence[SteeringHook],
    batch_size: int = 8,
    add_special_tokens: bool = True,
    prompt_end: str | None = None,
    remote: Where = False,
) -> Price:
    """The price of steering on unrelated text: the first part of each text is steered as a prompt, and the rest is read.

    The prompt ends with the first `prompt_end`. Without it, and in a `Variant`, it is the first half of the tokens.

    Example:
        >>> import unlock_lens as ul
        >>> from unlock_lens import distributions, zoo
        >>> model, task = zoo.load("small-base"), zoo.running_sum(n=32)
        >>> direction = ul.CapabilityDirection.extract(ul.Variant(model, task.direct), ul.Variant(model, task.think))
        >>> distributions.price(model, zoo.text(n=20), ul.SteeringHook(direction, alpha=0.5)).kl > 0.1
        True
    """
    return Meter(model, texts, batch_size, add_special_tokens, prompt_end, remote).price(steer)


class Meter:
    """Prices several hooks on the same texts, which are read unsteered only once (or for each hook, if too many to keep).

    Arguments are those of `price`.
    """

    def __init__(
        self,
        model: Any,
        texts: Iterable[str] | Variant,
        batch_size: int = 8,
        add_special_tokens: bool = True,
        prompt_end: str | None = None,
        remote: Where = False,
    ) -> None:
        if prompt_end is None or isinstance(texts, Variant):
            self._pairs = Pairs.of_halves(variant_of(model, texts, add_special_tokens, remote))
        else:
            prompts, following = _cut(list(texts), prompt_end)
            self._pairs = Pairs.of(variant_of(model, prompts, add_special_tokens, remote), following)
        self._batch_size = batch_size
        width = max(len(ids) for ids in self._pairs.following) * len(self._pairs.backend.tokenizer)
        self._keeps = len(self._pairs.following) * width <= AT_ONCE
        self._plain: list[Scored] = []

    def _unsteered(self) -> Iterable[Scored]:
        if not self._keeps:
            return self._pairs.scored(None, self._batch_size)
        self._plain = self._plain or [*self._pairs.scored(None, self._batch_size)]
        return self._plain

    def price(self, steer: Steer) -> Price:
        """The price of steering on the texts."""
        steered_nats, plain_nats = 0.0, 0.0
        divergences: list[Tensor] = []
        for plain, steered in zip(self._unsteered(), self._pairs.scored(steer, self._batch_size), strict=True):
            found = kl_divergence(plain.log_probs, steered.log_probs)
            divergences += [of_row[: int(length)] for of_row, length in zip(found, plain.mask.sum(dim=1), strict=True)]
            steered_nats -= float((steered.of_tokens() * plain.mask).sum())
            plain_nats -= float((plain.of_tokens() * plain.mask).sum())
        each = torch.cat(divergences)
        perplexities = [float(torch.tensor(nats / len(each)).exp()) for nats in (steered_nats, plain_nats)]
        longest = min(max(map(len, divergences)), FARTHEST)
        by_distance = tuple(float(torch.stack([row[i] for row in divergences if len(row) > i]).mean()) for i in range(longest))
        worst = each.topk(max(1, len(each) // 20)).values
        of_prompt = float(torch.stack([row.sum() for row in divergences]).mean())
        return Price(float(each.mean()), perplexities[0], perplexities[1], of_prompt, float(worst.mean()), by_distance)


def _cut(texts: Sequence[str], prompt_end: str) -> tuple[list[str], list[str]]:
    """Prompts, to the first `prompt_end`, and what follows them."""
    parts = [text.partition(prompt_end) for text in texts]
    if alone := next((text for text, (_, _, rest) in zip(texts, parts, strict=True) if not rest.strip()), None):
        raise InvalidInput(f"nothing follows a prompt that ends with {prompt_end!r} in {alone[:60]!r}; leave it out")
    return [prompt + end for prompt, end, _ in parts], [rest for _, _, rest in parts]
