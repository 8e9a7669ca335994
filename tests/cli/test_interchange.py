"""Directions for other tools and from them, on the command line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import unlock_lens as ul
from unlock_lens import zoo
from unlock_lens.cli.app import app
from unlock_lens.errors import UnlockLensError
from unlock_lens.interchange import from_gguf, from_lm_eval, from_steering_vectors, to_gguf

SMALL = zoo.path() / "small-base"
Reader = Callable[..., ul.CapabilityDirection]
MODEL = ul.ModelIdentity("small-base", 3, 64, architecture="llama")


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200", "NO_COLOR": "1"})


def refused(result: Result) -> str:
    """What the user is told."""
    assert isinstance(result.exception, UnlockLensError), result.output
    return str(result.exception)


@pytest.fixture
def direction(tmp_path: Path) -> Path:
    vectors = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    ul.CapabilityDirection(vectors, (1, 2), model=MODEL).save(tmp_path / "d.safetensors")
    return tmp_path / "d.safetensors"


@pytest.mark.parametrize(
    ("file", "options", "read"),
    [
        ("v.gguf", (), from_gguf),
        ("v.bin", ("--to", "gguf"), from_gguf),
        ("v.pt", ("--to", "lm-eval"), from_lm_eval),
        ("v.pt", ("--to", "steering-vectors"), from_steering_vectors),
    ],
)
def test_export_writes_what_the_library_writes(
    direction: Path, tmp_path: Path, file: str, options: tuple[str, ...], read: Reader
) -> None:
    saved = ul.CapabilityDirection.load(direction)
    done = run("export", direction, tmp_path / file, *options)
    assert done.exit_code == 0, done.exception
    assert done.output.split() == f"wrote {tmp_path / file} ({options[1] if options else 'gguf'}): the direction".split()
    assert torch.equal(read(tmp_path / file).vectors, saved.vectors)
    done = run("export", direction, tmp_path / file, *options, "--alpha", "2", "--layers", "2")
    assert done.exit_code == 0, done.exception
    assert "alpha 2 times the direction" in done.output
    assert torch.equal(read(tmp_path / file).vectors, 2 * saved.vectors[1:])


def test_export_refuses_what_would_be_lost_unless_it_is_told_to(direction: Path, tmp_path: Path) -> None:
    edit = ("--alpha", "0.5", "--operation", "norm_preserving", "--positions", "prompt")
    lossy = ("export", direction, tmp_path / "v.gguf", *edit)
    told = refused(run(*lossy))
    assert all(keyword in told for keyword in ("norm_preserving", "prompt", "--lossy"))
    assert not (tmp_path / "v.gguf").exists()
    assert run(*lossy, "--lossy").exit_code == 0
    torch.testing.assert_close(from_gguf(tmp_path / "v.gguf").vectors.norm(dim=1), torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize(
    ("options", "keyword"),
    [
        (("v.pt",), "--to"),
        (("v.gguf", "--operation", "ablate"), "--alpha"),
        (("v.gguf", "--layers", "7"), "[7]"),
        (("v.gguf", "--blocks", "h"), "--blocks"),
        (("v.pt", "--to", "lm-eval", "--architecture", "gpt2"), "--architecture"),
    ],
)
def test_export_refuses_what_makes_no_sense(direction: Path, tmp_path: Path, options: tuple[str, ...], keyword: str) -> None:
    assert keyword in refused(run("export", direction, tmp_path / options[0], *options[1:]))
    assert not (tmp_path / options[0]).exists()


def test_architecture_and_blocks_may_be_given(tmp_path: Path) -> None:
    ul.CapabilityDirection(torch.ones(1, 8), (1,)).save(tmp_path / "d.safetensors")
    given = ("export", tmp_path / "d.safetensors")
    assert "architecture" in refused(run(*given, tmp_path / "v.gguf"))
    assert run(*given, tmp_path / "v.gguf", "--architecture", "llama").exit_code == 0
    assert "blocks" in refused(run(*given, tmp_path / "v.pt", "--to", "lm-eval"))
    assert run(*given, tmp_path / "v.pt", "--to", "lm-eval", "--blocks", "h").exit_code == 0
    assert list(torch.load(tmp_path / "v.pt", weights_only=True)) == ["h.1"]


@pytest.mark.parametrize("kind", ["gguf", "lm-eval", "steering-vectors"])
def test_import_makes_a_direction_of_it(direction: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / ("v.gguf" if kind == "gguf" else "v.pt")
    assert run("export", direction, file, "--to", kind).exit_code == 0
    done = run("import", file, tmp_path / "back.safetensors", "--from", kind)
    assert done.exit_code == 0, done.exception
    assert "d_model 64" in done.output
    saved, back = (ul.CapabilityDirection.load(tmp_path / name) for name in ("d.safetensors", "back.safetensors"))
    assert torch.equal(saved.vectors, back.vectors)
    assert back.layers == (1, 2)


def test_import_checks_the_model_that_is_named(direction: Path, tmp_path: Path) -> None:
    assert run("export", direction, tmp_path / "v.gguf").exit_code == 0
    done = run("import", tmp_path / "v.gguf", tmp_path / "back.safetensors", "--model", SMALL)
    assert done.exit_code == 0, done.exception
    assert "small-base" in done.output
    model = ul.CapabilityDirection.load(tmp_path / "back.safetensors").model
    assert model is not None
    assert model.fingerprint is not None
    to_gguf(ul.CapabilityDirection(torch.ones(1, 8), (1,)), tmp_path / "v.gguf", architecture="llama")
    assert "length 8" in refused(run("import", tmp_path / "v.gguf", tmp_path / "none.safetensors", "--model", SMALL))
    assert not (tmp_path / "none.safetensors").exists()


def test_import_refuses_before_a_model_is_loaded(direction: Path, tmp_path: Path) -> None:
    """The model has no weights, and no error says so."""
    (tmp_path / "model").mkdir()
    shutil.copy(Path(SMALL, "config.json"), tmp_path / "model")
    model = ("--model", tmp_path / "model")
    (tmp_path / "v.pt").touch()
    assert "--from" in refused(run("import", tmp_path / "v.pt", tmp_path / "b", *model))
    assert "v.gguf" in refused(run("import", tmp_path / "v.gguf", tmp_path / "b", *model))
    assert run("export", direction, tmp_path / "v.gguf").exit_code == 0
    assert "cannot be written" in refused(run("import", tmp_path / "v.gguf", tmp_path / "none" / "b", *model))


def test_a_file_is_not_imported_over_itself(direction: Path, tmp_path: Path) -> None:
    """The control vector would be lost; a direction is exported from a folder as from a file."""
    ul.CapabilityDirection.load(direction).save_pretrained(tmp_path / "think")
    assert run("export", tmp_path / "think", tmp_path / "think.gguf").exit_code == 0
    before = (tmp_path / "think.gguf").read_bytes()
    assert "think.gguf" in refused(run("import", tmp_path / "think.gguf", tmp_path / "think.gguf"))
    assert (tmp_path / "think.gguf").read_bytes() == before
