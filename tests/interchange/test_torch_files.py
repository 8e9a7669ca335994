"""Tensors, and the files of lm-evaluation-harness and steering-vectors: what is a direction, and never a pickled object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import unlock_lens as ul
from tests.checks import unchecked
from tests.interchange.test_common import MODEL, made
from unlock_lens.interchange import from_lm_eval, from_steering_vectors, from_tensors, to_lm_eval, to_steering_vectors

ONES = torch.ones(8)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "v.pt"


@dataclass
class SteeringVector:
    """As the steering-vectors library has it."""

    layer_activations: Any
    layer_type: str = "decoder_block"


def entry(**changes: Any) -> dict[str, Any]:
    one = {"steering_vector": ONES, "steering_coefficient": 2.0, "action": "add", "bias": None, "head_index": None}
    return {**one, **changes}


def vectors_of_entries(vectors: dict[Any, Any], file: Path) -> ul.CapabilityDirection:
    torch.save({f"layers.{layer}": entry(steering_vector=vector) for layer, vector in vectors.items()}, file)
    return from_lm_eval(file)


def vectors_of_a_file(vectors: dict[Any, Any], file: Path) -> ul.CapabilityDirection:
    torch.save(vars(SteeringVector(vectors)), file)
    return from_steering_vectors(file)


READERS: dict[str, Callable[[dict[Any, Any], Path], ul.CapabilityDirection]] = {
    "tensors": lambda vectors, file: from_tensors(vectors),
    "lm-eval": vectors_of_entries,
    "an object": lambda vectors, file: from_steering_vectors(SteeringVector(vectors)),
    "steering-vectors": vectors_of_a_file,
}
UNFIT: list[tuple[dict[Any, Any], str]] = [
    ({}, r"\{\}"),
    ({"x": ONES}, "x'"),
    ({-1: ONES}, "-1"),
    ({"9" * 5000: ONES}, "9999"),
    ({3: [1.0, 2.0]}, "list"),
    ({3: torch.ones(1, 8)}, r"\{3: \[1, 8\]\}"),
    ({3: ONES, 4: torch.ones(9)}, r"3: \[8\], 4: \[9\]"),
    ({3: torch.zeros(8)}, "layer 3.*zero"),
    ({3: torch.full((8,), torch.nan)}, "layer 3.*finite"),
    ({3: ONES.to(torch.complex64)}, "3'?.*complex"),
    ({3: ONES.to_sparse()}, "3'?.*sparse"),
]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("vectors", "keyword"), UNFIT)
def test_vectors_that_are_not_a_direction_are_refused(file: Path, reader: str, vectors: dict[Any, Any], keyword: str) -> None:
    in_file = reader in ("lm-eval", "steering-vectors")
    with unchecked(), pytest.raises(ul.ArtifactError if in_file else ul.InvalidInput, match=keyword) as caught:
        READERS[reader](vectors, file)
    assert ("v.pt" in str(caught.value)) == in_file


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")  # deprecated, but files have them
def test_tensors_must_be_in_memory_dense_and_exact() -> None:
    kinds = {
        "meta": torch.ones(4, device="meta"),
        "quantized": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
        "nested": torch.nested.nested_tensor([torch.ones(4), torch.ones(3)], layout=torch.jagged),
    }
    for kind, tensor in kinds.items():
        with pytest.raises(ul.InvalidInput, match=kind):
            from_tensors({3: tensor})


@pytest.mark.parametrize(
    "name", ["{}", "blocks.{}.hook_resid_post", "direction.{}", "layers.{}", "blocks.{}.hook_out", "model.layers.{}.output"]
)
def test_names_tell_the_layer(name: str) -> None:
    vectors = torch.eye(8)[:2]
    direction = from_tensors({name.format(3): vectors[1], name.format(0): vectors[0]}, MODEL, basis="zero_mean")
    assert (direction.layers, direction.basis) == ((0, 3), "zero_mean")
    assert torch.equal(direction.vectors, vectors)
    assert direction.model == replace(MODEL, basis="zero_mean", fingerprint=None)


@pytest.mark.parametrize(
    "name",
    [
        True,
        "last",
        "direction.-1",
        "blocks.3.head.2",
        "blocks.3.hook_resid_pre",
        "model.layers.3.mlp.down_proj",
        "layers.1.self_attn.o_proj",
    ],
)
def test_names_of_other_things_are_refused(name: Any) -> None:
    with pytest.raises(ul.InvalidInput, match=f"{name}.*output of a block"):
        from_tensors({name: ONES})


def test_numbers_are_layers_and_arrays_are_vectors() -> None:
    direction = from_tensors({2: np.ones(4), 1: torch.full((4,), 2.0, dtype=torch.float16)})
    assert torch.equal(direction.vectors, torch.tensor([[2.0] * 4, [1.0] * 4]))
    assert (direction.layers, direction.model, direction.basis) == ((1, 2), None, "raw")


@pytest.mark.parametrize("array", [np.arange(4.0)[::-1], np.arange(3, -1, -1, dtype=">f4"), np.array([3, 2, 1, 0])])
def test_arrays_may_be_views_or_of_other_types(array: Any) -> None:
    assert torch.equal(from_tensors({1: array}).vectors, torch.tensor([[3.0, 2.0, 1.0, 0.0]]))


@pytest.mark.parametrize(
    ("tensors", "keyword"),
    [
        ({3: ONES, "layers.3": ONES}, "layers.3.*twice|twice.*layers.3"),
        ({3: np.array([1.0, None])}, "object"),
        ({3: np.ones(4, dtype=np.complex64)}, "complex"),
        ([ONES], "list"),
    ],
)
def test_dictionaries_that_are_not_a_direction_are_refused(tensors: Any, keyword: str) -> None:
    with unchecked(), pytest.raises(ul.InvalidInput, match=keyword):
        from_tensors(tensors)


def test_tensors_of_another_model_are_refused() -> None:
    for vectors in ({0: torch.ones(4)}, {5: ONES}):
        with pytest.raises(ul.IncompatibleModel, match="org/model"):
            from_tensors(vectors, MODEL)


@pytest.mark.parametrize("read", [from_lm_eval, from_steering_vectors])
def test_a_pickled_object_is_not_unpickled(file: Path, read: Callable[..., Any]) -> None:
    torch.save(SteeringVector({1: ONES}), file)
    with pytest.raises(ul.ArtifactError, match="pickled.*save {"):
        read(file)


@pytest.mark.parametrize(
    ("architecture", "point"), [("qwen2", "layers.3"), ("gpt2", "h.3"), ("opt", "decoder.layers.3"), ("mpt", "blocks.3")]
)
def test_blocks_are_named_as_transformers_has_them(file: Path, architecture: str, point: str) -> None:
    direction = made(3, model=replace(MODEL, architecture=architecture))
    to_lm_eval(direction, file)
    content = torch.load(file, weights_only=True)
    assert list(content) == [point]
    assert torch.equal(content[point].pop("steering_vector"), direction.vectors[0])
    assert content[point] == {"steering_coefficient": 1.0, "action": "add", "bias": None, "head_index": None}
    assert from_lm_eval(file).layers == (3,)


@pytest.mark.parametrize("architecture", [None, "nobody_knows", "t5"])
@pytest.mark.parametrize("blocks", [None, 3])
def test_blocks_that_are_not_known_are_asked_for(file: Path, architecture: str | None, blocks: Any) -> None:
    direction = made(3, model=replace(MODEL, architecture=architecture))
    with unchecked(), pytest.raises(ul.InvalidInput, match=f"{architecture}.*blocks="):
        to_lm_eval(direction, file, blocks=blocks)


@pytest.mark.parametrize("blocks", ["blocks", "language_model.layers", "model.decoder.layers", "transformer.h"])
def test_given_blocks_come_back(file: Path, blocks: str) -> None:
    to_lm_eval(made(1, 3, model=None), file, blocks=blocks)
    assert list(torch.load(file, weights_only=True)) == [f"{blocks}.1", f"{blocks}.3"]
    assert torch.equal(from_lm_eval(file).vectors, made(1, 3).vectors)


def test_lm_eval_reads_no_other_suffix(tmp_path: Path) -> None:
    with pytest.raises(ul.InvalidInput, match=r"v\.bin.*\.pth"):
        to_lm_eval(made(1), tmp_path / "v.bin")


def test_the_coefficient_is_taken_in_and_is_1_where_there_is_none(file: Path) -> None:
    without = entry()
    del without["steering_coefficient"], without["head_index"]
    torch.save({"layers.2": entry(), "layers.0": without}, file)
    assert torch.equal(from_lm_eval(file).vectors, torch.tensor([[1.0] * 8, [2.0] * 8]))


@pytest.mark.parametrize(
    ("content", "keyword"),
    [
        (ONES, "AttributeError"),
        ({"layers.3.mlp": entry()}, r"layers\.3\.mlp"),
        ({"layers.1.self_attn.h.3": entry()}, r"self_attn"),
        ({"altup_projections.0": entry()}, "altup_projections"),
        ({3: entry()}, "'3'"),
        ({"layers.3": ONES}, "steering_vector"),
        ({"layers.3": {"action": "add"}}, "steering_vector"),
        ({"layers.3": entry(action="clamp")}, "clamp"),
        ({"layers.3": entry(head_index=2)}, "head_index 2"),
        ({"layers.3": entry(bias=ONES)}, "a bias"),
        ({"layers.3": entry(steering_coefficient=10**400)}, "steering_coefficient.*huge"),
        ({"layers.3": entry(steering_coefficient=float("nan"))}, "steering_coefficient.*nan"),
        ({"layers.3": entry(steering_coefficient=float("inf"))}, "steering_coefficient.*inf"),
        ({"layers.3": entry(steering_coefficient="2")}, "steering_coefficient.*'2'"),
        ({"layers.3": entry(), "h.3": entry()}, r"twice.*h\.3"),
    ],
)
def test_entries_of_lm_eval_that_are_not_directions_are_refused(file: Path, content: Any, keyword: str) -> None:
    torch.save(content, file)
    with pytest.raises(ul.ArtifactError, match=rf"v\.pt.*{keyword}"):
        from_lm_eval(file)


def test_the_file_for_steering_vectors_makes_its_object(file: Path) -> None:
    to_steering_vectors(made(1, 3), file)
    vector = SteeringVector(**torch.load(file, weights_only=True))
    assert (list(vector.layer_activations), vector.layer_type) == ([1, 3], "decoder_block")
    assert torch.equal(from_steering_vectors(vector).vectors, made(1, 3).vectors)
    assert from_steering_vectors(vars(vector), MODEL).model == MODEL


@pytest.mark.parametrize(
    ("given", "keyword"),
    [
        (SteeringVector({1: ONES}, "mlp"), "layer type 'mlp'"),
        ({"layer_activations": {1: ONES}}, "layer type None"),
        (ONES, "layer_activations"),
    ],
)
def test_steering_vectors_that_are_not_directions_are_refused(file: Path, given: Any, keyword: str) -> None:
    with pytest.raises(ul.InvalidInput, match=keyword):
        from_steering_vectors(given)
    torch.save(vars(given) if isinstance(given, SteeringVector) else given, file)
    with pytest.raises(ul.ArtifactError, match=r"v\.pt.*" + keyword):
        from_steering_vectors(file)


def test_layers_of_zeros_are_left_out(file: Path) -> None:
    assert from_steering_vectors(SteeringVector({0: torch.zeros(8), 1: ONES})).layers == (1,)
    torch.save({"layers.0": entry(steering_coefficient=0.0), "layers.1": entry()}, file)
    assert from_lm_eval(file).layers == (1,)
