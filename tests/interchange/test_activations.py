"""Directions and states of tensors and ActivationCaches are those that the library itself makes of the same prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import unlock_lens as ul
from tests.checks import unchecked
from unlock_lens import zoo
from unlock_lens.core import read
from unlock_lens.interchange import from_caches, from_tensors, states

MODEL = ul.ModelIdentity("org/model", 5, 4)
TASK = zoo.running_sum(n=6)
UNEVEN = ["Q 3 1 A :", "Q 5 think A : S 5 5", "Q 6 6 6 6 1 2 3 rev A :"]


def run(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None, **more: Any) -> Any:
    return model.run_with_cache(ids, attention_mask=mask, **more)[1]


def cache_of(*layers: int, prompts: int = 2, tokens: int = 3, width: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {f"blocks.{layer}.hook_resid_post": torch.randn(prompts, tokens, width, generator=random) for layer in layers}


@pytest.mark.parametrize(
    "name", ["{}", "blocks.{}.hook_resid_post", "direction.{}", "layers.{}", "blocks.{}.hook_out", "model.layers.{}.output"]
)
def test_names_tell_the_layer(name: str) -> None:
    vectors = torch.eye(4)[:2]
    direction = from_tensors({name.format(3): vectors[1], name.format(0): vectors[0]}, MODEL, basis="centered")
    assert (direction.layers, direction.basis) == ((0, 3), "centered")
    assert torch.equal(direction.vectors, vectors)
    assert direction.model == replace(MODEL, basis="centered")


def test_numbers_are_layers_and_arrays_are_vectors() -> None:
    direction = from_tensors({2: np.ones(4), 1: torch.full((4,), 2.0, dtype=torch.float16)})
    assert torch.equal(direction.vectors, torch.tensor([[2.0] * 4, [1.0] * 4]))
    assert (direction.layers, direction.model, direction.basis) == ((1, 2), None, "raw")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "the dictionary that was given holds no vectors"),
        ({"last": torch.ones(4)}, "'last' is not the output of a block; give the layer's number .* direction.3 or layers.3"),
        ({"blocks.3.head.2": torch.ones(4)}, "'blocks.3.head.2' is not the output of a block"),
        ({-1: torch.ones(4)}, "-1 is not the output of a block; give the layer's number from 0"),
        ({True: torch.ones(4)}, "True is not the output of a block"),
        ({"blocks.3.hook_resid_pre": torch.ones(4)}, "'blocks.3.hook_resid_pre' is not the output of a block"),
        ({"model.layers.3.mlp.down_proj": torch.ones(4)}, "'model.layers.3.mlp.down_proj' is not the output of a block"),
        ({"layers.1.self_attn.o_proj": torch.ones(4)}, "'layers.1.self_attn.o_proj' is not the output of a block"),
        ({"layers." + "9" * 5000: torch.ones(4)}, "'layers.9+ is not the output of a block"),
        ({3: torch.ones(4), "layers.3": torch.ones(4)}, "layer 3 was given twice, the second time as 'layers.3'"),
        ({3: [1.0, 2.0]}, "a list was given for 3; give a tensor"),
        ({3: torch.ones(1, 4)}, r"tensors of shapes \{3: \(1, 4\)\}; one vector \[d_model\] is needed"),
        ({3: torch.ones(4), 4: torch.ones(5)}, r"several lengths \(3: 4, 4: 5\)"),
        ({3: torch.zeros(4)}, "the vector of layer 3 is zero"),
        ({3: torch.full((4,), torch.nan)}, "the vector of layer 3 is not finite"),
        ({3: np.array([1.0, None])}, "an array of object was given for 3; give numbers"),
        ({3: np.ones(4, dtype=np.complex64)}, "the vector of 3 is a complex tensor"),
        ([torch.ones(4)], r"a list was given; give a dictionary \{layer: vector \[d_model\]\}"),
    ],
)
def test_tensors_that_are_no_direction_are_refused(tensors: Any, message: str) -> None:
    with unchecked(), pytest.raises(ul.InvalidInput, match=message):
        from_tensors(tensors)


@pytest.mark.parametrize("array", [np.arange(4.0)[::-1], np.arange(3, -1, -1, dtype=">f4"), np.array([3, 2, 1, 0])])
def test_arrays_may_be_views_or_of_other_types(array: Any) -> None:
    assert torch.equal(from_tensors({1: array}).vectors, torch.tensor([[3.0, 2.0, 1.0, 0.0]]))


NOT_REAL = {
    "sparse": torch.ones(4).to_sparse(),
    "meta": torch.ones(4, device="meta"),
    "complex": torch.ones(4, dtype=torch.complex64),
}


@pytest.mark.parametrize("kind", NOT_REAL)
def test_numbers_must_be_real_and_at_hand(kind: str) -> None:
    with pytest.raises(ul.InvalidInput, match=f"the vector of 'layers.3' is a {kind} tensor; give a dense tensor of real"):
        from_tensors({"layers.3": NOT_REAL[kind]})


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")  # deprecated, but files have them
def test_quantized_and_nested_tensors_are_refused() -> None:
    quantized = torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)
    with pytest.raises(ul.InvalidInput, match="the vector of 3 is a quantized tensor"):
        from_tensors({3: quantized})
    nested = torch.nested.nested_tensor([torch.ones(4), torch.ones(3)], layout=torch.jagged)
    with pytest.raises(ul.InvalidInput, match="the vector of 3 is a nested tensor"):
        from_tensors({3: nested})


def test_tensors_of_another_model_are_refused() -> None:
    with pytest.raises(ul.IncompatibleModel, match="vectors of length 8, and org/model"):
        from_tensors({0: torch.ones(8)}, MODEL)
    with pytest.raises(ul.IncompatibleModel, match=r"has layers \[5\], and org/model .* 0 to 4"):
        from_tensors({5: torch.ones(4)}, MODEL)


@pytest.mark.parametrize("aggregate", ["mean", "pca", lambda differences: differences.median(dim=0).values])
@pytest.mark.parametrize("position", [-1, -3, 7])
def test_caches_give_the_direction_that_extract_gives(small: Any, aggregate: Any, position: int) -> None:
    locked, unlocked = ul.Variant(small, TASK.direct), ul.Variant(small, TASK.think)
    found = from_caches(run(small, locked.tokens.ids), run(small, unlocked.tokens.ids), position, aggregate=aggregate)
    wanted = ul.CapabilityDirection.extract(locked, unlocked, aggregate, position=position)
    torch.testing.assert_close(found.vectors, wanted.vectors, atol=1e-4, rtol=1e-4)
    assert (found.layers, found.model, found.basis) == (wanted.layers, wanted.model, wanted.basis)
    for name in ("aggregate", "position", "n_prompts", "unlocked_model"):
        assert getattr(found.provenance, name) == getattr(wanted.provenance, name)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("position", [-1, -4, 0, 3])
def test_tokens_are_counted_without_padding_on_either_side(small: Any, side: str, position: int) -> None:
    variant = ul.Variant(small, UNEVEN)
    cache, mask = padded(small, variant, side)
    other = ul.Variant(small, TASK.think[:3])
    found = from_caches(cache, run(small, other.tokens.ids), position, locked_mask=mask, unlocked_mask=other.tokens.mask)
    wanted = read.at_position(other, position=position) - read.at_position(variant, position=position)
    torch.testing.assert_close(found.vectors, wanted.mean(dim=1), atol=1e-4, rtol=1e-4)


def padded(model: Any, variant: ul.Variant, side: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Each prompt run alone, so that padding has no effect on it, and written to its place in a batch of noise."""
    ids, lengths = variant.tokens.ids, variant.tokens.lengths.tolist()
    n_tokens = ids.shape[1]
    cache = cache_of(0, 1, 2, prompts=len(lengths), tokens=n_tokens, width=model.cfg.d_model)
    mask = torch.zeros(len(lengths), n_tokens, dtype=torch.long)
    for row, length in enumerate(lengths):
        where = slice(n_tokens - length, None) if side == "left" else slice(0, length)
        mask[row, where] = 1
        alone = run(model, ids[row : row + 1, n_tokens - length :])
        for name, held in cache.items():
            held[row, where] = alone[name][0]
    return cache, mask


