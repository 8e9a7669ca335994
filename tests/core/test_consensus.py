"""A consensus of directions against its formula, and the cosines of maps that compose against dense maps."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import unlock_lens as ul

SEEDS = st.integers(0, 2**16)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(centre: Tensor, seed: int, size: float) -> ul.CapabilityDirection:
    return ul.CapabilityDirection(size * (centre + 0.3 * draw(seed, *centre.shape)), (0, 2))


@given(SEEDS)
def test_the_consensus_is_the_mean_of_unit_vectors_at_the_mean_norm(seed: int) -> None:
    centre = draw(seed, 2, 8)
    three = [near(centre / centre.norm(dim=1, keepdim=True) * 3, seed + i, size) for i, size in enumerate((1.0, 5.0, 0.2), 1)]
    found = ul.consensus(three).vectors.double()
    units = [one.vectors.double() / one.vectors.double().norm(dim=1, keepdim=True) for one in three]
    mean = sum(units[1:], units[0])
    torch.testing.assert_close(
        found / found.norm(dim=1, keepdim=True), mean / mean.norm(dim=1, keepdim=True), rtol=0, atol=1e-5
    )
    sizes = torch.stack([one.vectors.double().norm(dim=1) for one in three]).mean(dim=0)
    torch.testing.assert_close(found.norm(dim=1), sizes, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        ul.consensus([three[0], 40 * three[1], three[2]]).unit().vectors, ul.consensus(three).unit().vectors
    )


def test_a_consensus_of_noisy_copies_is_nearer_to_what_they_have_in_common() -> None:
    centre = draw(0, 2, 64)
    true = ul.CapabilityDirection(centre, (0, 2))
    copies = [ul.CapabilityDirection(centre + draw(i, 2, 64), (0, 2)) for i in range(1, 9)]
    each = max(float(copy.cosine(true).min()) for copy in copies)
    assert float(ul.consensus(copies).cosine(true).min()) > max(each, 0.9)
    assert ul.consensus(copies).provenance.steps[-1].startswith("the consensus of 8 directions")


def test_directions_that_cannot_agree() -> None:
    one = ul.CapabilityDirection(torch.eye(1, 4), (0,))
    with pytest.raises(ul.InvalidInput, match="1 direction was given; a consensus needs at least two"):
        ul.consensus([one])
    with pytest.raises(ul.IncompatibleModel, match="layers"):
        ul.consensus([one, ul.CapabilityDirection(torch.eye(1, 4), (1,))])
    apart = ul.CapabilityDirection(torch.tensor([[-1.0, 1.0, 0.0, 0.0]]), (0,))
    with pytest.warns(UserWarning, match=r"cosine of -0\.71 at layer 0: they point apart"):
        ul.consensus([one, apart])
    with pytest.warns(UserWarning, match="point apart"), pytest.raises(ul.InvalidInput, match="cancel at layer 0"):
        ul.consensus([one, -one])


def maps(seed: int, *shapes: tuple[int, int]) -> list[ul.SubspaceAligner]:
    """Along a chain of models of these layers and widths."""
    states = [draw(seed + i, layers, 50, width) for i, (layers, width) in enumerate(shapes)]
    return [ul.SubspaceAligner(4, sinks="keep").fit_activations(a, b) for a, b in pairwise(states)]


@given(SEEDS)
def test_path_cosines_are_those_of_dense_maps(seed: int) -> None:
    """There and back, and by way of a third model; only at layers that both ways take from the same one."""
    direction = ul.CapabilityDirection(draw(seed + 9, 4, 9), (0, 1, 2, 3))
    forth, back = maps(seed, (4, 9), (3, 7), (4, 9))
    found = ul.path_cosine(direction, [forth, back])
    assert sorted(found) == [0, 3]
    for layer, b in ((0, 0), (3, 2)):
        came = direction.vectors[layer].double() @ forth.map(b).double() @ back.map(layer).double()
        assert found[layer] == pytest.approx(
            float(torch.cosine_similarity(came, direction.vectors[layer].double(), dim=0)), abs=1e-4
        )
    ab, bc = maps(seed + 20, (4, 9), (3, 7), (3, 8))
    (ac,) = maps(seed + 30, (4, 9), (3, 8))
    over = ul.path_cosine(direction, [ab, bc], ac)
    assert sorted(over) == [0, 1, 2]
    came = direction.vectors[1].double() @ ab.map(1).double() @ bc.map(1).double()
    straight = direction.vectors[1].double() @ ac.map(1).double()
    assert over[1] == pytest.approx(float(torch.cosine_similarity(came, straight, dim=0)), abs=1e-4)


def test_a_map_and_its_inverse_come_back_to_where_they_began() -> None:
    """A rotation loses nothing: cosine 1; maps that are fitted on unrelated states lose most."""
    source, turn = draw(0, 2, 80, 6), torch.linalg.qr(draw(1, 6, 6))[0]
    direction = ul.CapabilityDirection(draw(2, 2, 6), (0, 1))
    forth, back = (ul.SubspaceAligner(6).fit_activations(a, b) for a, b in ((source, source @ turn), (source @ turn, source)))
    assert min(ul.path_cosine(direction, [forth, back]).values()) > 0.999
    unrelated = maps(3, (2, 6), (2, 6), (2, 6))
    assert max(ul.path_cosine(direction, unrelated).values()) < 0.9


def test_paths_that_cannot_be_compared() -> None:
    direction = ul.CapabilityDirection(draw(0, 2, 6), (0, 1))
    with pytest.raises(ul.InvalidInput, match="the path is empty"):
        ul.path_cosine(direction, [])
    states = draw(1, 2, 40, 6)
    crossed = ul.SubspaceAligner(4, layer_map={0: 1, 1: 0}).fit_activations(states, states)
    straight = ul.SubspaceAligner(4).fit_activations(states, states)
    with pytest.raises(ul.InvalidInput, match="start from different layers everywhere"):
        ul.path_cosine(direction, [crossed], straight)
