"""The command line's benchmarks: `unlock-lens eval | price`, both through lm-evaluation-harness."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from typer import Context, Option

import unlock_lens as ul
import unlock_lens.cli.options as opt
from unlock_lens.core.writing import write_whole
from unlock_lens.hosts import check_device, shape_of

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": list[str]()}


def evaluate(context: Context) -> None:
    """Run lm-evaluation-harness' own command line with the model class `unlock-lens`; all options are the harness'.

    Example: `unlock-lens eval --model unlock-lens --model_args pretrained=org/small,key=cot.key.safetensors,backend=nnsight
    --tasks ifeval --batch_size 8`
    """
    from unlock_lens.evidence import harness

    harness.main(context.args)


def price(
    model: Annotated[str, opt.MODEL],
    key: Annotated[str, Option(help="A saved key: file, folder or hub id.", callback=opt.artifact_name)],
    tasks: Annotated[str, Option(help="Tasks of lm-evaluation-harness, such as mmlu,ifeval.")],
    limit: Annotated[int | None, Option(help="Problems of each task; all by default.", min=1)] = None,
    fewshot: Annotated[
        int | None, Option(help="Examples before each problem; by default the task's own number.", min=0)
    ] = None,
    chat: Annotated[bool, Option("--chat", help="Put each prompt into the tokenizer's chat template.")] = False,
    batch_size: opt.BatchSize = opt.GENERATE.batch_size,
    backend: opt.Backend = opt.OPEN.backend,
    dtype: opt.LoadedIn = opt.OPEN.dtype,
    device: opt.Device = opt.OPEN.device,
    include_path: Annotated[Path | None, Option(help="Folder with task configs of your own.", exists=True)] = None,
    max_new_tokens: Annotated[
        int | None, Option(help="New tokens per completion; by default the task's own number.", min=1)
    ] = None,
    out: Annotated[
        Path | None, Option(help="JSON file to write; as RESULTS/benchmarks.json it is in the report.", callback=opt.writable)
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Compare a model's benchmarks without and with steering, problem by problem.

    Example: `unlock-lens price --model org/small --key cot.key.safetensors --tasks mmlu,ifeval --limit 200`
    """
    from unlock_lens.evidence.benchmarks import prices

    asked = [task.strip() for task in tasks.split(",") if task.strip()]
    hook = opt.read(ul.SteeringHook, key)
    check_device(device)
    replace(hook, check_model=False).edits(shape_of(model))
    gen_kwargs = {"max_gen_toks": max_new_tokens} if max_new_tokens else None
    how = (batch_size, limit, fewshot, chat, backend, include_path, gen_kwargs, dtype, device)
    found = prices(model, hook, asked, *how)
    facts = [each.to_json() for each in found]
    if out:
        write_whole(out, (json.dumps(facts, indent=2) + "\n").encode())
    if as_json:
        opt.told(True, {"tasks": facts})
        return
    if out:
        typer.echo(f"wrote {out}")
    table = Table("task", "metric", "n", "unsteered", "steered", "difference (95%)", "gained / lost")
    for each in found:
        low, high = (100 * end for end in each.interval)
        table.add_row(
            each.task, each.metric, str(each.n), f"{100 * each.unsteered:.1f}%", f"{100 * each.steered:.1f}%",
            f"{100 * each.difference:+.1f} ({low:+.1f} to {high:+.1f})", f"{each.gained} / {each.lost}",
        )  # fmt: skip
    opt.console.print(table)
