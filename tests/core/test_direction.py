"""Extraction's inputs and a direction's algebra; that extraction is the formula, tests/hosts/test_oracle.py shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import unlock_lens as ul
from tests.checks import unchecked
from unlock_lens import zoo
from unlock_lens.core import differences, read
from unlock_lens.hosts.identity import ModelIdentity
from unlock_lens.method.extract import mean, pca

TASK = zoo.running_sum(n=12, seed=3)


def make(seed: int, layers: tuple[int, ...] = (0, 1, 2), d_model: int = 8, **more: Any) -> ul.CapabilityDirection:
    vectors = torch.randn(len(layers), d_model, generator=torch.Generator().manual_seed(seed))
    return ul.CapabilityDirection(vectors, layers, **more)


@given(st.integers(0, 1000), st.floats(-3, 3).filter(lambda x: abs(x) > 0.01))
def test_algebra(seed: int, factor: float) -> None:
    a, b = make(seed), make(seed + 1)
    torch.testing.assert_close((a + b).vectors, a.vectors + b.vectors)
    torch.testing.assert_close((a - b).vectors, a.vectors - b.vectors)
    torch.testing.assert_close((factor * a).vectors, (a * factor).vectors)
    torch.testing.assert_close((-a).vectors, -a.vectors)
    sign = torch.ones(3) if factor > 0 else -torch.ones(3)
    torch.testing.assert_close((factor * a).cosine(a), sign)
    torch.testing.assert_close(a.cosine(b), torch.cosine_similarity(a.vectors, b.vectors, dim=1))


def test_layers_are_chosen_by_their_number() -> None:
    a = make(0, layers=(1, 4, 6))
    assert torch.equal(a.at_layers([6, 1]).vectors, a.vectors[[0, 2]])
    with pytest.raises(ul.InvalidInput, match=r"layers \[5\] were requested; this direction has \[1, 4, 6\]"):
        a.at_layers([5])


@pytest.mark.parametrize(
    "other",
    [make(1, layers=(0, 1, 3)), make(1, d_model=6), make(1, basis="zero_mean"), make(1, model=ModelIdentity("b", 3, 8))],
    ids=["layers", "width", "basis", "model"],
)
def test_only_directions_of_one_space_combine(other: ul.CapabilityDirection) -> None:
    own = make(0, model=ModelIdentity("a", 3, 8))
    for combine in (own.__add__, own.__sub__, own.cosine):
        with pytest.raises(ul.IncompatibleModel, match="directions"):
            combine(other)


def test_vectors_that_mean_nothing_are_refused() -> None:
    vectors = torch.ones(2, 4)
    vectors[1, 2] = float("nan")
    with pytest.raises(ul.InvalidInput, match="vector of layer 7 is not finite"):
        ul.CapabilityDirection(vectors, (3, 7))
    with pytest.raises(ul.InvalidInput, match="vector of layer 7 is zero; if locked and unlocked do not differ there"):
        ul.CapabilityDirection(torch.tensor([[1.0, 0], [0, 0]]), (3, 7))
    with pytest.raises(ul.InvalidInput, match=r"2 layers and vectors of shape \(3, 4\)"):
        ul.CapabilityDirection(torch.ones(3, 4), (0, 1))


@pytest.mark.parametrize("layers", [(), (-1,), (1, 1), (2, 1)])
def test_layers_that_mean_nothing_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(ul.InvalidInput, match="at least one, ascending, without repetition"):
        ul.CapabilityDirection(torch.ones(len(layers), 4), layers)


def test_numbers_of_other_libraries_are_numbers(small: Any, tmp_path: Any) -> None:
    layers: Any = np.arange(1, 3)
    with unchecked():
        direction = ul.CapabilityDirection.extract(ul.Variant(small, TASK.direct), ul.Variant(small, TASK.think), layers=layers)
    direction.save(tmp_path / "d")
    assert ul.CapabilityDirection.load(tmp_path / "d").layers == (1, 2)


def test_pca_turns_towards_the_mean_and_needs_variation() -> None:
    differences = torch.tensor([[-1.0, 0.1], [-3.0, 0.1], [-2.0, 0.1]])
    torch.testing.assert_close(pca(differences), torch.tensor([-1.0, 0.0]))
    with pytest.raises(ul.InvalidInput, match="differences that vary between prompts"):
        pca(torch.ones(3, 4))


def test_identical_prompts_have_no_direction(small: Any) -> None:
    with pytest.raises(ul.InvalidInput, match="are the same tokens to this model"):
        ul.CapabilityDirection.extract(ul.Variant(small, TASK.direct), ul.Variant(small, TASK.direct))


def test_a_layer_at_which_nothing_differs_has_no_direction() -> None:
    with pytest.raises(ul.InvalidInput, match="vector of layer 4 is zero; if locked and unlocked do not differ there"):
        ul.CapabilityDirection(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), (3, 4))


def test_extract_refuses_before_it_runs_a_model(small: Any, large: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(type(small), "run_with_hooks", never)
    locked, unlocked = ul.Variant(small, TASK.direct), ul.Variant(small, TASK.think)
    extract = ul.CapabilityDirection.extract
    with pytest.raises(ul.InvalidInput, match="12 locked and 3 unlocked prompts"):
        extract(locked, ul.Variant(small, TASK.think[:3]))
    with pytest.raises(ul.IncompatibleModel, match=r"locked is small-base \(3 layers.*unlocked is large-base \(4 layers"):
        extract(locked, ul.Variant(large, TASK.think))
    for layers in ([3], [-1], [], [1, 1]):
        with pytest.raises(ul.InvalidInput, match="choose different ones from 0 to 2"):
            extract(locked, unlocked, layers=layers)
    with pytest.raises(ul.InvalidInput, match=r"position -20 .* has 9 tokens; every prompt needs 20"):
        extract(locked, unlocked, position=-20)
    with pytest.raises(ul.InvalidInput, match="position 9 .* every prompt needs 10"):
        extract(locked, unlocked, position=9)
    with unchecked(), pytest.raises(ul.InvalidInput, match='no aggregate \'median\'; use "mean", "pca", or a function'):
        extract(locked, unlocked, aggregate="median")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ul.InvalidInput, match="batch_size 0"):
        extract(locked, unlocked, batch_size=0)


def test_states_that_are_not_finite_are_named(small: Any) -> None:
    """The layer where it begins, and a prompt that has it."""
    locked, unlocked = ul.Variant(small, TASK.direct), ul.Variant(small, TASK.think)

    def spoil(residual: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.where(torch.tensor(True), torch.full_like(residual, float("nan")), residual)

    with small.hooks(fwd_hooks=[("blocks.1.hook_resid_post", spoil)]):
        with pytest.raises(ul.InvalidInput, match=r"small-base is not finite at layer 1, prompt \d+ \('Q "):
            ul.CapabilityDirection.extract(locked, unlocked)


def test_batch_size_does_not_change_the_direction(small: Any) -> None:
    extract = ul.CapabilityDirection.extract
    found = [extract(ul.Variant(small, TASK.direct), ul.Variant(small, TASK.think), batch_size=b).vectors for b in (1, 5, 12)]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5)


def test_provenance_tells_how_it_was_made(small: Any) -> None:
    direction = ul.CapabilityDirection.extract(
        ul.Variant(small, TASK.direct), ul.Variant(small, TASK.think), aggregate="pca", position=-2
    )
    told = direction.provenance
    assert (told.aggregate, told.position, told.n_prompts) == ("pca", -2, 12)
    assert told.locked_hash == ul.Variant(small, TASK.direct).prompts_hash != told.unlocked_hash
    assert direction.model == told.unlocked_model
    assert (2 * direction - direction).provenance.steps == ("times 2", "added to another direction")


def test_centering_is_idempotent_and_takes_the_mean_out() -> None:
    centered = make(0, model=ModelIdentity("a", 3, 8, fingerprint="f")).zero_mean()
    torch.testing.assert_close(centered.vectors.mean(dim=1), torch.zeros(3), atol=1e-7, rtol=0)
    assert centered.zero_mean() is centered
    assert centered.model == ModelIdentity("a", 3, 8, basis="zero_mean")


def test_directions_are_frozen() -> None:
    with pytest.raises(AttributeError):
        make(0).layers = (1,)  # pyright: ignore[reportAttributeAccessIssue]


def test_the_basis_is_one_of_two() -> None:
    with unchecked(), pytest.raises(ul.InvalidInput, match="basis 'foo' was given; use raw or zero_mean"):
        ul.CapabilityDirection(torch.ones(1, 4), (0,), basis="foo")  # pyright: ignore[reportArgumentType]


def test_prompts_that_are_the_same_tokens_are_reported(small: Any) -> None:
    """Words that the tokenizer does not know are one token: text differs, and nothing that the model reads."""
    locked, unlocked = ul.Variant(small, ["Q 1 slowly A :"]), ul.Variant(small, ["Q 1 carefully A :"])
    with pytest.raises(
        ul.InvalidInput, match="are the same tokens to this model, .* for 'Q 1 carefully A :'; give prompts that"
    ):
        ul.CapabilityDirection.extract(locked, unlocked, progress=False)


def test_a_layer_is_not_a_list_of_layers(small: Any) -> None:
    locked, unlocked = ul.Variant(small, ["Q 1 A :"]), ul.Variant(small, ["Q 1 think A :"])
    with unchecked(), pytest.raises(ul.InvalidInput, match=r"layers=1 was given; give a list, layers=\[1\]"):
        ul.CapabilityDirection.extract(locked, unlocked, layers=1)  # pyright: ignore[reportArgumentType]


def test_arithmetic_that_leaves_nothing_is_reported() -> None:
    a = ul.CapabilityDirection(torch.eye(2, 8), (0, 3))
    for empty in (lambda: a - a, lambda: 0 * a):
        with pytest.raises(ul.InvalidInput, match=r"zero at layers \[0, 3\]"):
            empty()


def test_the_prompt_whose_state_is_not_finite_is_named(small: Any) -> None:
    """It stands second in a batch that begins with the longest."""
    texts = ["Q 3 A :", "Q 3 1 4 A :", "W"]

    def spoil(residual: torch.Tensor, hook: Any) -> torch.Tensor:
        spoiled = residual.clone()
        spoiled[1] = torch.nan
        return spoiled

    with small.hooks(fwd_hooks=[("blocks.1.hook_resid_post", spoil)]), pytest.raises(ul.InvalidInput, match="prompt 0"):
        read.at_all_tokens(ul.Variant(small, texts))


def test_two_models_are_read_each_at_the_end_of_its_own_prompts(small: Any) -> None:
    locked, unlocked = ul.Variant(small, TASK.direct), ul.Variant(zoo.load("small-post"), TASK.think)
    expected = (read.at_position(unlocked) - read.at_position(locked)).mean(dim=1)
    torch.testing.assert_close(ul.CapabilityDirection.extract(locked, unlocked).vectors, expected)


def test_a_direction_is_read_at_the_token_that_is_asked_for(small: Any) -> None:
    locked, unlocked = ul.Variant(small, TASK.direct), ul.Variant(small, TASK.think)
    there = [read.at_position(variant, position=-2) for variant in (locked, unlocked)]
    expected = (there[1] - there[0]).mean(dim=1)
    torch.testing.assert_close(ul.CapabilityDirection.extract(locked, unlocked, position=-2).vectors, expected)
    torch.testing.assert_close(differences.mean_state(locked, position=-2).float(), there[0].mean(dim=1))


def test_a_mean_is_summed_in_float64() -> None:
    assert mean(torch.tensor([[2.0**24], [1.0], [1.0], [-(2.0**24)]])).tolist() == [0.5]
