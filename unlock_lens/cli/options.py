"""The options of the command line, each declared once; their defaults are those of the Python functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

from rich.console import Console
from typer import Argument, Option

import unlock_lens as ul
from unlock_lens.errors import InvalidInput
from unlock_lens.hosts import open_model
from unlock_lens.method.align import MethodName
from unlock_lens.method.calibrate import Sinks
from unlock_lens.method.extract import AggregateName

console = Console()


def _defaults(of: Callable[..., Any]) -> SimpleNamespace:
    return SimpleNamespace(**{name: parameter.default for name, parameter in signature(of).parameters.items()})


EXTRACT, ALIGN, STEER = map(_defaults, (ul.CapabilityDirection.extract, ul.SubspaceAligner, ul.SteeringHook))
GENERATE, OPEN, PLAN, REMOTE = map(_defaults, (ul.generate, open_model, ul.plan, ul.Remote))


def writable(file: Path | None) -> Path | None:
    """Refuse a file that cannot be written, before any long work."""
    if file and (file.is_dir() or not file.parent.is_dir()):
        raise InvalidInput(f"{file} cannot be written: give a file in a folder that exists")
    return file


# Some commands require these, and others do not.
TARGET = Option(help="Folder or hub id of the model that the direction goes to.")
QUESTIONS = Option(help="Questions: text file (one per line) or JSONL file.")
TEXT = Option(help="Calibration texts: text file (one per line) or JSONL file.")

Source = Annotated[str, Option(help="Folder or hub id of the model that the direction comes from.")]
Locked = Annotated[str, Option(help="Template of the locked prompts.")]
Unlocked = Annotated[str | None, Option(help="Template of the unlocked prompts; by default the locked one.")]
UnlockedModel = Annotated[str | None, Option(help="Folder or hub id of the unlocked model; by default the locked one.")]
Template = Annotated[str, Option(help="Template around each text.")]
Aggregate = Annotated[AggregateName, Option(help="How differences become one vector per layer; begin with mean.")]
Layers = Annotated[str | None, Option(help="Layers, such as 4,5,6 or 4-12; all by default.")]
Method = Annotated[MethodName, Option(help="How the map is made (docs/aligners.md).")]
Rank = Annotated[str | None, Option(help="Rank of the map, or cv to choose it by cross-validation.")]
Positions = Annotated[str, Option(help="Calibration tokens of each text: all, last, or a stride from the last, such as 4.")]
SinkOption = Annotated[Sinks, Option(help="What to do with tokens of more than 10 times the median norm.")]
BatchSize = Annotated[int, Option(help="Prompts in one forward pass.", min=1)]
SpecialTokens = Annotated[bool, Option(help="Let the tokenizer add special tokens; say no for text with a chat template.")]
Backend = Annotated[Literal["transformer_lens", "nnsight"], Option(help="Framework that runs the models.")]
Server = Annotated[str | None, Option("--remote", help="Run on a server, with nnsight: ndif, a URL, or local (this machine).")]
Resume = Annotated[Path | None, Option(help="Folder that keeps a server's results; the same command resumes after a fault.")]
Field = Annotated[str | None, Option(help="Key of the text in JSONL files; by default question, prompt or text.")]
Json = Annotated[bool, Option("--json", help="Print JSON for programs.")]
Config = Annotated[Path | None, Argument(help="YAML file of a sweep.", show_default=False)]
Zoo = Annotated[bool, Option("--zoo", help="Use the embedded family: any machine, about a minute.")]


def number(spec: str | None) -> Any:
    """A number where one was written; the library judges other words, such as cv or all."""
    for kind in (int, float):
        with suppress(ValueError):
            return spec and kind(spec)
    return spec


def read_direction(name: str) -> ul.CapabilityDirection:
    """Load a direction from a file, a folder or the hub."""
    is_file = name.endswith(".safetensors") or Path(name).is_file()
    return ul.CapabilityDirection.load(name) if is_file else ul.CapabilityDirection.from_pretrained(name)


def variants(
    names: Sequence[str],
    prompts: Sequence[list[str]],
    special_tokens: bool,
    backend: str,
    remote: str | None,
    resume: Path | None,
) -> list[ul.Variant]:
    """Open each model once, and give it its prompts; only nnsight runs models on a server."""
    if resume and not remote:
        raise InvalidInput("--resume keeps the results of a server; give --remote (ndif, its URL, or local) too")
    where = remote or False
    models = {name: open_model(name, "nnsight" if where else backend, remote=where) for name in dict.fromkeys(names)}
    return [ul.Variant(models[name], of, special_tokens, where) for name, of in zip(names, prompts, strict=True)]
