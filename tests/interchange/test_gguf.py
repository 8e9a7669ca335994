"""Control vectors: what is written comes back bit by bit, what the format cannot hold is refused, and so are bad files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import unlock_lens as ul
from tests.checks import unchecked
from unlock_lens.core.direction import Provenance
from unlock_lens.core.files import content_hash
from unlock_lens.interchange import from_gguf, to_gguf
from unlock_lens.interchange.control_vectors import AS_LLAMA_CPP_SAYS
from unlock_lens.method.apply import norm_preserving

MODEL = ul.ModelIdentity("org/model", 5, 8, fingerprint="abc", revision="main", architecture="llama")
TOLD = Provenance("pca", -1, 12, "l", "u", MODEL, ul.ModelIdentity("org/source", 7, 16), 4, ("times 2",))
EXACT: dict[str, Any] = {"operation": "add", "positions": "all"}


def made(*layers: int, **changes: Any) -> ul.CapabilityDirection:
    vectors = torch.randn(len(layers), 8, generator=torch.Generator().manual_seed(len(layers)))
    return replace(ul.CapabilityDirection(vectors, layers, "raw", MODEL, TOLD), **changes)


def write(
    file: Path,
    tensors: Mapping[str, Any],
    kind: str = "controlvector",
    hint: str | None = "llama",
    count: int | None = -1,
    **kept: str,
) -> Path:
    """A GGUF as other programs write it: the number of tensors is signed in llama.cpp's cvector-generator."""
    writer = gguf.GGUFWriter(file, kind)
    if hint is not None:
        writer.add_string("controlvector.model_hint", hint)
    if count is not None:
        writer.add_int32("controlvector.layer_count", len(tensors) if count == -1 else count)
    for key, value in kept.items():
        writer.add_string(key.replace("__", "."), value)
    for name, tensor in tensors.items():
        data, dtype = tensor if isinstance(tensor, tuple) else (tensor, None)
        writer.add_tensor(name, np.asarray(data), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def ones(*layers: int, width: int = 8) -> dict[str, Any]:
    return {f"direction.{layer}": np.full(width, layer + 1, dtype=np.float32) for layer in layers}


@pytest.mark.parametrize("basis", ["raw", "centered"])
def test_a_direction_comes_back_bit_by_bit_with_its_history(tmp_path: Path, basis: Any) -> None:
    direction = made(1, 3, basis=basis, model=replace(MODEL, basis=basis))
    to_gguf(direction, tmp_path / "v.gguf")
    read = from_gguf(tmp_path / "v.gguf")
    assert torch.equal(read.vectors, direction.vectors)
    assert (read.layers, read.basis, read.model, read.provenance) == ((1, 3), basis, direction.model, TOLD)


def test_the_file_holds_what_llama_cpp_reads(tmp_path: Path) -> None:
    """Its loader wants F32 vectors direction.L with L from 1; the keys are those of its cvector-generator and of repeng."""
    direction = made(1, 4)
    to_gguf(direction, tmp_path / "v.gguf")
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    kept = {key: field.contents() for key, field in reader.fields.items()}
    assert (kept["general.architecture"], kept["controlvector.model_hint"]) == ("controlvector", "llama")
    assert kept["controlvector.layer_count"] == 2
    assert reader.fields["controlvector.layer_count"].types == [gguf.GGUFValueType.UINT32]
    assert [(t.name, t.tensor_type.name, t.shape.tolist()) for t in reader.tensors] == [
        ("direction.1", "F32", [8]),
        ("direction.4", "F32", [8]),
    ]
    assert np.array_equal(reader.tensors[1].data, direction.vectors[1].numpy())


@pytest.mark.parametrize(("alpha", "strengths"), [(2.5, [2.5, 2.5]), ({1: 0.5, 3: -2.0}, [0.5, -2.0])])
def test_an_addition_to_all_tokens_is_written_exactly(tmp_path: Path, alpha: Any, strengths: list[float]) -> None:
    direction = made(1, 2, 3)
    to_gguf(ul.SteeringHook(direction, alpha, layers=(1, 3), **EXACT), tmp_path / "v.gguf")
    read = from_gguf(tmp_path / "v.gguf")
    assert read.layers == (1, 3)
    assert torch.equal(read.vectors, torch.stack([s * v for s, v in zip(strengths, direction.vectors[[0, 2]], strict=True)]))
    assert read.provenance.steps == ("times 2", f"times alpha {alpha} (add, all), to be added to every token")


def test_layers_of_strength_zero_add_nothing_and_are_left_out(tmp_path: Path) -> None:
    to_gguf(ul.SteeringHook(made(1, 2), {1: 0.0, 2: 1.0}, **EXACT), tmp_path / "v.gguf")
    assert from_gguf(tmp_path / "v.gguf").layers == (2,)
    with pytest.raises(ul.InvalidInput, match="alpha is 0 at every layer; nothing would be added"):
        to_gguf(ul.SteeringHook(made(1, 2), 0.0, **EXACT), tmp_path / "v.gguf")


REASONS: dict[str, tuple[Any, list[str]]] = {
    "the default": (
        ul.SteeringHook(made(0, 2), 0.3),
        [
            'operation="norm_preserving": an addition cannot keep the norm of each token',
            'positions="last_prompt": it acts on the last token of the prompt alone',
            "layer 0: there is no place for it below layer 1",
        ],
    ),
    "the prompt": (ul.SteeringHook(made(1), 0.3, "add", "prompt"), ['positions="prompt": it acts on the prompt alone']),
    "steps": (ul.SteeringHook(made(1), 0.3, "add", "generated"), ['positions="generated": it acts on generated tokens alone']),
    "a direction": (made(0, 1), ["layer 0: there is no place for it"]),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_would_be_lost_is_refused_with_every_reason(tmp_path: Path, name: str) -> None:
    what, reasons = REASONS[name]
    with pytest.raises(ul.InvalidInput, match="adds a vector to every token.*lossy=True") as caught:
        to_gguf(what, tmp_path / "v.gguf")
    assert [reason for reason in reasons if reason not in str(caught.value)] == []
    assert list(tmp_path.iterdir()) == []
    to_gguf(what, tmp_path / "v.gguf", lossy=True)
    assert 0 not in from_gguf(tmp_path / "v.gguf").layers
    kept = gguf.GGUFReader(tmp_path / "v.gguf").fields["unlock_lens.description"].contents()
    assert [reason for reason in reasons if reason.replace('"', '\\"') not in kept] == []


def test_without_norms_alpha_times_the_unit_vector_is_written(tmp_path: Path) -> None:
    direction = made(1, 2)
    to_gguf(ul.SteeringHook(direction, 0.3), tmp_path / "v.gguf", lossy=True)
    units = direction.vectors / direction.vectors.norm(dim=1, keepdim=True)
    torch.testing.assert_close(from_gguf(tmp_path / "v.gguf").vectors, 0.3 * units)


def test_with_norms_a_token_of_that_norm_is_turned_as_the_edit_turns_it(tmp_path: Path) -> None:
    direction = made(1, 2)
    tokens = torch.randn(2, 8, generator=torch.Generator().manual_seed(5))
    to_gguf(ul.SteeringHook(direction, 0.7), tmp_path / "v.gguf", norms=tokens.norm(dim=1), lossy=True)
    for token, vector, added in zip(tokens, direction.vectors, from_gguf(tmp_path / "v.gguf").vectors, strict=True):
        edited = norm_preserving(vector, 0.7)(token)
        torch.testing.assert_close((token + added) / (token + added).norm(), edited / edited.norm())


@pytest.mark.parametrize("norms", [[1.0], [1.0, 0.0], [1.0, float("nan")]])
def test_norms_that_do_not_fit_are_refused(tmp_path: Path, norms: list[float]) -> None:
    with pytest.raises(ul.InvalidInput, match=r"a finite number above 0 is needed for each of layers \[1, 2\]"):
        to_gguf(ul.SteeringHook(made(1, 2), 0.3), tmp_path / "v.gguf", norms=torch.tensor(norms), lossy=True)


def test_norms_that_are_no_tensor_are_refused(tmp_path: Path) -> None:
    norms: Any = [1.0]
    with unchecked(), pytest.raises(ul.InvalidInput, match=r"norms were given as a list; give a tensor \[layer\]"):
        to_gguf(ul.SteeringHook(made(1), 0.3), tmp_path / "v.gguf", norms=norms, lossy=True)


@pytest.mark.parametrize("what", [made(1), ul.SteeringHook(made(1), 1.0, **EXACT)])
def test_norms_without_use_are_refused(tmp_path: Path, what: Any) -> None:
    with pytest.raises(ul.InvalidInput, match="norms were given with"):
        to_gguf(what, tmp_path / "v.gguf", norms=torch.ones(1))


@pytest.mark.parametrize("lossy", [False, True])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            ul.SteeringHook(made(1), 1.0, "ablate", "all"),
            "what ablation takes out depends on the token, so it cannot be written",
        ),
        (made(0), r"has no layers below 1, and this has \[0\] alone"),
        (made(1, model=None), 'names the architecture of its model.*give architecture=, .* such as "llama"'),
        (made(1, model=replace(MODEL, architecture=None)), "give architecture="),
        ("direction.safetensors", "a str was given; give a CapabilityDirection or a SteeringHook"),
    ],
)
def test_what_cannot_be_written_at_all_is_refused(tmp_path: Path, what: Any, message: str, lossy: bool) -> None:
    with unchecked(), pytest.raises(ul.InvalidInput, match=message):
        to_gguf(what, tmp_path / "v.gguf", lossy=lossy)
    assert list(tmp_path.iterdir()) == []


