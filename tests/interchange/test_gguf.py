"""Control vectors: what llama.cpp reads, what comes back with its history, and which files are refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import unlock_lens as ul
from tests.checks import unchecked
from tests.interchange.test_common import EXACT, MODEL, made
from unlock_lens.core.direction import Provenance
from unlock_lens.core.files import content_hash
from unlock_lens.interchange import from_gguf, to_gguf

Q8 = gguf.GGMLQuantizationType.Q8_0
HISTORY = Provenance("pca", -1, 12, "l", "u", MODEL, ul.ModelIdentity("org/source", 7, 16), 4, ("times 2",))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "v.gguf"


def write(
    file: Path,
    tensors: Mapping[str, Any],
    kind: str = "controlvector",
    hint: str | None = "llama",
    count: int | None = -1,
    description: str | None = None,
) -> Path:
    """A GGUF as other programs write it: the number of tensors is signed in llama.cpp's cvector-generator."""
    writer = gguf.GGUFWriter(file, kind)
    if hint is not None:
        writer.add_string("controlvector.model_hint", hint)
    if count is not None:
        writer.add_int32("controlvector.layer_count", len(tensors) if count == -1 else count)
    if description is not None:
        writer.add_string("unlock_lens.description", description)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor, raw_dtype=Q8 if tensor.dtype == np.uint8 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def ones(*layers: int, width: int = 8) -> dict[str, Any]:
    return {f"direction.{layer}": np.full(width, layer + 1, dtype=np.float32) for layer in layers}


@pytest.mark.parametrize("basis", ["raw", "zero_mean"])
def test_a_direction_comes_back_with_its_history(file: Path, basis: Any) -> None:
    direction = made(1, 3, basis=basis, model=replace(MODEL, basis=basis), provenance=HISTORY)
    to_gguf(direction, file)
    read = from_gguf(file)
    assert torch.equal(read.vectors, direction.vectors)
    assert (read.layers, read.basis, read.model, read.provenance) == ((1, 3), basis, direction.model, HISTORY)


def test_what_a_hook_does_is_added_to_the_history(file: Path) -> None:
    to_gguf(ul.SteeringHook(made(1, provenance=HISTORY), 2.5, **EXACT), file)
    told = from_gguf(file).provenance.steps
    assert told[0] == "times 2"
    assert "2.5" in told[1]


def test_the_file_holds_what_llama_cpp_reads(file: Path) -> None:
    """Its loader wants F32 vectors direction.L with L from 1; the keys are those of its cvector-generator and of repeng."""
    direction = made(1, 4)
    to_gguf(direction, file)
    reader = gguf.GGUFReader(file)
    kept = {key: field.contents() for key, field in reader.fields.items()}
    assert (kept["general.architecture"], kept["controlvector.model_hint"]) == ("controlvector", "llama")
    assert kept["controlvector.layer_count"] == 2
    assert reader.fields["controlvector.layer_count"].types == [gguf.GGUFValueType.UINT32]
    assert [(t.name, t.tensor_type.name, t.shape.tolist()) for t in reader.tensors] == [
        ("direction.1", "F32", [8]),
        ("direction.4", "F32", [8]),
    ]
    assert np.array_equal(reader.tensors[1].data, direction.vectors[1].numpy())


@pytest.mark.parametrize("count", [None, 1, 32])
def test_a_count_that_llama_cpp_does_not_read_does_not_matter(file: Path, count: int | None) -> None:
    """Some writers give the layers of the model."""
    assert from_gguf(write(file, ones(1, 2), count=count)).layers == (1, 2)


def test_layer_0_has_no_place(file: Path) -> None:
    for lossy in (False, True):
        with pytest.raises(ul.InvalidInput, match=r"\[0\]"):
            to_gguf(made(0), file, lossy=lossy)
    with pytest.raises(ul.InvalidInput, match=r"\[0\].*lossy"):
        to_gguf(made(0, 2), file)
    to_gguf(made(0, 2), file, lossy=True)
    assert from_gguf(file).layers == (2,)
    description = json.loads(gguf.GGUFReader(file).fields["unlock_lens.description"].contents())
    assert "[0]" in description["lost"][0]


@pytest.mark.parametrize("architecture", [None, 3, ["llama"]])
def test_an_architecture_must_be_known(file: Path, architecture: Any) -> None:
    for model in (None, replace(MODEL, architecture=None)):
        with unchecked(), pytest.raises(ul.InvalidInput, match="architecture="):
            to_gguf(made(1, model=model), file, architecture=architecture)
    assert not file.exists()


@pytest.mark.parametrize(("hint", "architecture"), [("qwen2", "llama"), ("command-r", "cohere")])
def test_another_architecture_is_warned_of(file: Path, hint: str, architecture: str) -> None:
    """It may be the same one by another name, as only the user knows."""
    to_gguf(made(1, model=None), file, architecture=hint)
    with pytest.warns(UserWarning, match=f"{hint}.*{architecture}"):
        assert from_gguf(file, replace(MODEL, architecture=architecture)).model is not None


@pytest.mark.parametrize(
    ("hint", "architecture"), [("qwen2moe", "qwen2_moe"), ("gpt-oss", "gpt_oss"), ("gemma3", "gemma3_text"), ("llama", None)]
)
def test_punctuation_and_what_is_unknown_are_not(file: Path, hint: str, architecture: str | None) -> None:
    assert from_gguf(write(file, ones(1), hint=hint), replace(MODEL, architecture=architecture)).layers == (1,)


