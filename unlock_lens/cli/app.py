"""The command line: `unlock-lens demo | extract | align | steer | inspect`; the other commands are in the files beside it."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer import Argument, Option

import unlock_lens as ul
import unlock_lens.cli.options as opt
from unlock_lens.cli.benchmarks import PASSED_ON, evaluate, price
from unlock_lens.cli.evidence import diagnose, report, reproduce, sweep
from unlock_lens.cli.interchange import export, import_
from unlock_lens.cli.plan import plan
from unlock_lens.cli.transfer import transfer
from unlock_lens.core import files
from unlock_lens.core.alignment import SETTINGS
from unlock_lens.core.inputs import SLOT, parse_layers, read_texts
from unlock_lens.core.writing import write_whole
from unlock_lens.errors import InvalidInput, UnlockLensError
from unlock_lens.method.apply import Operation, Positions
from unlock_lens.method.crossval import CrossValidation

PATH = """
The way, in five steps (SOURCE and TARGET are folders or hub ids):

1. `unlock-lens demo` shows it on two models that come with the package.

2. `unlock-lens transfer --source SOURCE --target TARGET --questions q.txt --locked "{question} Answer:" --unlocked
"{question} Answer: Let's think step by step." --out cot.safetensors` makes the direction.

3. `unlock-lens steer --model TARGET --direction cot.safetensors --prompts q.txt --template "{question} Answer:" --alpha 0.1`
shows what it does.

4. `unlock-lens sweep config.yaml --out runs/cot` measures it beside every control (`unlock-lens reproduce cot --show` prints a
config to begin with).

