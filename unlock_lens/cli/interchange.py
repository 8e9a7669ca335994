"""The command line's files for other tools: `unlock-lens export | import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from unlock_lens.errors import InvalidInput

console = Console()

Format = Literal["gguf", "lm-eval", "steering-vectors"]
Direction = Annotated[str, typer.Argument(help="A saved direction: file, folder or hub id.")]


def export(
    direction: Direction,
    to_file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write.")],
    to: Annotated[Format | None, typer.Option(help="Whose format; by default gguf for a file that ends with .gguf.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Strength; without it the vectors are written as they are.")] = None,
    operation: Annotated[Literal["norm_preserving", "add", "ablate"], typer.Option(help="With --alpha; add is exact.")] = "add",
    positions: Annotated[
        Literal["last_prompt", "prompt", "generated", "all"], typer.Option(help="With --alpha; all is exact.")
    ] = "all",
    layers: Annotated[str | None, typer.Option(help="Layers, such as 4,5,6 or 4-12; all by default.")] = None,
    architecture: Annotated[
        str | None, typer.Option(help="gguf: model_type of the model's config.json, where the direction does not know it.")
    ] = None,
    blocks: Annotated[
        str | None, typer.Option(help="lm-eval: module list of the blocks, such as layers or h, where it is not known.")
    ] = None,
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Write what can be written of an edit that is more than adding.")
    ] = False,
) -> None:
    """Write a direction for another tool: llama.cpp and repeng (gguf), lm-evaluation-harness, steering-vectors.

    All of them add a vector to every token. An edit that is more than that is refused, with the reason, unless --lossy.

    Example: `unlock-lens export cot.safetensors cot.gguf --alpha 2 --layers 10-20`
    """
    from unlock_lens import SteeringHook
    from unlock_lens import interchange as files
    from unlock_lens.core.inputs import parse_layers, read_direction

    chosen = _format(to, to_file, "--to")
    if alpha is None and (operation, positions) != ("add", "all"):
        raise InvalidInput("--operation or --positions were given without --alpha; say how strong the edit is")
    if (architecture and chosen != "gguf") or (blocks and chosen != "lm-eval"):
        raise InvalidInput("--architecture belongs to gguf and --blocks to lm-eval; leave it out")
    read = read_direction(direction)
    wanted = parse_layers(layers)
    held = read if wanted is None else read.at_layers(wanted)
    what = held if alpha is None else SteeringHook(held, alpha, operation, positions)
    if chosen == "gguf":
        files.to_gguf(what, to_file, architecture=architecture, lossy=lossy)
    elif chosen == "lm-eval":
        files.to_lm_eval(what, to_file, blocks=blocks, lossy=lossy)
    else:
        files.to_steering_vectors(what, to_file, lossy=lossy)
    console.print(f"wrote {to_file} ({chosen}): {'the direction' if alpha is None else f'alpha {alpha:g} times the direction'}")


def import_(
    from_file: Annotated[Path, typer.Argument(metavar="FILE", help="File of another tool.")],
    direction: Annotated[Path, typer.Argument(help="File to write the direction to.")],
    origin: Annotated[
        Format | None, typer.Option("--from", help="Whose format; by default gguf for a file that ends with .gguf.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Folder or hub id of the model that it is for; it is checked.")] = None,
) -> None:
    """Make a direction of a llama.cpp control vector, a steering file of lm-evaluation-harness, or a steering-vectors one.

    Example: `unlock-lens import happy.gguf happy.safetensors --model org/small`
    """
    from unlock_lens import interchange as files
    from unlock_lens.hosts import open_model

    readers: dict[str, Any] = {
        "gguf": files.from_gguf,
        "lm-eval": files.from_lm_eval,
        "steering-vectors": files.from_steering_vectors,
    }
    reader = readers[_format(origin, from_file, "--from")]
    reader(from_file)  # before a model is loaded
    if direction.is_dir() or not direction.parent.is_dir():
        raise InvalidInput(f"{direction} cannot be written: give a file in a folder that exists")
    if direction.exists() and direction.samefile(from_file):
        raise InvalidInput(f"{direction} is the file that is read, which would be lost; give another one to write to")
    found = reader(from_file, open_model(model) if model else None)
    found.save(direction)
    console.print(
        f"wrote {direction}: {len(found.layers)} layers, d_model {found.d_model}, of {found.model or 'no known model'}"
    )


def _format(given: Format | None, file: Path, option: str) -> Format:
    if given is None and file.suffix != ".gguf":
        raise InvalidInput(f"{file} does not tell its format; say {option} gguf, lm-eval or steering-vectors")
    return given or "gguf"
