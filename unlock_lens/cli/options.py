"""The options of the command line, each declared once; their defaults are those of the Python functions."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, make_dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, TypeVar, get_origin, get_type_hints

import typer
from rich.console import Console
from typer import Argument, Option

import unlock_lens as ul
from unlock_lens import zoo
from unlock_lens.core.alignment import SETTINGS
from unlock_lens.core.generation import check_how
from unlock_lens.core.inputs import SLOT, fill, parse_layer_map, read_pairs, read_texts
from unlock_lens.errors import IncompatibleModel, InvalidInput
from unlock_lens.hosts import Dtype, check_device, open_model, shape_of
from unlock_lens.hosts.checkpoint import check_hub_id, check_name, instead
from unlock_lens.hosts.identity import ModelIdentity
from unlock_lens.hosts.remote import remote_of
from unlock_lens.method.extract import AggregateName

console = Console()
T = TypeVar("T", ul.CapabilityDirection, ul.SteeringHook)
_KINDS = {ul.CapabilityDirection: "direction", ul.SteeringHook: "key"}


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


def readable(file: Path | None) -> Path | None:
    """Refuse a file that is not there, and name the nearest one."""
    if file and not file.is_file():
        raise InvalidInput(f"there is no file {file}{instead(file)}")
    return file


def model_name(name: str | None) -> str | None:
    """The folder or hub id of a model, once it is known to exist; zoo:NAME is a model that comes with the package."""
    if name is not None:
        check_name(name := zoo.resolved(name))
    return name


def artifact_name(name: str | None) -> str | None:
    """Refuse a path that leads nowhere; whether the hub has such an artifact is seen when it is read."""
    is_path = name and (name.endswith(".safetensors") or name.count("/") != 1 or name.startswith((".", "/", "~")))
    if name and is_path and not Path(name).exists():
        raise InvalidInput(f"there is no file or folder {name}{instead(Path(name))}; on the hub, names are namespace/name")
    return name


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


def numbers(written: Sequence[str]) -> list[float]:
    """Numbers that are written as "0.1,0.2", or one at a time.

    Raises:
        InvalidInput: something else is written.
    """
    parts = [part.strip() for of in written for part in of.split(",")]
    try:
        return list(dict.fromkeys(map(float, parts)))
    except ValueError:
        raise InvalidInput(f"--alpha {','.join(written)} was given; give a number, or several: --alpha 0.1,0.2,0.5") from None


# Some commands require these, and others do not.
MODEL = Option(help="Folder or hub id of the model.", callback=model_name)
TARGET = Option(help="Folder or hub id of the model that the direction goes to.", callback=model_name)
QUESTIONS = Option(help="Questions: text file (one per line) or JSONL file.", callback=readable)
PAIRS = Option(
    help="JSONL file of prompt pairs, under `locked` and `unlocked`, instead of questions and templates.", callback=readable
)
TEXT = Option(help="Calibration texts: text file (one per line) or JSONL file.", callback=readable)
OWN_TEXT = Option(
    help="Calibration texts: text file (one per line) or JSONL file; by default the source writes them, from its prompts.",
    callback=readable,
)
DIRECTION = Option(help="A saved direction: file, folder or hub id.", callback=artifact_name)

Source = Annotated[str, Option(help="Folder or hub id of the model that the direction comes from.", callback=model_name)]
Locked = Annotated[str, Option(help="Template of the locked prompts.")]
Unlocked = Annotated[str | None, Option(help="Template of the unlocked prompts; by default the locked one.")]
UnlockedModel = Annotated[
    str | None, Option(help="Folder or hub id of the unlocked model; by default the locked one.", callback=model_name)
]
Template = Annotated[str, Option(help="Template around each text.")]
Aggregate = Annotated[AggregateName, Option(help="How differences become one vector per layer; begin with mean.")]
Layers = Annotated[str | None, Option(help="Layers, such as 4,5,6 or 4-12; all by default.")]
BatchSize = Annotated[int, Option(help="Prompts in one forward pass.", min=1)]
Stop = Annotated[
    list[str], Option(help="A completion ends before this text; may be given several times.", callback=stop_strings)
]
TopP = Annotated[float, Option(help="With --temperature: sample only among the likeliest tokens that hold this share.")]
SpecialTokens = Annotated[bool, Option(help="Let the tokenizer add special tokens; say no where the text holds them already.")]
Backend = Annotated[Literal["transformer_lens", "nnsight"], Option(help="Framework that runs the models.")]
Field = Annotated[str | None, Option(help="Key of the text in JSONL files; by default question, prompt or text.")]
Written = Annotated[int, Option(help="Without --text: new tokens of each text that the source writes.", min=1)]
LoadedIn = Annotated[Dtype, Option(help="What the weights are loaded in.")]
Device = Annotated[str | None, Option(help="Where models run, such as cpu or cuda:1; by default the GPU where there is one.")]
Json = Annotated[bool, Option("--json", help="Print JSON for programs, and nothing else.")]
Config = Annotated[Path | None, Argument(help="YAML file of a sweep.", show_default=False, callback=readable)]
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
    dtype: LoadedIn = OPEN.dtype
    device: Device = OPEN.device
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
        self.check()
        where = self.remote or False
        how = "nnsight" if where else self.backend, self.dtype, where, self.device
        models = {name: open_model(name, *how) for name in dict.fromkeys(names)}
        given: dict[str, Any] = {"chat": prompting.chat, "system": prompting.system, "record_prompts": prompting.record_prompts}
        return [
            ul.Variant(models[name], of, prompting.special_tokens, where, template=template, **given)
            for name, of, template in zip(names, prompts, templates, strict=False)
        ]

    def check(self) -> None:
        """Refuse what cannot be run, before anything is loaded."""
        if self.resume and not self.remote:
            raise InvalidInput("--resume keeps the results of a server; give --remote (ndif, its URL, or local) too")
        remote_of(self.remote or False)
        check_device(self.device)


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
    """A command some of whose parameters are dataclasses: each of their fields becomes an option, after the command's own."""
    own = signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {parameter.name: parameter.annotation for parameter in own if is_dataclass(parameter.annotation)}
    options = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in own if each.name not in groups]
    for group in groups.values():
        hints = get_type_hints(group, include_extras=True)
        options += [
            Parameter(f.name, Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name]) for f in fields(group)
        ]

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
    asked = read_texts(questions or "", field)
    for template in templates:
        fill(template, [""])  # a template without a slot is refused before any model is opened
    return (asked, asked), templates