def test_states_are_those_of_all_tokens_but_padding(small: Any) -> None:
    variant = ul.Variant(small, UNEVEN)
    cache, mask = padded(small, variant, "left")
    torch.testing.assert_close(states(cache, mask), read.at_all_tokens(variant), atol=1e-4, rtol=1e-4)
    assert states(cache).shape == (3, mask.numel(), 64)


def test_an_aligner_fits_to_states_of_caches(small: Any, large: Any) -> None:
    tokens = ul.Variant(small, zoo.text(n=20)).tokens
    of_large, of_small = (states(run(model, tokens.ids), tokens.mask) for model in (large, small))
    aligner = ul.SubspaceAligner(8, centered=True).fit_activations(of_large, of_small)
    assert of_large.shape[1] == int(tokens.mask.sum()) == aligner.n_tokens


def test_a_cache_of_some_layers_gives_a_direction_of_these(small: Any) -> None:
    wanted: Any = {"names_filter": lambda name: name in ("blocks.0.hook_resid_post", "blocks.2.hook_resid_post")}
    ids = [ul.Variant(small, prompts).tokens.ids for prompts in (TASK.direct, TASK.think)]
    caches = [run(small, one, **wanted) for one in ids]
    assert from_caches(*caches).layers == (0, 2)
    with pytest.raises(ul.InvalidInput, match=r"no blocks\.L\.hook_resid_post for layers \[1\]; .*names_filter=lambda name"):
        states(caches[0])
    last = run(small, ids[0], names_filter=lambda name: name == "blocks.0.hook_resid_post")
    with pytest.raises(ul.InvalidInput, match=r"for layers \[1, 2\]"):
        states(last)