def test_the_architecture_may_be_given(tmp_path: Path) -> None:
    to_gguf(made(1, model=None), tmp_path / "v.gguf", architecture="qwen2")
    with pytest.raises(ul.IncompatibleModel, match="for the architecture 'qwen2', and org/model .* is 'llama'"):
        from_gguf(tmp_path / "v.gguf", MODEL)


def test_without_the_gguf_package_it_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ul.InvalidInput, match=r"pip install 'unlock-lens\[gguf\]'"):
        to_gguf(made(1), tmp_path / "v.gguf")
    with pytest.raises(ul.InvalidInput, match=r"pip install 'unlock-lens\[gguf\]'"):
        from_gguf(tmp_path / "v.gguf")


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Any) -> None:
        raise KeyboardInterrupt

    to_gguf(made(1), tmp_path / "v.gguf")
    before = (tmp_path / "v.gguf").read_bytes()
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        to_gguf(made(1, 2), tmp_path / "v.gguf")
    assert [file.name for file in tmp_path.iterdir()] == ["v.gguf"]
    assert (tmp_path / "v.gguf").read_bytes() == before


@pytest.mark.parametrize(("place", "message"), [("", "is a folder"), ("none/v.gguf", "is not a folder; make it first")])
def test_a_place_where_no_file_can_be_is_refused(tmp_path: Path, place: str, message: str) -> None:
    with pytest.raises(ul.ArtifactError, match=message):
        to_gguf(made(1), tmp_path / place)


