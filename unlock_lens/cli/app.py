"""The command line: `unlock-lens`, its commands, and how it speaks; each command is in a file beside this one."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from tqdm.auto import tqdm
from typer import Option

import unlock_lens as ul
import unlock_lens.cli.options as opt
from unlock_lens.cli.benchmarks import PASSED_ON, evaluate, price
from unlock_lens.cli.directions import align, extract
from unlock_lens.cli.evidence import diagnose, report, reproduce, sweep
from unlock_lens.cli.help import SETTINGS, first_sentence, with_examples
from unlock_lens.cli.inspect import inspect
from unlock_lens.cli.interchange import export, import_
from unlock_lens.cli.plan import plan
from unlock_lens.cli.steer import steer
from unlock_lens.cli.transfer import transfer
from unlock_lens.errors import UnlockLensError

PATH = """
\b
In five steps. SOURCE and TARGET are model folders or hub ids; the package brings
zoo:large-base and zoo:small-base.

\b
1. See it on two models that come with the package:
     unlock-lens demo
2. Make the direction, in the residual stream of the target:
     unlock-lens transfer --source SOURCE --target TARGET --questions q.txt \\
         --locked "{question} Answer:" \\
         --unlocked "{question} Answer: Let's think step by step." \\
         --out cot.safetensors
3. See what it does, at several strengths:
     unlock-lens steer --model TARGET --direction cot.safetensors \\
         --prompts q.txt --template "{question} Answer:" --alpha 0.1,0.3,0.6,0.9
4. Measure it beside every control:
     unlock-lens sweep --example > own.yaml      # a config to begin with
     unlock-lens sweep own.yaml --out runs/own
5. Read whether it arrived:
     unlock-lens report runs/own --html report.html

\b
Each command has --help with an example. Completion for your shell:
     unlock-lens --install-completion
"""

app = typer.Typer(
    help="Move a capability from one language model into another.",
    epilog=PATH,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=SETTINGS,
)


def _tell_version(asked: bool | None) -> None:
    if asked:
        typer.echo(f"unlock-lens {ul.__version__}")
        raise typer.Exit


_VERSION = Option("--version", help="Say the version and exit.", callback=_tell_version, is_eager=True)


@app.callback()
def common(version: Annotated[bool | None, _VERSION] = None) -> None:
    """Move a capability from one language model into another."""


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


for command in (
    demo, transfer, extract, align, steer, inspect, plan, diagnose, sweep, report, reproduce, export, price
):  # fmt: skip
    app.command(short_help=first_sentence(command))(with_examples(command))
app.command("import", short_help=first_sentence(import_))(with_examples(import_))
app.command("eval", short_help=first_sentence(evaluate), context_settings=PASSED_ON)(with_examples(evaluate))


class _BesideBars(logging.Handler):
    """Writes a message above the progress bar that is on the terminal, not into it."""

    def emit(self, record: logging.LogRecord) -> None:
        of = "" if record.name.startswith("unlock_lens") else f"{record.name}: "
        tqdm.write(f"{record.levelname.lower()}: {of}{record.getMessage()}", file=sys.stderr)


def _warn(message: Warning | str, *_: Any) -> None:
    """A warning in words; where in the code it arose is nothing to a terminal's user."""
    tqdm.write(f"warning: {message}", file=sys.stderr)


def main() -> None:
    """Run the command line; the library's own errors are printed in one line, without a traceback."""
    logging.basicConfig(level=logging.WARNING, handlers=[_BesideBars()])
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            app()
    except KeyboardInterrupt:
        if "--resume" in sys.argv:
            typer.echo("stopped; finished requests are kept, and the same command resumes", err=True)
        raise SystemExit(130) from None
    except UnlockLensError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise SystemExit(1) from None
