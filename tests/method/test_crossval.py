"""The one held-out R2: what is held out is not seen, and of equal choices the plainest is taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unlock_lens.errors import InvalidInput
from unlock_lens.method.align import METHODS
from unlock_lens.method.calibrate import Factored, Held, Scores
from unlock_lens.method.crossval import CrossValidation, held_out, splits
from unlock_lens.method.reduce import LeadingAxes, of_result


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def scores(n: int = 40, folds: int = 4) -> Scores:
    """States far from zero, so that it matters from where they are seen."""
    source, target = drawn(0, n, 6) + 2, drawn(1, n, 5) - 3
    source[: n // folds] += 5
    target[: n // folds] -= 4
    return Scores(source, target + source @ drawn(2, 6, 5), torch.arange(n) * folds // n)


@pytest.mark.parametrize("centered", [True, False])
def test_a_held_out_fold_is_seen_from_the_means_of_the_others(centered: bool) -> None:
    given = scores()
    for split in splits(given, centered):
        out = given.fold == split.k
        mean_s, mean_t = given.source[~out].mean(dim=0), given.target[~out].mean(dim=0)
        p, q = (mean_s, mean_t) if centered else (torch.zeros(6).double(), torch.zeros(5).double())
        h_s, h_t = given.source[out] - p, given.target[out] - q
        for found, true in zip(split.seen, (h_s.T @ h_s, h_t.T @ h_t, h_s.T @ h_t), strict=True):
            torch.testing.assert_close(found, true)
        assert split.spread == pytest.approx(float((given.target[out] - mean_t).square().sum()))
        torch.testing.assert_close(split.pair.source.mean, mean_s)


def test_some_folds_alone_can_be_held_out() -> None:
    assert [split.k for split in splits(scores(), True)] == [0, 1, 2, 3]
    assert [split.k for split in splits(scores(), True, held_out=[2])] == [2]
    with pytest.raises(InvalidInput, match="cross-validation"):
        next(splits(scores(folds=1), True))


def test_r2_and_the_transform_error_are_those_of_the_states() -> None:
    given = scores()
    found = held_out(splits(given, True), "ridge", ranks=[2, 6], ridges=[0.1, 1.0])
    missed, spread, energy = torch.zeros(2, 2).double(), 0.0, 0.0
    for k in range(4):
        out = given.fold == k
        held = Held({0: 0}, {0: given.source[~out]}, {0: given.target[~out]}, given.fold[~out], True)
        h_s = given.source[out] - given.source[~out].mean(dim=0)
        h_t = given.target[out] - given.target[~out].mean(dim=0)
        spread, energy = spread + float(h_t.square().sum()), energy + float(h_t.square().sum())
        for i, ridge in enumerate((0.1, 1.0)):
            for j, rank in enumerate((2, 6)):
                factors = METHODS["ridge"].fit(held.pair(0), rank, ridge)
                missed[i, j] += (h_t - h_s @ factors.left.T @ factors.core @ factors.right).square().sum()
    torch.testing.assert_close(found.r2, 1 - missed / spread)
    torch.testing.assert_close(found.error, (missed / energy).sqrt())


def curve(*r2: list[list[float]]) -> CrossValidation:
    """Ranks 2 and 4, ridge strengths 0.1 and 1, one table [ridge, rank] for each layer."""
    return CrossValidation(tuple(range(len(r2))), (2, 4), (0.1, 1.0), torch.tensor(r2))


def test_of_equal_choices_the_smallest_rank_then_the_smallest_ridge_is_taken() -> None:
    assert curve([[0.5, 0.7], [0.7, 0.7]]).best == (2, 1.0)
    assert curve([[0.7, 0.7], [0.7, 0.7]]).best == (2, 0.1)
    assert curve([[0.5, 0.7], [0.6, 0.7]]).best == (4, 0.1)


def test_a_layer_that_is_worse_than_its_mean_counts_as_nothing() -> None:
    """Layer 1 is hopeless at rank 4; how hopeless must not outvote what layer 0 gains."""
    assert curve([[0.1, 0.4], [0.1, 0.1]], [[-0.1, -9.0], [-0.1, -0.1]]).best == (4, 0.1)


def test_a_sample_is_coupled_by_least_squares() -> None:
    """Half of the tokens are held: U_s^T U_t would halve the map, least squares gives all of it."""
    source = drawn(0, 60, 6) + 1
    target = source @ drawn(1, 6, 5)
    places = torch.where(torch.arange(60) % 2 == 0, torch.arange(60) // 2, -1)

    def factored(states: Tensor) -> LeadingAxes:
        reduction = LeadingAxes(states.shape[1], 30, 60, centered=True, half=False)
        reduction.add(0, states, places, 1)
        return reduction

    sides = [{0: of_result(factored(states).result(), 60)[0]} for states in (source, target)]
    pair = Factored({0: 0}, sides[0], sides[1], torch.zeros(30, dtype=torch.long)).pair(0)
    factors = METHODS["ridge"].fit(pair, 6, 0.0)
    whole = factors.left.T @ factors.core @ factors.right
    torch.testing.assert_close(whole, drawn(1, 6, 5), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("centered", [True, False])
def test_the_energy_of_a_transform_error_is_seen_from_where_the_map_sees(centered: bool) -> None:
    given, energy = scores(), 0.0
    for k in range(4):
        out = given.fold == k
        point = given.target[~out].mean(dim=0) if centered else torch.zeros(5).double()
        energy += float((given.target[out] - point).square().sum())
    assert held_out(splits(given, centered), "ridge", ranks=[6], ridges=[0.1]).energy == pytest.approx(energy)


def test_the_last_tokens_alone_can_be_looked_at() -> None:
    """The map of each fold is the same; what it misses is counted at the ends of texts."""
    given = scores()
    ends = torch.arange(40) % 5 == 4
    at_ends = Scores(given.source, given.target, given.fold, ends)
    for whole, part in zip(splits(given, True), splits(at_ends, True, ends_only=True), strict=True):
        looked_at = ends & (given.fold == part.k)
        h_t = given.target[looked_at] - part.pair.target.mean
        torch.testing.assert_close(part.pair.coupling, whole.pair.coupling)
        torch.testing.assert_close(part.seen[1], h_t.T @ h_t)
        assert part.spread == pytest.approx(float(h_t.square().sum()))


def test_a_fold_without_an_end_is_passed_over() -> None:
    given = scores()
    ends = given.fold == 1
    found = splits(Scores(given.source, given.target, given.fold, ends), True, ends_only=True)
    assert [split.k for split in found] == [1]


def test_of_ranks_within_the_tolerance_the_smallest_is_taken() -> None:
    r2 = torch.tensor([[[0.5, 0.783, 0.787, 0.79]]])
    found = CrossValidation((0,), (1, 2, 4, 8), (0.1,), r2, tolerance=0.01)
    assert found.best == (2, 0.1)
    assert found.share == pytest.approx(0.783)
    assert CrossValidation.from_json(found.to_json()).best == (2, 0.1)
    assert CrossValidation((0,), (1, 2, 4, 8), (0.1,), r2).best == (8, 0.1)
