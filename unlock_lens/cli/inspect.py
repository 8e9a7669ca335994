"""The command line's look into a file: `unlock-lens inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument

import unlock_lens.cli.options as opt
from unlock_lens.cli.tables import facts, table
from unlock_lens.core import files
from unlock_lens.method.crossval import CrossValidation


def inspect(
    file: Annotated[Path, Argument(help="A saved direction, aligner or key.", callback=opt.readable)],
    as_json: opt.Json = False,
) -> None:
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
    opt.console.print(table([*facts(metadata)], lines=False))
