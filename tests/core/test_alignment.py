"""The aligner's algebra and inputs; that its maps are the formula on real models, tests/hosts/test_oracle.py shows."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import unlock_lens as ul
from tests import oracle
from tests.checks import unchecked
from unlock_lens import zoo
from unlock_lens.core.alignment import SubspaceAligner
from unlock_lens.hosts.identity import ModelIdentity
from unlock_lens.method import calibrate as calibration
from unlock_lens.method.align import proportional_layer

TASK = zoo.running_sum(n=12, seed=3)

# Tokens fewer than, as many as, and more than the widths.
SHAPES = st.sampled_from([(5, 8, 6), (8, 8, 8), (6, 8, 6), (40, 8, 6), (40, 6, 9), (7, 7, 12)])


def acts(seed: int, layers: int, n: int, d_model: int) -> torch.Tensor:
    return torch.randn(layers, n, d_model, generator=torch.Generator().manual_seed(seed))


def direction(seed: int, layers: tuple[int, ...], d_model: int, **more: Any) -> ul.CapabilityDirection:
    return ul.CapabilityDirection(acts(seed, 1, len(layers), d_model)[0], layers, **more)


@given(SHAPES, st.integers(0, 1000), st.integers(1, 8), st.booleans())
def test_maps_are_the_formula(shape: tuple[int, int, int], seed: int, rank: int, centered: bool) -> None:
    """For n < d, n = d and n > d. The oracle goes up to the rank that is there: beyond it, pinv and SVD return noise."""
    n, d_s, d_t = shape
    rank = min(rank, n - centered, d_s, d_t)
    source, target = acts(seed, 2, n, d_s), acts(seed + 1, 3, n, d_t)
    aligner = SubspaceAligner(rank, centered=centered).fit_activations(source, target)
    assert aligner.layer_map == {0: 0, 1: 0, 2: 1}
    for b, a in aligner.layer_map.items():
        true = oracle.linear_map(source[a].double(), target[b].double(), rank, centered)
        assert float((aligner.map(b) - true).norm() / true.norm()) < 1e-3


@given(SHAPES, st.integers(0, 1000), st.integers(1, 8), st.booleans())
def test_at_rank_is_a_fresh_fit_at_that_rank(shape: tuple[int, int, int], seed: int, rank: int, centered: bool) -> None:
    n, d_s, d_t = shape
    rank = min(rank, n - centered, d_s, d_t)
    source, target = acts(seed, 2, n, d_s), acts(seed + 1, 2, n, d_t)
    whole = SubspaceAligner(min(n, d_s, d_t), centered=centered).fit_activations(source, target)
    fresh = SubspaceAligner(rank, centered=centered).fit_activations(source, target)
    for b in (0, 1):
        torch.testing.assert_close(whole.at_rank(rank).map(b), fresh.map(b), rtol=1e-4, atol=1e-5)


@given(SHAPES, st.integers(0, 1000), st.floats(-2, 2).filter(lambda x: abs(x) > 0.01))
def test_transport_is_linear(shape: tuple[int, int, int], seed: int, factor: float) -> None:
    n, d_s, d_t = shape
    aligner = SubspaceAligner(4).fit_activations(acts(seed, 2, n, d_s), acts(seed + 1, 3, n, d_t))
    a, b = direction(seed, (0, 1), d_s), direction(seed + 7, (0, 1), d_s)
    whole, parts = aligner.transport(a + factor * b), (aligner.transport(a), aligner.transport(b))
    torch.testing.assert_close(whole.vectors, parts[0].vectors + factor * parts[1].vectors, rtol=1e-3, atol=1e-4)


@given(SHAPES, st.integers(0, 1000))
def test_transport_is_the_map(shape: tuple[int, int, int], seed: int) -> None:
    n, d_s, d_t = shape
    aligner = SubspaceAligner(4).fit_activations(acts(seed, 3, n, d_s), acts(seed + 1, 2, n, d_t))
    given_direction = direction(seed, (0, 1, 2), d_s)
    found = aligner.transport(given_direction)
    assert found.layers == (0, 1)
    for b, a in aligner.layer_map.items():
        torch.testing.assert_close(found.vectors[b], given_direction.vectors[a] @ aligner.map(b), rtol=1e-3, atol=1e-4)


@given(st.integers(1, 40), st.integers(1, 40))
def test_the_layer_map_is_proportional(source: int, target: int) -> None:
    found = [proportional_layer(b, source, target) for b in range(target)]
    assert found == [oracle.layer_of_source(b, source, target) for b in range(target)]
    assert found == sorted(found)
    assert found[-1] == source - 1
    assert found[0] == (0 if target > 1 else source - 1)


def test_one_target_layer_reads_the_last_source_layer() -> None:
    aligner = SubspaceAligner(2).fit_activations(acts(0, 4, 9, 8), acts(1, 1, 9, 6))
    assert aligner.layer_map == {0: 3}


def test_a_layer_map_of_the_users_own() -> None:
    aligner = SubspaceAligner(2, layer_map={2: 0, 1: 3}).fit_activations(acts(0, 4, 9, 8), acts(1, 3, 9, 6))
    assert aligner.layer_map == {1: 3, 2: 0}
    assert aligner.transport(direction(0, (0, 1), 8)).layers == (2,)
    assert aligner.at_rank(1).layer_map == {1: 3, 2: 0}
    with pytest.raises(ul.InvalidInput, match="direction has layers .*none in common"):
        aligner.transport(direction(0, (1, 2), 8))
    with pytest.raises(ul.InvalidInput, match="no map for target layer 0; it maps"):
        aligner.map(0)
    for wrong in ({3: 0}, {0: 4}, {-1: 0}):
        with pytest.raises(ul.InvalidInput, match="the target has layers 0 to 2, the source 0 to 3"):
            SubspaceAligner(2, layer_map=wrong).fit_activations(acts(0, 4, 9, 8), acts(1, 3, 9, 6))
    with pytest.raises(ul.InvalidInput, match="layer map is empty"):
        SubspaceAligner(2, layer_map={}).fit_activations(acts(0, 4, 9, 8), acts(1, 3, 9, 6))


@pytest.mark.parametrize(("rank", "n", "centered", "cap"), [(20, 7, False, 7), (7, 7, True, 6), (20, 40, False, 6)])
def test_the_cap_of_the_rank_is_reported(rank: int, n: int, centered: bool, cap: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        aligner = SubspaceAligner(rank, centered=centered).fit_activations(acts(0, 1, n, 8), acts(1, 1, n, 6 if n > 8 else 9))
    assert f"rank {rank} requested, but {n} calibration tokens span only rank {cap}" in caplog.text
    assert int(torch.linalg.matrix_rank(aligner.map(0), rtol=1e-4)) == cap


def test_nothing_is_reported_where_the_rank_is_there(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        SubspaceAligner(5).fit_activations(acts(0, 2, 9, 8), acts(1, 2, 9, 6))
    assert not caplog.text


def test_bad_calibrations_are_refused(small: Any, large: Any) -> None:
    with pytest.raises(ul.InvalidInput, match="rank 0 was given"):
        SubspaceAligner(0)
    with unchecked(), pytest.raises(ul.InvalidInput, match="positions 'first' were given"):
        SubspaceAligner(2, positions="first")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ul.InvalidInput, match="12 source and 11 target texts"):
        SubspaceAligner(2).fit(ul.Variant(large, TASK.direct), ul.Variant(small, TASK.direct[1:]))
    with pytest.raises(ul.InvalidInput, match="has 9 tokens in the source and 10 in the target, and is not the same text"):
        SubspaceAligner(2, positions="all").fit(ul.Variant(large, TASK.direct), ul.Variant(small, TASK.think))
    with pytest.raises(ul.InvalidInput, match="no token of large-base can be paired .*small-base: .*skip_first leaves"):
        SubspaceAligner(2, positions="all", skip_first=True).fit(ul.Variant(large, ["Q"]), ul.Variant(small, ["Q"]))
    with unchecked(), pytest.raises(ul.InvalidInput, match="9 source and 8 target tokens"):
        SubspaceAligner(2).fit_activations(acts(0, 2, 9, 8), acts(1, 2, 8, 6))
    spoiled = acts(0, 2, 9, 8)
    spoiled[1, 4, 2] = float("inf")
    with pytest.raises(ul.InvalidInput, match="activations of target layer 1 are not finite at token 4"):
        SubspaceAligner(2).fit_activations(acts(0, 2, 9, 8), spoiled)
    with pytest.raises(ul.InvalidInput, match="activations of source layer 0 do not vary"):
        SubspaceAligner(2, centered=True).fit_activations(torch.ones(2, 9, 8), acts(1, 2, 9, 6))


def test_an_aligner_that_is_not_fitted_is_reported() -> None:
    aligner = SubspaceAligner(2)
    for use in (lambda: aligner.transport(direction(0, (0,), 8)), lambda: aligner.map(0), lambda: aligner.layer_map):
        with pytest.raises(ul.InvalidInput, match="not fitted yet; call fit or fit_activations first"):
            use()
    fitted = aligner.fit_activations(acts(0, 1, 9, 8), acts(1, 1, 9, 6))
    assert fitted is aligner
    for rank in (0, 3):
        with pytest.raises(ul.InvalidInput, match="this aligner has ranks 1 to 2"):
            aligner.at_rank(rank)


def test_only_the_sources_directions_are_transported(small: Any, large: Any) -> None:
    aligner = SubspaceAligner(4).fit(ul.Variant(large, TASK.direct), ul.Variant(small, TASK.direct))
    with pytest.raises(ul.IncompatibleModel, match="direction has d_model 64, but the aligner's source has 96"):
        aligner.transport(direction(0, (0, 1, 2), 64))
    other = ModelIdentity("other", 4, 96)
    with pytest.raises(ul.IncompatibleModel, match=r"belongs to other .*, but the aligner reads large-base"):
        aligner.transport(direction(0, (0, 1), 96, model=other))
    with pytest.raises(ul.IncompatibleModel, match="zero-mean"):
        aligner.transport(direction(0, (0, 1), 96, basis="zero_mean"))


def test_the_paper_and_text_calibrations_see_different_tokens(small: Any, large: Any) -> None:
    paper = SubspaceAligner.paper(4).fit(large, small, TASK.direct)
    everything = SubspaceAligner(4).fit(large, small, TASK.direct)
    rest = SubspaceAligner(4, skip_first=True).fit(large, small, TASK.direct)
    assert (paper.n_tokens, everything.n_tokens, rest.n_tokens) == (12, 12 * 9, 12 * 8)
    assert repr(paper).startswith("SubspaceAligner(rank=4, centered=False, positions='last'; large-base (4 layers")


@given(st.integers(0, 100))
def test_a_linear_relation_between_the_models_is_found(seed: int) -> None:
    """Exactly, whatever the tokens."""
    truth = acts(seed, 1, 8, 6)[0]
    source = acts(seed + 1, 1, 30, 8)
    aligner = SubspaceAligner(6).fit_activations(source, source @ truth)
    full = SubspaceAligner(8).fit_activations(source, torch.cat([source @ truth, source[..., :2]], dim=-1))
    assert aligner.map(0).shape == (8, 6)
    torch.testing.assert_close(full.map(0)[:, :6], truth, rtol=1e-3, atol=1e-3)


def test_a_second_fit_forgets_the_first(small: Any, large: Any) -> None:
    aligner = SubspaceAligner(4).fit(ul.Variant(large, TASK.direct), ul.Variant(small, TASK.direct))
    assert aligner.target_model is not None
    aligner.fit_activations(acts(0, 2, 9, 8), acts(1, 2, 9, 6))
    assert (aligner.source_model, aligner.target_model, aligner.prompts_hash) == (None, None, None)
    assert aligner.transport(direction(0, (0, 1), 8)).model is None


def test_activations_with_a_graph_leave_it_behind() -> None:
    aligner = SubspaceAligner(4).fit_activations(acts(0, 2, 9, 8).requires_grad_(), acts(1, 2, 9, 6))
    assert not any(tensor.requires_grad for tensor in aligner.maps.tensors().values())


def test_each_layer_is_decomposed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    original = calibration.principal

    def counted(states: torch.Tensor, rank: int | None, centered: bool, name: str) -> Any:
        seen.append(name)
        return original(states, rank, centered, name)

    monkeypatch.setattr(calibration, "principal", counted)
    SubspaceAligner(2).fit_activations(acts(0, 2, 9, 8), acts(1, 5, 9, 6))
    assert len(seen) == len(set(seen)) == 2 + 5


def test_a_raw_direction_is_converted_for_a_zero_mean_source() -> None:
    """The source's host holds states without their d_model mean, so the direction must lose its own before it is mapped."""
    centered = ul.ModelIdentity("source", 2, 8, basis="zero_mean")
    aligner = SubspaceAligner(4).fit_activations(acts(0, 2, 20, 8), acts(1, 2, 20, 6), source_model=centered)
    raw = ul.CapabilityDirection(acts(2, 1, 2, 8)[0] + 5, (0, 1), "raw", ul.ModelIdentity("source", 2, 8))
    found = aligner.transport(raw).vectors
    torch.testing.assert_close(found, aligner.transport(raw.zero_mean()).vectors)
    assert not torch.allclose(found, torch.stack([raw.vectors[a] @ aligner.map(b) for b, a in aligner.layer_map.items()]))


def test_layers_come_in_ascending_order_however_they_are_mapped() -> None:
    aligner = SubspaceAligner(2, layer_map={2: 0, 1: 3}).fit_activations(acts(0, 4, 9, 8), acts(1, 3, 9, 6))
    assert list(aligner.layer_map) == [1, 2]
    assert aligner.transport(direction(0, (0, 3), 8)).layers == (1, 2)
