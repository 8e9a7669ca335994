"""The command line's whole transfer: `unlock-lens transfer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

import unlock_lens as ul
import unlock_lens.cli.options as opt
from unlock_lens.core.inputs import SLOT, read_texts


@opt.grouped
def transfer(
    source: opt.Source,
    target: Annotated[str, opt.TARGET],
    out: Annotated[Path, Option(help="File for the direction in the target's residual stream.", callback=opt.writable)],
    settings: opt.Aligner,  # pyright: ignore[reportInvalidTypeForm]  made of a signature
    prompting: opt.Prompting,
    running: opt.Running,
    questions: Annotated[Path | None, opt.QUESTIONS] = None,
    locked: opt.Locked = SLOT,
    unlocked: opt.Unlocked = None,
    pairs: Annotated[Path | None, opt.PAIRS] = None,
    unlocked_model: opt.UnlockedModel = None,
    text: Annotated[
        Path | None,
        Option(help="Calibration texts: text file (one per line) or JSONL file; by default the source writes them."),
    ] = None,
    aggregate: opt.Aggregate = opt.TRANSFER.aggregate,
    max_new_tokens: Annotated[
        int, Option(help="Without --text: new tokens of each text that the source writes.", min=1)
    ] = opt.TRANSFER.max_new_tokens,
    stop: opt.Stop = opt.TRANSFER.stop,
) -> None:
    """Carry a capability from one model to another: extract, calibrate, fit and transport, in one command.

    Example: `unlock-lens transfer --source org/large --target org/small --questions q.jsonl --locked "{question} Answer:"
    --unlocked "{question} Answer: Let's think step by step." --out cot-small.safetensors`, then `unlock-lens steer --model
    org/small --direction cot-small.safetensors --prompts q.jsonl --alpha 0.3`
    """
    prompts, templates = opt.contrast(questions, locked, unlocked, unlocked_model, pairs, prompting.field)
    texts = read_texts(text, prompting.field) if text else None
    names = source, unlocked_model or source, target
    before, after, to = running.variants(names, (*prompts, prompts[0]), prompting, (*templates, templates[0]))
    steer = ul.transfer(
        before.model,
        to.model,
        before,
        after,
        texts,
        aggregate=aggregate,
        aligner=ul.SubspaceAligner(**opt.aligner_settings(settings)),
        max_new_tokens=max_new_tokens,
        batch_size=running.batch_size,
        stop=stop,
        resume=running.resume,
    )
    steer.direction.save(out)
    typer.echo(f"wrote {out}: the direction in the residual stream of {steer.direction.model}")
    typer.echo(f"try it: unlock-lens steer --model {target} --direction {out} --prompts FILE --alpha {steer.alpha:g}")
