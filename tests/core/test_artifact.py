"""What is saved comes back bit by bit; what is damaged, foreign or half-written is refused with a reason."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import unlock_lens as ul
from unlock_lens import zoo
from unlock_lens.core import files, writing
from unlock_lens.core.direction import Provenance
from unlock_lens.hosts.identity import ModelIdentity

FLOATS = st.floats(-(2.0**60), 2.0**60, width=32).filter(lambda x: x != 0)


@pytest.fixture
def direction() -> ul.CapabilityDirection:
    model = ModelIdentity("org/model", 3, 8, fingerprint="abc", revision="main")
    made = Provenance("pca", -1, 12, "l", "u", model, ModelIdentity("org/source", 5, 16), 4, ("times 2",))
    return ul.CapabilityDirection(torch.randn(2, 8, generator=torch.Generator().manual_seed(0)), (0, 2), "raw", model, made)


@pytest.fixture
def aligner(small: Any, large: Any) -> ul.SubspaceAligner:
    text = zoo.text(n=20)
    return ul.SubspaceAligner(8, centered=True, positions="all", layer_map={1: 3, 2: 3}).fit(
        ul.Variant(large, text), ul.Variant(small, text)
    )


@given(st.lists(FLOATS, min_size=4, max_size=4))
def test_a_direction_comes_back_bit_by_bit(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    direction = ul.CapabilityDirection(torch.tensor([values]), (5,))
    file = tmp_path_factory.mktemp("saved") / "d.safetensors"
    direction.save(file)
    assert torch.equal(ul.CapabilityDirection.load(file).vectors, direction.vectors)


def test_a_direction_comes_back_with_its_history(direction: ul.CapabilityDirection, tmp_path: Path) -> None:
    direction.save(tmp_path / "d.safetensors")
    loaded = ul.CapabilityDirection.load(tmp_path / "d.safetensors")
    assert torch.equal(loaded.vectors, direction.vectors)
    assert (loaded.layers, loaded.basis, loaded.model, loaded.provenance) == (
        direction.layers,
        direction.basis,
        direction.model,
        direction.provenance,
    )


def test_an_aligner_comes_back_bit_by_bit(aligner: ul.SubspaceAligner, tmp_path: Path) -> None:
    aligner.save(tmp_path / "a.safetensors")
    loaded = ul.SubspaceAligner.load(tmp_path / "a.safetensors")
    assert repr(loaded) == repr(aligner)
    assert loaded.layer_map == aligner.layer_map == {1: 3, 2: 3}
    for name, tensor in aligner.maps.tensors().items():
        assert torch.equal(loaded.maps.tensors()[name], tensor), name
    assert torch.equal(loaded.at_rank(3).map(2), aligner.at_rank(3).map(2))
    assert (loaded.n_tokens, loaded.prompts_hash) == (aligner.n_tokens, aligner.prompts_hash)


def test_the_metadata_tells_everything(small: Any, tmp_path: Path) -> None:
    task = zoo.running_sum(n=4)
    ul.CapabilityDirection.extract(ul.Variant(small, task.direct), ul.Variant(small, task.think)).save(
        tmp_path / "d.safetensors"
    )
    _, metadata = files.load(tmp_path / "d.safetensors")
    assert metadata["kind"] == "direction"
    assert metadata["format_version"] == files.FORMAT_VERSION
    assert metadata["library_version"]
    assert metadata["created"].startswith("20")
    assert metadata["basis"] == "raw"
    assert metadata["layers"] == [0, 1, 2]
    assert metadata["model"]["name"] == "small-base"
    assert len(metadata["model"]["fingerprint"]) == 16
    assert {"aggregate", "position", "n_prompts", "locked_hash", "rank"} <= set(metadata["provenance"])
    with safe_open(tmp_path / "d.safetensors", framework="pt") as file:  # readable without this library
        assert file.get_tensor("vectors").shape == (3, 64)


def change_metadata(file: Path, change: Callable[[dict[str, Any]], Any], forged: bool = False) -> None:
    """Change what the file says of itself; forged, its hash says that nothing was changed."""
    with safe_open(file, framework="pt") as opened:
        metadata = json.loads(opened.metadata()["unlock_lens"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  not a dict
    change(metadata)
    if forged:
        metadata["content_hash"] = files.content_hash(tensors, metadata)
    save_file(tensors, file, metadata={"unlock_lens": json.dumps(metadata)})


def save_spoiled(file: Path) -> None:
    metadata = files.load(file)[1]
    spoiled = {"vectors": torch.full((2, 8), float("nan"))}
    files.save(file, "direction", spoiled, {name: metadata[name] for name in ("layers", "basis", "model", "provenance")})


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda file: file.unlink(), "no file"),
    "empty": (lambda file: file.write_bytes(b""), "readable"),
    "text": (lambda file: file.write_text("hello, this is not it"), "readable"),
    "truncated": (lambda file: file.write_bytes(file.read_bytes()[:-7]), "readable"),
    "a flipped bit": (
        lambda file: file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1])),
        "hash",
    ),
    "foreign": (lambda file: save_file({"vectors": torch.ones(2, 8)}, file), "written"),
    "another kind": (
        lambda file: change_metadata(file, lambda metadata: metadata.update(kind="aligner")),
        "aligner.*direction",
    ),
    "the future": (
        lambda file: change_metadata(file, lambda metadata: metadata.update(format_version=99)),
        "version 99",
    ),
    "other shapes": (
        lambda file: change_metadata(file, lambda metadata: metadata.update(shapes={"vectors": [8, 2]})),
        "shapes",
    ),
    "no layers": (
        lambda file: change_metadata(file, lambda metadata: metadata.pop("layers"), forged=True),
        "layers",
    ),
    "other layers": (
        lambda file: change_metadata(file, lambda metadata: metadata.update(layers=[0, 1])),
        "hash",
    ),
    "vectors that are not finite": (
        save_spoiled,
        "finite",
    ),
    "no kind": (
        lambda file: change_metadata(file, lambda metadata: metadata.pop("kind")),
        "expected: direction",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_and_foreign_files_are_refused(direction: ul.CapabilityDirection, tmp_path: Path, name: str) -> None:
    file = tmp_path / "d.safetensors"
    direction.save(file)
    damage, message = DAMAGE[name]
    damage(file)
    with pytest.raises(ul.ArtifactError, match=message) as caught:
        ul.CapabilityDirection.load(file)
    assert str(file) in str(caught.value)


def nested(levels: int) -> Any:
    return [nested(levels - 1)] if levels else []


WRONG: dict[str, tuple[str, Any]] = {
    "layers of words": ("layers", ["0", "2"]),
    "layers that are numbers with a point": ("layers", [0.0, 2.0]),
    "layers that descend": ("layers", [2, 0]),
    "layers of infinity": ("layers", [0, float("inf")]),
    "one layer too many": ("layers", [0, 1, 2]),
    "a layer that the model lacks": ("layers", [0, 99]),
    "layers in a dictionary": ("layers", {"0": 0}),
    "another basis": ("basis", "baw"),
    "a model of another width": ("model", {"name": "m", "n_layers": 3, "d_model": 9}),
    "a model without a name": ("model", {"n_layers": 3, "d_model": 8}),
    "a model with a terminal's commands in its name": ("model", {"name": "\x1b[2Jm", "n_layers": 3, "d_model": 8}),
    "a lone surrogate": ("model", {"name": "\ud800", "n_layers": 3, "d_model": 8}),
    "no provenance": ("provenance", None),
    "a field that nobody knows": ("colour", "red"),
    "lists within lists": ("provenance", nested(200)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_description_that_is_wrong_is_refused(direction: ul.CapabilityDirection, tmp_path: Path, name: str) -> None:
    """Its hash is right: somebody meant it."""
    file = tmp_path / "d.safetensors"
    direction.save(file)
    field, value = WRONG[name]
    change_metadata(file, lambda metadata: metadata.update({field: value}), forged=True)
    with pytest.raises(ul.ArtifactError) as caught:
        ul.CapabilityDirection.load(file)
    assert str(caught.value).isprintable()


WRONG_MAPS: dict[str, tuple[str, Any]] = {
    "a layer map of words": ("layer_map", [["a", "b"]]),
    "a layer twice": ("layer_map", [[0, 0], [0, 1]]),
    "a layer below zero": ("layer_map", [[0, -1], [1, 1]]),
    "a rank that is not a number": ("rank", float("nan")),
    "an unknown method": ("method", "magic"),
    "a cross-validation of nothing": ("cross_validation", {"layers": [], "ranks": [], "ridges": [], "r2": []}),
    "a cross-validation that is not finite": (
        "cross_validation",
        {"layers": [0], "ranks": [1], "ridges": [0.1], "r2": [[[float("nan")]]]},
    ),
    "a cross-validation of another shape": (
        "cross_validation",
        {"layers": [0], "ranks": [1, 2], "ridges": [0.1], "r2": [[[0.5]]]},
    ),
}


@pytest.mark.parametrize("name", WRONG_MAPS)
def test_a_map_whose_description_is_wrong_is_refused(aligner: ul.SubspaceAligner, tmp_path: Path, name: str) -> None:
    file = tmp_path / "a.safetensors"
    aligner.save(file)
    field, value = WRONG_MAPS[name]
    change_metadata(file, lambda metadata: metadata.update({field: value}), forged=True)
    with pytest.raises(ul.ArtifactError):
        ul.SubspaceAligner.load(file)


@pytest.mark.parametrize("name", ["core", "source_factors", "source_mean", "target_factors", "target_mean"])
@pytest.mark.parametrize("damage", ["another shape", "another dtype", "not finite", "missing"])
def test_a_map_whose_tensors_do_not_fit_is_refused(aligner: ul.SubspaceAligner, tmp_path: Path, name: str, damage: str) -> None:
    file = tmp_path / "a.safetensors"
    aligner.save(file)
    tensors, metadata = files.load(file)
    good = tensors.pop(name)
    wrong = {"another shape": good[..., :-1], "another dtype": good.half(), "not finite": good / 0}
    files.save(file, "aligner", tensors | ({name: wrong[damage]} if damage in wrong else {}), metadata)
    with pytest.raises(ul.ArtifactError, match=name.partition("_")[0]):
        ul.SubspaceAligner.load(file)


def test_no_bit_of_a_file_can_be_flipped(direction: ul.CapabilityDirection, tmp_path: Path) -> None:
    """But in what the header is padded with, a flip is an error: numbers, description, names of tensors."""
    file = tmp_path / "d.safetensors"
    direction.save(file)
    content, drawn = file.read_bytes(), random.Random(0)
    for _ in range(300):
        bit = drawn.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with pytest.raises(ul.ArtifactError):
            ul.CapabilityDirection.load(file)


def test_a_header_larger_than_any_description_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "d.safetensors"
    file.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(ul.ArtifactError, match="header"):
        ul.CapabilityDirection.load(file)


def test_what_was_loaded_does_not_change_with_its_file(direction: ul.CapabilityDirection, tmp_path: Path) -> None:
    file = tmp_path / "d.safetensors"
    direction.save(file)
    loaded = ul.CapabilityDirection.load(file)
    file.write_bytes(bytes(len(file.read_bytes())))
    assert torch.equal(loaded.vectors, direction.vectors)


def test_a_planted_link_is_not_written_through(direction: ul.CapabilityDirection, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(FileExistsError):
        writing.write_new(tmp_path / "link", b"theirs")
    assert victim.read_text() == "mine"


def test_kinds_are_not_mixed_up(aligner: ul.SubspaceAligner, direction: ul.CapabilityDirection, tmp_path: Path) -> None:
    aligner.save(tmp_path / "a")
    direction.save(tmp_path / "d")
    with pytest.raises(ul.ArtifactError, match="aligner.*direction"):
        ul.CapabilityDirection.load(tmp_path / "a")
    with pytest.raises(ul.ArtifactError, match="direction.*aligner"):
        ul.SubspaceAligner.load(tmp_path / "d")


@pytest.mark.parametrize("by", [OSError, KeyboardInterrupt])
def test_an_interrupted_save_loses_nothing(
    direction: ul.CapabilityDirection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: type[BaseException]
) -> None:
    file = tmp_path / "d.safetensors"
    direction.save(file)
    before = file.read_bytes()

    def fails(*args: Any) -> None:
        raise by

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(by):
        (2.0 * direction).save(file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file], "no temporary file is left"


def test_a_folder_that_is_not_there_is_named(direction: ul.CapabilityDirection, tmp_path: Path) -> None:
    with pytest.raises(ul.ArtifactError, match="nowhere"):
        direction.save(tmp_path / "nowhere" / "d.safetensors")


def test_files_are_readable_by_whom_the_umask_lets(direction: ul.CapabilityDirection, tmp_path: Path) -> None:
    direction.save(tmp_path / "d.safetensors")
    (tmp_path / "plain").touch()
    assert (tmp_path / "d.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_words_of_version_1_are_read_as_todays(
    aligner: ul.SubspaceAligner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    aligner.save(tmp_path / "a.safetensors")
    tensors, metadata = files.load(tmp_path / "a.safetensors")
    metadata = {**metadata, "sinks": "whiten", "target_model": {**metadata["target_model"], "basis": "centered"}}
    metadata |= {"format_version": 1, "content_hash": files.content_hash(tensors)}
    save_file(tensors, tmp_path / "old.safetensors", metadata={"unlock_lens": json.dumps(metadata)})
    old = ul.SubspaceAligner.load(tmp_path / "old.safetensors")
    assert old.sinks == "rescale"
    assert old.target_model is not None
    assert old.target_model.basis == "zero_mean"
    assert "format 1" in caplog.text  # its description is not in the hash


def test_an_aligner_of_before_there_were_methods_is_read(aligner: ul.SubspaceAligner, tmp_path: Path) -> None:
    aligner.save(tmp_path / "a.safetensors")
    tensors, metadata = files.load(tmp_path / "a.safetensors")
    for name in ("method", "ridge", "sinks", "without_mean", "cross_validation"):
        metadata.pop(name)
    files.save(tmp_path / "old.safetensors", "aligner", tensors, metadata)
    old = ul.SubspaceAligner.load(tmp_path / "old.safetensors")
    assert (old.method, old.sinks, old.cross_validation) == ("unlock", "keep", None)
    assert torch.equal(old.map(1), aligner.map(1))


def test_a_link_stays_and_what_it_leads_to_is_written(direction: ul.CapabilityDirection, tmp_path: Path) -> None:
    target, link = tmp_path / "there" / "d.safetensors", tmp_path / "link"
    target.parent.mkdir()
    link.symlink_to(target)
    direction.save(link)
    assert link.is_symlink()
    assert torch.equal(ul.CapabilityDirection.load(target).vectors, direction.vectors)


def test_a_pipe_is_not_replaced(direction: ul.CapabilityDirection, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ul.ArtifactError, match="pipe"):
        direction.save(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