def test_a_prompt_without_batch_dimension_is_one_prompt(small: Any) -> None:
    ids = [ul.Variant(small, prompts[:1]).tokens.ids for prompts in (TASK.direct, TASK.think)]
    with_batch = [run(small, one) for one in ids]
    without = [run(small, one, remove_batch_dim=True) for one in ids]
    assert torch.equal(from_caches(*without).vectors, from_caches(*with_batch).vectors)


def test_dictionaries_are_of_no_known_model_unless_it_is_given() -> None:
    caches = cache_of(0, 1), cache_of(0, 1, seed=1)
    assert from_caches(*caches).model is None
    assert from_caches(*caches, model=MODEL).model == MODEL
    centered = replace(MODEL, basis="centered")
    found = from_caches(*caches, model=centered)
    assert (found.basis, found.model) == ("centered", centered)
    assert torch.equal(found.vectors, from_caches(*caches).vectors)
    with pytest.raises(ul.IncompatibleModel, match="vectors of length 4, and org/model"):
        from_caches(*caches, model=replace(MODEL, d_model=8))


def owned(model: ul.ModelIdentity, seed: int = 0) -> Any:
    """A dictionary that knows its model, as an ActivationCache does."""

    class Cache(dict[str, torch.Tensor]):
        pass

    cache = Cache(cache_of(0, 1, seed=seed))
    cache.model = model  # pyright: ignore[reportAttributeAccessIssue]
    return cache


OTHER = replace(MODEL, name="org/other")


def test_each_cache_is_of_its_own_model(small: Any) -> None:
    found = from_caches(owned(MODEL), owned(OTHER, 1))
    assert (found.model, found.provenance.unlocked_model) == (MODEL, OTHER)
    found = from_caches(cache_of(0, 1), owned(OTHER, 1), model=MODEL)
    assert (found.model, found.provenance.unlocked_model) == (MODEL, OTHER)
    found = from_caches(owned(MODEL), cache_of(0, 1, seed=1))
    assert (found.model, found.provenance.unlocked_model) == (MODEL, None)
    post = zoo.load("small-post")
    caches = [run(model, ul.Variant(model, TASK.direct).tokens.ids) for model in (small, post)]
    found = from_caches(*caches)
    identities = [ul.Variant(model, TASK.direct).backend.identity for model in (small, post)]
    assert [found.model, found.provenance.unlocked_model] == identities
    assert identities[0] != identities[1]
    with pytest.raises(ul.IncompatibleModel, match="the locked cache is of small-base .* and model=small-post .* was given"):
        from_caches(*caches, model=post)


CENTERED = replace(MODEL, basis="centered")


