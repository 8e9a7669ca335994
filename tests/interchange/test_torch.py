"""Files of lm-evaluation-harness and steering-vectors: both ways, and never a pickled object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import unlock_lens as ul
from tests.checks import unchecked
from unlock_lens.interchange import from_lm_eval, from_steering_vectors, to_lm_eval, to_steering_vectors
from unlock_lens.interchange.lm_eval import BLOCKS

MODEL = ul.ModelIdentity("org/model", 5, 8, architecture="llama")
EXACT: dict[str, Any] = {"operation": "add", "positions": "all"}
Writer = Callable[..., None]
Reader = Callable[..., ul.CapabilityDirection]
BOTH = pytest.mark.parametrize(
    ("write", "read"), [(to_lm_eval, from_lm_eval), (to_steering_vectors, from_steering_vectors)], ids=["lm_eval", "vectors"]
)


def made(*layers: int) -> ul.CapabilityDirection:
    vectors = torch.randn(len(layers), 8, generator=torch.Generator().manual_seed(len(layers)))
    return ul.CapabilityDirection(vectors, layers, model=MODEL)


@dataclass
class SteeringVector:
    """As the steering-vectors library has it."""

    layer_activations: dict[int, torch.Tensor]
    layer_type: str = "decoder_block"


def entry(**changes: Any) -> dict[str, Any]:
    one = {"steering_vector": torch.ones(8), "steering_coefficient": 2.0, "action": "add", "bias": None, "head_index": None}
    return {**one, **changes}


@BOTH
def test_a_direction_comes_back_bit_by_bit(tmp_path: Path, write: Writer, read: Reader) -> None:
    write(made(0, 3), tmp_path / "v.pt")
    back = read(tmp_path / "v.pt")
    assert (back.layers, back.model) == ((0, 3), None)
    assert torch.equal(back.vectors, made(0, 3).vectors)
    assert read(tmp_path / "v.pt", MODEL).model == MODEL


@BOTH
def test_an_addition_to_all_tokens_is_written_exactly(tmp_path: Path, write: Writer, read: Reader) -> None:
    write(ul.SteeringHook(made(0, 1, 3), {0: 0.5, 3: -2.0}, layers=(0, 3), **EXACT), tmp_path / "v.pt")
    back = read(tmp_path / "v.pt")
    assert back.layers == (0, 3)
    assert torch.equal(back.vectors, torch.stack([0.5 * made(0, 1, 3).vectors[0], -2.0 * made(0, 1, 3).vectors[2]]))


@BOTH
def test_what_would_be_lost_is_refused_with_every_reason(tmp_path: Path, write: Writer, read: Reader) -> None:
    hook = ul.SteeringHook(made(0), 0.5)
    with pytest.raises(ul.InvalidInput, match='operation="norm_preserving": .*positions="last_prompt": .*lossy=True'):
        write(hook, tmp_path / "v.pt")
    with pytest.raises(ul.InvalidInput, match="ablation takes out depends on the token"):
        write(replace(hook, operation="ablate"), tmp_path / "v.pt", lossy=True)
    assert list(tmp_path.iterdir()) == []
    write(hook, tmp_path / "v.pt", norms=torch.tensor([4.0]), lossy=True)
    torch.testing.assert_close(read(tmp_path / "v.pt").vectors.norm(), torch.tensor(2.0))


@BOTH
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (replace(MODEL, d_model=9), r"holds vectors of length 8, and org/model"),
        (replace(MODEL, n_layers=3), r"has layers \[3\], and org/model .* 0 to 2"),
    ],
)
def test_a_model_that_it_does_not_fit_is_named(
    tmp_path: Path, write: Writer, read: Reader, model: ul.ModelIdentity, message: str
) -> None:
    write(made(1, 3), tmp_path / "v.pt")
    with pytest.raises(ul.IncompatibleModel, match=message):
        read(tmp_path / "v.pt", model)


@BOTH
def test_a_pickled_object_is_not_unpickled(tmp_path: Path, write: Writer, read: Reader) -> None:
    torch.save(SteeringVector({1: torch.ones(8)}), tmp_path / "v.pt")
    with pytest.raises(ul.ArtifactError, match="could run anything when it is read.* is not read; where it was made, save {"):
        read(tmp_path / "v.pt")


UNREADABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda file: None, "there is no file"),
    "empty": (lambda file: file.write_bytes(b""), "is not a readable file of torch.save"),
    "text": (lambda file: file.write_text("hello, this is not it"), "is not a readable file of torch.save"),
    "truncated": (lambda file: file.write_bytes(file.read_bytes()[:-100]), "is not a readable file of torch.save"),
    "a tensor": (lambda file: torch.save(torch.ones(8), file), "holds a Tensor; expected a dictionary: save {"),
    "nothing": (lambda file: torch.save({}, file), "v.pt"),
}


@BOTH
@pytest.mark.parametrize("name", UNREADABLE)
def test_files_that_are_none_are_refused(tmp_path: Path, write: Writer, read: Reader, name: str) -> None:
    spoil, message = UNREADABLE[name]
    if name == "truncated":
        write(made(1), tmp_path / "v.pt")
    spoil(tmp_path / "v.pt")
    with pytest.raises(ul.ArtifactError, match=message) as caught:
        read(tmp_path / "v.pt")
    assert "v.pt" in str(caught.value)


@pytest.mark.parametrize(("architecture", "point"), [("qwen2", "layers.3"), ("gpt2", "h.3"), ("opt", "decoder.layers.3")])
def test_blocks_are_named_as_the_architecture_has_them(tmp_path: Path, architecture: str, point: str) -> None:
    direction = replace(made(3), model=replace(MODEL, architecture=architecture))
    to_lm_eval(direction, tmp_path / "v.pt")
    content = torch.load(tmp_path / "v.pt", weights_only=True)
    assert list(content) == [point]
    vector = content[point].pop("steering_vector")
    assert torch.equal(vector, direction.vectors[0])
    assert content[point] == {"steering_coefficient": 1.0, "action": "add", "bias": None, "head_index": None}
    assert from_lm_eval(tmp_path / "v.pt").layers == (3,)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # GPTBigCode calls it
@pytest.mark.parametrize("architecture", BLOCKS)
def test_blocks_are_where_the_table_says(architecture: str) -> None:
    """As the harness looks for them, in a model without weights."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture))
    assert f"{BLOCKS[architecture]}.0" in dict(model.base_model.named_modules())


