"""The command line's whole transfer: `unlock-lens transfer`."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Annotated

from typer import Option

import unlock_lens as ul
import unlock_lens.cli.options as opt
from unlock_lens.core.inputs import SLOT, read_texts
from unlock_lens.hosts import shape_of
from unlock_lens.method.align import layer_map_of


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
    text: Annotated[Path | None, opt.OWN_TEXT] = None,
    aggregate: opt.Aggregate = opt.TRANSFER.aggregate,
    max_new_tokens: opt.Written = opt.TRANSFER.max_new_tokens,
    stop: opt.Stop = opt.TRANSFER.stop,
    as_json: opt.Json = False,
) -> None:
    """Carry a capability from one model to another: extract, calibrate, fit and transport, in one command.

    Example: `unlock-lens transfer --source org/large --target org/small --questions q.jsonl --locked "{question} Answer:"
    --unlocked "{question} Answer: Let's think step by step." --out cot-small.safetensors`, `unlock-lens steer --model
    org/small --direction cot-small.safetensors --prompts q.jsonl --template "{question} Answer:" --alpha 0.1,0.3`
    """
    prompts, templates = opt.contrast(questions, locked, unlocked, unlocked_model, pairs, prompting.field)
    texts = read_texts(text, prompting.field) if text else None
    aligner = ul.SubspaceAligner(**opt.aligner_settings(settings))
    names = source, unlocked_model or source, target
    running.check()
    layer_map_of(opt.aligner_settings(settings)["layer_map"], opt.contrasted(*names[:2]).n_layers, shape_of(target).n_layers)
    before, after, to = running.variants(names, (*prompts, prompts[0]), prompting, (*templates, templates[0]))
    steer = ul.transfer(
        before.model,
        to.model,
        before,
        after,
        texts,
        aggregate=aggregate,
        aligner=aligner,
        max_new_tokens=max_new_tokens,
        batch_size=running.batch_size,
        stop=stop,
        resume=running.resume,
    )
    steer.direction.save(out)
    opt.told(
        as_json,
        opt.facts_of(steer.direction, out),
        f"wrote {out}: the direction in the residual stream of {to.backend.identity.name}",
        f"try it: {_next_step(target, out, questions, locked, prompting, running)}",
    )


def _next_step(
    target: str, out: Path, questions: Path | None, locked: str, prompting: opt.Prompting, running: opt.Running
) -> str:
    """The command that shows what was made, on the same prompts; of pairs, on a file that the user has to name."""
    words = ["unlock-lens", "steer", "--model", target, "--direction", str(out), "--prompts", str(questions or "FILE")]
    if locked != SLOT:
        words += ["--template", locked]
    for group in (prompting, running):
        for field in fields(group):
            given = getattr(group, field.name)
            if given != field.default and field.name != "resume":
                name = field.name.replace("_", "-")
                words += [f"--{name}" if given else f"--no-{name}"] if isinstance(given, bool) else [f"--{name}", str(given)]
    return shlex.join([*words, "--alpha", "0.1,0.3,0.6,0.9"])