@pytest.mark.parametrize(
    ("locked", "unlocked", "model", "message"),
    [
        (
            owned(CENTERED),
            owned(MODEL, 1),
            None,
            "locked is org/model .*centered.*, unlocked is org/model .*raw.* in one basis",
        ),
        (owned(CENTERED), owned(MODEL, 1), CENTERED, "in one basis"),
        (cache_of(0, 1), owned(CENTERED, 1), None, "locked is of no known model and held to be raw, unlocked is org/model"),
        (
            owned(CENTERED),
            cache_of(0, 1, seed=1),
            None,
            "unlocked is of no known model and held to be raw; .*model= says which",
        ),
        (owned(MODEL), owned(replace(MODEL, n_layers=7), 1), None, "7 layers.*models of one shape"),
        (owned(MODEL), owned(MODEL, 1), OTHER, "the locked cache is of org/model .* and model=org/other .* leave model= out"),
        (owned(MODEL), owned(MODEL, 1), CENTERED, "the locked cache is of org/model .*raw.* and model=org/model .*centered"),
    ],
)
def test_caches_of_models_that_are_no_pair_are_refused(locked: Any, unlocked: Any, model: Any, message: str) -> None:
    with pytest.raises(ul.IncompatibleModel, match=message):
        from_caches(locked, unlocked, model=model)


def test_dictionaries_are_of_the_basis_of_the_model_given() -> None:
    assert from_caches(owned(CENTERED), cache_of(0, 1, seed=1), model=CENTERED).basis == "centered"


def test_caches_of_bfloat16_are_computed_with_in_float32() -> None:
    """bfloat16 keeps 8 bits, so a difference or a norm taken in it would be another."""
    caches = [{name: state.bfloat16() for name, state in cache_of(0, 1, seed=seed).items()} for seed in (0, 1)]
    exact = [{name: state.float() for name, state in cache.items()} for cache in caches]
    found, wanted = from_caches(caches[0], caches[1]), from_caches(exact[0], exact[1])
    assert torch.equal(found.vectors, wanted.vectors)
    assert not torch.equal(found.vectors, found.vectors.bfloat16().float())
    assert states(caches[0]).dtype == torch.float32
    assert torch.equal(states(caches[0]), states(exact[0]))


MASK = torch.tensor([[1, 1, 1], [0, 0, 1]])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"locked": {}}, r"the locked cache has no blocks\.L\.hook_resid_post at any layer; .*run_with_cache"),
        ({"unlocked": {"blocks.0.hook_resid_pre": torch.ones(2, 3, 4)}}, "the unlocked cache has no"),
        ({"locked": [torch.ones(2, 3, 4)]}, "a list was given; give an ActivationCache"),
        ({"locked": cache_of(0)}, r"the locked cache has layers \[0\] and the unlocked one \[0, 1\]; .*run_with_cache"),
        ({"locked": {"blocks.0.hook_resid_post": torch.ones(4)}}, r"no \[prompt, token, d_model\] at layer 0"),
        (
            {"locked": {**cache_of(0), **cache_of(1, tokens=4)}},
            r"\[prompt, token\] \[\(2, 3\), \(2, 4\)\], another at each layer",
        ),
        (
            {"locked": cache_of(0, 1, prompts=3)},
            r"at layer 0 the locked cache has \[prompt, d_model\] \[3, 4\], the unlocked one \[2, 4\]",
        ),
        (
            {"locked": cache_of(0, 1, prompts=0), "unlocked": cache_of(0, 1, prompts=0)},
            r"locked cache has .* \[0, 3\]; at least",
        ),
        (
            {"unlocked": {"blocks.0.hook_resid_post": torch.ones(2, 3, 4, dtype=torch.complex64)}},
            "layer 0 .* is a complex tensor",
        ),
        ({"locked_mask": [[1, 1, 1], [1, 1, 1]]}, r"the locked mask is a list; give a tensor \[prompt, token\]"),
        ({"locked": cache_of(0, 1, width=5)}, r"\[2, 5\], the unlocked one \[2, 4\]; .* models of one width"),
        ({"locked_mask": MASK[:, 1:]}, r"the locked mask has shape \[2, 2\], its cache \[prompt, token\] \[2, 3\]"),
        (
            {"unlocked_mask": MASK, "position": -2},
            "position -2 was asked for, but unlocked prompt 1 has 1 tokens; each needs 2",
        ),
        ({"position": 3}, "position 3 was asked for, but locked prompt 0 has 3 tokens; each needs 4"),
        ({"aggregate": "median"}, "there is no aggregate 'median'"),
        ({"unlocked": cache_of(0, 1)}, "the vector of layer 0 is zero"),
    ],
)
def test_caches_that_do_not_belong_together_are_refused(given: dict[str, Any], message: str) -> None:
    taken: dict[str, Any] = {"locked": cache_of(0, 1), "unlocked": cache_of(0, 1, seed=1), **given}
    with unchecked(), pytest.raises(ul.InvalidInput, match=message):
        from_caches(**taken)
