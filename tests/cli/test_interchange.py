"""Directions for other tools and from them, on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import unlock_lens as ul
from tests.interchange.test_common import FORMATS
from unlock_lens import zoo
from unlock_lens.cli.app import app
from unlock_lens.errors import UnlockLensError
from unlock_lens.interchange import from_gguf, to_gguf

SMALL = zoo.path() / "small-base"
MODEL = ul.ModelIdentity("small-base", 3, 64, architecture="llama")


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200", "NO_COLOR": "1"})


def done(*args: str | Path) -> str:
    """What the user reads, in one line."""
    result = run(*args)
    assert result.exit_code == 0, result.exception
    return " ".join(result.output.split())


def refused(*args: str | Path) -> str:
    """Why the user's wish was refused."""
    result = run(*args)
    assert isinstance(result.exception, UnlockLensError), result.output
    return str(result.exception)


@pytest.fixture
def direction(tmp_path: Path) -> Path:
    vectors = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    ul.CapabilityDirection(vectors, (1, 2), model=MODEL).save(tmp_path / "d.safetensors")
    return tmp_path / "d.safetensors"


@pytest.mark.parametrize("kind", FORMATS)
def test_directions_go_out_and_come_back(direction: Path, tmp_path: Path, kind: str) -> None:
    saved, file, back = ul.CapabilityDirection.load(direction), tmp_path / "v.pt", tmp_path / "back.safetensors"
    assert kind in done("export", direction, file, "--to", kind)
    assert torch.equal(FORMATS[kind].read(file).vectors, saved.vectors)
    assert "2 layers, d_model 64" in done("import", file, back, "--from", kind)
    assert torch.equal(ul.CapabilityDirection.load(back).vectors, saved.vectors)
    assert "alpha 2" in done("export", direction, file, "--to", kind, "--alpha", "2", "--layers", "2")
    assert torch.equal(FORMATS[kind].read(file).vectors, 2 * saved.vectors[1:])


def test_export_refuses_what_would_be_lost_unless_it_is_told_to(direction: Path, tmp_path: Path) -> None:
    edit = ("--alpha", "0.5", "--operation", "norm_preserving", "--positions", "prompt")
    reasons = refused("export", direction, tmp_path / "v.gguf", *edit)
    assert [reason for reason in ("norm_preserving", "prompt", "--lossy") if reason not in reasons] == []
    assert not (tmp_path / "v.gguf").exists()
    done("export", direction, tmp_path / "v.gguf", *edit, "--lossy")
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
    assert keyword in refused("export", direction, tmp_path / options[0], *options[1:])
    assert not (tmp_path / options[0]).exists()


def test_architecture_and_blocks_may_be_given(tmp_path: Path) -> None:
    ul.CapabilityDirection(torch.ones(1, 8), (1,)).save(tmp_path / "d.safetensors")
    given = ("export", tmp_path / "d.safetensors")
    assert "architecture=" in refused(*given, tmp_path / "v.gguf")
    done(*given, tmp_path / "v.gguf", "--architecture", "llama")
    assert "blocks=" in refused(*given, tmp_path / "v.pt", "--to", "lm-eval")
    done(*given, tmp_path / "v.pt", "--to", "lm-eval", "--blocks", "h")
    assert list(torch.load(tmp_path / "v.pt", weights_only=True)) == ["h.1"]


def test_import_checks_the_model_that_is_named(direction: Path, tmp_path: Path) -> None:
    file, back = tmp_path / "v.gguf", tmp_path / "back.safetensors"
    done("export", direction, file)
    assert "small-base (3 layers, d_model 64" in done("import", file, back, "--model", SMALL)
    model = ul.CapabilityDirection.load(back).model
    assert model is not None
    assert model.fingerprint is not None
    to_gguf(ul.CapabilityDirection(torch.ones(1, 8), (1,)), file, architecture="llama")
    assert "small-base" in refused("import", file, tmp_path / "none.safetensors", "--model", SMALL)
    assert not (tmp_path / "none.safetensors").exists()


def test_import_refuses_before_a_model_is_loaded(direction: Path, tmp_path: Path) -> None:
    """The model does not exist, and no error says so."""
    model = ("--model", tmp_path / "none")
    assert "--from" in refused("import", tmp_path / "v.pt", tmp_path / "b", *model)
    assert "v.gguf" in refused("import", tmp_path / "v.gguf", tmp_path / "b", *model)
    done("export", direction, tmp_path / "v.gguf")
    assert "written" in refused("import", tmp_path / "v.gguf", tmp_path / "none" / "b", *model)


@pytest.mark.parametrize("command", ["export", "import"])
def test_help_has_an_example(command: str) -> None:
    assert f"Example: unlock-lens {command} " in done(command, "--help")
