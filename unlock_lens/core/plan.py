"""Plan: the cost of an extraction, a calibration and a generation on a server, from the models' configs alone.

The library makes the same requests as when it runs; a `PlannedModel` counts each of them instead of sending it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from io import StringIO
from typing import Any, ClassVar, Literal

import torch

from unlock_lens.core.alignment import SubspaceAligner
from unlock_lens.core.differences import difference_readings, mean_readings
from unlock_lens.core.direction import check_pair
from unlock_lens.core.jobs import in_requests
from unlock_lens.core.read import How, Reading, check_layers
from unlock_lens.core.variant import Tokens, Variant
from unlock_lens.errors import InvalidInput, require
from unlock_lens.hosts import Batch, Pass, Server, backend_of, shape_of
from unlock_lens.hosts.checkpoint import read_with, shape_in
from unlock_lens.hosts.identity import ModelIdentity
from unlock_lens.hosts.remote import Remote, remote_of
from unlock_lens.method.align import layer_map_of
from unlock_lens.method.extract import Aggregator, check_aggregate
from unlock_lens.method.reduce import LeadingAxes, Reduction

__all__ = ["Plan", "Step", "plan"]

Prompts = int | tuple[Sequence[str], Sequence[str]]
"""The number of prompts in each variant, or the locked and the unlocked prompts."""
Texts = int | Sequence[str]
_TITLES = ("step", "requests", "tokens", "padded", "up", "down", "held")


@dataclass(frozen=True)
class Step:
    """Requests of one kind to one model. Sizes count the data of tensors; code and containers are extra (docs/plan.md).

    Attributes:
        name: what is done.
        model: the model that does it.
        requests: how many requests are made.
        tokens: tokens that the model reads or writes.
        padded_tokens: the same with padding.
        bytes_up: size of ids, masks, indices and steering vectors.
        bytes_down: size of the results; for completions, the maximum.
        server_bytes: memory that the largest request holds on the server until it ends, besides the model and its activations.
    """

    name: str
    model: str
    requests: int
    tokens: int
    padded_tokens: int
    bytes_up: int
    bytes_down: int
    server_bytes: int

    @classmethod
    def summed(cls, name: str, model: str, steps: Sequence[Step]) -> Step:
        """All of them, one after the other."""
        added = ("requests", "tokens", "padded_tokens", "bytes_up", "bytes_down")
        sums = {key: sum(getattr(step, key) for step in steps) for key in added}
        return cls(name, model, **sums, server_bytes=max(step.server_bytes for step in steps))


@dataclass(frozen=True)
class Plan:
    """What will be requested from servers; `str(plan)` is a table.

    Attributes:
        steps: in the order in which they run.
        assumptions: what was assumed, in words.
    """

    steps: tuple[Step, ...]
    assumptions: tuple[str, ...]

    @property
    def total(self) -> Step:
        """The sum of all steps, and the largest `server_bytes`."""
        return Step.summed("total", "", self.steps)

    def to_json(self) -> dict[str, Any]:
        """The plan as data: tokens and bytes are integers."""
        steps, total = [asdict(step) for step in self.steps], asdict(self.total)
        return {"steps": steps, "total": total, "assumptions": list(self.assumptions)}

    def __str__(self) -> str:
        require("cli", "rich")
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_footer=True)
        for title, total in zip(_TITLES, _cells(self.total), strict=True):
            table.add_column(title, total, no_wrap=True, justify="left" if title == "step" else "right")
        for step in self.steps:
            table.add_row(*_cells(step))
        console = Console(file=StringIO(), width=110, color_system=None, force_terminal=False, force_jupyter=False)
        with console.capture() as printed:
            console.print(table)
        names = {step.model: [of.name for of in self.steps if of.model == step.model] for step in self.steps}
        models = [f"{model}: {', '.join(of_model)}" for model, of_model in names.items()]
        lines = [*models, *printed.get().splitlines(), *(f"- {assumption}" for assumption in self.assumptions)]
        return "\n".join(line.rstrip() for line in lines)


def _cells(step: Step) -> list[str]:
    counts = [f"{count:,}" for count in (step.requests, step.tokens, step.padded_tokens)]
    from rich.filesize import decimal

    return [step.name, *counts, *map(decimal, (step.bytes_up, step.bytes_down, step.server_bytes))]


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
    max_new_tokens: int = 0,
    batch_size: int = 8,
    add_special_tokens: bool = True,
    remote: Remote | None = None,
    resume: bool = False,
    **aligner: Any,
) -> Plan:
    """Count what an extraction, a calibration and a generation will request from a server, before anything is sent.

    Reads the models' configs, and their tokenizers if real texts are given. It does not load weights or contact a server.

    Args:
        source: the model that the direction comes from: a hub id, folder, transformers config, open model, or `Variant`.
        target: the model that it goes to, given in the same ways; None for the extraction alone.
        prompts: the locked and the unlocked prompts of the extraction, or how many of each; None for no extraction.
        texts: the calibration texts, or how many; None for no calibration.
        prompt_tokens: assumed tokens of each prompt, if `prompts` is a number.
        text_tokens: assumed tokens of each text, if `texts` is a number.
        unlocked_source: the unlocked model of a model contrast; None if only the prompts differ.
        aggregate: as in `CapabilityDirection.extract`.
        layers: the source's layers from which the direction is extracted.
        max_new_tokens: length of one steered completion of each locked prompt, by the target, or by the source if there is
            no target; 0 for no generation.
        batch_size: prompts in one forward pass.
        add_special_tokens: as in `Variant`.
        remote: the settings of the requests; None is `Remote()`.
        resume: whether `resume=` will be given, which makes more and smaller requests.
        aligner: arguments of `SubspaceAligner`: rank, method, positions, layer_map and so on.

    Raises:
        InvalidInput: there is nothing to plan, numbers lack lengths, models cannot be read, or `extract`, `fit` or `generate`
            would refuse the arguments.
        UnsupportedModel: an object that is not a model.
        IncompatibleModel: the unlocked source's shape or basis differs from the source's.

    Example:
        >>> from unlock_lens import zoo
        >>> from unlock_lens.core.plan import plan
        >>> folders = zoo.path() / "large-base", zoo.path() / "small-base"
        >>> found = plan(*folders, prompts=64, prompt_tokens=9, texts=600, text_tokens=16)
        >>> [(step.name, step.requests, step.tokens) for step in found.steps]
        [('extract', 1, 1152), ('calibrate source', 1, 9600), ('calibrate target', 1, 9600)]
    """
    pair = (prompts, prompts) if isinstance(prompts, int) else prompts
    _check_lengths("prompts", pair and pair[0], "prompt_tokens", prompt_tokens)
    _check_lengths("texts", texts, "text_tokens", text_tokens)
    _check_asked(target is not None, pair is not None, texts is not None, max_new_tokens)
    check_aggregate(aggregate)
    fitted = SubspaceAligner(**aligner)
    models = [model_of(given) for given in (source, target) if given is not None]
    read = check_layers(layers, models[0].identity.n_layers)
    mapped = layer_map_of(aligner.get("layer_map"), models[0].identity.n_layers, models[-1].identity.n_layers)
    how, where = How(batch_size, "resume" if resume else None), remote or Remote()

    def variant(model: PlannedModel, given: Texts, length: int | None) -> PlannedVariant:
        assumed: Sequence[str] = ("assumed",) * given if isinstance(given, int) else given
        return PlannedVariant(model, assumed, add_special_tokens, where, length)

    steps: list[Step] = []
    if pair:
        unlocked = models[0] if unlocked_source is None else model_of(unlocked_source)
        sides = variant(models[0], pair[0], prompt_tokens), variant(unlocked, pair[1], prompt_tokens)
        steps += _extraction(*sides, aggregate, read, how)
    if texts is not None:
        sides = variant(models[0], texts, text_tokens), variant(models[-1], texts, text_tokens)
        steps += _counted(("calibrate source", "calibrate target"), fitted.reader(*sides, how).readings()[0])
    if pair and max_new_tokens:
        vectors = len(mapped) if target is not None else len(read)
        steps.append(_generation(variant(models[-1], pair[0], prompt_tokens), vectors, max_new_tokens, how))
    return Plan(tuple(steps), tuple(_assumptions(prompts, texts, prompt_tokens, text_tokens, max_new_tokens)))


def _extraction(locked: Variant, unlocked: Variant, aggregate: str | Aggregator, layers: Sequence[int], how: How) -> list[Step]:
    check_pair(locked, unlocked)
    if aggregate == "mean":
        readings = mean_readings(unlocked, locked, layers, -1, how)
    else:
        readings, _ = difference_readings(unlocked, locked, layers, -1, 1 if aggregate == "pca" else None, how)
    return _counted(("extract",) if len(readings) == 1 else ("extract unlocked", "extract locked"), readings)


def _counted(names: Sequence[str], readings: Sequence[Reading]) -> list[Step]:
    steps: list[Step] = []
    for name, reading in zip(names, readings, strict=True):
        counts: list[Any] = [request.send() for request in reading.requests()]
        steps.append(Step.summed(name, reading.variant.backend.identity.name, counts))
    return steps


def _generation(variant: PlannedVariant, vectors: int, new: int, how: How) -> Step:
    """The requests of one `generate` that is steered in so many layers."""
    model, tokens = variant.backend, variant.tokens
    batches = [Batch(of.ids, of.mask) for of in map(tokens.rows, tokens.batches(how.batch_size))]
    chunks = in_requests(batches, remote_of(variant.remote), how.resume is not None)
    return Step.summed("generate", model.identity.name, [model.generate(chunk, vectors, new) for chunk in chunks])


@Server.register
@dataclass(frozen=True, eq=False)
class PlannedModel:
    """A model without weights, under the names of a `Backend`, that is also its own `Server` and counts each request.

    Attributes:
        identity: its name and shape.
        load_tokenizer: called where real texts are to be counted.
    """

    identity: ModelIdentity
    load_tokenizer: Callable[[], Any]
    told: ClassVar[dict[str, Any]] = {}

    @cached_property
    def tokenizer(self) -> Any:
        return self.load_tokenizer()

    @property
    def bos_token(self) -> int | None:
        """The id of BOS."""
        return self.tokenizer.bos_token_id

    def native_ids(self, text: str) -> list[int]:
        """The tokenizer's own: there is no host."""
        return self.tokenizer(text)["input_ids"]

    def on(self, server: Any) -> PlannedModel:
        """Itself, whatever the server."""
        return self

    def reduce(self, passes: Sequence[Pass], layers: Sequence[int], reduction: Reduction) -> Step:
        """Ids, rows, columns and places go up as int32, masks as bool (`hosts.ndif.reduced`)."""
        up = sum(5 * one.batch.ids.numel() + 12 * len(one.rows) for one in passes)
        d = self.identity.d_model
        down, held = 8 * d, 8 * d  # a mean in float64
        if isinstance(reduction, LeadingAxes):
            # Mean, energy and singular values in float32; axes and scores.
            size = 2 if reduction.half else 4
            down = 4 * (d + 1 + reduction.axes) + size * reduction.axes * (d + reduction.rows)
            # Held states in float32; sums over all tokens in float64: the Gram matrix, two totals, and their origin.
            held = 4 * reduction.rows * d + (8 * (d * d + 3 * d) if reduction.n > reduction.rows else 0)
        return self._request([one.batch for one in passes], 0, up, len(layers) * down, len(layers) * held)

    def generate(self, batches: Sequence[Batch], vectors: int, new: int) -> Step:
        """Ids and masks go up as int64, with a vector in float32 for each steered layer; ids come back as int64."""
        up = sum(16 * batch.ids.numel() for batch in batches) + 4 * vectors * self.identity.d_model
        down = sum(8 * new * len(batch.ids) for batch in batches)
        return self._request(batches, new, up, down, down)

    def _request(self, batches: Sequence[Batch], new: int, up: int, down: int, held: int) -> Step:
        written = new * sum(len(batch.ids) for batch in batches)
        tokens = written + sum(int(batch.mask.sum()) for batch in batches)
        padded = written + sum(batch.ids.numel() for batch in batches)
        return Step("", self.identity.name, 1, tokens, padded, up, down, held)


