"""The options of the command line, each declared once; their defaults are those of the Python functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, make_dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, TypeVar, get_origin, get_type_hints

from rich.console import Console
from typer import Argument, Option

import unlock_lens as ul
from unlock_lens.core.alignment import SETTINGS
from unlock_lens.core.generation import check_how
from unlock_lens.core.inputs import SLOT, fill, parse_layer_map, read_pairs, read_texts
from unlock_lens.errors import InvalidInput
from unlock_lens.hosts import open_model
from unlock_lens.method.extract import AggregateName

console = Console()
T = TypeVar("T", ul.CapabilityDirection, ul.SteeringHook)


def _defaults(of: Callable[..., Any]) -> SimpleNamespace:
    return SimpleNamespace(**{name: parameter.default for name, parameter in signature(of).parameters.items()})


EXTRACT, STEER, GENERATE = map(_defaults, (ul.CapabilityDirection.extract, ul.SteeringHook, ul.generate))
VARIANT, OPEN, PLAN, REMOTE = map(_defaults, (ul.Variant, open_model, ul.plan, ul.Remote))
TRANSFER = _defaults(ul.transfer)


def writable(file: Path | None) -> Path | None:
    """Refuse a file that cannot be written, before any long work."""
    if file and (file.is_dir() or not file.parent.is_dir()):
        raise InvalidInput(f"{file} cannot be written: give a file in a folder that exists")
    return file


def stop_strings(given: list[str]) -> list[str]:
    """Refuse stop strings that are empty, before any model is opened."""
    check_how(1, given)
    return given


def number(spec: str | None) -> Any:
    """A number where one was written; the library judges other words, such as cv or all."""
    for kind in (int, float):
        with suppress(ValueError):
            return spec and kind(spec)
    return spec


# Some commands require these, and others do not.
TARGET = Option(help="Folder or hub id of the model that the direction goes to.")
QUESTIONS = Option(help="Questions: text file (one per line) or JSONL file.")
PAIRS = Option(help="JSONL file of prompt pairs, under `locked` and `unlocked`; takes the place of questions and templates.")
TEXT = Option(help="Calibration texts: text file (one per line) or JSONL file.")

Source = Annotated[str, Option(help="Folder or hub id of the model that the direction comes from.")]
Locked = Annotated[str, Option(help="Template of the locked prompts.")]
Unlocked = Annotated[str | None, Option(help="Template of the unlocked prompts; by default the locked one.")]
UnlockedModel = Annotated[str | None, Option(help="Folder or hub id of the unlocked model; by default the locked one.")]
Template = Annotated[str, Option(help="Template around each text.")]
Aggregate = Annotated[AggregateName, Option(help="How differences become one vector per layer; begin with mean.")]
Layers = Annotated[str | None, Option(help="Layers, such as 4,5,6 or 4-12; all by default.")]
BatchSize = Annotated[int, Option(help="Prompts in one forward pass.", min=1)]
Stop = Annotated[
    list[str], Option(help="A completion ends before this text; may be given several times.", callback=stop_strings)
]
SpecialTokens = Annotated[bool, Option(help="Let the tokenizer add special tokens; say no where the text holds them already.")]
Backend = Annotated[Literal["transformer_lens", "nnsight"], Option(help="Framework that runs the models.")]
Field = Annotated[str | None, Option(help="Key of the text in JSONL files; by default question, prompt or text.")]
Json = Annotated[bool, Option("--json", help="Print JSON for programs.")]
Config = Annotated[Path | None, Argument(help="YAML file of a sweep.", show_default=False)]
Zoo = Annotated[bool, Option("--zoo", help="Use the embedded family: any machine, about a minute.")]


@dataclass(frozen=True)
class Prompting:
    """How prompts become tokens."""

    special_tokens: SpecialTokens = VARIANT.add_special_tokens
    chat: Annotated[bool, Option("--chat", help="Put each prompt into the tokenizer's chat template.")] = VARIANT.chat
    system: Annotated[str | None, Option(help="The system's turn before it, with --chat.")] = VARIANT.system
    record_prompts: Annotated[bool, Option(help="Keep the first two prompts in what is written.")] = VARIANT.record_prompts
    field: Field = None


@dataclass(frozen=True)
class Running:
    """Where models run, and in what batches."""

    batch_size: BatchSize = GENERATE.batch_size
    backend: Backend = OPEN.backend
    remote: Annotated[str | None, Option(help="Run on a server, with nnsight: ndif, a URL, or local (this machine).")] = None
    resume: Annotated[
        Path | None, Option(help="Folder that keeps a server's results; the same command resumes after a fault.")
    ] = None

    def variants(
        self,
        names: Sequence[str],
        prompts: Sequence[Sequence[str]],
        prompting: Prompting,
        templates: Sequence[str] = (SLOT, SLOT),
    ) -> list[ul.Variant]:
        """Open each model once, and give it its prompts; only nnsight runs models on a server."""
        if self.resume and not self.remote:
            raise InvalidInput("--resume keeps the results of a server; give --remote (ndif, its URL, or local) too")
        where = self.remote or False
        backend = "nnsight" if where else self.backend
        models = {name: open_model(name, backend, remote=where) for name in dict.fromkeys(names)}
        given: dict[str, Any] = {"chat": prompting.chat, "system": prompting.system, "record_prompts": prompting.record_prompts}
        return [
            ul.Variant(models[name], of, prompting.special_tokens, where, template=template, **given)
            for name, of, template in zip(names, prompts, templates, strict=False)
        ]


_WRITTEN = {"layer_map": 'Written as target:source pairs, "9:25 20:50".'}
"""How values are written on the command line that Python has other forms for."""


def _aligner_options() -> type[Any]:
    """The arguments of `SubspaceAligner`, with their defaults and with its docstring as help."""
    told = _arguments(ul.SubspaceAligner.__doc__ or "")
    kinds = get_type_hints(ul.SubspaceAligner.__init__)
    options: list[tuple[str, Any, Any]] = []
    for name, default in SETTINGS.items():
        plain = kinds[name] is bool or (get_origin(kinds[name]) is Literal)
        kind = kinds[name] if plain else str | None
        help_text = f"{told[name]} {_WRITTEN.get(name, '')}".strip()
        options.append((name, Annotated[kind, Option(help=help_text)], default))
    return make_dataclass("Aligner", options, frozen=True)


def _arguments(docstring: str) -> dict[str, str]:
    """The section "Args" of a docstring, by argument."""
    section = docstring.partition("Args:\n")[2].partition("\n\n")[0]
    parts = re.split(r"^ {8}(\w+): ", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()).replace("`", "") for name, text in zip(parts[1::2], parts[2::2], strict=True)}


Aligner: Any = _aligner_options()


def aligner_settings(options: Any) -> dict[str, Any]:
    """What `SubspaceAligner` takes, of options as they were written."""
    given = {name: number(value) if isinstance(value, str) else value for name, value in vars(options).items()}
    return {**given, "layer_map": parse_layer_map(options.layer_map) if options.layer_map else None}


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command some of whose parameters are dataclasses: each of their fields becomes an option."""
    own = signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {parameter.name: parameter.annotation for parameter in own if is_dataclass(parameter.annotation)}
    options: list[Parameter] = []
    for parameter in own:
        if group := groups.get(parameter.name):
            hints = get_type_hints(group, include_extras=True)
            options += [
                Parameter(f.name, Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name]) for f in fields(group)
            ]
        else:
            options.append(parameter.replace(kind=Parameter.KEYWORD_ONLY))

    def run(**given: Any) -> None:
        held = {name: group(**{f.name: given.pop(f.name) for f in fields(group)}) for name, group in groups.items()}
        command(**given, **held)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = Signature(options)  # pyright: ignore[reportFunctionMemberAccess]  what Typer reads
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