def test_a_foreign_file_is_of_no_known_model(tmp_path: Path) -> None:
    """Repeng has no layer 0 unless it is asked for, and may have any others."""
    read = from_gguf(write(tmp_path / "v.gguf", ones(4, 1)))
    assert (read.layers, read.model, read.basis) == ((1, 4), None, "raw")
    assert torch.equal(read.vectors, torch.tensor([[2.0] * 8, [5.0] * 8]))
    assert read.provenance == Provenance(steps=("read from a control vector for llama",))


def test_half_precision_is_read_and_vectors_of_zero_are_left_out(tmp_path: Path) -> None:
    held = {"direction.1": np.zeros(8, dtype=np.float16), "direction.2": np.full(8, 0.5, dtype=np.float16)}
    read = from_gguf(write(tmp_path / "v.gguf", held))
    assert read.layers == (2,)
    assert torch.equal(read.vectors, torch.full((1, 8), 0.5))


def test_with_a_model_it_is_checked_and_becomes_its_own(tmp_path: Path, small: Any) -> None:
    read = from_gguf(write(tmp_path / "v.gguf", ones(1, 2, width=64)), small)
    assert read.model is not None
    assert (read.model.name, read.model.fingerprint is None) == ("small-base", False)
    assert ul.SteeringHook(read, 1.0, **EXACT).edits(read.model).keys() == {1, 2}


def test_a_model_with_a_centered_basis_has_the_direction_centered(tmp_path: Path) -> None:
    values = {"direction.1": np.arange(8, dtype=np.float32)}
    centered = replace(MODEL, basis="centered")
    read = from_gguf(write(tmp_path / "v.gguf", values), centered)
    assert torch.equal(read.vectors, torch.arange(8.0).unsqueeze(0) - 3.5)
    assert (read.basis, read.model) == ("centered", centered)


def test_a_centered_direction_stays_so_in_a_raw_model(tmp_path: Path) -> None:
    to_gguf(made(1, basis="centered", model=replace(MODEL, basis="centered")), tmp_path / "v.gguf")
    read = from_gguf(tmp_path / "v.gguf", MODEL)
    assert (read.basis, read.model) == ("centered", replace(MODEL, basis="centered", fingerprint=None))
    assert ul.SteeringHook(read, 1.0, **EXACT).edits(MODEL).keys() == {1}