@pytest.mark.parametrize("architecture", [None, "mamba"])
def test_blocks_that_are_not_known_are_asked_for(tmp_path: Path, architecture: str | None) -> None:
    direction = replace(made(3), model=replace(MODEL, architecture=architecture))
    with pytest.raises(
        ul.InvalidInput, match=f'architecture {architecture!r} .* give blocks=.* "layers" in Llama, "h" in GPT-2'
    ):
        to_lm_eval(direction, tmp_path / "v.pt")
    to_lm_eval(direction, tmp_path / "v.pt", blocks="blocks")
    assert from_lm_eval(tmp_path / "v.pt").layers == (3,)


@pytest.mark.parametrize("blocks", ["language_model.layers", "model.decoder.layers", "transformer.h"])
def test_blocks_below_other_modules_come_back(tmp_path: Path, blocks: str) -> None:
    to_lm_eval(made(1, 3), tmp_path / "v.pt", blocks=blocks)
    assert list(torch.load(tmp_path / "v.pt", weights_only=True)) == [f"{blocks}.1", f"{blocks}.3"]
    assert torch.equal(from_lm_eval(tmp_path / "v.pt").vectors, made(1, 3).vectors)


def test_blocks_that_are_no_name_are_refused(tmp_path: Path) -> None:
    blocks: Any = 3
    with unchecked(), pytest.raises(ul.InvalidInput, match="blocks=3 was given; give the name of the module list"):
        to_lm_eval(made(1), tmp_path / "v.pt", blocks=blocks)


@BOTH
def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Writer, read: Reader
) -> None:
    def interrupted(content: Any, file: Path) -> None:
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    write(made(1), tmp_path / "v.pt")
    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(made(1, 2), tmp_path / "v.pt")
    assert [file.name for file in tmp_path.iterdir()] == ["v.pt"]
    assert torch.equal(read(tmp_path / "v.pt").vectors, made(1).vectors)


def test_lm_eval_reads_no_other_suffix(tmp_path: Path) -> None:
    with pytest.raises(ul.InvalidInput, match=r"v\.bin was given; .* end with \.pt or \.pth"):
        to_lm_eval(made(1), tmp_path / "v.bin")