class PlannedVariant(Variant):
    """A variant that is never read; `length` is the assumed number of tokens of each prompt, or None for real prompts."""

    def __init__(
        self, model: PlannedModel, prompts: Sequence[str], add_special_tokens: bool, remote: Remote, length: int | None
    ) -> None:
        self.length = length
        super().__init__(model, prompts, add_special_tokens, remote)

    @cached_property
    def backend(self) -> Any:
        """The `PlannedModel` itself."""
        return self.model

    @cached_property
    def tokens(self) -> Tokens:
        """Counted by the tokenizer, or assumed."""
        if self.length is None:
            return super().tokens
        ones = torch.ones(len(self), self.length, dtype=torch.long)
        return Tokens(ones, ones)


def model_of(given: Any) -> PlannedModel:
    """Read the config of a hub id or folder, or take the identity of an open model.

    Raises:
        InvalidInput: the model does not exist, or its config lacks the shape.
        UnsupportedModel: the object is not a model.
    """
    if isinstance(given, str | os.PathLike):
        path = os.fspath(given)
        return PlannedModel(shape_of(path), partial(_tokenizer, path))
    from transformers import PretrainedConfig

    if isinstance(given, PretrainedConfig):
        return PlannedModel(shape_in(given, str(given.name_or_path or given.model_type)), _no_tokenizer)
    backend = given.backend if isinstance(given, Variant) else backend_of(given)
    return PlannedModel(backend.identity, lambda: backend.tokenizer)


