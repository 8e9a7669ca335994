"""The command line: `unlock-lens demo | extract | align | steer | inspect`; the others stand in cli_*."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from unlock_lens.cli import evidence as cli_evidence
from unlock_lens.cli import interchange as cli_interchange
from unlock_lens.cli import plan as cli_plan
from unlock_lens.core.inputs import parse_layers, parse_positions, parse_rank, parse_remote, parse_ridge, read_direction
from unlock_lens.errors import InvalidInput, UnlockLensError

app = typer.Typer(
    help="Move a capability from one language model into another.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
console = Console()


BackendName = Literal["transformer_lens", "nnsight"]
Aggregate = Literal["mean", "pca"]
SteerPositions = Literal["last_prompt", "prompt", "generated", "all"]
Operation = Literal["norm_preserving", "add", "ablate"]
Method = Literal["unlock", "ridge", "procrustes", "rrr", "cca"]
Sinks = Literal["keep", "drop", "whiten"]
RANKS = {"unlock": 48, "rrr": 48, "cca": 48}
"""Where none is asked for; the others take all that the texts span."""

BackendOption = Annotated[BackendName, typer.Option(help="Framework that runs the models.")]
BatchSize = Annotated[int, typer.Option(help="Prompts in one forward pass.", min=1)]
Out = Annotated[Path, typer.Option(help="File to write.")]
SpecialTokens = Annotated[bool, typer.Option(help="Let the tokenizer add its own; say no for text with a chat template in it.")]
RemoteOption = Annotated[
    str | None, typer.Option("--remote", help="Run the models on a server, with nnsight: ndif, its URL, or local (here).")
]
Resume = Annotated[
    Path | None, typer.Option(help="Folder that keeps finished requests to a server: the same command goes on after a fault.")
]
Field = Annotated[str | None, typer.Option(help="Key of the text in JSONL files; by default question, prompt or text.")]


@app.command()
def demo(
    backend: BackendOption = "transformer_lens",
    n: Annotated[
        int, typer.Option(help="Problems that are reported; half as many others choose rank and strength.", min=2)
    ] = 200,
    seed: Annotated[int, typer.Option(help="Seed of all problems and texts.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Transfer capabilities within the embedded model family, with every control (half a minute).

    Example: `unlock-lens demo --backend nnsight --json > demo.json`
    """
    from unlock_lens.cli import demo as demonstration
    from unlock_lens.cli import demo_report

    found = demonstration.run(backend, n, seed, progress=not as_json)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        demo_report.show(found, console)


@app.command()
def extract(
    model: Annotated[str, typer.Option(help="Folder or hub id of the locked model.")],
    questions: Annotated[Path, typer.Option(help="Text file (one question a line) or JSONL file.")],
    out: Out,
    locked: Annotated[str, typer.Option(help="Template of the locked prompts.")] = "{question}",
    unlocked: Annotated[str | None, typer.Option(help="Template of the unlocked prompts; by default the locked one.")] = None,
    unlocked_model: Annotated[
        str | None, typer.Option(help="Folder or hub id of the unlocked model; by default the same.")
    ] = None,
    aggregate: Annotated[
        Aggregate, typer.Option(help="How differences become one vector a layer; begin with mean (pca: how they vary).")
    ] = "mean",
    layers: Annotated[str | None, typer.Option(help="Layers, such as 4,5,6 or 4-12; all by default.")] = None,
    position: Annotated[int, typer.Option(help="Token of the prompt, counted without padding; -1 is the last.")] = -1,
    batch_size: BatchSize = 8,
    special_tokens: SpecialTokens = True,
    backend: BackendOption = "transformer_lens",
    remote: RemoteOption = None,
    resume: Resume = None,
    field: Field = None,
) -> None:
    """Extract a capability direction: what the unlocked variant has and the locked one lacks.

    Example: `unlock-lens extract --model org/base --questions q.jsonl --locked "{question} Answer:"
    --unlocked "{question} Answer: Let's think step by step." --out cot.safetensors`
    """
    from unlock_lens import CapabilityDirection, Variant
    from unlock_lens.core.inputs import fill, read_texts

    if unlocked is None and unlocked_model is None:
        raise InvalidInput("locked and unlocked are the same; give --unlocked (another template) or --unlocked-model")
    asked = read_texts(questions, field)
    prompts = [fill(template, asked) for template in (locked, unlocked or locked)]
    chosen = parse_layers(layers)
    _check_writable(out)
    where = _where(remote, resume)
    opened = _opened(model, backend, where)
    other = _opened(unlocked_model, backend, where) if unlocked_model else opened
    direction = CapabilityDirection.extract(
        Variant(opened, prompts[0], special_tokens, where),
        Variant(other, prompts[1], special_tokens, where),
        aggregate,
        chosen,
        position,
        batch_size,
        resume=resume,
    )
    direction.save(out)
    console.print(f"wrote {out}: {len(direction.layers)} layers, d_model {direction.d_model}, from {len(asked)} questions")