def test_the_coefficient_is_taken_in_and_is_1_where_there_is_none(tmp_path: Path) -> None:
    without = entry()
    del without["steering_coefficient"], without["head_index"]
    torch.save({"layers.2": entry(), "layers.0": without}, tmp_path / "v.pt")
    assert torch.equal(from_lm_eval(tmp_path / "v.pt").vectors, torch.tensor([[1.0] * 8, [2.0] * 8]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"layers.3.mlp": entry()}, "steers 'layers.3.mlp'; a direction lives at the outputs of blocks"),
        ({"layers.1.self_attn.h.3": entry()}, "steers 'layers.1.self_attn.h.3'"),
        ({"layers." + "9" * 5000: entry()}, "steers 'layers.9+; a direction lives"),
        ({"layers.3": entry(steering_vector=torch.ones(8, dtype=torch.complex64))}, "steering_vector of layers.3 is a complex"),
        ({"layers.3": entry(steering_vector=torch.ones(8).to_sparse())}, "steering_vector of layers.3 is a sparse tensor"),
        (
            {"layers.3": entry(steering_coefficient=10**400)},
            "layers.3: steering_coefficient is a huge integer; a finite number",
        ),
        ({"layers.3": entry(steering_coefficient=float("nan"))}, "layers.3: steering_coefficient is nan; a finite number"),
        ({3: entry()}, "steers 3; a direction lives at the outputs of blocks"),
        ({"layers.3": torch.ones(8)}, "layers.3: there is no steering_vector"),
        ({"layers.3": {"action": "add"}}, "layers.3: there is no steering_vector"),
        (
            {"layers.3": entry(action="clamp")},
            "layers.3: the action is 'clamp'; a direction is what is added, and clamping sets",
        ),
        ({"layers.3": entry(head_index=2)}, "layers.3: head_index is 2; a direction acts on the whole residual stream"),
        ({"layers.3": entry(bias=torch.ones(8))}, 'layers.3: there is a bias, which belongs to the action "clamp"'),
        ({"layers.3": entry(steering_coefficient=float("inf"))}, "layers.3: steering_coefficient is inf; a finite number"),
        ({"layers.3": entry(steering_coefficient="2")}, "layers.3: steering_coefficient is '2'; a finite number"),
        ({"layers.3": entry(steering_vector=torch.ones(2, 8))}, r"cannot be used: .* shapes \{3: \(2, 8\)\}"),
        ({"layers.3": entry(), "layers.4": entry(steering_vector=torch.ones(9))}, r"several lengths \(3: 8, 4: 9\)"),
        ({"layers.3": entry(steering_vector=torch.full((8,), torch.nan))}, "the vector of layer 3 is not finite"),
        ({"layers.3": entry(), "h.3": entry()}, "has layer 3 twice, the second time as 'h.3'"),
    ],
)
def test_entries_of_lm_eval_that_are_no_directions_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "v.pt")
    with pytest.raises(ul.ArtifactError, match=message):
        from_lm_eval(tmp_path / "v.pt")


def test_the_file_for_steering_vectors_makes_its_object(tmp_path: Path) -> None:
    to_steering_vectors(made(1, 3), tmp_path / "v.pt")
    vector = SteeringVector(**torch.load(tmp_path / "v.pt", weights_only=True))
    assert (list(vector.layer_activations), vector.layer_type) == ([1, 3], "decoder_block")
    assert torch.equal(from_steering_vectors(vector).vectors, made(1, 3).vectors)
    assert from_steering_vectors(vars(vector), MODEL).model == MODEL


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (SteeringVector({1: torch.ones(8)}, "mlp"), "layer type 'mlp'; a direction lives at the outputs of whole blocks"),
        ({"layer_activations": {1: torch.ones(8)}}, "layer type None"),
        (torch.ones(8), "the Tensor that was given has no layer_activations"),
        ({"layer_activations": {-1: torch.ones(8)}, "layer_type": "decoder_block"}, "has -1: Tensor; layers counted from 0"),
        ({"layer_activations": {1: [1.0]}, "layer_type": "decoder_block"}, "has 1: list; layers counted from 0"),
        (SteeringVector({}), "holds no vectors"),
        (SteeringVector({1: torch.ones(8), 2: torch.ones(9)}), r"several lengths \(1: 8, 2: 9\)"),
        (SteeringVector({1: torch.ones(1, 8)}), r"shapes \{1: \(1, 8\)\}"),
        (SteeringVector({1: torch.zeros(8)}), "the vector of layer 1 is zero"),
        (SteeringVector({1: torch.ones(8, dtype=torch.complex64)}), "the vector of layer 1 is a complex tensor"),
        (SteeringVector({1: torch.ones(8).to_sparse()}), "the vector of layer 1 is a sparse tensor"),
    ],
)
def test_steering_vectors_that_are_no_directions_are_refused(tmp_path: Path, given: Any, message: str) -> None:
    with pytest.raises(ul.InvalidInput, match=message):
        from_steering_vectors(given)
    if isinstance(given, SteeringVector):
        torch.save(vars(given), tmp_path / "v.pt")
        with pytest.raises(ul.ArtifactError, match=r"v\.pt cannot be used: .*" + message):
            from_steering_vectors(tmp_path / "v.pt")


def test_layers_of_zeros_are_left_out(tmp_path: Path) -> None:
    vector = SteeringVector({0: torch.zeros(8), 1: torch.ones(8)})
    assert from_steering_vectors(vector).layers == (1,)
    torch.save({"layers.0": entry(steering_coefficient=0.0), "layers.1": entry()}, tmp_path / "v.pt")
    assert from_lm_eval(tmp_path / "v.pt").layers == (1,)
