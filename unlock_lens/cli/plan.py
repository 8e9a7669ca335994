"""The command line's plan: `unlock-lens plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from unlock_lens.errors import InvalidInput


def plan(
    source: Annotated[str, typer.Option(help="Folder or hub id of the model that the direction comes from.")],
    target: Annotated[str | None, typer.Option(help="Folder or hub id of the model that it goes to.")] = None,
    questions: Annotated[Path | None, typer.Option(help="Questions of the extraction: text file or JSONL file.")] = None,
    locked: Annotated[str, typer.Option(help="Template of the locked prompts.")] = "{question}",
    unlocked: Annotated[str | None, typer.Option(help="Template of the unlocked prompts; by default the locked one.")] = None,
    unlocked_model: Annotated[
        str | None, typer.Option(help="Folder or hub id of the unlocked model; by default the source.")
    ] = None,
    n: Annotated[int | None, typer.Option(help="Without --questions: how many prompts of each variant.", min=1)] = None,
    prompt_tokens: Annotated[int | None, typer.Option(help="Without --questions: tokens of each prompt.", min=1)] = None,
    text: Annotated[Path | None, typer.Option(help="Calibration texts: text file or JSONL file.")] = None,
    texts: Annotated[int | None, typer.Option(help="Without --text: how many calibration texts.", min=1)] = None,
    text_tokens: Annotated[int | None, typer.Option(help="Without --text: tokens of each text.", min=1)] = None,
    aggregate: Annotated[Literal["mean", "pca"], typer.Option(help="As extract takes it.")] = "mean",
    layers: Annotated[str | None, typer.Option(help="Layers of the extraction, such as 4,5,6 or 4-12; all by default.")] = None,
    rank: Annotated[str, typer.Option(help="Rank of the map, or cv.")] = "48",
    method: Annotated[
        Literal["unlock", "ridge", "procrustes", "rrr", "cca"], typer.Option(help="How the map is made.")
    ] = "unlock",
    positions: Annotated[str, typer.Option(help="Calibration tokens of each text: all, last, or a stride such as 4.")] = "all",
    layer_map: Annotated[
        str, typer.Option(help='Layers that are mapped, target:source, such as "10:25 20:50"; proportional is all of them.')
    ] = "proportional",
    max_new_tokens: Annotated[int, typer.Option(help="Of one completion a prompt (steer makes two); 0: none.", min=0)] = 0,
    batch_size: Annotated[int, typer.Option(help="Prompts in one forward pass.", min=1)] = 8,
    special_tokens: Annotated[bool, typer.Option(help="Let the tokenizer add its own.")] = True,
    batches: Annotated[int | None, typer.Option(help="Remote(batches=): batches in one request.", min=1)] = None,
    axes: Annotated[int, typer.Option(help="Remote(axes=).", min=1)] = 128,
    sample: Annotated[int, typer.Option(help="Remote(positions=): calibration tokens whose scores come back.", min=1)] = 4096,
    half: Annotated[bool, typer.Option("--half", help="Remote(half=True).")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="The calls will be given resume=.")] = False,
    field: Annotated[str | None, typer.Option(help="Key of the text in JSONL files.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Say what an extraction, a calibration and a generation on NDIF will cost, from configs alone; nothing is sent.

    Example: `unlock-lens plan --source org/70B --target org/8B --n 512 --prompt-tokens 120 --texts 512 --text-tokens 200`
    """
    from unlock_lens.core.inputs import fill, parse_layer_map, parse_layers, parse_positions, parse_rank, read_texts
    from unlock_lens.core.plan import plan as planned
    from unlock_lens.hosts.remote import Remote

    if questions and n:
        raise InvalidInput("--questions and --n were given; real questions are counted, so leave one out")
    if text and texts:
        raise InvalidInput("--text and --texts were given; real texts are counted, so leave one out")
    if prompt_tokens and not n:
        raise InvalidInput("--prompt-tokens was given without --n; say how many prompts there are, or leave it out")
    if text_tokens and not texts:
        raise InvalidInput("--text-tokens was given without --texts; say how many texts there are, or leave it out")
    if (text or texts) and not target:
        raise InvalidInput("calibration texts were given without --target; they are read in both models")
    prompts: Any = n
    if questions:
        asked = read_texts(questions, field)
        prompts = fill(locked, asked), fill(unlocked or locked, asked)
    found = planned(
        source,
        target,
        prompts=prompts,
        texts=read_texts(text, field) if text else texts,
        prompt_tokens=prompt_tokens,
        text_tokens=text_tokens,
        unlocked_source=unlocked_model,
        aggregate=aggregate,
        layers=parse_layers(layers),
        rank=parse_rank(rank),
        method=method,
        positions=parse_positions(positions),
        layer_map=parse_layer_map(layer_map),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        add_special_tokens=special_tokens,
        remote=Remote(batches=batches, axes=axes, positions=sample, half=half),
        resume=resume,
    )
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        typer.echo(found)
