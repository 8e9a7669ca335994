"""The command line's steering: `unlock-lens steer`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from typer import Option

import unlock_lens as ul
import unlock_lens.cli.options as opt
from unlock_lens.cli.tables import table
from unlock_lens.core.generation import check_how
from unlock_lens.core.inputs import SLOT, parse_layers, read_texts
from unlock_lens.core.writing import write_whole
from unlock_lens.errors import InvalidInput
from unlock_lens.hosts import shape_of
from unlock_lens.method.apply import Operation, Positions


@opt.grouped
def steer(
    model: Annotated[str, opt.MODEL],
    prompts: Annotated[Path, Option(help="Prompts: text file (one per line) or JSONL file.", callback=opt.readable)],
    prompting: opt.Prompting,
    running: opt.Running,
    direction: Annotated[
        str | None,
        Option(help="Direction in this model's residual stream: file, folder or hub id.", callback=opt.artifact_name),
    ] = None,
    alpha: Annotated[
        list[str],
        Option(
            help="Strength, or several to compare, as in 0.1,0.2,0.5; for norm_preserving a fraction of the residual's norm.",
            show_default=False,
        ),
    ] = [],  # noqa: B006  Typer wants a list
    key: Annotated[
        str | None,
        Option(
            help="A saved key, instead of a direction and its settings: file, folder or hub id.", callback=opt.artifact_name
        ),
    ] = None,
    template: opt.Template = SLOT,
    operation: Annotated[Operation, Option(help="What is done to the residual stream.")] = opt.STEER.operation,
    positions: Annotated[Positions, Option(help="Which tokens are edited.")] = opt.STEER.positions,
    layers: opt.Layers = None,
    max_new_tokens: Annotated[int, Option(help="New tokens per completion.", min=1)] = opt.GENERATE.max_new_tokens,
    temperature: Annotated[float, Option(help="0 is greedy; otherwise completions are sampled.")] = opt.GENERATE.temperature,
    top_p: opt.TopP = opt.GENERATE.top_p,
    seed: Annotated[int | None, Option(help="Makes sampled completions repeatable.")] = opt.GENERATE.seed,
    stop: opt.Stop = opt.GENERATE.stop,
    out: Annotated[Path | None, Option(help="JSONL file for the prompts and their completions.", callback=opt.writable)] = None,
    check_model: Annotated[bool, Option(help="Refuse a direction made for another model.")] = opt.STEER.check_model,
    as_json: opt.Json = False,
) -> None:
    """Complete prompts without and with steering, side by side.

    Example: `unlock-lens steer --model org/small --direction cot-small.safetensors --alpha 0.1,0.3 --prompts q.txt
    --template "{question} Answer:"`, `unlock-lens steer --model org/small --key cot.key.safetensors --prompts q.txt`
    """
    asked = read_texts(prompts, prompting.field)
    how: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "seed": seed, "stop": stop}
    check_how(max_new_tokens, stop, temperature, top_p, seed)
    settings = operation, positions, parse_layers(layers), check_model
    hooks = _hooks(direction, alpha, settings) if key is None else [_key(key, direction, alpha, settings)]
    running.check()
    for hook in hooks:
        replace(hook, check_model=False).edits(shape_of(model))  # width and depth, before any weight is loaded
    (variant,) = running.variants([model], [asked], prompting, [template])
    for hook in hooks:
        hook.edits(variant.backend.identity)  # the model itself, before anything is generated
    unsteered, *steered = (
        ul.generate(variant, None, hook, max_new_tokens, running.batch_size, resume=running.resume, **how)
        for hook in (None, *hooks)
    )
    rows = [
        {"prompt": prompt, "alpha": _strength(hook), "unsteered": before, "steered": after}
        for hook, completions in zip(hooks, steered, strict=True)
        for prompt, before, after in zip(variant.prompts, unsteered, completions, strict=True)
    ]
    if out:
        write_whole(out, "".join(json.dumps(row) + "\n" for row in rows).encode())
    if as_json:
        opt.told(True, {"evidence": hooks[0].evidence and hooks[0].evidence.description, "completions": rows})
        return
    if hooks[0].evidence:
        opt.console.print(str(hooks[0].evidence), markup=False, highlight=False)
    if out is None:
        opt.console.print(table(_side_by_side(variant.prompts, unsteered, hooks, steered)))
    else:
        opt.told(False, {}, f"wrote {out}: {len(variant.prompts)} prompts with their completions")
    for hook, completions in zip(hooks, steered, strict=True):
        changed = sum(a != b for a, b in zip(unsteered, completions, strict=True))
        hint = "" if changed else "; raise --alpha, whose window is narrow"
        opt.told(False, {}, f"alpha {_strength(hook)}: {changed} of {len(unsteered)} completions changed{hint}")


def _strength(hook: ul.SteeringHook) -> Any:
    """A number, or (of a key) one for each layer."""
    alpha = hook.description["alpha"]
    return {str(layer): of for layer, of in alpha} if isinstance(alpha, list) else alpha


def _side_by_side(
    prompts: Sequence[str], unsteered: Sequence[str], hooks: Sequence[ul.SteeringHook], steered: Sequence[Sequence[str]]
) -> list[dict[str, str]]:
    """One row per prompt; with several strengths a row for each of them, below the unsteered one."""
    if len(hooks) == 1:
        return [{"prompt": p, "unsteered": u, "steered": s} for p, u, s in zip(prompts, unsteered, steered[0], strict=True)]
    rows: list[dict[str, str]] = []
    for prompt, *completions in zip(prompts, unsteered, *steered, strict=True):
        names = ["unsteered", *(f"{_strength(hook):g}" for hook in hooks)]
        of_prompt = [{"prompt": "", "alpha": name, "completion": text} for name, text in zip(names, completions, strict=True)]
        rows += [{**of_prompt[0], "prompt": prompt}, *of_prompt[1:]]
    return rows


def _hooks(direction: str | None, alpha: Sequence[str], settings: Any) -> list[ul.SteeringHook]:
    if direction is None or not alpha:
        raise InvalidInput("give --direction and --alpha, or --key, which holds both")
    strengths, held = opt.numbers(alpha), opt.read(ul.CapabilityDirection, direction)
    return [ul.SteeringHook(held, strength, *settings) for strength in strengths]


def _key(key: str, direction: str | None, alpha: Sequence[str], settings: Any) -> ul.SteeringHook:
    own = opt.STEER.operation, opt.STEER.positions, None, opt.STEER.check_model
    if direction is not None or alpha or settings != own:
        raise InvalidInput(
            "--key holds the direction and all settings; leave out --direction, --alpha, --operation, --positions, --layers "
            "and --no-check-model"
        )
    return opt.read(ul.SteeringHook, key)
