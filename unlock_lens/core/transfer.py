"""A whole transfer in one call, and calibration text that the models write themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from unlock_lens.core.alignment import SubspaceAligner
from unlock_lens.core.direction import CapabilityDirection, check_pair
from unlock_lens.core.generation import check_how, complete
from unlock_lens.core.steering import SteeringHook
from unlock_lens.core.variant import Variant, variant_of
from unlock_lens.errors import InvalidInput, caution
from unlock_lens.hosts.remote import Where
from unlock_lens.method.apply import Operation, Positions
from unlock_lens.method.extract import AggregateName, Aggregator


def calibration_texts(
    locked: Variant,
    unlocked: Variant,
    max_new_tokens: int = 256,
    batch_size: int = 8,
    stop: Sequence[str] = (),
    progress: bool = True,
    resume: str | Path | None = None,
) -> list[str]:
    """Calibration text that the models write: both variants' prompts, each with its model's greedy completion.

    Either the source or the target may write it, and `SubspaceAligner.fit` takes the result. It contains the prompts of both
    sides, because the map must carry the difference between their states. In a contrast of models, the prompts are the same
    and span too little; the embedded family then needs ordinary text.

    Args:
        locked: the variant that lacks the capability.
        unlocked: the variant that has it; prompt i belongs to prompt i of `locked`.
        max_new_tokens: maximum number of tokens of each completion.
        batch_size: prompts at a time.
        stop: a completion ends before the first of these strings.
        progress: whether to show a progress bar (after a second of work).
        resume: for models on a server: a folder that stores finished requests, so that the same call can resume after a fault.

    Returns:
        Alternately a locked and an unlocked prompt, each with its completion.

    Warns:
        UserWarning: completions are empty, or all of them reach the token budget.

    Raises:
        InvalidInput: the numbers of prompts differ; otherwise as `generate`.

    Source: docs/sweeps.md.

    Example:
        >>> import unlock_lens as ul
        >>> from unlock_lens import zoo
        >>> model, task = zoo.load("large-base"), zoo.running_sum(n=2)
        >>> for text in ul.calibration_texts(ul.Variant(model, task.direct), ul.Variant(model, task.think), 12)[:2]:
        ...     print(text)
        Q 3 2 0 6 0 2 A : = 4
        Q 3 2 0 6 0 2 think A : S 3 5 5 4 4 6 = 6
    """
    check_pair(locked, unlocked)
    sides = [_completed(each, max_new_tokens, batch_size, stop, progress, resume) for each in (locked, unlocked)]
    return [text for pair in zip(*sides, strict=True) for text in pair]


def transfer(
    source: Any,
    target: Any,
    locked: Iterable[str] | Variant,
    unlocked: Iterable[str] | Variant,
    texts: Iterable[str] | None = None,
    alpha: float = 0.3,
    aggregate: AggregateName | Aggregator = "mean",
    aligner: SubspaceAligner | None = None,
    operation: Operation = "norm_preserving",
    positions: Positions = "last_prompt",
    max_new_tokens: int = 256,
    batch_size: int = 8,
    stop: Sequence[str] = (),
    remote: Where = False,
    progress: bool = True,
    resume: str | Path | None = None,
) -> SteeringHook:
    """Extract a direction in the source, fit a map, transport the direction to the target and make a hook, in one call.

    Args:
        source: the model that has the capability, in any host.
        target: the model that is to get it.
        locked: prompts of the source without the capability, or a `Variant` of it.
        unlocked: prompts with it, one for each locked one; or a `Variant`, also of another model that is unlocked.
        texts: calibration texts, to which the prompts of both sides are added. By default the models of `locked` and
            `unlocked` write them (`calibration_texts`).
        alpha: strength. The range that works differs from pair to pair: try several, on problems that you do not report.
        aggregate: as in `CapabilityDirection.extract`.
        aligner: an aligner that is not fitted yet, for settings other than the defaults.
        operation: as in `SteeringHook`.
        positions: as in `SteeringHook`.
        max_new_tokens: for `calibration_texts`.
        batch_size: prompts in one forward pass.
        stop: for `calibration_texts`.
        remote: where all models run, as in `Variant`; by default, where the model of `locked` runs.
        progress: whether to show progress bars (after a second of work).
        resume: for models on a server: a folder that stores finished requests, so that the same call can resume after a fault.

    Returns:
        A hook for the target; `hook.direction.save(path)` keeps its direction.

    Raises:
        InvalidInput: as `CapabilityDirection.extract`, `calibration_texts` and `SubspaceAligner.fit`.
        IncompatibleModel: the unlocked variant's model has a different shape from the source.
        RemoteError: the server does not answer, refuses, or fails.

    Source: docs/method.md, sections 1 to 3.

    Example:
        >>> import unlock_lens as ul
        >>> from unlock_lens import zoo
        >>> source, target, task = zoo.load("large-base"), zoo.load("small-base"), zoo.running_sum(n=100)
        >>> text = zoo.text(n=600)
        >>> steer = ul.transfer(source, target, locked=task.direct, unlocked=task.think, texts=text, alpha=0.5)
        >>> ul.generate(target, ["Q 1 2 3 4 5 6 A :"], steer=steer)
        ['S 1 3 6 3 1 0 = 0']
    """
    check_how(max_new_tokens, stop)
    if isinstance(texts, str):
        raise InvalidInput(f"one text was given ({texts[:40]!r}); give a list of texts")
    before = variant_of(source, locked, remote=remote)
    after = unlocked if isinstance(unlocked, Variant) else Variant(source, unlocked, remote=remote)
    direction = CapabilityDirection.extract(before, after, aggregate, batch_size=batch_size, progress=progress, resume=resume)
    sides = calibrating(before, after, (source, target), texts, max_new_tokens, batch_size, stop, progress, resume)
    fitted = (aligner or SubspaceAligner()).fit(sides[0], sides[1], None, batch_size, progress, resume)
    return SteeringHook(fitted.transport(direction), alpha, operation, positions)


def calibrating(
    locked: Variant,
    unlocked: Variant,
    models: tuple[Any, Any],
    texts: Iterable[str] | None,
    max_new_tokens: int,
    batch_size: int,
    stop: Sequence[str],
    progress: bool,
    resume: str | Path | None,
) -> tuple[Variant, Variant]:
    """Source and target on the texts that a map is fitted on: given ones and both sides' prompts, or written ones."""
    if texts is None:
        written = calibration_texts(locked, unlocked, max_new_tokens, batch_size, stop, progress, resume)
    else:
        prompts = (prompt for pair in zip(locked.prompts, unlocked.prompts, strict=True) for prompt in pair)
        written = [*texts, *dict.fromkeys(prompts)]  # those of a contrast of models are the same on both sides
    special, where, bos = locked.add_special_tokens, locked.remote, locked.prepend_bos
    source, target = (Variant(model, written, special, where, prepend_bos=bos) for model in models)
    return source, target


