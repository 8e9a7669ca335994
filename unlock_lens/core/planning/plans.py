"""The plan: the same readings that an extraction and a fit make, counted instead of sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unlock_lens.core.differences import difference_readings, mean_readings
from unlock_lens.core.direction import check_pair
from unlock_lens.core.jobs import in_requests
from unlock_lens.core.paired import Reader
from unlock_lens.core.planning import sizes
from unlock_lens.core.planning.models import PlannedModel, PlannedVariant, model_of
from unlock_lens.core.planning.sizes import Shape
from unlock_lens.core.planning.steps import Ask, Plan, Step
from unlock_lens.core.read import How, Reading, check_layers
from unlock_lens.core.tokens import Chosen, Positions, check_positions, paired_tokens
from unlock_lens.core.variant import Variant
from unlock_lens.errors import InvalidInput
from unlock_lens.hosts.remote import Remote, remote_of
from unlock_lens.method.align import METHODS, check_method, layer_map_of
from unlock_lens.method.extract import Aggregator, check_aggregate

Prompts = int | tuple[Sequence[str], Sequence[str]]
"""How many of each variant, or the locked and the unlocked ones."""
Texts = int | Sequence[str]


@dataclass(frozen=True)
class _Setting:
    """What all steps share."""

    how: How
    remote: Remote
    add_special_tokens: bool

    def variant(self, model: PlannedModel, given: Texts, length: int | None) -> PlannedVariant:
        """Of real prompts, or of a number of assumed ones."""
        prompts = ("assumed",) * given if isinstance(given, int) else given
        return PlannedVariant(model, prompts, self.add_special_tokens, self.remote, length)


def plan(
    source: Any,
    target: Any = None,
    *,
    prompts: Prompts | None = None,
    texts: Texts | None = None,
    prompt_tokens: int | None = None,
    text_tokens: int | None = None,
    unlocked_source: Any = None,
    aggregate: Literal["mean", "pca"] | Aggregator = "mean",
    layers: Sequence[int] | None = None,
    rank: int | Literal["cv"] | None = 48,
    method: str = "unlock",
    positions: Positions = "all",
    skip_first: bool = False,
    layer_map: Mapping[int, int] | None = None,
    max_new_tokens: int = 0,
    batch_size: int = 8,
    add_special_tokens: bool = True,
    remote: Remote | None = None,
    resume: bool = False,
) -> Plan:
    """What an extraction, a calibration and a generation on NDIF will ask of it, before anything is sent.

    Configs are read, and tokenizers where real texts are given; no weights, and no server is asked.

    Args:
        source: the model that the direction comes from: a hub id, folder, transformers config, open model, or `Variant`.
        target: the model that it goes to, given in the same ways; None for the extraction alone.
        prompts: the locked and the unlocked prompts of the extraction, or how many of each; None for no extraction.
        texts: the calibration texts, or how many; None for no calibration.
        prompt_tokens: assumed tokens of each prompt, where `prompts` is a number.
        text_tokens: assumed tokens of each text, where `texts` is a number.
        unlocked_source: the unlocked model of a model contrast; None where the prompts alone differ.
        aggregate: as `CapabilityDirection.extract` takes it, and so are `layers` and `batch_size`.
        layers: of the source, from which the direction is extracted.
        rank: as `SubspaceAligner` takes it, and so are `method`, `positions`, `skip_first` and `layer_map`.
        method: of alignment.
        positions: calibration tokens of each text.
        skip_first: whether the first token of each text is left out.
        layer_map: target layer -> source layer.
        max_new_tokens: of one steered completion of each locked prompt, by the target, or the source where there is none; 0 for
            no generation.
        batch_size: prompts in one forward pass.
        add_special_tokens: as `Variant` takes it.
        remote: the settings of the requests; None is `Remote()`.
        resume: whether `resume=` will be given, which asks in more and smaller requests.

    Raises:
        InvalidInput: nothing to plan, counts without lengths, models that cannot be read, and what extraction, fit and
            generation themselves refuse.
        UnsupportedModel: a model that cannot be counted without weights.
        IncompatibleModel: an unlocked source of another shape or basis than the source's.

    Source: docs/plan.md.

    Example:
        >>> from unlock_lens import zoo
        >>> from unlock_lens.core.planning import plan
        >>> folders = zoo.path() / "large-base", zoo.path() / "small-base"
        >>> found = plan(*folders, prompts=64, prompt_tokens=9, texts=600, text_tokens=16)
        >>> [(step.name, step.requests, step.tokens) for step in found.steps]
        [('extract', 1, 1152), ('calibrate source', 1, 9600), ('calibrate target', 1, 9600)]
    """
    pair = (prompts, prompts) if isinstance(prompts, int) else prompts
    _check_lengths("prompts", pair and pair[0], "prompt_tokens", prompt_tokens)
    _check_lengths("texts", texts, "text_tokens", text_tokens)
    _check_asked(target is not None, prompts is not None, texts is not None, max_new_tokens)
    check_aggregate(aggregate)
    check_positions(positions)
    check_method(method, rank, None)
    setting = _Setting(How(batch_size, "resume" if resume else None, True, False), remote or Remote(), add_special_tokens)
    models = _models(source, target, pair is not None and not isinstance(prompts, int), not isinstance(texts, int | None))
    read = check_layers(layers, models[0].identity.n_layers)
    mapped = layer_map_of(layer_map, *(model.identity.n_layers for model in models))
    steps: list[Step] = []
    if pair:
        unlocked = models[0] if unlocked_source is None else model_of(unlocked_source, not isinstance(prompts, int))
        variants = [setting.variant(model, of, prompt_tokens) for model, of in zip((models[0], unlocked), pair, strict=True)]
        check_pair(*variants)
        of_contrast = _of_contrast(variants[0], variants[1], aggregate, read, setting.how)
        names = ("extract",) if len(of_contrast) == 1 else ("extract unlocked", "extract locked")
        steps += [_read(name, of) for name, of in zip(names, of_contrast, strict=True)]
    if texts is not None:
        sides = setting.variant(models[0], texts, text_tokens), setting.variant(models[1], texts, text_tokens)
        chosen = paired_tokens(*sides, positions, skip_first)
        of_calibration = _of_calibration(sides, chosen, mapped, method, rank, setting.how)
        steps += [_read(f"calibrate {side}", of) for side, of in zip(("source", "target"), of_calibration, strict=True)]
    if pair and max_new_tokens:
        vectors = len(read) if target is None else len(mapped)
        steps.append(_generated(setting.variant(models[1], pair[0], prompt_tokens), vectors, max_new_tokens, setting.how))
    return Plan(tuple(steps), tuple(_assumptions(prompts, texts, prompt_tokens, text_tokens, max_new_tokens)))


def _models(source: Any, target: Any, real_prompts: bool, real_texts: bool) -> tuple[PlannedModel, PlannedModel]:
    """Source and target, which without one is the source; with their tokenizers where there are real texts to count."""
    found = model_of(source, real_prompts or real_texts)
    return found, found if target is None else model_of(target, real_prompts or real_texts)


def _of_contrast(
    locked: Variant, unlocked: Variant, aggregate: str | Aggregator, layers: Sequence[int], how: How
) -> list[Reading]:
    """What an extraction reads."""
    if aggregate == "mean":
        return mean_readings(unlocked, locked, layers, -1, how)
    return difference_readings(unlocked, locked, layers, -1, 1 if aggregate == "pca" else None, how)[0]


def _of_calibration(
    sides: tuple[Variant, Variant],
    chosen: tuple[Chosen, Chosen],
    layer_map: Mapping[int, int],
    method: str,
    rank: int | str | None,
    how: How,
) -> list[Reading]:
    """What a fit reads, source and target."""
    asked = METHODS[method].default_rank if rank is None else rank
    reader = Reader(
        source=sides[0],
        target=sides[1],
        layer_map=layer_map,
        source_tokens=chosen[0],
        target_tokens=chosen[1],
        centered=True,
        sinks="keep",
        folds=1,
        rank=asked if isinstance(asked, int) else None,
        leading_axes=METHODS[method].leading_axes,
        how=how,
    )
    return reader.readings()[0]


def _read(name: str, reading: Reading) -> Step:
    """Its requests, counted."""
    model: PlannedModel = reading.variant.model
    return Step.of(name, model.identity.name, _asks(reading, model))


def _asks(reading: Reading, model: PlannedModel) -> Iterator[Ask]:
    lengths = [tokens.variant.tokens.lengths for tokens in reading.tokens]
    layers, d_model = len(reading.layers), model.identity.d_model
    for chunk, part in zip(reading.chunks, reading.parts([{}] * len(reading.chunks)), strict=True):
        reduction = reading.reduction(len(part.places), part.n)
        shapes = [
            Shape(len(batch), int(of[batch].max()), sum(len(tokens.chosen[p]) for p in batch.tolist()))
            for batch in chunk
            for tokens, of in zip(reading.tokens, lengths, strict=True)
        ]
        yield Ask(
            tokens=sum(int(of[batch].sum()) for batch in chunk for of in lengths),
            padded_tokens=sum(shape.padded for shape in shapes),
            bytes_up=sizes.reading_up(reduction, shapes, model.cost.modules),
            bytes_down=sizes.reading_down(reduction, layers, d_model),
            server_bytes=sizes.reading_memory(reduction, shapes, layers, model.config),
            flops=sum(model.cost.forward(shape.rows, shape.length, max(reading.layers)) for shape in shapes),
        )


def _generated(variant: PlannedVariant, vectors: int, new: int, how: How) -> Step:
    """Requests of one `generate`, steered in so many layers."""
    model: PlannedModel = variant.model
    lengths, batches = variant.tokens.lengths, variant.tokens.batches(how.batch_size)
    asks: list[Ask] = []
    for chunk in in_requests(batches, remote_of(variant.remote), how.resume is not None):
        shapes = [Shape(len(batch), int(lengths[batch].max())) for batch in chunk]
        asks.append(
            Ask(
                tokens=sum(int(lengths[batch].sum()) + len(batch) * new for batch in chunk),
                padded_tokens=sum(shape.padded + shape.rows * new for shape in shapes),
                bytes_up=sizes.generation_up(shapes, vectors, model.identity.d_model, model.cost.modules),
                bytes_down=sizes.generation_down(shapes, new),
                server_bytes=sizes.generation_memory(shapes, new, model.config),
                flops=sum(model.cost.generation(shape.rows, shape.length, new) for shape in shapes),
            )
        )
    return Step.of("generate", model.identity.name, asks)


def _check_lengths(what: str, given: Texts | None, name: str, length: int | None) -> None:
    """Numbers come with an assumed length, real texts without."""
    if isinstance(given, int):
        if given < 1 or length is None or length < 1:
            raise InvalidInput(
                f"{what}={given} and {name}={length} were given; a number of {what} needs {name}=, both 1 or more"
            )
    elif length is not None:
        raise InvalidInput(f"{name}={length} was given for {what} that are not a number; leave it out")


def _check_asked(target: bool, prompts: bool, texts: bool, max_new_tokens: int) -> None:
    if max_new_tokens < 0:
        raise InvalidInput(f"max_new_tokens {max_new_tokens} was given; 0 for no generation, or more")
    if not prompts and not texts:
        raise InvalidInput(
            "there is nothing to plan: give prompts= for an extraction, or texts= and a target for a calibration"
        )
    if texts and not target:
        raise InvalidInput("texts= were given without a target; a calibration reads them in source and target")
    if target and not texts and not max_new_tokens:
        raise InvalidInput("a target was given and nothing for it to do; give texts= for a calibration, or max_new_tokens=")
    if max_new_tokens and not prompts:
        raise InvalidInput(f"max_new_tokens={max_new_tokens} was given without prompts; give the prompts= that are completed")


def _assumptions(
    prompts: Prompts | None, texts: Texts | None, prompt_tokens: int | None, text_tokens: int | None, new: int
) -> Iterator[str]:
    if isinstance(prompts, int):
        yield f"{prompts:,} locked and {prompts:,} unlocked prompts, {prompt_tokens:,} tokens each"
    if isinstance(texts, int):
        yield f"{texts:,} calibration texts, {text_tokens:,} tokens each, cut alike by both models"
    if new:
        yield f"completions that run to {new:,} tokens, steered, with a KV cache"
    yield "memory: beside the weights, with bfloat16 activations and fused attention"
    yield "FLOPs: of the passes; queueing and loading a model are not in the plan"
