"""Directions and states of ActivationCaches are those that the library itself makes of the same prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import unlock_lens as ul
from tests.checks import unchecked
from unlock_lens import zoo
from unlock_lens.core import read
from unlock_lens.interchange import from_caches, states

MODEL = ul.ModelIdentity("org/model", 5, 4)
OTHER, CENTERED = replace(MODEL, name="org/other"), replace(MODEL, basis="zero_mean")
TASK = zoo.running_sum(n=6)
UNEVEN = ["3 1 A :", "5 think A : S 5 5", "6 6 6 6 1 2 3 rev A :"]
"""They begin unlike the prompts of the task: states after the same tokens would differ by rounding alone."""


def run(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None, **more: Any) -> Any:
    return model.run_with_cache(ids, attention_mask=mask, **more)[1]


def cache_of(*layers: int, prompts: int = 2, tokens: int = 3, width: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {f"blocks.{layer}.hook_resid_post": torch.randn(prompts, tokens, width, generator=random) for layer in layers}


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
    def caches(*layers: int) -> list[Any]:
        names = [f"blocks.{layer}.hook_resid_post" for layer in layers]
        prompts = (TASK.direct, TASK.think)
        return [run(small, ul.Variant(small, one).tokens.ids, names_filter=lambda name: name in names) for one in prompts]

    some = caches(0, 2)
    assert from_caches(*some).layers == (0, 2)
    for cache, missing in ((some[0], r"\[1\]"), (caches(0)[0], r"\[1, 2\]")):
        with pytest.raises(ul.InvalidInput, match=f"{missing}.*names_filter"):
            states(cache)


def test_a_prompt_without_batch_dimension_is_one_prompt(small: Any) -> None:
    with_batch = [run(small, ul.Variant(small, prompts[:1]).tokens.ids) for prompts in (TASK.direct, TASK.think)]
    without = [{name: state[0] for name, state in cache.items()} for cache in with_batch]
    wanted = from_caches(*with_batch)
    assert torch.equal(from_caches(without[0], without[1], model=wanted.model).vectors, wanted.vectors)


def owned(model: ul.ModelIdentity, seed: int = 0) -> Any:
    """A dictionary that knows its model, as an ActivationCache does."""

    class Cache(dict[str, torch.Tensor]):
        pass

    cache = Cache(cache_of(0, 1, seed=seed))
    cache.model = model  # pyright: ignore[reportAttributeAccessIssue]
    return cache


@pytest.mark.parametrize(
    ("locked", "unlocked", "given", "model", "unlocked_model"),
    [
        (cache_of(0, 1), cache_of(0, 1, seed=1), None, None, None),
        (cache_of(0, 1), cache_of(0, 1, seed=1), MODEL, MODEL, MODEL),
        (cache_of(0, 1), cache_of(0, 1, seed=1), CENTERED, CENTERED, CENTERED),
        (owned(MODEL), owned(OTHER, 1), None, MODEL, OTHER),
        (cache_of(0, 1), owned(OTHER, 1), MODEL, MODEL, OTHER),
        (owned(MODEL), cache_of(0, 1, seed=1), None, MODEL, None),
        (owned(CENTERED), cache_of(0, 1, seed=1), CENTERED, CENTERED, CENTERED),
    ],
)
def test_each_cache_is_of_its_own_model_and_dictionaries_of_the_given_one(
    locked: Any, unlocked: Any, given: Any, model: Any, unlocked_model: Any
) -> None:
    found = from_caches(locked, unlocked, model=given)
    assert (found.model, found.provenance.unlocked_model) == (model, unlocked_model)
    assert found.basis == (model.basis if model else "raw")
    wanted = from_caches(cache_of(0, 1), cache_of(0, 1, seed=1)).vectors
    assert torch.equal(found.vectors, wanted), "the basis says how the states are held, and changes no number"


def test_real_caches_know_their_models(small: Any) -> None:
    post = zoo.load("small-post")
    variants = [ul.Variant(model, TASK.direct) for model in (small, post)]
    caches = [run(one.model, one.tokens.ids) for one in variants]
    found = from_caches(*caches)
    identities = [one.backend.identity for one in variants]
    assert [found.model, found.provenance.unlocked_model] == identities
    assert identities[0] != identities[1]
    with pytest.raises(ul.IncompatibleModel, match="small-base.*small-post"):
        from_caches(*caches, model=post)


@pytest.mark.parametrize(
    ("locked", "unlocked", "model", "keyword"),
    [
        (owned(CENTERED), owned(MODEL, 1), None, "locked.*zero_mean.*unlocked.*raw"),
        (owned(CENTERED), owned(MODEL, 1), CENTERED, "basis"),
        (cache_of(0, 1), owned(CENTERED, 1), None, "locked.*unknown.*raw.*model="),
        (owned(CENTERED), cache_of(0, 1, seed=1), None, "unlocked.*unknown.*raw.*model="),
        (owned(MODEL), owned(replace(MODEL, n_layers=7), 1), None, "5 layers.*7 layers"),
        (owned(MODEL), owned(MODEL, 1), OTHER, "org/model.*org/other.*model="),
        (owned(MODEL), owned(MODEL, 1), CENTERED, "raw.*zero_mean.*model="),
        (cache_of(0, 1), cache_of(0, 1, seed=1), replace(MODEL, d_model=8), "length 4.*org/model"),
    ],
)
def test_caches_of_models_that_are_not_a_pair_are_refused(locked: Any, unlocked: Any, model: Any, keyword: str) -> None:
    with pytest.raises(ul.IncompatibleModel, match=keyword):
        from_caches(locked, unlocked, model=model)


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
    ("given", "keyword"),
    [
        ({"locked": {}}, "locked.*run_with_cache"),
        ({"unlocked": {"blocks.0.hook_resid_pre": torch.ones(2, 3, 4)}}, "unlocked.*hook_resid_post"),
        ({"locked": [torch.ones(2, 3, 4)]}, "list"),
        ({"locked": {"blocks.0.hook_resid_post": torch.ones(4)}}, r"layer 0.*run_with_cache"),
        ({"locked": {"blocks.0.hook_resid_post": [1.0]}}, r"layer 0.*run_with_cache"),
        ({"unlocked": {"blocks.0.hook_resid_post": torch.ones(2, 3, 4, dtype=torch.complex64)}}, "layer 0.*complex"),
        ({"locked": {**cache_of(0), **cache_of(1, tokens=4)}}, r"\(2, 3, 4\), \(2, 4, 4\)"),
        ({"locked": cache_of(0, 1, prompts=0)}, r"\(0, 3, 4\)"),
        ({"locked": cache_of(0)}, r"\[0\].*\[0, 1\].*run_with_cache"),
        ({"locked": cache_of(0, 1, prompts=3)}, r"\[2, 3, 4\].*\[2, 2, 4\]"),
        ({"locked": cache_of(0, 1, width=5)}, r"\[2, 2, 5\].*\[2, 2, 4\]"),
        ({"locked_mask": [[1, 1, 1], [1, 1, 1]]}, "locked mask.*list"),
        ({"locked_mask": MASK[:, 1:]}, r"locked mask.*\[2, 2\].*\[2, 3\]"),
        ({"unlocked_mask": MASK, "position": -2}, "position -2.*unlocked prompt 1"),
        ({"position": 3}, "position 3.*locked prompt 0"),
        ({"aggregate": "median"}, "median"),
        ({"unlocked": cache_of(0, 1)}, "layer 0.*zero"),
    ],
)
def test_caches_that_do_not_belong_together_are_refused(given: dict[str, Any], keyword: str) -> None:
    taken: dict[str, Any] = {"locked": cache_of(0, 1), "unlocked": cache_of(0, 1, seed=1), **given}
    with unchecked(), pytest.raises(ul.InvalidInput, match=keyword):
        from_caches(**taken)
