"""Importing the package brings torch and little else; what an extra brings is asked for when it is used."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.metadata import version

import pytest

import unlock_lens as ul
from unlock_lens.errors import require

LATER = (
    "unlock_lens.evidence", "transformer_lens", "nnsight", "transformers", "pandas", "scipy", "plotly", "rich", "pydantic",
    "huggingface_hub", "gguf",
)  # fmt: skip
CORE = """
import tempfile, torch, unlock_lens as ul
from pathlib import Path

states = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
aligner = ul.SubspaceAligner(rank=4).fit_activations(states, states)
direction = ul.CapabilityDirection(states[:, 0], (0, 1))
with tempfile.TemporaryDirectory() as folder:
    aligner.save(Path(folder, "aligner.safetensors"))
    direction.save(Path(folder, "direction.safetensors"))
    assert ul.SubspaceAligner.load(Path(folder, "aligner.safetensors")).rank == 4
    assert ul.CapabilityDirection.load(Path(folder, "direction.safetensors")).layers == (0, 1)
"""
"""What works without any extra."""
HOST = """
import unlock_lens as ul
from unlock_lens import zoo

model, task = zoo.load("small-base", "{backend}"), zoo.running_sum(n=4)
direction = ul.CapabilityDirection.extract(ul.Variant(model, task.direct), ul.Variant(model, task.think))
assert len(ul.generate(model, task.direct, ul.SteeringHook(direction, alpha=0.3), max_new_tokens=2)) == 4
"""
"""What works with one framework."""
EVIDENCE = ("filelock", "jinja2", "pandas", "plotly", "rich", "scipy", "yaml")
EXTRAS = ("gguf", "nnsight", "transformer_lens", "typer", *EVIDENCE)


def run_without(packages: tuple[str, ...], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new process where some packages cannot be imported."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({packages!r}))\n"
    return subprocess.run([sys.executable, "-c", blocked + code], capture_output=True, text=True, check=False)


def test_import_costs_little_besides_torch() -> None:
    code = f"import sys, unlock_lens, unlock_lens.zoo; print([name for name in {LATER} if name in sys.modules])"
    assert run_without((), code).stdout.strip() == "[]"


OFFLINE = """
import socket, sys


def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system"):
        raise SystemExit(f"{event} {args}")


sys.addaudithook(refuse)
import unlock_lens as ul

for name in dir(ul):
    getattr(ul, name)
import unlock_lens.cli.app
from unlock_lens import zoo

zoo.running_sum(n=4)
print("offline")
"""


def test_no_import_asks_a_network_or_starts_a_program() -> None:
    """Of the package, of every public name, and of the command line."""
    done = run_without((), OFFLINE)
    assert done.stdout.strip() == "offline", done.stderr


def test_the_core_needs_no_extra() -> None:
    done = run_without(EXTRAS, CORE)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("backend", "other"), [("transformer_lens", "nnsight"), ("nnsight", "transformer_lens")])
def test_a_host_needs_neither_the_other_nor_the_evidence(backend: str, other: str) -> None:
    done = run_without((other, "plotly", "scipy", "typer"), HOST.format(backend=backend))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("extra", "package", "code"),
    [
        ("transformer-lens", "transformer_lens", "from unlock_lens import zoo; zoo.load('small-base')"),
        ("nnsight", "nnsight", "from unlock_lens import zoo; zoo.load('small-base', 'nnsight')"),
        ("cli", "typer", "import unlock_lens.cli.app"),
        ("evidence", "pandas", "import unlock_lens as ul; ul.lens"),
    ],
)
def test_a_missing_extra_is_named(extra: str, package: str, code: str) -> None:
    last = run_without((package,), code).stderr.strip().splitlines()[-1]
    assert "MissingPackage" in last
    assert package in last
    assert f"pip install 'unlock-lens[{extra}]'" in last


def test_all_that_is_missing_is_named() -> None:
    with pytest.raises(ul.MissingPackage, match=r"no_such_one, no_such_other.*unlock-lens\[cli\]"):
        require("cli", "no_such_one", "typer", "no_such_other")


def test_every_public_name_is_there() -> None:
    assert set(ul.__all__) <= set(dir(ul))
    for name in ul.__all__:
        assert getattr(ul, name) is not None
    assert ul.lens.cosines is import_module("unlock_lens.evidence.lens").cosines
    assert ul.__version__ == version("unlock-lens")
    with pytest.raises(AttributeError, match="nothing"):
        ul.nothing  # noqa: B018  # pyright: ignore[reportUnusedExpression]