5. `unlock-lens report runs/cot --html report.html` says whether it arrived.
"""

app = typer.Typer(
    help="Move a capability from one language model into another.",
    epilog=PATH,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _tell_version(asked: bool | None) -> None:
    if asked:
        typer.echo(f"unlock-lens {ul.__version__}")
        raise typer.Exit


_VERSION = Option("--version", help="Say the version and exit.", callback=_tell_version, is_eager=True)


@app.callback()
def common(version: Annotated[bool | None, _VERSION] = None) -> None:
    """Move a capability from one language model into another."""


@app.command()
def demo(
    backend: opt.Backend = opt.OPEN.backend,
    n: Annotated[int, Option(help="Problems that are reported; half as many others choose the strength.", min=2)] = 100,
    seed: Annotated[int, Option(help="Seed of all problems and texts.")] = 0,
    out: Annotated[Path | None, Option(help="Folder that keeps the sweeps, for `unlock-lens report`.")] = None,
    as_json: opt.Json = False,
) -> None:
    """Transfer capabilities within the embedded model family, with every control (half a minute).

    Example: `unlock-lens demo --backend nnsight --json > demo.json`
    """
    from unlock_lens.cli import demo as demonstration

    with TemporaryDirectory() as temporary:
        found = demonstration.run(demonstration.configs(backend, n, seed), out or Path(temporary), progress=not as_json)
    if as_json:
        typer.echo(json.dumps(demonstration.to_json(found), indent=2))
    else:
        demonstration.show(found, opt.console)


@app.command()
@opt.grouped
def extract(
    model: Annotated[str, Option(help="Folder or hub id of the locked model.")],
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
) -> None:
    """Extract a capability direction: what the unlocked variant has and the locked one lacks.

    Example: `unlock-lens extract --model org/base --questions q.jsonl --locked "{question} Answer:"
    --unlocked "{question} Answer: Let's think step by step." --out cot.safetensors`, `unlock-lens extract --model org/chat
    --pairs pairs.jsonl --chat --out cot.safetensors`
    """
    prompts, templates = opt.contrast(questions, locked, unlocked, unlocked_model, pairs, prompting.field)
    chosen, names = parse_layers(layers), (model, unlocked_model or model)
    pair = running.variants(names, prompts, prompting, templates)
    direction = ul.CapabilityDirection.extract(
        pair[0], pair[1], aggregate, chosen, position, running.batch_size, resume=running.resume
    )
    direction.save(out)
    typer.echo(f"wrote {out}: {len(direction.layers)} layers, d_model {direction.d_model}, from {len(prompts[0])} prompt pairs")


@app.command()
@opt.grouped
def align(
    source: opt.Source,
    target: Annotated[str, opt.TARGET],
    text: Annotated[Path, opt.TEXT],
    out: Annotated[Path, Option(help="File for the direction; without --direction, for the aligner.", callback=opt.writable)],
    settings: opt.Aligner,  # pyright: ignore[reportInvalidTypeForm]  made of a signature
    prompting: opt.Prompting,
    running: opt.Running,
    direction: Annotated[str | None, Option(help="Direction to transport: file, folder or hub id.")] = None,
    template: opt.Template = SLOT,
    paper: Annotated[
        bool, Option("--paper", help="The paper's calibration: last token, uncentered, rank 16 or --rank.")
    ] = False,
    save_aligner: Annotated[Path | None, Option(help="File for the aligner itself.", callback=opt.writable)] = None,
) -> None:
    """Fit the map between two models on ordinary text, and carry a direction over.

    Example: `unlock-lens align --source org/large --target org/small --text text.jsonl
    --direction cot.safetensors --out cot-small.safetensors`
    """
    texts = read_texts(text, prompting.field)
    found = opt.read(ul.CapabilityDirection, direction) if direction else None
    aligner = _papers(settings) if paper else ul.SubspaceAligner(**opt.aligner_settings(settings))
    sides = running.variants((source, target), (texts, texts), prompting, (template, template))
    aligner.fit(sides[0], sides[1], batch_size=running.batch_size, resume=running.resume)
    if aligner.cross_validation:
        r2 = aligner.cross_validation.r2.mean(dim=0).max()
        typer.echo(f"cross-validation chose rank {aligner.rank_}, ridge {aligner.ridge_:g}: held-out R2 {r2:.3f}")
    if aligner_file := save_aligner if found else out:
        aligner.save(aligner_file)
        typer.echo(f"wrote {aligner_file}: {aligner}")
    if found:
        aligner.transport(found).save(out)
        typer.echo(f"wrote {out}: the direction in the residual stream of {aligner.target_model}")


def _papers(settings: Any) -> ul.SubspaceAligner:
    given = {name: value for name, value in opt.aligner_settings(settings).items() if value != SETTINGS[name]}
    if other := given.keys() - {"rank", "layer_map"}:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(other))
        raise InvalidInput(f"--paper is the paper's calibration, which takes --rank and --layer-map alone; leave {names} out")
    return ul.SubspaceAligner.paper(**given)


@app.command()
@opt.grouped
def steer(
    model: Annotated[str, Option(help="Folder or hub id of the model to steer.")],
    prompts: Annotated[Path, Option(help="Prompts: text file (one per line) or JSONL file.")],
    prompting: opt.Prompting,
    running: opt.Running,
    direction: Annotated[str | None, Option(help="Direction in this model's residual stream: file, folder or hub id.")] = None,
    alpha: Annotated[
        float | None, Option(help="Strength; for norm_preserving a fraction of the residual's norm.", show_default=False)
    ] = None,
    key: Annotated[
        str | None, Option(help="A key that somebody saved, instead of a direction and its settings: file, folder or hub id.")
    ] = None,
    template: opt.Template = SLOT,
    operation: Annotated[Operation, Option(help="What is done to the residual stream.")] = opt.STEER.operation,
    positions: Annotated[Positions, Option(help="Which tokens are edited.")] = opt.STEER.positions,
    layers: opt.Layers = None,
    max_new_tokens: Annotated[int, Option(help="New tokens per completion.", min=1)] = opt.GENERATE.max_new_tokens,
    stop: opt.Stop = opt.GENERATE.stop,
    out: Annotated[Path | None, Option(help="JSONL file for the prompts and both completions.", callback=opt.writable)] = None,
    check_model: Annotated[bool, Option(help="Refuse a direction made for another model.")] = opt.STEER.check_model,
) -> None:
    """Complete prompts without and with steering, side by side.

    Example: `unlock-lens steer --model org/small --direction cot-small.safetensors --alpha 0.3 --prompts q.txt
    --template "{question} Answer:"`, `unlock-lens steer --model org/small --key cot.key.safetensors --prompts q.txt`
    """
    asked = read_texts(prompts, prompting.field)
    settings = alpha, operation, positions, parse_layers(layers), check_model
    hook = _hook(direction, settings) if key is None else _key(key, direction, settings)
    if hook.evidence:
        typer.echo(f"{hook.evidence}")
    (variant,) = running.variants([model], [asked], prompting, [template])
    steered, unsteered = (
        ul.generate(variant, None, applied, max_new_tokens, running.batch_size, resume=running.resume, stop=stop)
        for applied in (hook, None)
    )
    rows = [{"prompt": p, "unsteered": u, "steered": s} for p, u, s in zip(variant.prompts, unsteered, steered, strict=True)]
    if out:
        write_whole(out, "".join(json.dumps(row) + "\n" for row in rows).encode())
        typer.echo(f"wrote {out}: {len(rows)} prompts with both completions")
    else:
        opt.console.print(_table(rows))
    changed = sum(row["unsteered"] != row["steered"] for row in rows)
    hint = "" if changed else "; raise --alpha, whose window is narrow"
    typer.echo(f"{changed} of {len(rows)} completions changed{hint}")


def _hook(direction: str | None, settings: Any) -> ul.SteeringHook:
    if direction is None or settings[0] is None:
        raise InvalidInput("give --direction and --alpha, or --key, which holds both")
    return ul.SteeringHook(opt.read(ul.CapabilityDirection, direction), *settings)


def _key(key: str, direction: str | None, settings: Any) -> ul.SteeringHook:
    own = None, opt.STEER.operation, opt.STEER.positions, None, opt.STEER.check_model
    if direction is not None or settings != own:
        raise InvalidInput(
            "--key holds the direction and all settings; leave out --direction, --alpha, --operation, --positions, --layers "
            "and --no-check-model"
        )
    return opt.read(ul.SteeringHook, key)


@app.command()
def inspect(file: Annotated[Path, Argument(help="A saved direction, aligner or key.")], as_json: opt.Json = False) -> None:
    """Say what an artifact holds: kind, model, layers, how it was made, norms.

    Example: `unlock-lens inspect cot.safetensors`
    """
    tensors, metadata = files.load(file)
    if metadata["kind"] == "direction":
        metadata["norms"] = [round(norm, 4) for norm in tensors["vectors"].norm(dim=1).tolist()]
    if as_json:
        typer.echo(json.dumps(metadata, indent=2))
        return
    if metadata.get("cross_validation"):
        rank, ridge = CrossValidation.from_json(metadata["cross_validation"]).best
        metadata["cross_validation"] = f"chose rank {rank}, ridge {ridge:g} (--json has the curve)"
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    opt.console.print(_table([{"what": key, "value": value} for key, value in texts.items()]))


def _table(rows: list[dict[str, str]]) -> Table:
    table = Table(*rows[0], show_lines=True)
    for row in rows:
        table.add_row(*(opt.console.render_str(value, markup=False) for value in row.values()))
    return table


for command in (transfer, plan, diagnose, sweep, report, reproduce, export, price):
    app.command()(command)
app.command("eval", context_settings=PASSED_ON)(evaluate)
app.command("import")(import_)


def main() -> None:
    """Run the command line; the library's own errors are printed in one line, without a traceback."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    try:
        app()
    except KeyboardInterrupt:
        if "--resume" in sys.argv:
            typer.echo("stopped; finished requests are kept, and the same command resumes", err=True)
        raise SystemExit(130) from None
    except UnlockLensError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False)
        raise SystemExit(1) from None
