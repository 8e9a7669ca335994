"""The command line's plan: `unlock-lens plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

import unlock_lens as ul
import unlock_lens.cli.options as opt
from unlock_lens.core.inputs import SLOT, fill, parse_layers, read_texts
from unlock_lens.errors import InvalidInput


@opt.grouped
def plan(
    source: opt.Source,
    settings: opt.Aligner,  # pyright: ignore[reportInvalidTypeForm]  made of a signature
    target: Annotated[str | None, opt.TARGET] = None,
    questions: Annotated[Path | None, opt.QUESTIONS] = None,
    locked: opt.Locked = SLOT,
    unlocked: opt.Unlocked = None,
    unlocked_model: opt.UnlockedModel = None,
    n: Annotated[int | None, Option(help="Without --questions: how many prompts of each variant.", min=1)] = None,
    prompt_tokens: Annotated[int | None, Option(help="Without --questions: tokens of each prompt.", min=1)] = None,
    text: Annotated[Path | None, opt.TEXT] = None,
    texts: Annotated[int | None, Option(help="Without --text: how many calibration texts.", min=1)] = None,
    text_tokens: Annotated[int | None, Option(help="Without --text: tokens of each text.", min=1)] = None,
    aggregate: opt.Aggregate = opt.PLAN.aggregate,
    layers: opt.Layers = None,
    max_new_tokens: Annotated[int, Option(help="New tokens per completion, or 0 for none.", min=0)] = opt.PLAN.max_new_tokens,
    batch_size: opt.BatchSize = opt.PLAN.batch_size,
    special_tokens: opt.SpecialTokens = opt.PLAN.add_special_tokens,
    batches: Annotated[int | None, Option(help="Remote(batches=): batches in one request.", min=1)] = None,
    axes: Annotated[int, Option(help="Remote(axes=).", min=1)] = opt.REMOTE.axes,
    sample: Annotated[int, Option(help="Remote(positions=): tokens whose scores come back.", min=1)] = opt.REMOTE.positions,
    half: Annotated[bool, Option("--half", help="Remote(half=True).")] = False,
    resume: Annotated[bool, Option("--resume", help="The calls will be given resume=.")] = False,
    field: opt.Field = None,
    as_json: opt.Json = False,
) -> None:
    """Say what an extraction, a calibration and a generation on NDIF will cost, from configs alone; nothing is sent.

    Example: `unlock-lens plan --source org/70B --target org/8B --n 512 --prompt-tokens 120 --texts 512 --text-tokens 200`
    """
    for file, count, names in ((questions, n, "--questions and --n"), (text, texts, "--text and --texts")):
        if file and count:
            raise InvalidInput(f"{names} were given; the lines of a real file are counted, so leave one out")
    prompts: Any = n
    if questions:
        asked = read_texts(questions, field)
        prompts = fill(locked, asked), fill(unlocked or locked, asked)
    found = ul.plan(
        source,
        target,
        prompts=prompts,
        texts=read_texts(text, field) if text else texts,
        prompt_tokens=prompt_tokens,
        text_tokens=text_tokens,
        unlocked_source=unlocked_model,
        aggregate=aggregate,
        layers=parse_layers(layers),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        add_special_tokens=special_tokens,
        remote=ul.Remote(batches=batches, axes=axes, positions=sample, half=half),
        resume=resume,
        **opt.aligner_settings(settings),
    )
    if as_json:
        opt.told(True, found.to_json())
    else:
        typer.echo(found)