@pytest.mark.parametrize(
    ("hint", "architecture"),
    [
        ("llama", "mistral"),
        ("qwen2moe", "qwen2_moe"),
        ("phi2", "phi"),
        ("gemma3", "gemma3_text"),
        ("command-r", "cohere"),
        ("cohere2", "cohere2"),
        ("starcoder", "gpt_bigcode"),
        ("deepseek2", "deepseek_v2"),
        ("deepseek2", "deepseek_v3"),
        ("deepseek_v3", "deepseek_v3"),
        ("chatglm", "glm"),
        ("gpt-oss", "gpt_oss"),
        ("qwen2vl", "qwen2_5_vl_text"),
        ("llama", "Llama"),
    ],
)
def test_llama_cpp_has_other_names_for_some_architectures(tmp_path: Path, hint: str, architecture: str) -> None:
    file = write(tmp_path / "v.gguf", ones(1), hint=hint)
    assert from_gguf(file, replace(MODEL, architecture=architecture)).layers == (1,)


@pytest.mark.parametrize("ours", AS_LLAMA_CPP_SAYS)
def test_the_other_names_are_those_of_the_gguf_package(ours: str) -> None:
    names = set(gguf.MODEL_ARCH_NAMES.values())
    assert AS_LLAMA_CPP_SAYS[ours] in names
    assert ours not in names


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            replace(MODEL, architecture="gpt2"),
            "for the architecture 'llama', and org/model .* is 'gpt2'.*or read it without model=",
        ),
        (replace(MODEL, d_model=9), r"holds vectors of length 8, and org/model \(5 layers, d_model 9"),
        (replace(MODEL, n_layers=3), r"has layers \[3\], and org/model .* 0 to 2"),
        (
            replace(MODEL, fingerprint="xyz"),
            r"was made for org/model .* weights abc\), and org/model .* weights xyz\) was given",
        ),
    ],
)
def test_a_model_that_it_does_not_fit_is_named(tmp_path: Path, model: ul.ModelIdentity, message: str) -> None:
    to_gguf(made(1, 3), tmp_path / "v.gguf")
    with pytest.raises(ul.IncompatibleModel, match=message):
        from_gguf(tmp_path / "v.gguf", model)


def test_a_thing_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ul.UnsupportedModel, match=r"builtins\.str was given"):
        from_gguf(write(tmp_path / "v.gguf", ones(1)), "org/model")


@pytest.mark.parametrize("architecture", [3, ["llama"]])
def test_an_architecture_that_is_no_name_is_refused(tmp_path: Path, architecture: Any) -> None:
    with unchecked(), pytest.raises(ul.InvalidInput, match=r"architecture=.* was given; give the model_type"):
        to_gguf(made(1), tmp_path / "v.gguf", architecture=architecture)
    assert list(tmp_path.iterdir()) == []


def described(**changes: Any) -> dict[str, Any]:
    """What stands in a file of ours, as JSON gives it back, with changes."""
    told = json.loads(json.dumps(made(1).description))
    told["content_hash"] = content_hash({"vectors": torch.from_numpy(ones(1)["direction.1"]).unsqueeze(0)})
    for name, value in changes.items():
        part, _, field = name.partition("__")
        told[part] = {**told[part], field: value} if field else value
    return told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__name": 5}, "has 5 under name in its description"),
        ({"model__n_layers": "5"}, "has '5' under n_layers in its description"),
        ({"model__basis": "foo"}, "has 'foo' under basis in its description"),
        ({"model__fingerprint": 5}, "has 5 under fingerprint in its description"),
        ({"provenance__n_prompts": "many"}, "has 'many' under n_prompts in its description"),
        ({"provenance__steps": [1]}, r"has \(1,\) under steps in its description"),
        ({"basis": "foo"}, "cannot be used: basis 'foo' was given"),
        ({"model": [1]}, "is not a readable GGUF file"),
    ],
)
def test_a_description_with_fields_of_wrong_types_is_refused(tmp_path: Path, changes: Any, message: str) -> None:
    file = write(tmp_path / "v.gguf", ones(1), unlock_lens__description=json.dumps(described(**changes)))
    with unchecked(), pytest.raises(ul.ArtifactError, match=r"v\.gguf " + message):
        from_gguf(file)


def test_a_description_without_changes_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "v.gguf", ones(1), unlock_lens__description=json.dumps(described()))
    assert (from_gguf(file).model, from_gguf(file).provenance) == (MODEL, TOLD)


