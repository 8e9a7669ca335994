"""The command line's files for other tools: `unlock-lens export | import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

import unlock_lens as ul
import unlock_lens.cli.options as opt
from unlock_lens import interchange as files
from unlock_lens.core.inputs import parse_layers
from unlock_lens.errors import InvalidInput
from unlock_lens.hosts import check_device, open_model
from unlock_lens.method.apply import Operation, Positions

Format = Literal["gguf", "lm-eval", "steering-vectors"]


def export(
    direction: Annotated[str, Argument(help="A saved direction: file, folder or hub id.", callback=opt.artifact_name)],
    to_file: Annotated[Path, Argument(metavar="FILE", help="File to write.", callback=opt.writable)],
    to: Annotated[Format | None, Option(help="Whose format; by default gguf for a file that ends with .gguf.")] = None,
    alpha: Annotated[float | None, Option(help="Strength; without it the vectors are written unchanged.")] = None,
    operation: Annotated[Operation, Option(help="With --alpha; add is exact.")] = "add",
    positions: Annotated[Positions, Option(help="With --alpha; all is exact.")] = "all",
    layers: opt.Layers = None,
    architecture: Annotated[str | None, Option(help="gguf: model_type of the model's config.json, if it is unknown.")] = None,
    blocks: Annotated[str | None, Option(help="lm-eval: module list of the blocks, such as h, if it is unknown.")] = None,
    lossy: Annotated[bool, Option("--lossy", help="Write what can be written of the edit, and drop the rest.")] = False,
    as_json: opt.Json = False,
) -> None:
    """Write a direction for another tool: llama.cpp and repeng (gguf), lm-evaluation-harness, steering-vectors.

    All of them add a vector to every token. An edit that does more is refused, with the reason, unless --lossy is given.

    Example: `unlock-lens export cot.safetensors cot.gguf --alpha 2 --layers 10-20`
    """
    chosen = _format(to, to_file, "--to")
    if alpha is None and (operation, positions) != ("add", "all"):
        raise InvalidInput("--operation or --positions were given without --alpha; say how strong the edit is")
    if (architecture and chosen != "gguf") or (blocks and chosen != "lm-eval"):
        raise InvalidInput("--architecture belongs to gguf and --blocks to lm-eval; leave it out")
    read, wanted = opt.read(ul.CapabilityDirection, direction), parse_layers(layers)
    held = read if wanted is None else read.at_layers(wanted)
    what = held if alpha is None else ul.SteeringHook(held, alpha, operation, positions)
    own = {"gguf": {"architecture": architecture}, "lm-eval": {"blocks": blocks}}.get(chosen, {})
    _function("to", chosen)(what, to_file, lossy=lossy, **own)
    facts = {"format": chosen, "alpha": alpha, **opt.facts_of(held, to_file)}
    strength = "the direction" if alpha is None else f"alpha {alpha:g} times the direction"
    opt.told(as_json, facts, f"wrote {to_file} ({chosen}): {strength}")


def import_(
    from_file: Annotated[Path, Argument(metavar="FILE", help="File of another tool.", callback=opt.readable)],
    direction: Annotated[Path, Argument(help="File to write the direction to.", callback=opt.writable)],
    origin: Annotated[Format | None, Option("--from", help="Whose format; by default as for export.")] = None,
    model: Annotated[
        str | None, Option(help="Folder or hub id of the model to check it against.", callback=opt.model_name)
    ] = None,
    dtype: opt.LoadedIn = opt.OPEN.dtype,
    device: opt.Device = opt.OPEN.device,
    as_json: opt.Json = False,
) -> None:
    """Make a direction of a llama.cpp control vector, a steering file of lm-evaluation-harness, or a steering-vectors one.

    Example: `unlock-lens import happy.gguf happy.safetensors --model org/small`
    """
    reader = _function("from", _format(origin, from_file, "--from"))
    reader(from_file)  # before a model is loaded
    if direction.exists() and direction.samefile(from_file):
        raise InvalidInput(f"{direction} is the file to read, which would be lost; give another one to write to")
    check_device(device)
    found = reader(from_file, open_model(model, dtype=dtype, device=device) if model else None)
    found.save(direction)
    of = found.model or "an unknown model"
    told = f"wrote {direction}: {len(found.layers)} layers, d_model {found.d_model}, of {of}"
    opt.told(as_json, opt.facts_of(found, direction), told)


def _format(given: Format | None, file: Path, option: str) -> Format:
    if given is None and file.suffix != ".gguf":
        raise InvalidInput(f"the format of {file} is unknown; give {option} gguf, lm-eval or steering-vectors")
    return given or "gguf"


def _function(way: Literal["from", "to"], tool: Format) -> Any:
    return getattr(files, f"{way}_{tool.replace('-', '_')}")