@app.command()
def align(
    source: Annotated[str, typer.Option(help="Folder or hub id of the model that the direction comes from.")],
    target: Annotated[str, typer.Option(help="Folder or hub id of the model that it goes to.")],
    text: Annotated[Path, typer.Option(help="Calibration texts: text file (one a line) or JSONL file.")],
    out: Annotated[Path, typer.Option(help="File for the transported direction; without --direction, for the aligner.")],
    direction: Annotated[str | None, typer.Option(help="Direction to transport: file, folder or hub id.")] = None,
    template: Annotated[str, typer.Option(help="Template around each text.")] = "{question}",
    method: Annotated[Method, typer.Option(help="How the map is made (docs/aligners.md).")] = "unlock",
    rank: Annotated[str | None, typer.Option(help="Rank of the map, or cv: chosen by cross-validation.")] = None,
    ridge: Annotated[
        str | None, typer.Option(help="Penalty in mean squared singular values (ridge, rrr, cca), or cv; by default 0.001.")
    ] = None,
    positions: Annotated[
        str, typer.Option(help="Tokens of each text to calibrate on: all, last, or a stride such as 4, back from the last.")
    ] = "all",
    centered: Annotated[bool, typer.Option(help="Take the mean over tokens out.")] = True,
    skip_first: Annotated[bool, typer.Option(help="Leave out the first token of each text.")] = False,
    sinks: Annotated[Sinks, typer.Option(help="What becomes of tokens with more than 10 times the median norm.")] = "keep",
    without_mean: Annotated[
        bool, typer.Option(help="Project the part along the target's mean calibration state out of the direction.")
    ] = False,
    paper: Annotated[
        bool,
        typer.Option("--paper", help="The paper's aligner: last token, uncentered, whatever those say."),
    ] = False,
    save_aligner: Annotated[Path | None, typer.Option(help="File for the aligner itself.")] = None,
    batch_size: BatchSize = 8,
    special_tokens: SpecialTokens = True,
    backend: BackendOption = "transformer_lens",
    remote: RemoteOption = None,
    resume: Resume = None,
    field: Field = None,
) -> None:
    """Fit the map between two models on ordinary text, and carry a direction over.

    Example: `unlock-lens align --source org/large --target org/small --text text.jsonl --rank 128
    --direction cot.safetensors --out cot-small.safetensors`
    """
    from unlock_lens import SubspaceAligner, Variant
    from unlock_lens.core.inputs import fill, read_texts

    texts = fill(template, read_texts(text, field))
    found = read_direction(direction) if direction else None
    choices: dict[str, Any] = {"method": method, "ridge": parse_ridge(ridge), "sinks": sinks, "without_mean": without_mean}
    k = parse_rank(rank)
    if paper and choices != {"method": "unlock", "ridge": None, "sinks": "keep", "without_mean": False}:
        raise InvalidInput("--paper is the paper's own aligner; leave --method, --ridge, --sinks, --without-mean out")
    aligner = (
        SubspaceAligner(k)
        if paper
        else SubspaceAligner(RANKS.get(method) if k is None else k, centered, parse_positions(positions), skip_first, **choices)
    )
    aligner_file = save_aligner if found else out
    for file in filter(None, (out, save_aligner)):
        _check_writable(file)
    where = _where(remote, resume)
    models = [_opened(name, backend, where) for name in (source, target)]
    sides = [Variant(model, texts, special_tokens, where) for model in models]
    aligner.fit(sides[0], sides[1], batch_size, resume=resume)
    if aligner.cross_validation:
        chosen_rank, chosen_ridge = aligner.cross_validation.best
        held_out = aligner.cross_validation.r2.mean(dim=0).max()
        console.print(f"cross-validation chose rank {chosen_rank}, ridge {chosen_ridge:g}: held-out R2 {held_out:.3f}")
    if aligner_file:
        aligner.save(aligner_file)
        console.print(f"wrote {aligner_file}: {aligner}")
    if found:
        aligner.transport(found).save(out)
        console.print(f"wrote {out}: the direction in the residual stream of {aligner.target_model}")