def test_without_the_gguf_package_it_says_how_to_install_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    for call in (lambda: to_gguf(made(1), file), lambda: from_gguf(file)):
        with pytest.raises(ul.InvalidInput, match=r"unlock-lens\[gguf\]"):
            call()


@pytest.mark.parametrize("hint", ["llama", None])
def test_the_model_of_a_foreign_file_is_unknown(file: Path, hint: str | None) -> None:
    """Repeng has no layer 0 unless it is asked for, and may have any others."""
    read = from_gguf(write(file, ones(4, 1), hint=hint))
    assert (read.layers, read.model, read.basis) == ((1, 4), None, "raw")
    assert torch.equal(read.vectors, torch.tensor([[2.0] * 8, [5.0] * 8]))
    [step] = read.provenance.steps
    assert (hint or "unknown") in step


def test_half_precision_is_read_and_vectors_of_zero_are_left_out(file: Path) -> None:
    held = {"direction.1": np.zeros(8, dtype=np.float16), "direction.2": np.full(8, 0.5, dtype=np.float16)}
    read = from_gguf(write(file, held))
    assert read.layers == (2,)
    assert torch.equal(read.vectors, torch.full((1, 8), 0.5))


def test_with_a_model_it_is_checked_and_becomes_its_own(file: Path, small: Any) -> None:
    read = from_gguf(write(file, ones(1, 2, width=64)), small)
    assert read.model is not None
    assert (read.model.name, read.model.fingerprint is None) == ("small-base", False)
    assert ul.SteeringHook(read, 1.0, **EXACT).edits(read.model).keys() == {1, 2}


def test_a_model_with_a_zero_mean_basis_has_the_direction_so(file: Path) -> None:
    centered = replace(MODEL, basis="zero_mean")
    read = from_gguf(write(file, {"direction.1": np.arange(8, dtype=np.float32)}), centered)
    assert torch.equal(read.vectors, torch.arange(8.0).unsqueeze(0) - 3.5)
    assert (read.basis, read.model) == ("zero_mean", centered)


def test_a_zero_mean_direction_stays_so_in_a_raw_model(file: Path) -> None:
    to_gguf(made(1, basis="zero_mean", model=replace(MODEL, basis="zero_mean")), file)
    read = from_gguf(file, MODEL)
    assert (read.basis, read.model) == ("zero_mean", replace(MODEL, basis="zero_mean", fingerprint=None))
    assert ul.SteeringHook(read, 1.0, **EXACT).edits(MODEL).keys() == {1}


def test_a_file_of_another_model_is_refused(file: Path) -> None:
    to_gguf(made(1), file)
    with pytest.raises(ul.IncompatibleModel, match="abc.*xyz"):
        from_gguf(file, replace(MODEL, fingerprint="xyz"))


def test_numbers_that_are_not_those_that_were_written_are_refused(file: Path) -> None:
    """One bit of a file of ours: its description would give a wrong direction a good name."""
    to_gguf(made(1, 2), file)
    content = bytearray(file.read_bytes())
    at = content.rindex(made(1, 2).vectors[1].numpy().tobytes()[:28])
    content[at] ^= 1
    file.write_bytes(content)
    with pytest.raises(ul.ArtifactError, match="numbers"):
        from_gguf(file)


def described(**changes: Any) -> str:
    """The description that this library writes, with changes."""
    vectors = torch.from_numpy(ones(1)["direction.1"]).unsqueeze(0)
    whole = {**made(1, provenance=HISTORY).description, "content_hash": content_hash({"vectors": vectors}), **changes}
    return json.dumps(whole)


def test_a_description_without_changes_is_read(file: Path) -> None:
    read = from_gguf(write(file, ones(1), description=described()))
    assert (read.model, read.provenance) == (MODEL, HISTORY)


F32 = np.ones(8, dtype=np.float32)


@pytest.mark.parametrize(
    ("tensors", "options", "keyword"),
    [
        (ones(1), {"kind": "llama"}, "'llama'"),
        ({}, {}, "no directions"),
        ({**ones(1), "token_embd.weight": F32}, {}, "token_embd"),
        ({"direction.x": F32}, {}, r"direction\.x"),
        ({"direction.-1": F32}, {}, r"direction\.-1"),
        ({"direction." + "9" * 50: F32}, {}, "9999"),
        ({**ones(1), "direction.01": F32}, {}, "twice"),
        ({**ones(1), **ones(2, width=9)}, {}, r"1: \[8\], 2: \[9\]"),
        ({"direction.1": np.ones((2, 8), np.float32)}, {}, r"\[2, 8\]"),
        ({"direction.1": gguf.quants.quantize(np.ones(32, np.float32), Q8)}, {}, r"direction\.1.*Q8_0"),
        ({"direction.1": np.ones(8)}, {}, r"direction\.1.*F64"),
        ({"direction.1": np.nan * F32}, {}, "layer 1.*finite"),
        ({"direction.1": 0 * F32}, {}, "layer 1.*zero"),
        (ones(1), {"description": "layers"}, "JSON"),
        (ones(1), {"description": "[" * 100000}, "Recursion"),
        (ones(1), {"description": "{}"}, "KeyError"),
        (ones(1), {"description": described(layers=[2])}, "layers"),
        (ones(1), {"description": described(basis="foo")}, "basis.*foo"),
        (ones(1), {"description": described(model=[1])}, "TypeError"),
    ],
)
def test_files_of_something_else_are_refused(file: Path, tensors: Any, options: dict[str, Any], keyword: str) -> None:
    with unchecked(), pytest.raises(ul.ArtifactError, match=rf"v\.gguf.*{keyword}"):
        from_gguf(write(file, tensors, **options))