def test_numbers_that_are_not_those_that_were_written_are_refused(tmp_path: Path) -> None:
    """One bit of a file of ours: its description would give a wrong direction a good name."""
    file = tmp_path / "v.gguf"
    to_gguf(made(1, 2), file)
    content = bytearray(file.read_bytes())
    at = content.rindex(made(1, 2).vectors[1].numpy().tobytes()[:28])
    content[at] ^= 1
    file.write_bytes(content)
    with pytest.raises(ul.ArtifactError, match=r"the numbers in .*v\.gguf are not those that were written"):
        from_gguf(file)


def quantized() -> tuple[Any, Any]:
    kind = gguf.GGMLQuantizationType.Q8_0
    return gguf.quants.quantize(np.ones(32, dtype=np.float32), kind), kind


NAN = {"direction.1": np.full(8, np.nan, dtype=np.float32)}
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda file: None, "there is no file"),
    "empty": (lambda file: file.write_bytes(b""), "is not a readable GGUF file"),
    "text": (lambda file: file.write_text("hello, this is not it"), r"is not a readable GGUF file \(GGUF magic invalid\)"),
    "a model": (lambda file: write(file, ones(1), kind="llama"), "is a GGUF of architecture 'llama'; a control vector has"),
    "no hint": (lambda file: write(file, ones(1), hint=None), "has None under controlvector.model_hint"),
    "no count": (lambda file: write(file, ones(1), count=None), "has None under controlvector.layer_count"),
    "missing layers": (lambda file: write(file, ones(1, 2), count=3), r"says that it holds 3 layers .*, and it holds 2"),
    "too many layers": (lambda file: write(file, ones(1, 2), count=1), r"says that it holds 1 layers .*, and it holds 2"),
    "no directions": (lambda file: write(file, {}), "holds no directions"),
    "another tensor": (
        lambda file: write(file, {**ones(1), "token_embd.weight": np.ones(8, np.float32)}),
        "'token_embd.weight'",
    ),
    "no number": (lambda file: write(file, {"direction.x": np.ones(8, np.float32)}), "holds a tensor 'direction.x'"),
    "a negative number": (lambda file: write(file, {"direction.-1": np.ones(8, np.float32)}), "holds a tensor 'direction.-1'"),
    "several lengths": (
        lambda file: write(file, {**ones(1), **ones(2, width=9)}),
        r"holds vectors of several lengths \(1: 8, 2: 9\)",
    ),
    "two dimensions": (
        lambda file: write(file, {"direction.1": np.ones((2, 8), np.float32)}),
        r"holds direction.1 of shape \[8, 2\]; a control vector has one dimension",
    ),
    "quantized": (lambda file: write(file, {"direction.1": quantized()}), "holds direction.1 as Q8_0; a control vector is F32"),
    "float64": (lambda file: write(file, {"direction.1": np.ones(8)}), "holds direction.1 as F64"),
    "not finite": (lambda file: write(file, NAN), "cannot be used: the vector of layer 1 is not finite"),
    "zero": (
        lambda file: write(file, {"direction.1": np.zeros(8, np.float32)}),
        "cannot be used: the vector of layer 1 is zero",
    ),
    "a description that is not JSON": (
        lambda file: write(file, ones(1), unlock_lens__description="layers"),
        "is not a readable GGUF file .*Expecting value",
    ),
    "a description that nests too deep": (
        lambda file: write(file, ones(1), unlock_lens__description="[" * 100000),
        "is not a readable GGUF file .*recursion",
    ),
    "a number too long": (
        lambda file: write(file, {"direction." + "9" * 50: np.ones(8, np.float32)}),
        "holds a tensor 'direction.9+",
    ),
    "a description of other layers": (
        lambda file: write(file, ones(1), unlock_lens__description='{"layers": [2]}'),
        r"holds layers \[1\], and its description tells \[2\]",
    ),
    "a description without a model": (
        lambda file: write(file, ones(1), unlock_lens__description='{"layers": [1]}'),
        "is not a readable GGUF file .*'provenance'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    spoil, message = BAD[name]
    spoil(tmp_path / "v.gguf")
    with pytest.raises(ul.ArtifactError, match=message) as caught:
        from_gguf(tmp_path / "v.gguf")
    assert "v.gguf" in str(caught.value)


def test_a_file_that_ends_early_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    file = write(tmp_path / "v.gguf", ones(1, 2))
    content = file.read_bytes()
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(ul.ArtifactError, match=r"v\.gguf"):
            from_gguf(file)
    file.write_bytes(content)
    assert from_gguf(file).layers == (1, 2)