@app.command()
def steer(
    model: Annotated[str, typer.Option(help="Folder or hub id of the model to steer.")],
    direction: Annotated[str, typer.Option(help="Direction in this model's residual stream: file, folder or hub id.")],
    prompts: Annotated[Path, typer.Option(help="Text file (one a line) or JSONL file.")],
    alpha: Annotated[float, typer.Option(help="Strength; for norm_preserving a fraction of the residual's norm.")],
    template: Annotated[str, typer.Option(help="Template around each prompt.")] = "{question}",
    operation: Annotated[Operation, typer.Option(help="What is done to the residual stream.")] = "norm_preserving",
    positions: Annotated[SteerPositions, typer.Option(help="Which tokens are edited.")] = "last_prompt",
    layers: Annotated[str | None, typer.Option(help="Layers, such as 4,5,6 or 4-12; all by default.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of a completion at most.", min=1)] = 64,
    out: Annotated[Path | None, typer.Option(help="JSONL file for prompts and both completions.")] = None,
    check_model: Annotated[bool, typer.Option(help="Refuse a direction that was made for another model.")] = True,
    batch_size: BatchSize = 8,
    special_tokens: SpecialTokens = True,
    backend: BackendOption = "transformer_lens",
    remote: RemoteOption = None,
    resume: Resume = None,
    field: Field = None,
) -> None:
    """Complete prompts without and with steering, side by side.

    Example: `unlock-lens steer --model org/small --direction cot-small.safetensors --alpha 0.3 --prompts q.txt
    --template "{question} Answer:"`
    """
    from unlock_lens import SteeringHook, generate
    from unlock_lens.core.inputs import fill, read_texts

    asked = fill(template, read_texts(prompts, field))
    hook = SteeringHook(read_direction(direction), alpha, operation, positions, parse_layers(layers), check_model)
    if out:
        _check_writable(out)
    where = _where(remote, resume)
    opened = _opened(model, backend, where)
    steered, unsteered = (
        generate(opened, asked, applied, max_new_tokens, batch_size, special_tokens, remote=where, resume=resume)
        for applied in (hook, None)
    )
    rows = [{"prompt": p, "unsteered": u, "steered": s} for p, u, s in zip(asked, unsteered, steered, strict=True)]
    if out:
        out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        console.print(f"wrote {out}: {len(rows)} prompts with both completions")
    else:
        console.print(_table(rows))
    changed = sum(row["unsteered"] != row["steered"] for row in rows)
    hint = "" if changed else "; raise --alpha, whose window is narrow"
    console.print(f"{changed} of {len(rows)} completions changed{hint}")


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A saved direction or aligner.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Say what an artifact holds: kind, model, layers, how it was made, norms.

    Example: `unlock-lens inspect cot.safetensors`
    """
    from unlock_lens.core import files
    from unlock_lens.method.crossval import CrossValidation

    tensors, metadata = files.load(file)
    if metadata["kind"] == "direction":
        metadata["norms"] = [round(norm, 4) for norm in tensors["vectors"].norm(dim=1).tolist()]
    if as_json:
        typer.echo(json.dumps(metadata, indent=2))
        return
    if metadata.get("cross_validation"):
        rank, ridge = CrossValidation.from_json(metadata["cross_validation"]).best
        metadata["cross_validation"] = f"chose rank {rank}, ridge {ridge:g} (--json has the curve)"
    console.print(_table([{"what": key, "value": _told(value)} for key, value in metadata.items()]))


for command in (cli_plan.plan, cli_evidence.diagnose, cli_evidence.sweep, cli_evidence.report, cli_evidence.reproduce):
    app.command()(command)
app.command()(cli_interchange.export)
app.command("import")(cli_interchange.import_)


def _where(remote: str | None, resume: Path | None) -> bool | str:
    """Where models run; told before they are opened."""
    if resume and remote is None:
        raise InvalidInput("--resume keeps requests to a server; give --remote (ndif, its URL, or local) too")
    return parse_remote(remote)


def _opened(name: str, backend: BackendName, where: bool | str) -> Any:
    """Models on a server take nnsight."""
    from unlock_lens.hosts import open_model

    return open_model(name, "nnsight" if where else backend, remote=where)


def _check_writable(file: Path) -> None:
    """Before any long work."""
    if file.is_dir() or not file.parent.is_dir():
        raise InvalidInput(f"{file} cannot be written: give a file in a folder that exists")


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(*rows[0], show_lines=True)
    for row in rows:
        table.add_row(*(console.render_str(str(value), markup=False) for value in row.values()))
    return table


def _told(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def main() -> None:
    """Entry point: the library's own errors are told in a line, without a traceback."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    try:
        app()
    except KeyboardInterrupt:
        if "--resume" in sys.argv:
            Console(stderr=True).print("stopped; finished requests are kept, the same command goes on")
        raise SystemExit(130) from None
    except UnlockLensError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