def contrasted(locked: str, unlocked: str | None) -> ModelIdentity:
    """The shape of the locked model, which the unlocked one must share; told by their configs.

    Raises:
        IncompatibleModel: it does not.
    """
    shape, other = shape_of(locked), shape_of(unlocked or locked)
    if (shape.n_layers, shape.d_model) != (other.n_layers, other.d_model):
        raise IncompatibleModel(f"locked is {shape}, unlocked is {other}; a contrast needs two models of one shape")
    return shape


def read(kind: type[T], name: str) -> T:
    """Load a direction or a key from a file, a folder or the hub."""
    if Path(name).exists():
        return kind.load(name) if Path(name).is_file() else kind.from_pretrained(name)
    what = _KINDS[kind]
    check_hub_id(name, what, [f"{what}.safetensors"])
    return kind.from_pretrained(name)


def told(as_json: bool, facts: Mapping[str, Any], *lines: str) -> None:
    """Print what was done: as JSON for programs, or in words."""
    if as_json:
        typer.echo(json.dumps(without_nan(facts), indent=2))
    else:
        for line in lines:
            typer.echo(line)


def without_nan(value: Any) -> Any:
    """The same with null for what is not a number, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: without_nan(of) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(of) for of in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def facts_of(direction: ul.CapabilityDirection, file: Path) -> dict[str, Any]:
    """What `--json` says of a direction that was written."""
    model = direction.model and direction.model.name
    shape = {"layers": list(direction.layers), "d_model": direction.d_model}
    return {"file": str(file), "model": model, **shape, "norms": direction.vectors.norm(dim=1).tolist()}