def contrast(
    questions: Path | None, locked: str, unlocked: str | None, unlocked_model: str | None, pairs: Path | None, field: str | None
) -> tuple[tuple[list[str], list[str]], tuple[str, str]]:
    """Locked and unlocked prompts, and their templates: of a file of pairs, or of questions.

    Raises:
        InvalidInput: both or neither are given, or nothing differs between locked and unlocked.
    """
    if (questions is None) == (pairs is None):
        raise InvalidInput("give --questions, with templates, or --pairs (one of the two)")
    if pairs:
        if unlocked is not None or locked != SLOT:
            raise InvalidInput("--pairs holds whole prompts; leave --locked and --unlocked out")
        return read_pairs(pairs), (SLOT, SLOT)
    if unlocked is None and unlocked_model is None:
        raise InvalidInput("locked and unlocked are the same; give --unlocked (another template) or --unlocked-model")
    templates = locked, unlocked or locked
    for template in templates:
        fill(template, [""])  # a template without a slot is refused before any model is opened
    asked = read_texts(questions or "", field)
    return (asked, asked), templates


def read(kind: type[T], name: str) -> T:
    """Load a direction or a key from a file, a folder or the hub."""
    is_file = name.endswith(".safetensors") or Path(name).is_file()
    return kind.load(name) if is_file else kind.from_pretrained(name)