def _tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    return read_with(AutoTokenizer, path)


def _no_tokenizer() -> Any:
    raise InvalidInput(
        "a config has no tokenizer to count these texts; give a folder or hub id that has one, or numbers: "
        "prompts=512, prompt_tokens=120"
    )


def _check_lengths(what: str, given: Texts | None, name: str, length: int | None) -> None:
    """Numbers come with an assumed length, real texts without."""
    if isinstance(given, int):
        if given < 1 or length is None or length < 1:
            raise InvalidInput(f"{what}={given} and {name}={length} were given; give both, each at least 1")
    elif length is not None:
        raise InvalidInput(f"{name}={length} was given, but {what} is not a number; omit {name}")


def _check_asked(target: bool, prompts: bool, texts: bool, new: int) -> None:
    for wrong, message in (
        (new < 0, f"max_new_tokens {new} was given; give 0 for no generation, or more"),
        (not prompts and not texts, "nothing to plan: give prompts= to extract from, or texts= and a target to calibrate"),
        (texts and not target, "texts= was given without a target; a calibration reads them in source and target"),
        (target and not texts and not new, "a target was given, but neither texts= to calibrate with nor max_new_tokens="),
        (new and not prompts, f"max_new_tokens={new} was given without prompts; give the prompts= to complete"),
    ):
        if wrong:
            raise InvalidInput(message)


def _assumptions(
    prompts: Prompts | None, texts: Texts | None, prompt_tokens: int | None, text_tokens: int | None, new: int
) -> Iterator[str]:
    if isinstance(prompts, int):
        yield f"{prompts:,} locked and {prompts:,} unlocked prompts of {prompt_tokens:,} tokens each"
    if isinstance(texts, int):
        yield f"{texts:,} calibration texts of {text_tokens:,} tokens each, which both models split alike"
    if new:
        yield f"steered completions that run to {new:,} tokens"
    yield "up, down, held: the data of tensors; code, containers and activations come on top"
