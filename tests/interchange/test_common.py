"""What holds for all three formats: exact additions come back bit by bit, losses are refused, and so are other models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

import unlock_lens as ul
from tests.checks import unchecked
from unlock_lens import interchange
from unlock_lens.method.apply import norm_preserving

MODEL = ul.ModelIdentity("org/model", 5, 8, fingerprint="abc", revision="main", architecture="llama")
EXACT: dict[str, Any] = {"operation": "add", "positions": "all"}


@dataclass(frozen=True)
class Format:
    write: Callable[..., None]
    read: Callable[..., ul.CapabilityDirection]
    writer: tuple[Any, str]
    """What writes the content, and is interrupted in a test."""

    def back(self, what: Any, file: Path, **options: Any) -> ul.CapabilityDirection:
        """Written and read."""
        self.write(what, file, **options)
        return self.read(file)


FORMATS = {
    "gguf": Format(interchange.to_gguf, interchange.from_gguf, (gguf.GGUFWriter, "write_tensors_to_file")),
    "lm-eval": Format(interchange.to_lm_eval, interchange.from_lm_eval, (torch, "save")),
    "steering-vectors": Format(interchange.to_steering_vectors, interchange.from_steering_vectors, (torch, "save")),
}


@pytest.fixture(params=FORMATS)
def form(request: pytest.FixtureRequest) -> Format:
    return FORMATS[request.param]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "v.pt"


def made(*layers: int, **changes: Any) -> ul.CapabilityDirection:
    vectors = torch.randn(len(layers), 8, generator=torch.Generator().manual_seed(len(layers)))
    return replace(ul.CapabilityDirection(vectors, layers, "raw", MODEL), **changes)


def test_a_direction_comes_back_bit_by_bit(form: Format, file: Path) -> None:
    back = form.back(made(1, 3), file)
    assert back.layers == (1, 3)
    assert torch.equal(back.vectors, made(1, 3).vectors)
    assert form.read(file, MODEL).model == MODEL


@pytest.mark.parametrize(("alpha", "strengths"), [(2.5, [2.5, 2.5]), ({1: 0.5, 3: -2.0}, [0.5, -2.0])])
def test_an_addition_to_all_tokens_is_written_exactly(form: Format, file: Path, alpha: Any, strengths: list[float]) -> None:
    direction = made(1, 2, 3)
    back = form.back(ul.SteeringHook(direction, alpha, layers=(1, 3), **EXACT), file)
    assert back.layers == (1, 3)
    assert torch.equal(back.vectors, torch.tensor(strengths).unsqueeze(1) * direction.vectors[[0, 2]])


def test_layers_of_strength_zero_add_nothing_and_are_left_out(form: Format, file: Path) -> None:
    assert form.back(ul.SteeringHook(made(1, 2), {1: 0.0, 2: 1.0}, **EXACT), file).layers == (2,)
    with pytest.raises(ul.InvalidInput, match="alpha"):
        form.write(ul.SteeringHook(made(1, 2), 0.0, **EXACT), file)


@pytest.mark.parametrize(
    ("operation", "positions", "lost"),
    [
        ("norm_preserving", "last_prompt", ["norm_preserving", "last_prompt"]),
        ("norm_preserving", "all", ["norm_preserving"]),
        ("add", "prompt", ["prompt"]),
        ("add", "generated", ["generated"]),
    ],
)
def test_what_would_be_lost_is_refused_with_every_reason(
    form: Format, file: Path, operation: Any, positions: Any, lost: list[str]
) -> None:
    hook = ul.SteeringHook(made(1), 0.3, operation, positions)
    with pytest.raises(ul.InvalidInput, match=".*".join(lost) + ".*lossy"):
        form.write(hook, file)
    assert not file.exists()
    vector = made(1).vectors / (made(1).vectors.norm() if operation == "norm_preserving" else 1)
    torch.testing.assert_close(form.back(hook, file, lossy=True).vectors, 0.3 * vector)


def test_a_gate_would_be_lost(form: Format, file: Path) -> None:
    hook = ul.SteeringHook(made(1), 0.3, "add", "all", gate=ul.Gate(made(1), 0.0))
    with pytest.raises(ul.InvalidInput, match="gate: the vector acts on every prompt instead.*lossy"):
        form.write(hook, file)
    torch.testing.assert_close(form.back(hook, file, lossy=True).vectors, 0.3 * made(1).vectors)


def test_with_norms_a_token_of_that_norm_is_turned_as_the_edit_turns_it(form: Format, file: Path) -> None:
    direction = made(1, 2)
    tokens = torch.randn(2, 8, generator=torch.Generator().manual_seed(5))
    back = form.back(ul.SteeringHook(direction, 0.7), file, norms=tokens.norm(dim=1), lossy=True)
    for token, vector, added in zip(tokens, direction.vectors, back.vectors, strict=True):
        edited = norm_preserving(vector, 0.7)(token)
        torch.testing.assert_close((token + added) / (token + added).norm(), edited / edited.norm())


@pytest.mark.parametrize("norms", [torch.ones(1), torch.tensor([1.0, 0.0]), torch.tensor([1.0, torch.nan]), [1.0, 1.0]])
def test_norms_that_do_not_fit_are_refused(form: Format, file: Path, norms: Any) -> None:
    with unchecked(), pytest.raises(ul.InvalidInput, match=r"norms.*\(1, 2\)"):
        form.write(ul.SteeringHook(made(1, 2), 0.3), file, norms=norms, lossy=True)


@pytest.mark.parametrize("what", [made(1), ul.SteeringHook(made(1), 1.0, **EXACT)])
def test_norms_without_use_are_refused(form: Format, file: Path, what: Any) -> None:
    with pytest.raises(ul.InvalidInput, match="norms.*norm_preserving"):
        form.write(what, file, norms=torch.ones(1))


@pytest.mark.parametrize(
    ("what", "keyword"), [(ul.SteeringHook(made(1), 1.0, "ablate", "all"), "ablation"), ("direction.safetensors", "str")]
)
def test_what_cannot_be_written_at_all_is_refused(form: Format, file: Path, what: Any, keyword: str) -> None:
    for lossy in (False, True):
        with unchecked(), pytest.raises(ul.InvalidInput, match=keyword):
            form.write(what, file, lossy=lossy)
    assert not file.exists()


@pytest.mark.parametrize(
    ("model", "keyword"),
    [(replace(MODEL, d_model=9), "length 8.*d_model 9"), (replace(MODEL, n_layers=3), r"\[1, 3\].*3 layers")],
)
def test_a_model_that_it_does_not_fit_is_named(form: Format, file: Path, model: ul.ModelIdentity, keyword: str) -> None:
    form.write(made(1, 3), file)
    with pytest.raises(ul.IncompatibleModel, match=keyword):
        form.read(file, model)


def test_a_thing_that_is_not_a_model_is_refused(form: Format, file: Path) -> None:
    form.write(made(1), file)
    with pytest.raises(ul.UnsupportedModel, match="org/model.*open"):
        form.read(file, "org/model")


def test_an_interrupted_write_leaves_the_old_file(form: Format, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    form.write(made(1), file)
    before = file.read_bytes()
    monkeypatch.setattr(*form.writer, interrupted)
    with pytest.raises(KeyboardInterrupt):
        form.write(made(1, 2), file)
    assert [one.name for one in file.parent.iterdir()] == [file.name]
    assert file.read_bytes() == before


@pytest.mark.parametrize(("place", "keyword"), [("v.pt", "is a folder"), ("none/v.pt", "not a folder")])
def test_a_place_where_no_file_can_be_is_refused(form: Format, tmp_path: Path, place: str, keyword: str) -> None:
    (tmp_path / "v.pt").mkdir()
    with pytest.raises(ul.ArtifactError, match=keyword):
        form.write(made(1), tmp_path / place)


@pytest.mark.parametrize("content", [None, b"", b"hello, this is not it"])
def test_what_is_not_such_a_file_is_refused(form: Format, file: Path, content: bytes | None) -> None:
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ul.ArtifactError, match=r"v\.pt"):
        form.read(file)


def test_a_file_that_ends_early_is_refused_wherever_it_ends(form: Format, file: Path) -> None:
    form.write(made(1, 2), file)
    content = file.read_bytes()
    for length in range(0, len(content), 7):
        file.write_bytes(content[:length])
        with pytest.raises(ul.ArtifactError, match=r"v\.pt"):
            form.read(file)