def _completed(
    variant: Variant, max_new_tokens: int, batch_size: int, stop: Sequence[str], progress: bool, resume: str | Path | None
) -> list[str]:
    """The prompts with their completions."""
    written = complete(variant, None, max_new_tokens, batch_size, progress=progress, resume=resume, stop=stop)
    name, empty = variant.backend.identity.name, [i for i, each in enumerate(written) if not each.text.strip()]
    if empty:
        caution(
            f"{len(empty)} of {len(written)} completions that {name} wrote for calibration are empty, such as that of "
            f"{variant.prompts[empty[0]][-40:]!r}, so these texts are only the prompts; fix the prompts or stop="
        )
    if not any(each.ended for each in written):
        caution(
            f"all {len(written)} completions that {name} wrote for calibration ran to {max_new_tokens} tokens, as text that "
            "repeats itself does; look at them, and give stop= or a different max_new_tokens="
        )
    tokenizer = variant.backend.tokenizer
    return [joined(tokenizer, prompt, each.text) for prompt, each in zip(variant.prompts, written, strict=True)]


def joined(tokenizer: Any, prompt: str, completion: str) -> str:
    """Both as one text whose tokens begin with the prompt's; some tokenizers need a space in between, which they remove."""
    if not completion:
        return prompt
    own, more, whole = tokenizer([prompt, completion, prompt + completion], add_special_tokens=False)["input_ids"]
    return prompt + completion if whole[: len(own)] == own else tokenizer.decode([*own, *more])
