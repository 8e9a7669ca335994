"""The command line's first two steps, one at a time: `unlock-lens extract | align`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Option

import unlock_lens as ul
import unlock_lens.cli.options as opt
from unlock_lens.core.alignment import SETTINGS
from unlock_lens.core.inputs import SLOT, fill, parse_layers, read_texts
from unlock_lens.core.read import check_layers
from unlock_lens.core.transfer import calibrating
from unlock_lens.errors import IncompatibleModel, InvalidInput
from unlock_lens.hosts import shape_of
from unlock_lens.hosts.identity import ModelIdentity
from unlock_lens.method.align import layer_map_of


@opt.grouped
def extract(
    model: Annotated[str, opt.MODEL],
    out: Annotated[Path, Option(help="File to write.", callback=opt.writable)],
    prompting: opt.Prompting,
    running: opt.Running,
    questions: Annotated[Path | None, opt.QUESTIONS] = None,
    locked: opt.Locked = SLOT,
    unlocked: opt.Unlocked = None,
    pairs: Annotated[Path | None, opt.PAIRS] = None,
    unlocked_model: opt.UnlockedModel = None,
    aggregate: opt.Aggregate = opt.EXTRACT.aggregate,
    layers: opt.Layers = None,
    position: Annotated[int, Option(help="Prompt token, padding not counted; -1 is the last.")] = opt.EXTRACT.position,
    as_json: opt.Json = False,
) -> None:
    """Extract a capability direction: what the unlocked variant has and the locked one lacks.

    Example: `unlock-lens extract --model org/base --questions q.jsonl --locked "{question} Answer:"
    --unlocked "{question} Answer: Let's think step by step." --out cot.safetensors`, `unlock-lens extract --model org/chat
    --pairs pairs.jsonl --chat --out cot.safetensors`
    """
    prompts, templates = opt.contrast(questions, locked, unlocked, unlocked_model, pairs, prompting.field)
    chosen, names = parse_layers(layers), (model, unlocked_model or model)
    running.check()
    check_layers(chosen, opt.contrasted(*names).n_layers)
    pair = running.variants(names, prompts, prompting, templates)
    direction = ul.CapabilityDirection.extract(
        pair[0], pair[1], aggregate, chosen, position, running.batch_size, resume=running.resume
    )
    direction.save(out)
    told = f"wrote {out}: {len(direction.layers)} layers, d_model {direction.d_model}, from {len(prompts[0])} prompt pairs"
    opt.told(as_json, {**opt.facts_of(direction, out), "prompt_pairs": len(prompts[0])}, told)


@opt.grouped
def align(
    source: opt.Source,
    target: Annotated[str, opt.TARGET],
    out: Annotated[Path, Option(help="File for the direction; without --direction, for the aligner.", callback=opt.writable)],
    settings: opt.Aligner,  # pyright: ignore[reportInvalidTypeForm]  made of a signature
    prompting: opt.Prompting,
    running: opt.Running,
    text: Annotated[Path | None, opt.OWN_TEXT] = None,
    questions: Annotated[Path | None, opt.QUESTIONS] = None,
    locked: opt.Locked = SLOT,
    unlocked: opt.Unlocked = None,
    pairs: Annotated[Path | None, opt.PAIRS] = None,
    unlocked_model: opt.UnlockedModel = None,
    direction: Annotated[
        str | None, Option(help="Direction to transport: file, folder or hub id.", callback=opt.artifact_name)
    ] = None,
    template: opt.Template = SLOT,
    paper: Annotated[
        bool, Option("--paper", help="The paper's calibration: last token, uncentered, rank 16 or --rank.")
    ] = False,
    save_aligner: Annotated[Path | None, Option(help="File for the aligner itself.", callback=opt.writable)] = None,
    max_new_tokens: opt.Written = opt.TRANSFER.max_new_tokens,
    stop: opt.Stop = opt.TRANSFER.stop,
    as_json: opt.Json = False,
) -> None:
    """Fit the map between two models on ordinary text, and carry a direction over.

    Give --text, or the prompts of the contrast, to which the source then writes completions; with both, the prompts are added
    to the text.

    Example: `unlock-lens align --source org/large --target org/small --text text.jsonl
    --direction cot.safetensors --out cot-small.safetensors`, `unlock-lens align --source org/large --target org/small
    --questions q.jsonl --locked "{question} Answer:" --unlocked "{question} Answer: Let's think step by step."
    --direction cot.safetensors --out cot-small.safetensors`
    """
    asks = questions is not None or pairs is not None
    if text is None and (paper or not asks):
        needed = "--paper reads the last tokens of locked prompts: give them as --text" if paper else _NO_TEXT
        raise InvalidInput(needed)
    contrast = opt.contrast(questions, locked, unlocked, unlocked_model, pairs, prompting.field) if asks else None
    texts = read_texts(text, prompting.field) if text else None
    found = opt.read(ul.CapabilityDirection, direction) if direction else None
    aligner = _papers(settings) if paper else ul.SubspaceAligner(**opt.aligner_settings(settings))
    running.check()
    _check_route(opt.contrasted(source, unlocked_model), shape_of(target), settings, found)
    if contrast is None:
        sides = running.variants((source, target), (texts or (), texts or ()), prompting, (template, template))
    else:
        prompts, templates = contrast
        names, asked = (source, unlocked_model or source, target), (*prompts, prompts[0])
        before, after, to = running.variants(names, asked, prompting, (*templates, templates[0]))
        models, given = (before.model, to.model), texts and fill(template, texts)
        sides = calibrating(before, after, models, given, max_new_tokens, running.batch_size, stop, True, running.resume)
    aligner.fit(sides[0], sides[1], batch_size=running.batch_size, resume=running.resume)
    facts: dict[str, Any] = {"source": aligner.source_model and aligner.source_model.name, "rank": aligner.rank_}
    lines: list[str] = []
    if aligner.cross_validation:
        r2 = float(aligner.cross_validation.r2.mean(dim=0).max())
        facts |= {"ridge": aligner.ridge_, "held_out_r2": r2}
        lines.append(f"cross-validation chose rank {aligner.rank_}, ridge {aligner.ridge_:g}: held-out R2 {r2:.3f}")
    if aligner_file := save_aligner if found else out:
        aligner.save(aligner_file)
        facts["aligner"] = str(aligner_file)
        lines.append(f"wrote {aligner_file}: {aligner}")
    if found:
        moved = aligner.transport(found)
        moved.save(out)
        facts["direction"] = opt.facts_of(moved, out)
        lines.append(f"wrote {out}: the direction in the residual stream of {sides[1].backend.identity.name}")
    opt.told(as_json, facts, *lines)


_NO_TEXT = "give --text, or prompts for the source to complete: --questions with --unlocked, or --pairs"


def _check_route(source: ModelIdentity, target: ModelIdentity, settings: Any, direction: ul.CapabilityDirection | None) -> None:
    """Refuse a layer map or a direction that these models have no place for, before they are loaded."""
    read = layer_map_of(opt.aligner_settings(settings)["layer_map"], source.n_layers, target.n_layers)
    if direction is None:
        return
    if direction.d_model != source.d_model or max(direction.layers) >= source.n_layers:
        raise IncompatibleModel(
            f"the direction (d_model {direction.d_model}, layers up to {max(direction.layers)}) does not fit the source "
            f"{source}; give the model that it was extracted from, {direction.model or 'which is unknown'}"
        )
    mapped = sorted(set(read.values()))
    if not set(mapped) & set(direction.layers):
        raise InvalidInput(f"the direction has layers {list(direction.layers)}, the map reads layers {mapped}: none in common")


def _papers(settings: Any) -> ul.SubspaceAligner:
    given = {name: value for name, value in opt.aligner_settings(settings).items() if value != SETTINGS[name]}
    if other := given.keys() - {"rank", "layer_map"}:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(other))
        raise InvalidInput(f"--paper is the paper's calibration, which takes --rank and --layer-map alone; leave {names} out")
    return ul.SubspaceAligner.paper(**given)
